"""What is free in a search: the steps of a grid, one clock, or a clock for alpha and one for beta.

Each is a function of p numbers that gives the start of the search at zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..algebra import Warp
from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant
from ..schedules import clocked, warps

CONTROLS = 10
"""More steps than these are moved together, by the numbers of as many of them."""
BINS = 6
"""Of the spline that a clock is: at 6 a smooth clock is within a per cent of the best."""


@dataclass(frozen=True)
class Candidate:
    """A schedule: a path, the times of the steps on it, and the clock by which it was made."""

    path: Interpolant | None
    grid: list[float]
    warp: Warp | None = None


def of_a_path(candidate: Candidate) -> Interpolant:
    """Its path.

    Raises:
        OptionError: the flow of a field made by hand has none.
    """
    if candidate.path is None:
        raise OptionError(
            "a field made by hand has no path. Optimise its grid, by end_error or local_error."
        )
    return candidate.path


class Space(Protocol):
    """``size`` free numbers, and what they make."""

    size: int

    def __call__(self, numbers: Tensor) -> Candidate: ...


class Steps:
    """The lengths of the steps of a grid, each times the exponential of a number of its own.

    Of more than `CONTROLS` steps the logarithm is piecewise linear along the run.
    """

    def __init__(self, start: Candidate) -> None:
        self.start, grid = start, start.grid
        self.shares = torch.tensor(grid, dtype=torch.float64).diff() / (grid[-1] - grid[0])
        self.size = min(len(self.shares), CONTROLS)

    def __call__(self, numbers: Tensor) -> Candidate:
        n = len(self.shares)
        if n > self.size:
            numbers = torch.nn.functional.interpolate(
                numbers[None, None], n, mode="linear", align_corners=True
            )[0, 0]
        shares = self.shares * torch.exp(numbers - numbers.mean())
        begin, end = self.start.grid[0], self.start.grid[-1]
        inner = begin + (end - begin) * (shares.cumsum(0) / shares.sum())
        return replace(self.start, grid=[begin, *inner[:-1].tolist(), end])


class OneClock:
    """The path at tau(t), with tau a spline of `BINS` equal bins."""

    size = 2 * BINS + 1

    def __init__(self, start: Candidate) -> None:
        self.path, self.grid = of_a_path(start), start.grid

    def __call__(self, numbers: Tensor) -> Candidate:
        clock = _clock(numbers)
        return Candidate(self.path.warp(clock), self.grid, clock)


class TwoClocks:
    """alpha(tau_a(t)) and beta(tau_b(t)): the speed and, with it, the scale and the ratios."""

    size = 2 * OneClock.size

    def __init__(self, start: Candidate) -> None:
        path = of_a_path(start)
        if path.gamma is not None:
            raise Unsupported(
                "a whole path is optimised by a clock of alpha and one of beta, and this one has a "
                'gamma. Optimise its grid or a warp of it: optimise="warp".'
            )
        self.path, self.grid = path, start.grid

    def __call__(self, numbers: Tensor) -> Candidate:
        first, second = (_clock(part) for part in numbers.chunk(2))
        return Candidate(clocked(self.path, first, second), self.grid)


def _clock(numbers: Tensor) -> Warp:
    """A spline from `BINS` shares of its rise and the slopes between, all through exponentials."""
    rise, slopes = torch.softmax(numbers[:BINS], 0), torch.exp(numbers[BINS:])
    return warps.spline([0.0, *rise.cumsum(0)[:-1].tolist(), 1.0], slopes.tolist())
