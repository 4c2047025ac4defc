"""One-step methods of SDEs in torch: see `interp.solvers.stochastic_tableaus`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...arguments import like
from ...errors import FieldError
from ...noise import BrownianPath
from ..problem import Adaptive, NoiseKey, Problem, Report
from ..stochastic_tableaus import Scheme, Term
from .control import Controller
from .run import Run, bad_rows, finite


class Noise:
    """W and H of one path, as they act on the state."""

    def __init__(self, problem: Problem, shared: bool, noise: NoiseKey, y: Tensor) -> None:
        rows = y.numel() // problem.row if problem.row else 0
        channels = problem.channels or (1 if shared else problem.row)
        self.path = BrownianPath(
            rows, channels, noise.seed, noise.first_row, noise.span, noise.depth, y.device,
            stream=noise.stream,
        )  # fmt: skip
        self.shape = (*y.shape[:1], *(1,) * (y.ndim - 1)) if shared else y.shape
        if problem.channels:
            self.shape = (*y.shape[:1], *(1,) * (y.ndim - 1), channels)

    def shaped(self, values: Tensor | None) -> Tensor | None:
        """Numbers of the path ready to multiply a slope."""
        return None if values is None else values.reshape(self.shape)


class Step:
    """A step from t to ``end``: its slopes, and the combinations of them."""

    def __init__(
        self, run: Run, scheme: Scheme, t: float, end: float, w: Tensor, area: Tensor | None
    ) -> None:
        self.run, self.scheme, self.t, self.end = run, scheme, t, end
        self.h, self.w, self.area = end - t, w, area
        self.slopes: list[Tensor] = []
        self.kinds: list[str] = []

    def basis(self, name: str) -> float | Tensor:
        """What multiplies a slope, in double precision."""
        h, w = abs(self.h), self.w
        if name == "h":
            return self.h
        if name == "sqrt":
            return math.sqrt(h)
        if name == "W":
            return w
        if name == "I10" and self.area is not None:
            return self.area + 0.5 * w
        if name == "I111":
            return w * (w * w / h - 3.0) / 6.0
        double = 0.5 * (w * w - (h if self.scheme.ito else 0.0))
        return double / math.sqrt(h) if name == "I11/sqrt" else double

    def combined(self, y: Tensor | None, terms: Sequence[Term]) -> Tensor:
        """Y plus the terms, or the terms alone."""
        total = torch.zeros_like(self.slopes[0]) if y is None else y
        for slope, name, weight in terms:
            value = self.slopes[slope]
            if name == "W" and self.kinds[slope] == "product":
                total = total + weight * value
                continue
            basis = self.basis(name)
            factor = weight * basis
            total = (
                total + (factor.to(value.dtype) if isinstance(factor, Tensor) else factor) * value
            )
        return total

    def make(self) -> Tensor:
        """The state at the end."""
        run, problem = self.run, self.run.problem
        for c, asked, terms in self.scheme.stages:
            at = self.end if c == 1.0 else self.t + c * self.h
            state = self.combined(run.y, terms) if terms else run.y
            kind = asked
            if asked == "drift":
                slope = run.slope(at, state)
            else:
                slope = self.diffusion(at, state, asked)
                if asked == "diffusion" and problem.channels:
                    slope, kind = (slope * self.w.to(slope.dtype)).sum(-1), "product"
            self.slopes.append(slope)
            self.kinds.append(kind)
        return self.combined(run.y, self.scheme.end)

    def diffusion(self, t: float, y: Tensor, asked: str) -> Tensor:
        problem = self.run.problem
        function = problem.correction if asked == "correction" else problem.diffusion
        if function is None:
            raise FieldError("this method needs a diffusion and the term has none")
        value = function(problem.told(t), y)
        columns = problem.channels if asked == "diffusion" else None
        wanted = y if columns is None else y[..., None].expand(*y.shape, columns)
        return like(value, wanted, "the diffusion")


def stochastic(
    problem: Problem,
    scheme: Scheme,
    shared: bool,
    noise: NoiseKey,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by a stochastic scheme, on a grid or adaptively."""
    run = Run(problem)
    made = Noise(problem, shared, noise, run.y)
    if grid is not None:
        return _fixed(run, scheme, made, grid)
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return _adaptive(run, scheme, made, noise, adaptive)


def _fixed(run: Run, scheme: Scheme, noise: Noise, grid: list[float]) -> Report:
    run.save_state(grid[0])
    steps = list(itertools.pairwise(grid))
    for (t, end), (w, area) in zip(steps, noise.path.increments(steps, scheme.area), strict=True):
        made = Step(run, scheme, t, end, w.reshape(noise.shape), noise.shaped(area))
        y = made.make()
        if not finite(y):
            run.rows = bad_rows(*made.slopes, y)
            return run.report("non_finite", t, end - t)
        if run.accept(end, y):
            return run.report("stopped", end, end - t)
    return run.report("done", grid[-1], grid[-1] - grid[-2])


def time_after(noise: NoiseKey, t: float, h: float, stop: float) -> float | None:
    """The tree's time at most h after t, on a level three below that of the step, as in Rust."""
    if 1.01 * abs(h) >= abs(stop - t):
        return stop
    a, b = noise.span
    level = max(math.ceil(math.log2((b - a) / abs(h))), 0) + 3
    cells = 2.0 ** min(level, noise.depth)
    position = (t + h - a) / (b - a) * cells
    time = a + (b - a) * ((math.floor(position) if h > 0 else math.ceil(position)) / cells)
    return time if (time - t) * h > 0 else None


def _adaptive(run: Run, scheme: Scheme, noise: Noise, key: NoiseKey, goal: Adaptive) -> Report:
    t, forward = goal.from_, 1.0 if goal.to >= goal.from_ else -1.0
    h = goal.first_step or abs(goal.to - t) / 100.0
    controller = Controller(goal.gains, 1 / goal.gains[0])
    run.save_state(t)
    while t != goal.to:
        if run.accepted + run.rejected >= goal.max_steps:
            return run.report("too_many_steps", t, h)
        waiting = run.problem.saves[run.saved :]
        stop = waiting[0] if waiting else goal.to
        end = time_after(key, t, forward * h, stop)
        if end is None:
            return run.report("step_underflow", t, h)
        w, area = next(noise.path.increments([(t, end)], scheme.area))
        made = Step(run, scheme, t, end, w.reshape(noise.shape), noise.shaped(area))
        y = made.make()
        good = finite(y)
        error = _error(made, run.y, y, goal) if good else math.nan
        tried = abs(end - t)
        if error <= 1:
            t, h = end, tried * controller.accepted(error)
            if run.accept(t, y):
                return run.report("stopped", t, tried)
            continue
        run.rejected += 1
        h = tried * controller.rejected(error)
        if not good and time_after(key, t, forward * h, stop) is None:
            run.rows = bad_rows(*made.slopes, y)
            return run.report("non_finite", t, h)
    return run.report("done", t, h)


def _error(made: Step, y: Tensor, end: Tensor, goal: Adaptive) -> float:
    """The root mean square of the local error over atol + rtol max(|y|, |y_end|)."""
    if y.numel() == 0:
        return 0.0
    with torch.no_grad():
        error = made.combined(None, made.scheme.error).double()
        size = torch.maximum(y.abs(), end.abs()).double()
        scaled = torch.where(error == 0, 0.0, error / (goal.atol + goal.rtol * size))
        return float(scaled.square().mean().sqrt())
