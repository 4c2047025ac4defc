"""The reversible Heun method of SDEs, and its exact gradient in the memory of one state.

With f, g drift and diffusion, W the path's increment over the step (Kidger, Foster, Li, Lyons,
2105.13493, algorithms 1 and 2):

    z^_new = 2 z - z^ + f(t, z^) h + g(t, z^) W
    z_new  = z + (f(t, z^) + f(t_new, z^_new)) h / 2 + (g(t, z^) + g(t_new, z^_new)) W / 2

and the same with the roles of the two ends exchanged goes back, so that a derivative follows the states
of the run without having kept them. The noise is drawn again from its path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..terms import SDE, PathSDE
from . import rust_backend
from .gradients import carried as carried_back
from .gradients import leaves_of, pulled
from .plan import Engine, Plan, Request
from .problem import NoiseKey, Observer, Problem, Report
from .recurrence import noise_key
from .stochastic import (
    carried,
    noise_of,
    own_grid,
    posed,
    require_calculus,
    require_finite,
    require_saves_on,
)
from .stochastic_tableaus import HEUN
from .torch_backend.run import Run, bad_rows, finite
from .torch_backend.stochastic import Noise


def reversible_heun(
    term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """The plan of a run of the reversible Heun method."""
    grid = request.grid
    if grid is None:
        raise OptionError("reversible_heun takes the steps it is given. Give steps=N.")
    noise = noise_of(term, x, request.ends[0], request.cond)
    require_calculus("reversible_heun", term, noise, ito=False, matrix=True)
    require_finite(request, term)
    require_saves_on(grid, request.saves)
    own, last = own_grid(HEUN, request, term, x)
    saves = [s for s in request.saves if last is None or s != last]
    key = noise_key(term, x, grid, request)
    own = grid if own is None else own
    # Its second state strays from the first wherever the drift draws together, however short the steps.
    at = carried(HEUN, term, own, always=True)
    problem = posed(term, x, request, noise, saves, at)
    engine: Engine = rust_backend.reversible_heun if request.backend == "rust" else kept
    if request.gradient == "reversible":
        engine = _undone
    arguments = (noise.shared, key, own)
    made = Plan(
        engine, arguments, problem, request.saves, request.asked, at, request.ends[0], own[-1], last,
        noise=key,
    )  # fmt: skip
    if observer is not None:
        problem.observer = made.told(observer)
    return made


Slopes = tuple[Tensor, Tensor]
_Ahead = tuple[Tensor, Slopes]


class Steps:
    """Single steps, forward and back."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def slopes(self, t: float, y: Tensor) -> Slopes:
        """Drift and diffusion."""
        run, problem = self.run, self.run.problem
        f = run.slope(t, y)
        return f, problem.diffusion(problem.told(t), y)  # type: ignore[misc]

    def kick(self, g: Tensor, w: Tensor) -> Tensor:
        """The diffusion times the increment."""
        kick = g * w.to(g.dtype)
        return kick.sum(-1) if self.run.problem.channels else kick

    def ahead(self, t: float, end: float, state: Tensor, w: Tensor, at: Slopes) -> _Ahead:
        """(z, z^) at the end of a step, and the slopes there, from those at its start."""
        z, hat = state
        h, (f, g) = end - t, at
        hat_end = 2 * z - hat + h * f + self.kick(g, w)
        f_end, g_end = self.slopes(end, hat_end)
        kicks = self.kick(g, w) + self.kick(g_end, w)
        made = torch.stack([z + 0.5 * h * (f + f_end) + 0.5 * kicks, hat_end])
        return made, (f_end, g_end)

    def forward(self, t: float, end: float, state: Tensor, w: Tensor) -> Tensor:
        """(z, z^) at the end of a step."""
        return self.ahead(t, end, state, w, self.slopes(t, state[1]))[0]

    def back(self, t: float, end: float, state: Tensor, w: Tensor) -> Tensor:
        """(z, z^) at the start of a step from those at its end."""
        z, hat = state
        h = end - t
        f, g = self.slopes(end, hat)
        hat_start = 2 * z - hat - h * f - self.kick(g, w)
        f_start, g_start = self.slopes(t, hat_start)
        kicks = self.kick(g, w) + self.kick(g_start, w)
        return torch.stack([z - 0.5 * h * (f + f_start) - 0.5 * kicks, hat_start])


