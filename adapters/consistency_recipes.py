"""How consistency models are trained: which times are compared, and how a difference counts.

With s = sigma / beta the noise level, K the steps of the run and k the present one:

    CT   N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, s0 = 2, s1 = 150  (2303.01469, appendix C)
    iCT  N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2(s1 / s0) + 1)) (2310.14189, eq. 7),
         s0 = 10, s1 = 1280
    ECT  s_r = s_t (1 - (1 + 8 sigmoid(-s_t)) / 2^(stage + 1)), 0 or more             (2406.14548, eq. 19)

N levels lie evenly in s^(1/7) between 0.002 and 80, or what of that the path has. t is drawn by the
family's law of time, and t and r are the ends of the cell that it falls in: log-normal times give iCT's
weights erf(...) - erf(...), and on EDM's path uniform ones CT's uniform index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp import Interpolant

LOW, HIGH, RHO = 0.002, 80.0, 7.0
TANGENT = 0.1
_HUBER = 0.00054

Levels = Callable[[float, int], int]


@dataclass(frozen=True)
class Discrete:
    """A recipe that compares two noise levels.

    Attributes:
        defaults: of the family's options.
        levels: N at a progress in [0, 1], by s1; None for ECT's pairs.
        finest: s1.
        huber: c / sqrt(dim) of sqrt(|d|^2 + c^2) - c; None for the mean of d^2.
        points: the same where data are no images; None where that is no different.
        mu: the decay of the averaged target at a progress, by s1; None where the network is its own.
    """

    levels: Levels | None
    huber: float | None
    mu: Callable[[float, int], float] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    points: float | None = None
    finest: int = 150

    @property
    def averaged(self) -> bool:
        """Whether the target is an average of the network."""
        return self.mu is not None

    def decay(self, progress: float, finest: int | None = None) -> float:
        """The decay of the average."""
        return 0.0 if self.mu is None else self.mu(progress, finest or self.finest)

    def pair(
        self, path: Interpolant, t: Tensor, progress: float, finest: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The noisier time, the cleaner one, and the difference of their noise levels."""
        low, high = bounds(path)
        s = path.noise_scale(t).clamp(low, high)
        if self.levels is None:
            above, below = s, earlier(s, progress).clamp(min=low)
            above = torch.where(above > below, above, low * 1.01)  # what fell on the lowest level
        else:
            n = self.levels(progress, finest or self.finest)
            grid = karras(n, low, high).to(s.device)
            cell = torch.searchsorted(grid, s, right=True).clamp(1, len(grid) - 1)
            above, below = grid[cell], grid[cell - 1]
        return _time(path, above), _time(path, below), above - below

    def distance(self, difference: Tensor, gap: Tensor) -> Tensor:
        """How much a row counts: pseudo-Huber by 1 / gap, or the mean square."""
        flat = difference.flatten(1)
        huber = self.huber if self.points is None or difference.ndim == 4 else self.points
        if huber is None:
            return flat.square().mean(1)
        c = max(huber * math.sqrt(flat.shape[1]), 1e-12)  # the norm has no slope at 0
        return ((flat.square().sum(1) + c * c).sqrt() - c) / gap.to(flat)


@dataclass(frozen=True)
class Continuous:
    """A recipe in the limit r -> t; ``warmup`` is the share of the run until all of it counts."""

    warmup: float = 0.1
    defaults: Mapping[str, Any] = field(default_factory=dict)


def bounds(path: Interpolant) -> tuple[float, float]:
    """The noise levels of a path between 0.002 and 80."""
    low, high = (float(path.noise_scale(t)) for t in (1.0, 0.0))
    return max(low, LOW), min(high, HIGH)


def karras(n: int, low: float, high: float) -> Tensor:
    """``n`` noise levels from ``low`` to ``high``, even in s^(1/7): float64."""
    a, b = low ** (1 / RHO), high ** (1 / RHO)
    grid: Tensor = torch.linspace(a, b, n, dtype=torch.float64) ** RHO
    grid[0], grid[-1] = low, high
    return grid


def earlier(s: Tensor, progress: float) -> Tensor:
    """ECT's cleaner level, in 8 stages."""
    stage = min(math.floor(8 * progress), 7)
    ratio = 1 - (1 + 8 * torch.sigmoid(-s)) / float(2 << stage)
    return s * ratio.clamp(min=0)


def ct_levels(progress: float, finest: int = 150) -> int:
    """2 at the beginning, ``finest`` + 1 at the end."""
    s0, s1 = 2, finest
    return math.ceil(math.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def ict_levels(progress: float, finest: int = 1280) -> int:
    """11 at the beginning, doubled until it is ``finest`` + 1."""
    phases = math.log2(finest / 10) + 1
    return min(10 << math.floor(phases * progress), finest) + 1


def _time(path: Interpolant, s: Tensor) -> Tensor:
    lam = -2 * s.log()
    ends = (path.log_snr(t).to(lam.device) for t in (0.0, 1.0))
    return path.time_at_log_snr(torch.clamp(lam, *ends))


_LOG_NORMAL = {"times": {"name": "log_normal", "mean": -1.1, "std": 2.0}, "lr": 1e-3}
_TRIGFLOW = {
    "times": {"name": "log_normal", "mean": -1.0, "std": 1.4}, "lr": 1e-3,
    "weight": {"name": "learned", "base": "simple"},
}  # fmt: skip

RECIPES: Mapping[str, Discrete | Continuous] = {
    "ct": Discrete(
        ct_levels, None, lambda p, s1: math.exp(2 * math.log(0.9) / ct_levels(p, s1)), {"lr": 1e-3}
    ),
    "cd": Discrete(lambda p, s1: 18, None, lambda p, s1: 0.95, {"lr": 1e-3}),
    "ict": Discrete(ict_levels, _HUBER, None, _LOG_NORMAL, points=1.0, finest=160),
    "ect": Discrete(None, 0.0, None, _LOG_NORMAL),
    "sct": Continuous(defaults=_TRIGFLOW),
    "scd": Continuous(defaults=_TRIGFLOW),
}
