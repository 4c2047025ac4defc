"""How long the next step is: the errors' norm, the controller and the first step, as Rust's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...arguments import host
from ..problem import Adaptive
from .run import Run, combine


def scaled(y: Tensor, y_end: Tensor, error: Tensor, goal: Adaptive) -> Tensor:
    """The error over atol + rtol max(|y|, |y_end|), in double precision."""
    size = torch.maximum(y.abs(), y_end.abs()).double()
    error = error.double()
    # Without an absolute tolerance a padding element is 0 / 0: no error is no error.
    return torch.where(error == 0, 0.0, error / (goal.atol + goal.rtol * size))


def scaled_rows(y: Tensor, y_end: Tensor, error: Tensor, goal: Adaptive) -> Tensor:
    """The same, (rows, elements)."""
    return scaled(y, y_end, error, goal).reshape(len(y) if y.ndim else 1, -1)


@torch.no_grad()
def row_norms(ratios: Tensor, norm: str) -> list[float]:
    """The norm of each row of (rows, elements)."""
    each = ratios.abs().amax(1) if norm == "max" else ratios.square().mean(1).sqrt()
    values: list[float] = each.tolist()
    return values


@torch.no_grad()
def error_norm(
    y: Tensor, y_end: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor],
    goal: Adaptive,
) -> float:  # fmt: skip
    """The norm of h sum_j weights_j k_j, scaled; 0 without elements."""
    if y.numel() == 0:
        return 0.0
    error = combine(torch.zeros_like(y), h, weights, slopes)
    if goal.norm == "rms":
        return float(scaled(y, y_end, error, goal).square().mean().sqrt())
    # Not Python's max, which loses a NaN.
    return float(host(row_norms(scaled_rows(y, y_end, error, goal), goal.norm)).max())


def estimate(norms: Sequence[float]) -> float:
    """One error out of the norms of one or two estimates; see `interp.solvers.tableaus`."""
    error = norms[0]
    if len(norms) == 1 or error == 0:
        return error
    return float(error * error / (error * error + 0.01 * norms[1] * norms[1]) ** 0.5)


class Controller:
    """The filter of `interp.solvers.control`."""

    def __init__(self, gains: tuple[float, float, float], order: float) -> None:
        self.gains, self.alone = gains, 1 / order
        self.before = self.older = 1.0
        self.refused = False

    def accepted(self, error: float) -> float:
        """The factor after a step that was taken."""
        now, before, older = self.gains
        memory = float(self.before**-before * self.older**-older)
        factor = 10.0 if error == 0 else 0.9 * float(error**-now) * memory
        most = 1.0 if self.refused else 10.0
        self.older, self.before, self.refused = self.before, max(error, 1e-4), False
        return min(max(factor, 0.2), most)

    def rejected(self, error: float) -> float:
        """The factor after a step that was refused."""
        self.refused = True
        if not error < float("inf"):
            return 0.2
        return min(max(0.9 * float(error**-self.alone), 0.2), 1.0)


def starting_step(run: Run, first: Tensor, goal: Adaptive, order: float) -> float:
    """The first step after Hairer, Norsett and Wanner (Solving ODEs I, II.4); one evaluation."""
    y, forward = run.y, 1.0 if goal.to >= goal.from_ else -1.0
    size, speed = (error_norm(y, y, 1.0, [1.0], [v], goal) for v in (y, first))
    trial = bounded(first_trial(size, speed), goal)
    moved = run.slope(goal.from_ + forward * trial, y + forward * trial * first)
    change = error_norm(y, y, 1.0, [1.0, -1.0], [moved, first], goal) / trial
    return bounded(refined_step(trial, speed, change, order), goal)


def first_trial(size: float, speed: float) -> float:
    """A trial Euler step: a hundredth of the scaled state over the scaled slope."""
    return 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed


def refined_step(trial: float, speed: float, change: float, order: float) -> float:
    """The step whose error would be about 1 %, from the slope's change over the trial step."""
    largest = speed if change != change else max(speed, change)
    step = max(trial * 1e-3, 1e-6) if largest <= 1e-15 else float((0.01 / largest) ** (1 / order))
    return min(step, 100 * trial)


def bounded(step: float, goal: Adaptive) -> float:
    """A first step of at least the smallest that moves the time, and at most the run."""
    span = abs(goal.to - goal.from_)
    smallest = min(4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to)), span)
    return max(min(step, span), smallest)
