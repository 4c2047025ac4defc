"""Euler-Maruyama and its exponential form on an SDE."""

from __future__ import annotations

import itertools

from torch import Tensor

from ..arguments import whole
from ..errors import InterpError, OptionError, Unsupported
from ..noise import STREAMS, check_first_row, check_seed, depth_for, fresh_seed
from ..terms import SDE, PathSDE, Steps
from . import grids, rust_backend, torch_backend
from .plan import Engine, Plan, Request, native, pose
from .problem import NoiseKey, Observer, Problem


def euler_maruyama(
    term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """The run of a one-step recurrence with one noise a step."""
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
    problem = pose(x, x, request.saves, field, term.exact_time, request.backend)
    problem.native = native(term, x, request)
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
