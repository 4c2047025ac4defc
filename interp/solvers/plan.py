"""From a term and a call's arguments to what a backend runs, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import host, real, spread, whole
from ..errors import InterpError, OptionError, SolveError, Unsupported
from ..noise import STREAMS, check_first_row, check_seed, depth_for, fresh_seed
from ..terms import ODE, SDE, Cond, Coordinates, PathODE, PathSDE, Steps
from . import ending, grids, rust_backend, torch_backend, torchdiffeq_backend
from .catalogue import Method
from .problem import Adaptive, NoiseKey, Observer, Problem, Report

Engine = Callable[..., Report]


@dataclass
class Plan:
    """One run: what to call, with what, and how its numbers are read.

    Attributes:
        engine, arguments: the backend's function and what follows the problem in its call.
        problem: the run in the coordinates in which it is integrated.
        saves: the output times, in the caller's clock, on the grid where they were within rounding.
        asked: the same as they were asked for.
        coordinates: those of the run; None for (x, t) itself.
        start, stop: where the backend's part begins and ends, in the caller's clock.
        last: the end of a further first-order step, where the term needs one.
        denoise: whether a step from the noise that is left at t = 1 to clean data follows.
        noise: what keys the noise, for an SDE.
    """

    engine: Engine
    arguments: tuple[Any, ...]
    problem: Problem
    saves: list[float]
    asked: list[float]
    coordinates: Coordinates | None
    start: float
    stop: float
    last: float | None = None
    denoise: bool = False
    noise: NoiseKey | None = None

    def time(self, tau: float) -> float:
        """A clock reading of the run in the caller's time."""
        if self.coordinates is None:
            return tau
        return float(self.coordinates.time(host(tau)))

    def state(self, t: float, y: Tensor) -> Tensor:
        """A state of the run as the caller's x."""
        if self.coordinates is None:
            return y
        return spread(self.coordinates.scale(host(t)), y) * y


@dataclass(frozen=True)
class Request:
    """The arguments of a solve, checked."""

    method: Method
    backend: str
    ends: tuple[float, float]
    grid: list[float] | None
    rtol: float
    atol: float
    saves: list[float]
    asked: list[float]
    seed: int | None
    first_row: int
    cond: Cond
    options: Mapping[str, Any]

    def adaptive(self, ends: tuple[float, float]) -> Adaptive:
        """Ends and tolerances of an adaptive run."""
        first, most = self.options.get("first_step"), self.options.get("max_steps", 100_000)
        if first is not None:
            first = real("first_step", first)
            if first <= 0:
                raise OptionError(f"first_step={first!r} is not a step. Give a positive number.")
        limit = whole("max_steps", most, 1)
        return Adaptive(*ends, self.rtol, self.atol, first, limit)


