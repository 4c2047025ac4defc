"""Chains on an energy in torch, on any device: see `interp.solvers.chains`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...noise import node_normals, node_uniforms
from ..effective import Effective
from ..problem import Chain, ChainReport
from .run import bad_rows, finite


@dataclass
class Point:
    """A state with its energy and slope."""

    x: Tensor
    value: Tensor | None
    slope: Tensor


@dataclass
class _Run:
    """A chain in progress."""

    chain: Chain
    point: Point
    step_size: float = 0.0
    level: int = 0
    step: int = 0
    nfe: int = 0
    field_s: float = 0.0
    acceptance: list[float] = field(default_factory=lambda: [0.0, 0.0])
    momentum: Tensor | None = None

    def at(self, x: Tensor) -> Point:
        """Energy and slope at x."""
        began = time.perf_counter()
        value, slope = self.chain.energies[self.level](x)
        self.field_s += time.perf_counter() - began
        self.nfe += 1
        return Point(x, value, slope)

    def normals(self, draw: int = 0) -> Tensor:
        """Normals like x, of this step and draw."""
        x = self.point.x
        row_len = x[:1].numel()
        node = 4 * self.step + draw
        chain = self.chain
        z = node_normals(len(x), row_len, chain.first_row, chain.key, node, x.device)
        return z.reshape(x.shape).to(x.dtype)

    def accepted(self, log_ratio: Tensor) -> Tensor:
        """Which rows take the proposal, by a uniform number of each."""
        x, chain = self.point.x, self.chain
        node = 4 * self.step + 3
        u = node_uniforms(len(x), chain.first_row, chain.key, node, x.device)
        self.count(log_ratio)
        return u.log() < log_ratio

    def count(self, log_ratio: Tensor) -> float:
        """Count what would be accepted; the mean of this step."""
        rates = log_ratio.nan_to_num(nan=-math.inf).clamp(max=0).exp()
        mean = float(rates.mean()) if len(rates) else 1.0
        self.acceptance[0] += mean
        self.acceptance[1] += 1
        return mean

    @property
    def rate(self) -> float | None:
        """The mean acceptance so far."""
        total, count = self.acceptance
        return total / count if count else None

    def log_ratio(self, new: Point, h: float) -> Tensor | None:
        """Metropolis and Hastings's log ratio of the Langevin proposal, for each row."""
        old, t = self.point, self.chain.temperature
        if old.value is None or new.value is None:
            return None
        forth = _square(new.x - old.x + h * old.slope)
        back = _square(old.x - new.x + h * new.slope)
        return (old.value - new.value) / t + (forth - back) / (4 * h * t)


def _square(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1)


def _spread(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (x.ndim - 1))


def _chosen(mask: Tensor, new: Point, old: Point) -> Point:
    """The new point where the mask says so."""
    wide = _spread(mask, old.x)
    value = None
    if new.value is not None and old.value is not None:
        value = torch.where(mask, new.value, old.value)
    x, slope = (torch.where(wide, a, b) for a, b in ((new.x, old.x), (new.slope, old.slope)))
    return Point(x, value, slope)


def _langevin(run: _Run) -> None:
    h, t = run.step_size, run.chain.temperature
    old = run.point
    new = run.at(old.x - h * old.slope + math.sqrt(2 * h * t) * run.normals())
    if run.step % 8 == 0:
        ratio = run.log_ratio(new, h)
        if ratio is not None:
            run.count(ratio)
    run.point = new


def _mala(run: _Run) -> None:
    h, t = run.step_size, run.chain.temperature
    old = run.point
    new = run.at(old.x - h * old.slope + math.sqrt(2 * h * t) * run.normals())
    ratio = run.log_ratio(new, h)
    if ratio is not None:
        run.point = _chosen(run.accepted(ratio), new, old)


def _underdamped(run: _Run) -> None:
    h, t = run.step_size, run.chain.temperature
    kept = math.exp(-run.chain.friction * h)
    point = run.point
    v = math.sqrt(t) * run.normals(1) if run.momentum is None else run.momentum
    v = v - 0.5 * h * point.slope
    x = point.x + 0.5 * h * v
    v = kept * v + math.sqrt(t * (1 - kept * kept)) * run.normals()
    x = x + 0.5 * h * v
    run.point = run.at(x)
    run.momentum = v - 0.5 * h * run.point.slope


