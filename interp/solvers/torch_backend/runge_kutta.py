"""Runge-Kutta methods, on a grid or with adaptive steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..problem import Adaptive, Problem, Report
from ..tableaus import Numbers
from .control import Controller, error_norm, estimate, starting_step
from .run import Run, bad_rows, combine, finite


def stage_time(c: float, t: float, end: float) -> float:
    """The time of a stage; the end itself is hit exactly."""
    return end if c == 1.0 else t + c * (end - t)


def between(numbers: Numbers, theta: float) -> tuple[float, list[float]]:
    """The state at theta of a step, as weights of y_end and the slopes; see `interp.solvers.tableaus`."""
    rest = 1 - theta
    bump = theta * theta * rest * rest
    basis = (1.0, theta, theta * rest, theta * theta * rest)
    end = len(numbers.b) - numbers.fsal
    weights = [0.0] * max(len(numbers.a), end + 1)
    for power, row in zip(basis, numbers.dense, strict=False):
        for j, d in enumerate(row):
            weights[j] += bump * power * d
    weights[0] += theta * rest * rest
    weights[end] -= theta * theta * rest
    return theta * theta * (3 - 2 * theta), weights


class Step:
    """One step: the slopes of its stages, and the state at its end."""

    status = "non_finite"  # why there is no state at the end, where there is none

    def __init__(
        self, run: Run, numbers: Numbers, first: Tensor, t: float, end: float,
        goal: Adaptive | None,
    ) -> None:  # fmt: skip
        self.run, self.numbers, self.t, self.end = run, numbers, t, end
        self.h, self.slopes = end - t, [first]
        self.y = self.advance()

    def advance(self) -> Tensor:
        """The state at the end."""
        for i in range(1, len(self.numbers.b) - self.numbers.fsal):
            self.slopes.append(self.stage(i))
        return combine(self.run.y, self.h, self.numbers.b, self.slopes)

    def stage(self, i: int) -> Tensor:
        y = combine(self.run.y, self.h, self.numbers.a[i], self.slopes)
        return self.run.slope(stage_time(self.numbers.c[i], self.t, self.end), y)

    def finish(self) -> Tensor:
        """The slope at the end."""
        if len(self.slopes) == len(self.numbers.b) - self.numbers.fsal:
            self.slopes.append(self.run.slope(self.end, self.y))
        return self.slopes[-1]

    def error(self, goal: Adaptive) -> float:
        """The scaled local error."""
        norms = [
            error_norm(self.run.y, self.y, self.h, row, self.slopes, goal)
            for row in self.numbers.error
        ]
        return estimate(norms)

    def save_inside(self) -> Tensor | None:
        """Dense output strictly inside the step; the first of the states that is not finite."""
        run, saves, bad = self.run, self.run.problem.saves, None
        extra = len(self.slopes)
        for i in range(extra, len(self.numbers.a)):
            self.slopes.append(self.stage(i))
        while run.saves_before(self.t, self.end):
            towards, weights = between(self.numbers, (saves[run.saved] - self.t) / self.h)
            base = (1 - towards) * run.y + towards * self.y
            run.save(combine(base, self.h, weights, self.slopes))
            if bad is None and not finite(run.kept[-1]):
                bad = run.kept[-1]
        return bad


def runge_kutta(
    problem: Problem,
    numbers: Numbers,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by an explicit Runge-Kutta method, on a grid or adaptively."""
    return integrate(Step, problem, numbers, grid, adaptive)


def integrate(
    kind: type[Step], problem: Problem, numbers: Numbers, grid: list[float] | None,
    adaptive: Adaptive | None,
) -> Report:  # fmt: skip
    """Integrate by steps of one kind, on a grid or adaptively."""
    run = Run(problem)
    if grid is not None:
        return _fixed(kind, run, numbers, grid)
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return _adaptive(kind, run, numbers, adaptive)


def _failed(
    run: Run, slopes: Sequence[Tensor | None], t: float, h: float, status: str = "non_finite"
) -> Report:
    run.rows = bad_rows(*slopes)
    return run.report(status, t, h)


def _fixed(kind: type[Step], run: Run, numbers: Numbers, grid: list[float]) -> Report:
    run.save_state(grid[0])
    first = run.slope(grid[0], run.y)
    for t, end in itertools.pairwise(grid):
        step = kind(run, numbers, first, t, end, None)
        if not finite(step.y):
            return _failed(run, [*step.slopes, step.y], t, step.h, step.status)
        inside = run.saves_before(t, end)
        if end != grid[-1] or inside:
            first = step.finish()
        if inside:
            bad = step.save_inside()
            if bad is not None:
                return _failed(run, [*step.slopes, bad], t, step.h)
        if run.accept(end, step.y):
            return run.report("stopped", end, step.h)
    return run.report("done", grid[-1], grid[-1] - grid[-2])


def _adaptive(kind: type[Step], run: Run, numbers: Numbers, goal: Adaptive) -> Report:
    t, forward = goal.from_, 1.0 if goal.to >= goal.from_ else -1.0
    smallest = 4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to))
    early = any(row[-1] != 0 for row in numbers.error)
    run.save_state(t)
    first = run.slope(t, run.y)
    if not finite(first):
        return _failed(run, [first], t, 0.0)
    h = goal.first_step or starting_step(run, first, goal, numbers.error_order)
    controller = Controller(goal.gains, numbers.error_order)
    while t != goal.to:
        if run.accepted + run.rejected >= goal.max_steps:
            return run.report("too_many_steps", t, h)
        left = abs(goal.to - t)
        length, end = (left, goal.to) if 1.01 * h >= left else (h, t + forward * h)
        step, error = kind(run, numbers, first, t, end, goal), float("nan")
        if finite(step.y):
            if early:
                step.finish()
            error = step.error(goal)
        if error <= 1:
            inside = run.saves_before(t, end)
            if early or inside or end != goal.to:
                first = step.finish()
            if inside and (bad := step.save_inside()) is not None:
                return _failed(run, [*step.slopes, bad], t, h)
            t = end
            if run.accept(t, step.y):
                return run.report("stopped", t, length)
            h = length * controller.accepted(error)
            continue
        run.rejected += 1
        h = length * controller.rejected(error)
        if h < smallest:
            if error < float("inf"):
                return run.report("step_underflow", t, h)
            return _failed(run, [*step.slopes, step.y], t, h, step.status)
    return run.report("done", t, h)