def plan(
    term: ODE | SDE | PathODE | PathSDE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """What to run for a term; the observer is called in the caller's time and state."""
    if isinstance(term, (SDE, PathSDE)):
        made = _plan_sde(term, x, request, observer)
    else:
        made = _plan_ode(term, x, request, observer)
    if isinstance(term, (PathODE, PathSDE)):
        made.denoise = ending.wanted(term, request.ends, request.options)
    return made


def _clock_reader(at: Coordinates) -> Callable[[list[float]], list[float]]:
    """From readings of the clock to t, many at once: an inverse without a closed form is a search."""

    def read(taus: list[float]) -> list[float]:
        times: list[float] = at.time(host(taus)).tolist()
        return times

    return read


def _problem(
    x: Tensor, y: Tensor, saves: list[float], field: Callable[[Tensor, Tensor], Tensor],
    exact_time: bool, backend: str,
) -> Problem:  # fmt: skip
    if backend == "rust":
        y = y.detach().contiguous()  # the engine copies it into memory of its own
    return Problem(
        field=field,
        y=y,
        row=math.prod(x.shape[1:]) if x.numel() else 0,
        saves=saves,
        xs=torch.empty(len(saves), *x.shape, dtype=x.dtype, device=x.device),
        time=torch.float64 if exact_time else x.dtype,
    )


def _plan_ode(term: ODE | PathODE, x: Tensor, request: Request, observer: Observer | None) -> Plan:
    at, grid, (start, stop), last = term.coordinates, request.grid, request.ends, None
    if isinstance(term, PathODE) and term.view == "data" and term.clean(stop):
        last = stop
        if grid is not None:
            grid = grid[:-1]
            stop = grid[-1]
        else:
            stop = _before_clean_data(term, start, request)
    forward = request.ends[1] - request.ends[0]
    saves = [s for s in request.saves if last is None or (s - stop) * forward <= 0]
    tau = _clock(at, [start, stop, *saves, *(grid or [])])
    y = x
    if at is not None:
        y = spread(1 / at.scale(host(start)), x) * x
    marks = [tau[s] for s in saves]
    slope = term.slope(request.cond)
    problem = _problem(x, y, marks, slope, term.exact_time, request.backend)
    taus = [tau[t] for t in grid] if grid is not None else None
    if at is not None:
        problem.times = _clock_reader(at)
    goal = request.adaptive((tau[start], tau[stop])) if taus is None else None
    method = request.method
    engine: Engine = _ENGINES[request.backend]
    head: Any = method.peer if request.backend == "torchdiffeq" else method.numbers
    made = Plan(
        engine, (head, taus, goal), problem, request.saves, request.asked, at, start, stop, last
    )
    if observer is not None:
        problem.observer = lambda tau, y, nfe: observer(
            made.time(tau), made.state(made.time(tau), y), nfe
        )
    return made


_ENGINES: dict[str, Engine] = {
    "rust": rust_backend.runge_kutta,
    "torch": torch_backend.runge_kutta,
    "torchdiffeq": torchdiffeq_backend.runge_kutta,
}


def _clock(at: Coordinates | None, times: list[float]) -> dict[float, float]:
    """The clock at each time: one reading a time, so that equal times have equal readings."""
    unique = sorted(set(times))
    if at is None:
        return {t: t for t in unique}
    taus: list[float] = at.tau(host(unique)).tolist()
    return dict(zip(unique, taus, strict=True))


def _before_clean_data(term: PathODE, start: float, request: Request) -> float:
    """Where an adaptive run hands over to the first-order step.

    That step's error is of second order in sigma / beta; at a tenth of the tolerance's square root
    it is a hundredth of the tolerance where the data vary on the scale 1.
    """
    small = 0.1 * (request.atol + request.rtol) ** 0.5
    begin = float(term.path.noise_scale(start).max())
    return start if begin <= small else term.almost_clean(small)


def _plan_sde(term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None) -> Plan:
    grid = request.grid
    if grid is None:
        raise OptionError(f"{request.method.name} takes the steps it is given. Give steps=N.")
    nodes = set(grid)
    missing = [s for s in request.saves if s not in nodes]
    if missing:
        raise OptionError(
            f"save_at holds t = {missing[0]!r}, between two steps, where an SDE has no state. Give "
            "times of the grid, or a grid= that holds them."
        )
    field = term.drift_field(request.cond)
    problem = _problem(x, x, request.saves, field, term.exact_time, request.backend)
    steps = (
        term.steps(grid)
        if isinstance(term, PathSDE)
        else _steps_by_hand(term, grid, problem, request)
    )
    noise = _noise(term, x, grid, request)
    problem.observer = observer
    engine: Engine = (rust_backend if request.backend == "rust" else torch_backend).euler_maruyama
    arguments = (grid, steps.a, steps.b, steps.s, noise)
    start, stop = request.ends
    saves, asked = request.saves, request.asked
    return Plan(engine, arguments, problem, saves, asked, None, start, stop, noise=noise)


def _steps_by_hand(term: SDE, grid: list[float], problem: Problem, request: Request) -> Steps:
    """Euler-Maruyama: x + h drift + g dW."""
    if term.calculus != "ito":
        raise Unsupported(
            f"euler_maruyama converges to the Ito solution, and this SDE is {term.calculus}. Convert "
            "the drift: subtract (1/2) g dg/dx."
        )
    g = term.diffusion_field(request.cond)
    lengths = [end - t for t, end in itertools.pairwise(grid)]
    ones = [1.0] * len(lengths)
    if callable(g):
        problem.diffusion = g
        return Steps(ones, lengths, ones)
    return Steps(ones, lengths, [g] * len(lengths))


def _noise(term: SDE | PathSDE, x: Tensor, grid: list[float], request: Request) -> NoiseKey:
    options = request.options
    span = (min(request.ends), max(request.ends)) if term.path is None else (0.0, 1.0)
    if options.get("span") is not None:
        span = _span(options["span"], span, term.path is not None)
    depth = whole("depth", options.get("depth", 10), 1, 48)
    seed = fresh_seed() if request.seed is None else check_seed(request.seed)
    rows = len(x) if x.ndim else 1
    first_row = check_first_row(request.first_row, rows)
    return NoiseKey(seed, STREAMS["path"], first_row, span, depth_for(grid, span, depth))


def _span(given: object, run: tuple[float, float], is_path: bool) -> tuple[float, float]:
    """The root interval of the noise, as given: it has to hold the run's."""
    try:
        low, high = grids.interval(given)
        holds = not is_path and low <= run[0] and run[1] <= high
    except InterpError:
        holds = False
    if not holds:
        raise OptionError(
            f"span={given!r} does not root the noise of this run, from {run[0]:g} to {run[1]:g}. Give "
            "an interval that holds it (a path's is always [0, 1])."
        )
    return low, high


def failure(made: Plan, report: Report) -> SolveError:
    """The error that says why a run ended early."""
    t = made.time(report["t"])
    where = f"at t = {t:.6g}, after {report['accepted']} steps"
    rows = report["rows"]
    if report["status"] == "non_finite":
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        what = f"the field or the state became NaN or infinite {where}" + (
            f", in row{'s' if len(rows) > 1 else ''} {shown}" if rows else ""
        )
        remedy = "Look at the field there, or take smaller steps."
    elif report["status"] == "step_underflow":
        what = f"the step shrank to {report['step']:.1e} {where}: the field is too stiff or jumps"
        remedy = "Raise rtol and atol, or give steps=N for a fixed grid."
    else:
        what = f"the run took all the steps it may {where}, the last of length {report['step']:.1e}"
        remedy = "Raise max_steps or the tolerances."
    return SolveError(
        f"{what}. {remedy} The error's .last holds the last good state.",
        time=t, step=report["accepted"], rows=rows, last=made.state(t, report["y"]),
        reason=report["status"],
    )  # fmt: skip
