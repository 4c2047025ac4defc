"""Two paths: the best match of their curves of ratios, and the angle that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arguments import Time
from ..between import SAME, Between, between
from ..errors import InterpError, ScheduleError
from ..interpolant import Interpolant
from ..scalar import GRID
from .table import Table


@dataclass(frozen=True)
class PathReport:
    """What `compare` found; prints as a table.

    Attributes:
        a, b: what was compared.
        equivalent: whether they are one.
        max_error: the largest angle, radians, between (sigma, beta), or (alpha, beta, gamma), of the one
            and of the other at the best-matched times; pi/2 where one base is Gaussian and the other
            not.
        log_snr_gap: how far apart the ends of their ranges of log-SNR are, the larger of the two;
            infinite where only one of them reaches pure noise or clean data, NaN without Gaussian bases.
        sampling_error: the Wasserstein-2 distance between what the exact models sample on each from its
            own base, for data N(1/2, 1/4) in a dimension; NaN without Gaussian bases.
        reason: one sentence that says why.
        tol: the angle that was allowed.
    """

    a: Any
    b: Any
    equivalent: bool
    max_error: float
    log_snr_gap: float
    sampling_error: float
    reason: str
    tol: float
    _change: Between | None = field(repr=False)
    _reversed: bool = field(repr=False, default=False)

    def time_map(self, t: Time) -> Tensor:
        """The time of b at which it is at a's t, float64.

        Raises:
            ScheduleError: where no change of time carries one onto the other; says why.
            OutOfRange: a t whose log-SNR b does not have.
        """
        there = self._between().time(self._at(t))
        return 1 - there if self._reversed else there

    def scale_map(self, t: Time) -> Tensor:
        """What x on a at t is multiplied by to be on b; errors as `time_map`."""
        return self._between().scale(self._at(t))

    def _at(self, t: Time) -> Time:
        return 1 - t if self._reversed else t

    def _between(self) -> Between:
        if self._change is None:
            raise ScheduleError(f"there is no map between them: {self.reason}")
        return self._change

    def rows(self) -> list[tuple[str, str]]:
        """What the table says, line by line."""
        lines = [
            ("equivalent", "yes" if self.equivalent else "no"),
            ("largest angle", f"{self.max_error:.3g} rad, where {self.tol:.3g} is allowed"),
        ]
        if not math.isnan(self.log_snr_gap):
            lines += [
                ("gap of log-SNR at an end", f"{self.log_snr_gap:.4g}"),
                ("gap of samples (W2)", f"{self.sampling_error:.3g} for data N(0.5, 0.25)"),
            ]
        if self._change is not None:
            lines += self._map_rows()
        return [*lines, ("because", self.reason)]

    def _map_rows(self) -> list[tuple[str, str]]:
        low, high = self._between().interval
        if self._reversed:
            low, high = 1 - high, 1 - low
        shown = [low + share * (high - low) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        times = ", ".join(f"{t:.3g} → {self.time_map(t).item():.4g}" for t in shown)
        scales = ", ".join(f"{self.scale_map(t).item():.4g}" for t in shown)
        return [("time of a → of b", times), ("scale there", scales)]

    def __str__(self) -> str:
        return str(Table(f"{self.a!r}  and  {self.b!r}", self.rows()))


@torch.no_grad()
def compare_paths(a: Interpolant, b: Interpolant, tol: float) -> PathReport:
    """See `interp.equivalence.compare`."""
    for one in (a, b):
        if one.element or one.basis is not a.basis:
            raise ScheduleError(
                f"{one!r} has one schedule an element, or a basis of its own. Compare the schedules of "
                "its elements, each as a path."
            )
    if a.gaussian_base != b.gaussian_base:
        reason = (
            "the base of one is N(0, 1) and independent of the data, that of the other any law: a "
            "model of the one says nothing of the other's base."
        )
        return PathReport(a, b, False, math.pi / 2, math.nan, math.nan, reason, tol, None)
    if a.reversed != b.reversed:
        reason = "one leads from base to data and the other from data to base."
        return PathReport(a, b, False, math.pi / 2, math.nan, math.nan, reason, tol, None)
    forward = (a.reverse(), b.reverse()) if a.reversed else (a, b)
    change, why = _change(*forward, tol)
    if a.gaussian_base:
        return _gaussian(a, b, forward, tol, change, why)
    error = _matched(change) if change is not None else _hausdorff(*forward)
    same = change is not None and error <= tol
    if same:
        reason = "their ratios alpha : beta : gamma run through the same curve."
    elif change is not None:
        reason = (
            "their ratios alpha : beta : gamma run through one curve, but begin or end elsewhere."
        )
    else:
        reason = why or "their curves differ."
    return PathReport(a, b, same, error, math.nan, math.nan, reason, tol, change, a.reversed)


def _change(a: Interpolant, b: Interpolant, tol: float) -> tuple[Between | None, str]:
    """The change from a to b; None, and why, where there is none."""
    try:
        return between(a, b, max(tol, SAME)), ""
    except InterpError as error:
        if _at_equal_times(a, b) <= tol:  # curves that turn back, gone through alike
            ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
            return Between(a, b, (0.0, 1.0), _itself, (ends[0], ends[1]), _itself, (0.0, 1.0)), ""
        return None, str(error)


def _itself(t: Tensor) -> Tensor:
    return t


@torch.no_grad()
def _at_equal_times(a: Interpolant, b: Interpolant) -> float:
    return float(angle(ratios(a, GRID), ratios(b, GRID)).max())


def _gaussian(
    a: Interpolant, b: Interpolant, forward: tuple[Interpolant, Interpolant], tol: float,
    change: Between | None, why: str,
) -> PathReport:  # fmt: skip
    ends = [one.log_snr(GRID[[0, -1]]) for one in forward]
    gap = max(_gap(x, y) for x, y in zip(ends[0].tolist(), ends[1].tolist(), strict=True))
    error = _ends_apart(*forward)
    if change is not None:
        error = max(error, _matched(change))
    elif all(one.monotone for one in forward):
        error = max(error, _hausdorff(*forward))
    else:
        error = max(error, _in_step(*forward))
    sampled = [_sampled(one) for one in forward]
    apart = math.hypot(*(x - y for x, y in zip(*sampled, strict=True)))
    same = error <= tol and change is not None
    if same:
        reason = "they cover the same range of log-SNR, which alone decides with a Gaussian base."
    elif change is None:
        reason = why
    else:
        shown = [f"from {x:.4g} to {y:.4g}" for x, y in (e.tolist() for e in ends)]
        reason = (
            f"log-SNR runs {shown[0]} on the one and {shown[1]} on the other. Where both have it they "
            "are one; a run that begins or ends elsewhere is not."
        )
    return PathReport(a, b, same, error, gap, apart, reason, tol, change, a.reversed)


def _gap(x: float, y: float) -> float:
    return 0.0 if x == y else abs(x - y)


def _sampled(path: Interpolant, mean: float = 0.5, std: float = 0.5) -> tuple[float, float]:
    """Mean and standard deviation of what the exact flow makes of the base, for normal data.

    From N(0, sigma_0^2) to t = 1 by x -> beta_1 m + r (x - beta_0 m), r^2 = S_1 / S_0, then, where noise
    is left, one first-order step to the data estimate m + (beta_1 s^2 / S_1)(x - beta_1 m).
    """
    k0, k1 = (path.coefficients(t) for t in (0.0, 1.0))
    s0, s1 = ((k.beta**2 * std**2 + k.sigma**2).item() for k in (k0, k1))
    if s0 == 0:  # the path begins as a point, and no flow leaves it
        return math.nan, math.nan
    slope = math.sqrt(s1 / s0)
    at, wide = -slope * k0.beta.item() * mean, slope * k0.sigma.item()  # about beta_1 m
    if path.boundary.ends_clean:
        return mean + at / k1.beta.item(), wide / k1.beta.item()
    pull = k1.beta.item() * std**2 / s1
    return mean + pull * at, pull * wide


def ratios(path: Interpolant, t: Tensor) -> Tensor:
    """(sigma, beta), or (alpha, beta, |gamma|), as a unit vector: (n, 2) or (n, 3)."""
    k = path.coefficients(t)
    parts = (k.sigma, k.beta) if path.gaussian_base else (k.alpha, k.beta, k.gamma.abs())
    return torch.nn.functional.normalize(torch.stack(parts, -1), dim=-1, eps=1e-300)


def angle(u: Tensor, v: Tensor) -> Tensor:
    """The angle between unit vectors, right also where it is small."""
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


def _ends_apart(a: Interpolant, b: Interpolant) -> float:
    return float(angle(ratios(a, GRID[[0, -1]]), ratios(b, GRID[[0, -1]])).max())


@torch.no_grad()
def _matched(change: Between) -> float:
    """The largest angle at matched times, and at the ends."""
    low, high = change.interval
    inside = low + (high - low) * GRID
    there = change.time(inside)
    error = angle(ratios(change.path, inside), ratios(change.other, there)).max()
    return max(float(error), _ends_apart(change.path, change.other))


_FINE = 2049


@torch.no_grad()
def _hausdorff(a: Interpolant, b: Interpolant) -> float:
    """The largest angle from a point of the one curve to the nearest of the other."""
    return max(float(_nearest(a, b).max()), float(_nearest(b, a).max()))


def _nearest(a: Interpolant, b: Interpolant) -> Tensor:
    """The angle from points of a to the nearest points of b, by a grid and golden sections."""
    t = torch.linspace(0, 1, _FINE, dtype=torch.float64)
    u, v = ratios(a, GRID), ratios(b, t)
    at = (u @ v.mT).argmax(1)
    low, high = t[(at - 1).clamp(min=0)], t[(at + 1).clamp(max=_FINE - 1)]
    for _ in range(80):
        third = (high - low) / 3
        left, right = low + third, high - third
        nearer = angle(u, ratios(b, left)) < angle(u, ratios(b, right))
        low, high = torch.where(nearer, low, left), torch.where(nearer, right, high)
    ends = torch.minimum(angle(u, v[:1]), angle(u, v[-1:]))
    return torch.minimum(angle(u, ratios(b, (low + high) / 2)), ends)


@torch.no_grad()
def _in_step(a: Interpolant, b: Interpolant) -> float:
    """The largest angle at equal shares of the way, for curves that turn back."""
    t = torch.linspace(0, 1, _FINE, dtype=torch.float64)
    ways = []
    for one in (a, b):
        u = ratios(one, t)
        ways.append(torch.cat([t[:1], angle(u[1:], u[:-1]).cumsum(0)]))
    share = ways[0] / ways[0][-1].clamp(min=1e-300) * ways[1][-1]
    at = torch.searchsorted(ways[1], share).clamp(1, _FINE - 1)
    step = (ways[1][at] - ways[1][at - 1]).clamp(min=1e-300)
    inside = ((share - ways[1][at - 1]) / step).clamp(0, 1)
    there = t[at - 1] + inside * (t[at] - t[at - 1])
    return float(angle(ratios(a, t), ratios(b, there)).max())
