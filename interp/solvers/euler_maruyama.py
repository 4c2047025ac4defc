"""Euler-Maruyama and its exponential form on an SDE."""

from __future__ import annotations

import itertools

from torch import Tensor

from ..errors import Unsupported
from ..terms import SDE, Field, PathSDE, Steps
from .plan import Plan, Request, native, pose
from .problem import Observer, Problem
from .programme import Programme, Stage, saving
from .recurrence import run_of


def euler_maruyama(
    term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None,
    diffusion: Field | None = None,
) -> Plan:  # fmt: skip
    """The run of x_r = a x + b f(t, x) + s (W(r) - W(t))."""
    grid = request.times
    if isinstance(term, PathSDE):
        field = term.drift_field(request.cond, grid[-1] > grid[0])
    else:
        field = term.drift_field(request.cond)
    problem = pose(x, x, request.saves, field, term.exact_time, request.backend)
    problem.observer = observer
    problem.native = native(term, x, request)
    steps = (
        term.steps(grid)
        if isinstance(term, PathSDE)
        else _steps_by_hand(term, grid, problem, request, diffusion)
    )
    # One stage a step, written down at once: a run may have very many of them.
    stages = [
        Stage((t, 0.0, 1.0, 0), 0.0, a, [(0, b)], [(s, t, r, 0.0)] if s else [], r)
        for (t, r), a, b, s in zip(itertools.pairwise(grid), steps.a, steps.b, steps.s, strict=True)
    ]
    programme = saving(Programme(grid[0], 0, 1, stages), request.saves)
    return run_of(programme, problem, request, term, x)


def _steps_by_hand(
    term: SDE, grid: list[float], problem: Problem, request: Request, diffusion: Field | None
) -> Steps:
    """Euler-Maruyama: x + h drift + g dW."""
    if term.calculus != "ito":
        raise Unsupported(
            f"euler_maruyama converges to the Ito solution, and this SDE is {term.calculus}. Convert "
            "the drift: subtract (1/2) g dg/dx."
        )
    g = diffusion or term.diffusion_field(request.cond)
    lengths = [end - t for t, end in itertools.pairwise(grid)]
    ones = [1.0] * len(lengths)
    if callable(g):
        problem.diffusion = g
        return Steps(ones, lengths, ones)
    return Steps(ones, lengths, [g] * len(lengths))
