"""Explicit Runge-Kutta methods, on a grid or with adaptive steps."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..problem import Adaptive, Problem, Report
from ..tableaus import Numbers
from .run import Run, bad_rows, combine, finite


def _stage_time(c: float, t: float, end: float) -> float:
    return end if c == 1.0 else t + c * (end - t)


def _step(
    run: Run, numbers: Numbers, first: Tensor, t: float, end: float
) -> tuple[Tensor, list[Tensor]]:
    """The state at the end of a step and the slopes on the way, without the one at the end."""
    h, slopes = end - t, [first]
    for i in range(1, len(numbers.b) - numbers.fsal):
        stage = combine(run.y, h, numbers.a[i], slopes)
        slopes.append(run.slope(_stage_time(numbers.c[i], t, end), stage))
    return combine(run.y, h, numbers.b, slopes), slopes


def _save_inside(
    run: Run, numbers: Numbers, ends: tuple[float, float], y_end: Tensor,
    slopes: list[Tensor], last: Tensor,
) -> None:  # fmt: skip
    """Dense output strictly inside a step; see `interp.solvers.tableaus`."""
    (t, end), saves = ends, run.problem.saves
    h = end - t
    while run.saved < len(saves) and (end - saves[run.saved]) * h > 0:
        theta = (saves[run.saved] - t) / h
        rest, towards = 1 - theta, theta * theta * (3 - 2 * theta)
        bump = theta * theta * rest * rest
        weights = [bump * d for d in numbers.dense] or [0.0] * len(slopes)
        at_end = (weights.pop() if numbers.dense else 0.0) - theta * theta * rest
        weights[0] += theta * rest * rest
        base = (1 - towards) * run.y + towards * y_end
        run.save(combine(base, h, [*weights, at_end], [*slopes, last]))


def runge_kutta(
    problem: Problem,
    numbers: Numbers,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by an explicit Runge-Kutta method, on a grid or adaptively."""
    run = Run(problem)
    if grid is not None:
        return _fixed(run, numbers, grid)
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return _adaptive(run, numbers, adaptive)


def _fixed(run: Run, numbers: Numbers, grid: list[float]) -> Report:
    run.save_state(grid[0])
    first = run.slope(grid[0], run.y)
    for t, end in itertools.pairwise(grid):
        y_end, slopes = _step(run, numbers, first, t, end)
        if not finite(y_end):
            run.rows = bad_rows(*slopes, y_end)
            return run.report("non_finite", t, end - t)
        if end != grid[-1] or run.saves_before(t, end):
            first = run.slope(end, y_end)
            if run.saves_before(t, end):
                if not finite(first):
                    run.rows = bad_rows(first)
                    return run.report("non_finite", t, end - t)
                _save_inside(run, numbers, (t, end), y_end, slopes, first)
        run.accept(end, y_end)
    return run.report("done", grid[-1], grid[-1] - grid[-2])


def _error(
    y: Tensor, y_end: Tensor, h: float, weights: list[float], slopes: list[Tensor], goal: Adaptive
) -> float:
    """Root mean square of the local error over atol + rtol max(|y|, |y_end|), as Rust's."""
    if y.numel() == 0:
        return 0.0
    with torch.no_grad():
        size = torch.maximum(y.abs(), y_end.abs()).double()
        error = combine(torch.zeros_like(y), h, weights, slopes).double()
        scaled = error / (goal.atol + goal.rtol * size)
        # Without an absolute tolerance a padding element is 0 / 0: no error is no error.
        return float(torch.where(error == 0, 0.0, scaled).square().mean().sqrt())


class _Controller:
    """The PI controller of Hairer, Norsett and Wanner (Solving ODEs II, IV.2), as in Rust."""

    def __init__(self, order: float) -> None:
        self.exponent, self.before, self.refused = 1 / order - 0.03, 1e-4, False

    def accepted(self, error: float) -> float:
        factor = 10.0 if error == 0 else 0.9 * error**-self.exponent * self.before**0.04
        most = 1.0 if self.refused else 10.0
        self.before, self.refused = max(error, 1e-4), False
        return min(max(factor, 0.2), most)

    def rejected(self, error: float) -> float:
        self.refused = True
        factor = 0.9 * error**-self.exponent if error > 0 else float("nan")
        return min(max(factor, 0.2), 1.0) if error < float("inf") else 0.2


def _starting_step(run: Run, first: Tensor, goal: Adaptive, order: float) -> float:
    """The first step after Hairer, Norsett and Wanner (Solving ODEs I, II.4); one evaluation."""
    y, span = run.y, abs(goal.to - goal.from_)
    forward = 1.0 if goal.to >= goal.from_ else -1.0
    size, speed = (_error(y, y, 1.0, [1.0], [v], goal) for v in (y, first))
    smallest = min(4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to)), span)
    trial = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
    trial = max(min(trial, span), smallest)
    moved = run.slope(goal.from_ + forward * trial, y + forward * trial * first)
    change = _error(y, y, 1.0, [1.0, -1.0], [moved, first], goal) / trial
    largest = speed if change != change else max(speed, change)
    step = max(trial * 1e-3, 1e-6) if largest <= 1e-15 else (0.01 / largest) ** (1 / order)
    return max(min(step, 100 * trial, span), smallest)


def _adaptive(run: Run, numbers: Numbers, goal: Adaptive) -> Report:
    t, forward = goal.from_, 1.0 if goal.to >= goal.from_ else -1.0
    smallest = 4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to))
    run.save_state(t)
    first = run.slope(t, run.y)
    if not finite(first):
        run.rows = bad_rows(first)
        return run.report("non_finite", t, 0.0)
    h = goal.first_step or _starting_step(run, first, goal, numbers.error_order)
    controller = _Controller(numbers.error_order)
    while t != goal.to:
        if run.accepted + run.rejected >= goal.max_steps:
            return run.report("too_many_steps", t, h)
        left = abs(goal.to - t)
        step, end = (left, goal.to) if 1.01 * h >= left else (h, t + forward * h)
        y_end, slopes = _step(run, numbers, first, t, end)
        last, error = None, float("nan")
        if finite(y_end):
            last = run.slope(end, y_end)
            error = _error(run.y, y_end, end - t, numbers.error, [*slopes, last], goal)
        if last is not None and error <= 1:
            _save_inside(run, numbers, (t, end), y_end, slopes, last)
            t, first = end, last
            run.accept(t, y_end)
            h = step * controller.accepted(error)
            continue
        run.rejected += 1
        h = step * controller.rejected(error)
        if h < smallest:
            bounded = error < float("inf")
            run.rows = [] if bounded else bad_rows(*slopes, last, y_end)
            return run.report("step_underflow" if bounded else "non_finite", t, h)
    return run.report("done", t, h)
