"""One-step recurrences on a fixed grid, with one noise a step."""

from __future__ import annotations

import itertools

from torch import Tensor

from ...noise import BrownianPath
from ..problem import NoiseKey, Problem, Report
from .run import Run, bad_rows, finite


def euler_maruyama(
    problem: Problem,
    grid: list[float],
    a: list[float],
    b: list[float],
    s: list[float],
    noise: NoiseKey,
) -> Report:
    """y_new = a y + b field + s dW (times the diffusion, where there is one)."""
    run = Run(problem)
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
        if not finite(y_end):
            run.rows = bad_rows(slope, y_end)
            return run.report("non_finite", t, end - t)
        run.accept(end, y_end)
    return run.report("done", grid[-1], grid[-1] - grid[-2])
