"""The search: starts, the space around them, and the least cost in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import whole
from ..errors import InterpError, OptionError, UnknownName
from ..grids import uniform
from ..grids.named import NAMED
from ..interpolant import Interpolant
from ..schedules.registry import from_config
from ..solvers import catalogue
from ..solvers.grids import check_monotone, numbers
from .flows import Ends, Flow, flow
from .least_squares import Fit, minimise
from .objectives import OBJECTIVES, EndError, LocalError, Objective
from .result import BestSchedule, Change
from .spaces import Candidate, OneClock, Space, Steps, TwoClocks

_SPACES: Mapping[str, Callable[[Candidate], Space]] = {
    "grid": Steps, "warp": OneClock, "path": TwoClocks,
}  # fmt: skip


def best_schedule(
    target_or_model: object,
    solver: str = "heun",
    steps: int = 8,
    objective: str = "end_error",
    optimise: str = "grid",
    *,
    path: Interpolant | str | None = None,
    view: str | None = None,
    time: str | tuple[str, int] | None = None,
    t: Ends | None = None,
    x: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    start: Sequence[float] | Tensor | None = None,
    rows: int = 512,
    iterations: int = 30,
    seed: int = 0,
) -> BestSchedule:
    """The schedule on which a solver of few steps errs least.

    Example:
        best = interp.best_schedule(target, "heun", 8, optimise="path")
        print(best)
        interp.solve(best.term, x, **best.options)

    Every objective is a sum of squares, minimised by Levenberg-Marquardt over the lengths of the
    steps (``optimise="grid"``), a monotone spline as a clock ("warp": what training or another
    number of steps can use too) or a clock for alpha and one for beta ("path": the scale of x is
    free as well), and then the steps. A model is not trained again: on another path it is adapted, exactly.

    Which objective: "end_error" is what one wants of a deterministic solver, on the numbers of steps
    asked for. "local_error" does not count on errors that cancel. "kinetic_energy" and "lipschitz"
    know nothing of the solver and serve many steps or unknown solvers. "likelihood" is that of
    ancestral sampling. See `interp.tuning.objectives`.

    Args:
        target_or_model: an exact target, a term, a family that samples by a flow, or a model with
            ``path``; or several of one kind, for which it finds one schedule.
        solver: a method for ODEs that takes a grid.
        steps: how many steps, 1 or more.
        objective: end_error, local_error, kinetic_energy, lipschitz or likelihood.
        optimise: grid, warp or path.
        path: the path of a target, linear by default; the one that a model was trained on.
        view: what the model returns, or which view of a target is integrated; None is the model's
            own, or the velocity.
        time: what the model is told; None is the model's own, or t.
        t: the two ends of the run; None is the term's own.
        x: starts of the flow, (2 n, ...): half for the search and half held out. Drawn from the base
            where the shape is known.
        cond: conditions of the model, with a row for each of these starts.
        start: times to start from, instead of the best of `interp.grids` for this run.
        rows: n, where the starts are drawn. Rare starts err most, and few rows miss them.
        iterations: steps of the search at most.
        seed: of what is drawn.

    Raises:
        OptionError: what has no flow to schedule; steps, rows or iterations below 1; a solver for
            SDEs.
        UnknownName: a solver, an objective, or something to optimise that does not exist.
        UndeterminedView, ScheduleError: an objective that this flow does not determine.

    Sources: Sabour, Fidler, Kreis 2024 (2404.14507) for grids of a given solver and model; Shaul et
    al. 2023 (2306.06626); Chen, Vanden-Eijnden, Xu 2025 (2509.01629).
    """
    steps, rows = whole("steps", steps, 1), whole("rows", rows, 1)
    iterations = whole("iterations", iterations, 0)
    _check(solver, objective, optimise)
    own = from_config({"name": path}) if isinstance(path, str) else path
    given = target_or_model if isinstance(target_or_model, (list, tuple)) else [target_or_model]
    if not given:
        raise OptionError("there is nothing to schedule. Give a target, a term or a model.")
    flows = [flow(one, own, view, time, t, x, cond, rows, seed) for one in given]
    first = flows[0]
    if optimise != "grid" and first.path is None:
        raise OptionError(
            f'a field made by hand has no {optimise} to optimise. Give optimise="grid".'
        )
    starts = {
        name: Candidate(first.path, grid) for name, grid in _starts(first, steps, start).items()
    }
    before = next(iter(starts.values()))
    if optimise != "grid":  # the clock is free, and the steps are even in it or as given
        starts = dict(itertools.islice(starts.items(), 1))
    cost = OBJECTIVES[objective](flows, solver, optimise == "grid", seed)
    search = _Search(cost, 1e-5 if first.dtype is torch.float64 else 3e-3, iterations)
    costs = {name: search.cost(candidate) for name, candidate in starts.items()}
    if not math.isfinite(costs[next(iter(starts))]):
        cost(before)  # raises why
    best, fit = search.around(starts[min(costs, key=lambda name: costs[name])], _SPACES[optimise])
    history = fit.history
    if optimise == "path" and isinstance(cost, (EndError, LocalError)):  # what the clocks leave
        best, fit = search.around(best, Steps)
        history += fit.history[1:]
    held = EndError(flows, solver, half=1)
    errors = (held.shown(float(held(one).square().sum())) for one in (before, best))
    return BestSchedule(
        solver=solver, steps=steps, objective=objective, optimised=optimise,
        grid=tuple(best.grid), path=best.path, warp=best.warp,
        value=Change(*(cost.shown(search.cost(one)) for one in (before, best))),
        error=Change(*errors), history=tuple(map(cost.shown, history)),
        starts={name: cost.shown(v) for name, v in costs.items()}, evaluations=search.calls,
        terms=tuple(one.on(best.path) for one in flows),
        before=(tuple(before.grid), before.path), unit=cost.unit,
    )  # fmt: skip


class _Search:
    """Searches of one cost, and how often it was evaluated."""

    def __init__(self, objective: Objective, difference: float, iterations: int) -> None:
        self.objective, self.difference, self.iterations = objective, difference, iterations
        self.calls = 0

    def cost(self, candidate: Candidate) -> float:
        """The cost of a schedule; infinite where its run fails."""
        self.calls += 1
        try:
            value = float(self.objective(candidate).square().sum())
        except InterpError:
            return math.inf
        return value if math.isfinite(value) else math.inf

    def around(self, start: Candidate, kind: Callable[[Candidate], Space]) -> tuple[Candidate, Fit]:
        """The best of the space around ``start``."""
        space = kind(start)
        zero = torch.zeros(space.size, dtype=torch.float64)
        fit = minimise(lambda v: self.objective(space(v)), zero, self.difference, self.iterations)
        self.calls += fit.evaluations
        return space(fit.parameters), fit


def _check(solver: str, objective: str, optimise: str) -> None:
    if objective not in OBJECTIVES:
        raise UnknownName.of("objective", objective, OBJECTIVES)
    if optimise not in _SPACES:
        raise UnknownName.of("part of a schedule to optimise", optimise, _SPACES)
    if catalogue.find(solver).kind == "sde":
        raise OptionError(
            f"{solver} is a method for SDEs, whose runs do not end where the flow does. Give a method "
            'for ODEs; the grid of objective="likelihood" serves ancestral sampling too.'
        )


def _starts(
    first: Flow, steps: int, given: Sequence[float] | Tensor | None
) -> dict[str, list[float]]:
    """Grids to start from, the one to compare with first."""
    begin, end = first.ends
    if given is not None:
        times = numbers("start", given)
        if len(times) != steps + 1 or (times[0], times[-1]) != (begin, end):
            raise OptionError(
                f"start has {len(times)} times, from {times[0]:g} to {times[-1]:g}, and {steps} steps from "
                f"{begin:g} to {end:g} take {steps + 1}. Give these."
            )
        return {"given": times}
    found: dict[str, list[float]] = {"uniform": uniform()(first.path, first.ends, steps)}
    for name, spacing in NAMED.items():
        try:
            found[name] = spacing()(first.path, first.ends, steps)
            check_monotone(name, found[name], first.ends)
        except InterpError:  # it counts in what this path has not
            found.pop(name, None)
    return {name: grid for name, grid in found.items() if grid[0] == begin and grid[-1] == end}