def _hmc(run: _Run) -> None:
    h, t = run.step_size, run.chain.temperature
    old = new = run.point
    v = first = math.sqrt(t) * run.normals()
    for _ in range(run.chain.leapfrog):
        v = v - 0.5 * h * new.slope
        new = run.at(new.x + h * v)
        v = v - 0.5 * h * new.slope
    if old.value is None or new.value is None:
        return
    ratio = (old.value - new.value) / t + 0.5 * (_square(first) - _square(v)) / t
    run.point = _chosen(run.accepted(ratio), new, old)


_STEPS: dict[str, Callable[[_Run], None]] = {
    "langevin": _langevin,
    "mala": _mala,
    "underdamped": _underdamped,
    "hmc": _hmc,
}


class _DualAveraging:
    """The step size at which the mean acceptance is the target (Hoffman, Gelman, 1111.4246, 3.2)."""

    def __init__(self, step_size: float, target: float) -> None:
        self.anchor, self.target = math.log(10 * step_size), target
        self.gap = self.average = 0.0
        self.count = 0

    def update(self, acceptance: float) -> float:
        """The next step size, after a step of this acceptance."""
        self.count += 1
        n = self.count
        share = 1 / (n + 10)
        self.gap = (1 - share) * self.gap + share * (self.target - acceptance)
        log_step = self.anchor - math.sqrt(n) / 0.05 * self.gap
        weight = n**-0.75
        self.average = weight * log_step + (1 - weight) * self.average
        return math.exp(log_step)

    @property
    def settled(self) -> float:
        """The average of the step sizes."""
        return math.exp(self.average)


def chain(chain: Chain) -> ChainReport:
    """Run a chain."""
    x = chain.y
    run = _Run(chain, Point(x.clone(), None, x))
    effective, saved = Effective(x, chain.columns), list[int]()
    status, rows = "done", list[int]()
    for run.level, run.step_size in enumerate(chain.step_sizes):
        status, rows = _level(run, effective, saved)
        if status != "done":
            break
    return ChainReport(
        y=run.point.x, status=status, step=run.step, step_size=run.step_size, acceptance=run.rate,
        ess=effective.size(), saved=saved, rows=rows, nfe=run.nfe, field_s=run.field_s,
    )  # fmt: skip


def _level(run: _Run, effective: Effective, saved: list[int]) -> tuple[str, list[int]]:
    """All steps at one level; how they ended, and in which rows."""
    chain, step = run.chain, _STEPS[run.chain.dynamics]
    run.point = run.at(run.point.x)
    value, slope = run.point.value, run.point.slope
    if not finite(slope) or (value is not None and not finite(value)):
        return "bad_start", bad_rows(slope, *(() if value is None else (value,)))
    if chain.adapt and not _adapted(run, step):
        return "nothing_accepted", []
    for n in range(1, chain.steps + 1):
        before = run.point
        step(run)
        run.step += 1
        if not (finite(run.point.x) and finite(run.point.slope)):
            rows = bad_rows(run.point.x, run.point.slope)
            run.point = before
            return "non_finite", rows
        effective.add(run.point.x)
        if chain.save_every and n % chain.save_every == 0:
            chain.xs[len(saved)] = run.point.x
            saved.append(run.step)
        if chain.observer is not None and chain.observer(run.step, run.point.x, run.nfe):
            return "stopped", []
    return "done", []


def _adapted(run: _Run, step: Callable[[_Run], None]) -> bool:
    """Find the step size; whether anything was accepted on the way."""
    search = _DualAveraging(run.step_size, run.chain.target)
    seen = 0.0
    for _ in range(run.chain.adapt):
        run.acceptance = [0.0, 0.0]
        step(run)
        run.step += 1
        seen += run.acceptance[0]
        run.step_size = search.update(run.acceptance[0])
    run.step_size, run.acceptance = search.settled, [0.0, 0.0]
    return seen > 0
