"""The same methods in torch: any device, differentiable, the same numbers to rounding."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import like
from ..errors import FieldError
from ..noise import BrownianPath
from .problem import Adaptive, NoiseKey, Problem, Report
from .tableaus import Numbers


class _Run:
    """A run in progress: the state, what has been counted, and what has been saved."""

    def __init__(self, problem: Problem) -> None:
        if problem.y is None:
            raise ValueError("the state of this problem was already taken by a run")
        self.problem, self.y = problem, problem.y
        if not self.y.requires_grad:
            self.y = self.y.clone()  # the field sees it: never the caller's memory
        problem.y = None
        self.nfe = self.accepted = self.rejected = self.saved = 0
        self.field_s = 0.0
        self.rows: list[int] = []
        self.kept: list[Tensor] = []

    def call(self, function: object, t: Tensor, y: Tensor) -> Tensor:
        version = _version(y)
        start = time.perf_counter()
        result = function(t, y)  # type: ignore[operator]
        self.field_s += time.perf_counter() - start
        require_unwritten(y, version, "the field")
        result = like(result, y, "the field")
        # A result that somebody else holds may be overwritten by the next call.
        own = result.requires_grad or (sys.getrefcount(result) <= 2 and _exclusive(result))
        return result if own else result.clone()

    def slope(self, t: float, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.call(self.problem.field, self.problem.told(t), y)

    def save(self, value: Tensor) -> None:
        self.kept.append(value)
        self.saved += 1

    def save_state(self, t: float) -> None:
        saves = self.problem.saves
        while self.saved < len(saves) and saves[self.saved] == t:
            self.save(self.y)

    def saves_before(self, t: float, end: float) -> bool:
        """Whether an output time is waiting strictly before the end of the step from t."""
        saves = self.problem.saves
        return self.saved < len(saves) and (end - saves[self.saved]) * (end - t) > 0

    def accept(self, t: float, y: Tensor) -> None:
        self.y = y
        self.accepted += 1
        self.save_state(t)
        if self.problem.observer is not None:
            version = _version(y)
            self.problem.observer(t, y, self.nfe)
            require_unwritten(y, version, "the callback")

    def report(self, status: str, t: float, step: float) -> Report:
        if self.kept:
            kept = torch.stack(self.kept)
            if kept.requires_grad:
                self.problem.xs = kept
            else:
                self.problem.xs[: len(kept)] = kept
        return Report(
            y=self.y, status=status, t=t, accepted=self.accepted, rejected=self.rejected,
            nfe=self.nfe, step=abs(step), rows=self.rows, field_s=self.field_s,
        )  # fmt: skip


def _version(y: Tensor) -> int:
    """How often y was written to; torch does not count it for tensors of inference mode."""
    return 0 if y.is_inference() else int(y._version)


def require_unwritten(y: Tensor, version: int, who: str) -> None:
    """Refuse with a `FieldError` that somebody wrote into the state."""
    if _version(y) != version:
        raise FieldError(
            f"{who} wrote into the state that it was given. Work on a copy: x.clone()."
        )


def _exclusive(result: Tensor) -> bool:
    """Whether a tensor is the only way to its memory, as far as torch knows."""
    uses = getattr(torch._C, "_storage_Use_Count", None)
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(result)
    if uses is None or transformed or result._use_count() != 1:
        return False
    storage = result.untyped_storage()
    return bool(uses(storage._cdata) == 2 and storage.resizable())


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _bad_rows(*values: Tensor | None) -> list[int]:
    """Rows with a NaN or an infinity, of the first of the values that has any."""
    for value in values:
        if value is not None and not _finite(value):
            bad = ~value.isfinite().reshape(value.shape[0] if value.ndim else 1, -1).all(1)
            return [int(i) for i in bad.nonzero().flatten()]
    return []


def _combine(y: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """y + h sum_j weights_j k_j."""
    for weight, slope in zip(weights, slopes, strict=False):
        if weight != 0.0:
            y = y + (h * weight) * slope
    return y


def _stage_time(c: float, t: float, end: float) -> float:
    return end if c == 1.0 else t + c * (end - t)


def _step(
    run: _Run, numbers: Numbers, first: Tensor, t: float, end: float
) -> tuple[Tensor, list[Tensor]]:
    """The state at the end of a step and the slopes on the way, without the one at the end."""
    h, slopes = end - t, [first]
    for i in range(1, len(numbers.b) - numbers.fsal):
        stage = _combine(run.y, h, numbers.a[i], slopes)
        slopes.append(run.slope(_stage_time(numbers.c[i], t, end), stage))
    return _combine(run.y, h, numbers.b, slopes), slopes


def _save_inside(
    run: _Run, numbers: Numbers, ends: tuple[float, float], y_end: Tensor,
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
        run.save(_combine(base, h, [*weights, at_end], [*slopes, last]))


def runge_kutta(
    problem: Problem,
    numbers: Numbers,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by an explicit Runge-Kutta method, on a grid or adaptively."""
    run = _Run(problem)
    if grid is not None:
        return _fixed(run, numbers, grid)
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return _adaptive(run, numbers, adaptive)