def kept(problem: Problem, shared: bool, key: NoiseKey, grid: list[float]) -> Report:
    """A run of which autograd, where it watches, keeps everything."""
    run = Run(problem)
    noise = Noise(problem, shared, key, run.y)
    steps, state = Steps(run), torch.stack([run.y, run.y])
    run.save_state(grid[0])
    pairs = list(itertools.pairwise(grid))
    at = steps.slopes(grid[0], run.y)
    for (t, end), (w, _) in zip(pairs, noise.path.increments(pairs), strict=True):
        state, at = steps.ahead(t, end, state, w.reshape(noise.shape), at)
        if not finite(state):
            run.rows = bad_rows(*state)
            return run.report("non_finite", t, end - t)
        if run.accept(end, state[0]):
            return run.report("stopped", end, end - t)
    return run.report("done", grid[-1], grid[-1] - grid[-2])


class _Leg:
    """The run from one output time to the next, as `interp.solvers.gradients` carries it."""

    def __init__(self, run: Run, noise: Noise, grid: list[float]) -> None:
        self.steps, self.run, self.noise, self.grid = Steps(run), run, noise, grid
        self.status, self.t = "done", grid[-1]

    def forward(self, state: Tensor) -> Tensor:
        """The states at the end."""
        pairs = list(itertools.pairwise(self.grid))
        state = state.detach()
        for (t, end), (w, _) in zip(pairs, self.noise.path.increments(pairs), strict=True):
            new = self.steps.forward(t, end, state, w.reshape(self.noise.shape))
            if not finite(new):
                self.run.rows, self.status, self.t = bad_rows(*new), "non_finite", t
                self.grid = self.grid[: self.grid.index(t) + 1]
                return state
            state = new
            self.run.accepted += 1
            if self.run.problem.observer is not None:
                self.run.problem.observer(end, state[0], self.run.nfe)
        return state

    def backward(
        self, state: Tensor, gradient: Tensor, leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """From the states at the end and the derivative by them to those at the start."""
        pairs = [(end, t) for t, end in itertools.pairwise(self.grid)][::-1]
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        for (end, t), (minus_w, _) in zip(pairs, self.noise.path.increments(pairs), strict=True):
            w = -minus_w.reshape(self.noise.shape)
            with torch.no_grad():
                state = self.steps.back(t, end, state, w)
            with torch.enable_grad():
                at = state.detach().requires_grad_()
                made = self.steps.forward(t, end, at, w)
                by_state, *by_leaves = pulled(made, [at, *leaves], gradient)
            gradient = by_state
            totals = [total + by for total, by in zip(totals, by_leaves, strict=True)]
        return gradient, totals


def _undone(problem: Problem, shared: bool, key: NoiseKey, grid: list[float]) -> Report:
    """A run that is undone, step by step, to be differentiated."""
    y = problem.y
    if y is None:
        raise ValueError("the state of this problem was already taken by a run")
    leaves = leaves_of([problem.field, problem.diffusion], problem, y, grid[0])
    run = Run(problem)
    noise = Noise(problem, shared, key, run.y)
    state = torch.stack([y, y])
    kept = [y] * problem.saves.count(grid[0])
    marks = [grid[0], *(s for s in problem.saves if s not in (grid[0], grid[-1])), grid[-1]]
    status, t = "done", grid[-1]
    for begin, end in itertools.pairwise(marks):
        leg: Any = _Leg(run, noise, grid[grid.index(begin) : grid.index(end) + 1])
        state = carried_back(leg, state, leaves)
        if leg.status != "done":
            status, t = leg.status, leg.t
            break
        kept += [state[0]] * problem.saves.count(end)
    if kept:
        problem.xs = torch.stack(kept)
    run.y = state[0]
    return Report(
        y=run.y, status=status, t=t, accepted=run.accepted, rejected=0, nfe=run.nfe,
        step=abs(grid[-1] - grid[-2]), rows=run.rows, field_s=run.field_s,
    )  # fmt: skip
