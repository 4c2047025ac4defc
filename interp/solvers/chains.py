"""Chains on an energy: Langevin and Hamiltonian dynamics, with and without acceptance.

With step size h, temperature T and z standard normals:

    langevin      x - h dU + sqrt(2 h T) z                         unadjusted (Roberts, Tweedie 1996)
    annealed      the same through a list of levels, h_i = h (level_i / level_last)^2
                  (Song, Ermon, 1907.05600, algorithm 1)
    mala          the same, accepted by Metropolis and Hastings
    underdamped   BAOAB with unit mass and friction (Leimkuhler, Matthews, 1203.5428)
    hmc           leapfrog steps of unit mass, accepted (Duane et al. 1987; Neal, 1206.1901)

The normals of a step are keyed by (seed, row, element, step), so that a chain does not depend on its
neighbours, and ``first_row`` makes chunks of the whole.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arguments import host, real, whole
from ..errors import OptionError, SolveError, Unsupported
from ..noise import STREAMS, check_first_row, check_seed, fresh_seed, node_normals, stream_key
from ..terms import Cond, Energy
from .effective import Effective
from .result import Solution, Stats, StepState

CHAINS = ("langevin", "annealed", "mala", "underdamped", "hmc")
_ACCEPTED = ("mala", "hmc")
#: What dual averaging aims at: Roberts and Rosenthal (1998); Beskos et al. (1001.4460) and Stan.
_TARGETS = {"mala": 0.574, "hmc": 0.8}


@dataclass
class Point:
    """A state with its energy and slope."""

    x: Tensor
    value: Tensor | None
    slope: Tensor


@dataclass
class Chain:
    """A chain in progress."""

    energy: Energy
    cond: Cond
    step_size: float
    point: Point
    seed: int
    first_row: int
    options: Mapping[str, Any]
    extra: tuple[Any, ...] = ()
    step: int = 0
    nfe: int = 0
    field_s: float = 0.0
    acceptance: list[float] = field(default_factory=lambda: [0.0, 0.0])
    momentum: Tensor | None = None

    def __post_init__(self) -> None:
        self.key = stream_key(self.seed, STREAMS["chain"])

    def at(self, x: Tensor) -> Point:
        """Energy and slope at x."""
        began = time.perf_counter()
        value, slope = self.energy.value_and_gradient(x, self.extra, self.cond)
        self.field_s += time.perf_counter() - began
        self.nfe += 1
        return Point(x, value, slope)

    def normals(self, draw: int = 0) -> Tensor:
        """Normals like x, of this step and draw."""
        x = self.point.x
        row_len = x[:1].numel()
        node = 4 * self.step + draw
        z = node_normals(len(x), row_len, self.first_row, self.key, node, x.device)
        return z.reshape(x.shape).to(x.dtype)

    def accepted(self, log_ratio: Tensor) -> Tensor:
        """Which rows take the proposal, by a uniform number of each."""
        x = self.point.x
        z = node_normals(len(x), 1, self.first_row, self.key, 4 * self.step + 3, x.device)
        log_ratio = log_ratio.nan_to_num(nan=-math.inf, posinf=0.0)
        self.count(log_ratio)
        taken: Tensor = torch.special.log_ndtr(z[:, 0]) < log_ratio
        return taken

    def count(self, log_ratio: Tensor) -> float:
        """Count what would be accepted; the mean of this step."""
        mean = float(log_ratio.clamp(max=0).exp().mean()) if len(log_ratio) else 1.0
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
        old, t = self.point, self.energy.temperature
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


def _langevin(chain: Chain) -> None:
    h, t = chain.step_size, chain.energy.temperature
    old = chain.point
    new = chain.at(old.x - h * old.slope + math.sqrt(2 * h * t) * chain.normals())
    if chain.step % 8 == 0:
        ratio = chain.log_ratio(new, h)
        if ratio is not None:
            chain.count(ratio.nan_to_num(nan=-math.inf))
    chain.point = new


def _mala(chain: Chain) -> None:
    h, t = chain.step_size, chain.energy.temperature
    old = chain.point
    new = chain.at(old.x - h * old.slope + math.sqrt(2 * h * t) * chain.normals())
    ratio = chain.log_ratio(new, h)
    if ratio is not None:
        chain.point = _chosen(chain.accepted(ratio), new, old)


def _underdamped(chain: Chain) -> None:
    h, t = chain.step_size, chain.energy.temperature
    kept = math.exp(-chain.options["friction"] * h)
    point = chain.point
    v = math.sqrt(t) * chain.normals(1) if chain.momentum is None else chain.momentum
    v = v - 0.5 * h * point.slope
    x = point.x + 0.5 * h * v
    v = kept * v + math.sqrt(t * (1 - kept * kept)) * chain.normals()
    x = x + 0.5 * h * v
    chain.point = chain.at(x)
    chain.momentum = v - 0.5 * h * chain.point.slope


def _hmc(chain: Chain) -> None:
    h, t = chain.step_size, chain.energy.temperature
    old = new = chain.point
    v = first = math.sqrt(t) * chain.normals()
    for _ in range(chain.options["leapfrog"]):
        v = v - 0.5 * h * new.slope
        new = chain.at(new.x + h * v)
        v = v - 0.5 * h * new.slope
    if old.value is None or new.value is None:
        return
    ratio = (old.value - new.value) / t + 0.5 * (_square(first) - _square(v)) / t
    chain.point = _chosen(chain.accepted(ratio), new, old)


_STEPS: dict[str, Callable[[Chain], None]] = {
    "langevin": _langevin,
    "annealed": _langevin,
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


def run(
    energy: Energy, x: Tensor, name: str, *, steps: int | None, seed: int | None, first_row: int,
    cond: Cond, callback: Callable[[StepState], object] | None, options: Mapping[str, Any],
) -> Solution:  # fmt: skip
    """Run a chain; see `interp.solve`."""
    began = time.perf_counter()
    _check(energy, x, name)
    given = _options(name, options)
    count = whole("steps", 0 if steps is None else steps, 1)
    seed = fresh_seed() if seed is None else check_seed(seed)
    first_row = check_first_row(first_row, len(x))
    chain = Chain(
        energy, cond, given["step_size"], Point(x.detach().clone(), None, x), seed, first_row, given
    )
    effective, saved, ts = Effective(x), [], []
    every = given["save_every"]
    status = "done"
    for level, h in _levels(name, given):
        chain.extra, chain.step_size = level, h
        chain.point = chain.at(chain.point.x)
        _require_finite(chain)
        if given["adapt"] and not _adapted(chain, _STEPS[name], given["adapt"], _TARGETS[name]):
            raise _diverged(chain)
        for n in range(1, count + 1):
            before = chain.point
            _STEPS[name](chain)
            chain.step += 1
            if not bool(chain.point.x.isfinite().all() & chain.point.slope.isfinite().all()):
                if options.get("on_failure") != "partial":
                    raise _diverged(chain, before)
                chain.point, status = before, "non_finite"
                break
            effective.add(chain.point.x)
            if every and n % every == 0:
                saved.append(chain.point.x)
                ts.append(float(chain.step))
            if callback is not None and callback(_state(chain)):
                status = "stopped"
                break
        if status != "done":
            break
    rate = chain.rate
    if name in _ACCEPTED and rate is not None and rate < 0.05 and status == "done":
        _complain(chain, rate, count)
    stats = Stats(
        nfe=chain.nfe, steps=chain.step, accepted=chain.step, rejected=0,
        wall_s=time.perf_counter() - began, field_s=chain.field_s, method=name, backend="torch",
        status=status, seed=seed, acceptance=rate, ess=effective.size(), step_size=chain.step_size,
    )  # fmt: skip
    if not saved:
        saved, ts = [chain.point.x], [float(chain.step)]
    return Solution(chain.point.x, host(ts), torch.stack(saved), stats)


def _state(chain: Chain) -> StepState:
    return StepState(float(chain.step), chain.point.x, chain.nfe, chain.step, lambda t, x: None)


def _levels(name: str, given: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], float]]:
    """What the potential is told beside x, and the step size, in turn."""
    h = given["step_size"]
    if name != "annealed":
        return [((), h)]
    levels = given["levels"]
    return [((level,), h * (level / levels[-1]) ** 2) for level in levels]


def _options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if "step_size" not in options:
        raise OptionError(f"{name} needs a step size. Give step_size=h, in units of x^2 / U.")
    step_size = real("step_size", options["step_size"])
    if step_size == 0:
        raise OptionError("step_size=0 does not move. Give a positive number.")
    friction = real("friction", options.get("friction", 1.0))
    adapt = whole("adapt", options.get("adapt", 0), 0)
    levels: Sequence[float] = options.get("levels", ())
    if name == "annealed":
        levels = [real("levels", level) for level in levels]
        if not levels or 0 in levels:
            raise OptionError("annealed needs noise levels. Give levels=[largest, ..., smallest].")
    return {
        "step_size": step_size, "friction": friction, "adapt": adapt, "levels": levels,
        "leapfrog": whole("leapfrog", options.get("leapfrog", 10), 1),
        "save_every": whole("save_every", options.get("save_every", 0), 0),
    }  # fmt: skip


def _check(energy: Energy, x: Tensor, name: str) -> None:
    if x.ndim == 0:
        raise OptionError("x has no rows. Give a tensor of shape (rows, ...).")
    if name in _ACCEPTED and energy.potential is None:
        raise Unsupported(
            f"{name} accepts by the energy, and this Energy has only a gradient. Give its potential, or "
            "use langevin or underdamped."
        )


def _adapted(chain: Chain, step: Callable[[Chain], None], steps: int, target: float) -> bool:
    """Find the step size; whether anything was accepted on the way."""
    search = _DualAveraging(chain.step_size, target)
    seen = 0.0
    for _ in range(steps):
        chain.acceptance = [0.0, 0.0]
        step(chain)
        chain.step += 1
        seen += chain.acceptance[0]
        chain.step_size = search.update(chain.acceptance[0])
    chain.step_size, chain.acceptance, chain.step = search.settled, [0.0, 0.0], steps
    return seen > 0


def _require_finite(chain: Chain) -> None:
    """Refuse a start at which the energy or its slope is not finite."""
    point = chain.point
    values = [point.slope] if point.value is None else [point.slope, point.value[:, None]]
    for value in values:
        bad = ~value.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            rows = [int(i) for i in bad.nonzero().flatten()]
            raise SolveError(
                f"the energy or its gradient is NaN or infinite at the start, in rows {rows[:8]}. Start "
                "where the energy is finite.",
                time=float(chain.step), step=chain.step, rows=rows, last=point.x,
                reason="non_finite",
            )  # fmt: skip


def _diverged(chain: Chain, last: Point | None = None) -> SolveError:
    rate = chain.rate
    said = "" if rate is None else f"; its steps would be accepted at the rate {rate:.3g}"
    x = chain.point.x
    bad = ~(x.isfinite() & chain.point.slope.isfinite()).flatten(1).all(1)
    rows = [int(i) for i in bad.nonzero().flatten()]
    return SolveError(
        f"the chain left every bound after {chain.step} steps of size {chain.step_size:g}, in rows "
        f"{rows[:8]}{said}. Give a smaller step_size, or find one by mala or hmc with adapt=N.",
        time=float(chain.step), step=chain.step, rows=rows, last=(last or chain.point).x,
        reason="non_finite",
    )  # fmt: skip


def _complain(chain: Chain, rate: float, steps: int) -> None:
    said = f"the acceptance rate is {rate:.2g} over {steps} steps of size {chain.step_size:g}"
    if rate < 1e-6:
        raise SolveError(
            f"{said}: the chain does not move. Give a smaller step_size, or adapt=N to find one.",
            time=float(chain.step), step=chain.step, rows=[], last=chain.point.x, reason="stuck",
        )  # fmt: skip
    warnings.warn(
        f"{said}: the step is too long. Give a smaller step_size, or adapt=N to find one.",
        stacklevel=4,
    )