def _fixed(run: _Run, numbers: Numbers, grid: list[float]) -> Report:
    run.save_state(grid[0])
    first = run.slope(grid[0], run.y)
    for t, end in itertools.pairwise(grid):
        y_end, slopes = _step(run, numbers, first, t, end)
        if not _finite(y_end):
            run.rows = _bad_rows(*slopes, y_end)
            return run.report("non_finite", t, end - t)
        if end != grid[-1] or run.saves_before(t, end):
            first = run.slope(end, y_end)
            if run.saves_before(t, end):
                if not _finite(first):
                    run.rows = _bad_rows(first)
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
        error = _combine(torch.zeros_like(y), h, weights, slopes).double()
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


def _starting_step(run: _Run, first: Tensor, goal: Adaptive, order: float) -> float:
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


def _adaptive(run: _Run, numbers: Numbers, goal: Adaptive) -> Report:
    t, forward = goal.from_, 1.0 if goal.to >= goal.from_ else -1.0
    smallest = 4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to))
    run.save_state(t)
    first = run.slope(t, run.y)
    if not _finite(first):
        run.rows = _bad_rows(first)
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
        if _finite(y_end):
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
            finite = error < float("inf")
            run.rows = [] if finite else _bad_rows(*slopes, last, y_end)
            return run.report("step_underflow" if finite else "non_finite", t, h)
    return run.report("done", t, h)


def euler_maruyama(
    problem: Problem,
    grid: list[float],
    a: list[float],
    b: list[float],
    s: list[float],
    noise: NoiseKey,
) -> Report:
    """y_new = a y + b field + s dW (times the diffusion, where there is one)."""
    run = _Run(problem)
    rows = run.y.numel() // problem.row if problem.row else 0
    path = BrownianPath(
        rows, problem.row, noise.seed, noise.first_row, noise.span, noise.depth, run.y.device
    )
    run.save_state(grid[0])
    w: tuple[float, Tensor] | None = None
    for i, (t, end) in enumerate(itertools.pairwise(grid)):
        slope = run.slope(t, run.y)
        diffusion = None
        if problem.diffusion is not None:
            diffusion = run.call(problem.diffusion, problem.told(t), run.y)
        y_end = a[i] * run.y + b[i] * slope
        if s[i] != 0:
            before = w[1] if w is not None and w[0] == t else path.at(t)
            w = (end, path.at(end))
            kick = (s[i] * (w[1] - before)).reshape(run.y.shape).to(run.y.dtype)
            y_end = y_end + (kick if diffusion is None else diffusion * kick)
        if not _finite(y_end):
            run.rows = _bad_rows(slope, y_end)
            return run.report("non_finite", t, end - t)
        run.accept(end, y_end)
    return run.report("done", grid[-1], grid[-1] - grid[-2])
