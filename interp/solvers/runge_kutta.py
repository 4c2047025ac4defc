"""Runge-Kutta methods on an ODE, in the coordinates in which its view is regular."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..arguments import host, spread
from ..terms import ODE, Coordinates, Field, PathODE
from . import rust_backend, torch_backend, torchdiffeq_backend
from .plan import Ahead, Engine, Plan, Request, clock, clock_reader, cut, native, pose
from .problem import Observer, Problem

_ROWS: dict[str, Engine] = {
    "rust": rust_backend.runge_kutta_rows,
    "torch": torch_backend.runge_kutta_rows,
}
_ENGINES: dict[str, Engine] = {
    "rust": rust_backend.runge_kutta,
    "torch": torch_backend.runge_kutta,
    "torchdiffeq": torchdiffeq_backend.runge_kutta,
}


@dataclass(slots=True)
class Laid:
    """A run in the coordinates of its term.

    Attributes:
        problem: what is to be run.
        request: what was asked.
        coordinates: those of the run; None for (x, t) itself.
        start, stop: its ends in the caller's clock.
        ends, taus: its ends and its grid, if any, in its own.
        last: the end of a further first-order step, where the term needs one.
    """

    problem: Problem
    request: Request
    coordinates: Coordinates | None
    start: float
    stop: float
    ends: tuple[float, float]
    taus: list[float] | None
    last: float | None

    def plan(self, engine: Engine, arguments: tuple[Any, ...], observer: Observer | None) -> Plan:
        """The plan that runs it on an engine."""
        saves, asked = self.request.saves, self.request.asked
        at, start, stop, last = self.coordinates, self.start, self.stop, self.last
        made = Plan(engine, arguments, self.problem, saves, asked, at, start, stop, last)
        if observer is not None:
            self.problem.observer = made.told(observer)
        return made


def laid_out(
    term: ODE | PathODE, x: Tensor, request: Request, seen: ODE | PathODE | None = None
) -> Laid:
    """A run where the term's view is regular; a view of the data ends with a first-order step.

    ``seen``: the same flow by another view, in whose coordinates the run is to be.
    """
    seen = term if seen is None else seen
    at, grid, (start, stop), last = seen.coordinates, request.grid, request.ends, None
    if isinstance(term, PathODE) and term.view == "data" and term.clean(stop):
        last = stop
        if grid is not None:
            grid = grid[:-1]
            stop = grid[-1]
        else:
            stop = _before_clean_data(term, start, request)
    forward = request.ends[1] - request.ends[0]
    saves = [s for s in request.saves if last is None or (s - stop) * forward <= 0]
    y, marks, taus, ends = x, saves, grid, (start, stop)
    if at is not None:
        y = spread(1 / at.scale(host(start)), x) * x
        tau = clock(at, [start, stop, *saves, *(grid or [])])
        marks, ends = [tau[s] for s in saves], (tau[start], tau[stop])
        taus = None if grid is None else [tau[t] for t in grid]
    one_time = request.backend == "rust" and not request.per_row
    form, ahead = (seen.affine() if one_time else None), None
    if form is not None and form.reads is not None and request.gradient is None:
        ahead = Ahead(form, request.cond)
    slope = ahead or seen.slope(request.cond)
    if request.per_row:
        slope = _at_every_row(slope)
    detached = request.gradient is None and request.backend
    problem = pose(x, y, marks, slope, seen.exact_time, detached or "torch")
    apart = request.per_row and grid is None and x.numel() > 0
    problem.native = native(seen, x, request, form, per_row=apart)
    if ahead is not None:
        problem.times = ahead.times
    elif at is not None:
        problem.times = clock_reader(at)
    return Laid(problem, request, at, start, stop, ends, taus, last)


def runge_kutta(
    term: ODE | PathODE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """The run of a Runge-Kutta method."""
    laid, method = laid_out(term, x, request), request.method
    problem, taus = laid.problem, laid.taus
    goal = request.adaptive(laid.ends) if taus is None else None
    engine: Engine = torch_backend.esdirk if method.implicit else _ENGINES[request.backend]
    head: Any = method.peer if request.backend == "torchdiffeq" else method.numbers
    arguments: tuple[Any, ...] = (head, taus, goal)
    if request.per_row and goal is not None and x.numel() > 0:
        engine, arguments = _ROWS[request.backend], (head, goal)
        problem.cut = lambda rows: term.slope(cut(request.cond, rows, len(x)))
        problem.xs.fill_(float("nan"))  # where a row ends early
    return laid.plan(engine, arguments, observer)


def _at_every_row(slope: Field) -> Field:
    """A field that is told the time of each row, whether the run has one or many."""
    return lambda t, y: slope(t.expand(len(y)), y)


def _before_clean_data(term: PathODE, start: float, request: Request) -> float:
    """Where an adaptive run hands over to the first-order step.

    That step's error is of second order in sigma / beta; at a tenth of the tolerance's square root
    it is a hundredth of the tolerance where the data vary on the scale 1.
    """
    small = 0.1 * (request.atol + request.rtol) ** 0.5
    begin = float(term.path.noise_scale(start).max())
    return start if begin <= small else term.almost_clean(small)
