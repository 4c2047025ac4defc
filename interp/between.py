"""The change of time and scale that carries one path onto another, for every law of the ends.

Two points are one up to scale where their ratios (alpha : beta : gamma) are the same; with a
Gaussian base alpha and gamma act as one sigma, so that log-SNR alone decides:

    log-SNR of other at time(t) = log-SNR of path at t,     scale = beta_other / beta_path

scale is worked out as the ratio of sqrt(beta^2 + sigma^2), which is the same number and regular
where beta or sigma vanishes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arguments import Time, as_time, holds
from .curve import rises
from .errors import OptionError, OutOfRange, ScheduleError
from .interpolant import Interpolant
from .inverse import bisected, followed
from .scalar import GRID

SAME = 1e-7  # the angle, in radians, at which two curves of ratios count as one


@dataclass(frozen=True)
class Between:
    """x on `other` at ``time(t)`` is ``scale(t)`` times x on `path` at t, in law.

    Attributes:
        path: where t is told.
        other: what it is carried onto.
        interval: the times of `path` that have a counterpart on `other`.
    """

    path: Interpolant
    other: Interpolant
    interval: tuple[float, float]
    _mark: Callable[[Tensor], Tensor] = field(repr=False)
    _range: tuple[Tensor, Tensor] = field(repr=False)
    _inverse: Callable[[Tensor], Tensor] = field(repr=False)
    _ends: tuple[float, float] = field(repr=False)

    def time(self, t: Time) -> Tensor:
        """The counterpart of t on `other`, float64, of t's shape.

        Raises:
            OutOfRange: a t outside `interval`.
            TimeError: a t outside [0, 1].
        """
        t = as_time(t)
        low, high = self.interval
        if not holds((t >= low) & (t <= high)):
            outside = t[(t < low) | (t > high)]
            raise OutOfRange(
                f"t = {outside.flatten()[0].item()!r} has no counterpart on {self.other!r}, whose "
                f"log-SNR does not reach there. Stay in the interval from {low!r} to {high!r}.",
                interval=self.interval,
            )
        first, last = (end.to(t.device) for end in self._range)
        # The ends are known; elsewhere nothing is infinite, nor its gradient by learned weights.
        within = (t > low) & (t < high)
        mark = self._mark(torch.where(within, t, 0.5 * (low + high)))
        there = self._inverse(torch.minimum(torch.maximum(mark, first), last))
        start, end = (torch.full_like(there, end) for end in self._ends)
        return torch.where(within, there, torch.where(t > low, end, start))

    def scale(self, t: Time) -> Tensor:
        """What x is multiplied by, float64, of t's shape; errors as `time`."""
        return self.both(t)[1]

    def both(self, t: Time) -> tuple[Tensor, Tensor]:
        """``time(t)`` and ``scale(t)``."""
        there = self.time(t)
        return there, _length(self.other, there) / _length(self.path, as_time(t))


def between(path: Interpolant, other: Interpolant, same: float = SAME) -> Between:
    """The change from ``path`` to ``other``: see `Interpolant.between`.

    Curves of ratios that come within the angle ``same`` of each other count as one.
    """
    if not isinstance(other, Interpolant):
        raise OptionError(
            f"the other path is a {type(other).__name__}, not a path. Give one, e.g. "
            "schedules.cosine()."
        )
    for one in (path, other):
        if one.element or one.basis is not path.basis:
            raise ScheduleError(
                f"{one!r} has one schedule an element, or a basis of its own, so that no one change of "
                "time and scale carries it onto another path. Match its elements one by one."
            )
    if path.gaussian_base != other.gaussian_base:
        raise ScheduleError(
            "one of these paths has a Gaussian base and the other not, so that they do not have the "
            "same law for every base. Build both with the same gaussian_base."
        )
    if path.gaussian_base:
        return _matched(path, other, path.log_snr, other.log_snr, other.time_at_log_snr)

    def inverse(phase: Tensor) -> Tensor:
        t = followed(theirs, bisected(theirs, phase), phase)
        first, last = theirs(GRID[0]), theirs(GRID[-1])
        return torch.where(phase == first, 0.0, torch.where(phase == last, 1.0, t))

    theirs = _phase(other)
    change = _matched(path, other, _phase(path), theirs, inverse)
    _require_same_curve(change, same)
    return change


def _matched(
    path: Interpolant,
    other: Interpolant,
    mine: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
) -> Between:
    """The change that matches ``mine`` and ``theirs``, which rise."""
    for one, mark in ((path, mine), (other, theirs)):
        _require_rising(one, mark)
    with torch.no_grad():
        ends = [mark(GRID[[0, -1]]) for mark in (mine, theirs)]
        low, high = torch.maximum(ends[0][0], ends[1][0]), torch.minimum(ends[0][1], ends[1][1])
        if not low < high:
            shown = [f"from {a.item():g} to {b.item():g}" for a, b in ends]
            raise OutOfRange(
                f"the log-SNR of these paths has no common range: it runs {shown[0]} on the first and "
                f"{shown[1]} on the second. Choose paths that overlap.",
                interval=None,
            )
        first, last = (_time_at(path, mine, end) for end in (low, high))
        there = inverse(low).item(), inverse(high).item()
    return Between(path, other, (first, last), mine, (low, high), inverse, there)


def _time_at(path: Interpolant, mark: Callable[[Tensor], Tensor], value: Tensor) -> float:
    if path.gaussian_base:
        return path.time_at_log_snr(value).item()
    ends = mark(GRID[[0, -1]])
    if value in ends:
        return float(value == ends[1])
    return bisected(mark, value).item()


def _require_rising(path: Interpolant, mark: Callable[[Tensor], Tensor]) -> None:
    if not (path.monotone if path.gaussian_base else rises(mark(GRID))):
        raise ScheduleError(
            f"{path!r} passes through the same ratios of its ends more than once, so that its times "
            "have no unique counterparts. Use paths that lead from base to data without turning back."
        )


def _phase(path: Interpolant) -> Callable[[Tensor], Tensor]:
    """(beta - alpha) / sqrt(alpha^2 + beta^2 + gamma^2): rises from base to data, also where only
    one of them is there."""  # noqa: D209 - one sentence

    def phase(t: Tensor) -> Tensor:
        k = path.coefficients(t)
        return (k.beta - k.alpha) / torch.hypot(k.beta, k.sigma)

    return phase


def _length(path: Interpolant, t: Tensor) -> Tensor:
    return torch.hypot(path.beta(t), path.sigma(t))


@torch.no_grad()
def _require_same_curve(change: Between, same: float) -> None:
    """Refuse two-sided paths whose ratios differ."""
    low, high = change.interval
    t = GRID[(low <= GRID) & (high >= GRID)]
    here, there = (
        torch.stack([k.alpha, k.beta, k.gamma.abs()], -1) / torch.hypot(k.beta, k.sigma)[:, None]
        for k in (change.path.coefficients(t), change.other.coefficients(change.time(t)))
    )
    angle = (here - there).norm(dim=-1)
    if angle.max() > same:
        worst = int(angle.argmax())
        shown = [" : ".join(f"{v:.4g}" for v in w[worst].tolist()) for w in (here, there)]
        raise ScheduleError(
            f"these paths are different curves: at t = {t[worst].item():.4g} alpha : beta : gamma is "
            f"{shown[0]} on the first, and {shown[1]} on the second where it comes nearest. No change "
            "of time and scale carries one onto the other, and a model of one is none of the other."
        )
