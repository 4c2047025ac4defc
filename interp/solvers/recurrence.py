"""Methods that are programmes: what their runs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import views
from ..arguments import check_element, host, like, transforming, untransformed, whole
from ..coefficients import Coefficients
from ..errors import InterpError, OptionError, Unsupported
from ..hooks import Hook
from ..interpolant import Interpolant
from ..noise import STREAMS, check_first_row, check_seed, depth_for, fresh_seed
from ..terms import SDE, PathMap, PathODE, PathSDE
from ..terms.model import Affine, PathTerm, bound, needs_exact_time, readings, told
from . import ending, grids, rust_backend, torch_backend
from .dense import Between, on_path
from .exponential import Levels
from .plan import Engine, Plan, Request, native, pose
from .problem import NoiseKey, Observer, Problem
from .programme import Coefficient, Move, Programme, between_steps, compiled, rows

Sampler = Callable[[Levels, Mapping[str, Any]], list[Move]]
"""sampler(levels, options): the moves over a grid whose levels are given."""


def run_of(
    programme: Programme,
    problem: Problem,
    request: Request,
    term: SDE | PathODE | PathSDE | PathMap,
    x: Tensor,
) -> Plan:
    """The plan that runs a programme in the caller's own time and state."""
    noise = None
    if programme.noisy:  # of the path at the times of the grid, and inside its steps
        times = sorted({*request.times, *programme.noise_times})
        noise = noise_key(term, x, times, request)
    engine: Engine = (rust_backend if request.backend == "rust" else torch_backend).recurrence
    start, stop = request.ends
    arguments, saves, asked = (programme, noise), request.saves, request.asked
    return Plan(engine, arguments, problem, saves, asked, None, start, stop, noise=noise)


def semi_linear(sampler: Sampler) -> Callable[..., Plan]:
    """The scheme of a sampler for paths with a Gaussian base, whatever the model's view."""

    def scheme(
        term: PathODE | PathSDE, x: Tensor, request: Request, observer: Observer | None
    ) -> Plan:
        check_term(term, request)
        check_element(host(request.ends[0]), x, term.path.element)
        with untransformed():
            asked = hooked(term, request)
            programme, between = written(sampler, term, asked, request)
        saves = request.saves if between is None else between.nodes
        problem = pose(
            x, x, saves, bound(asked.model, request.cond), needs_exact_time(asked.model),
            request.backend,
        )  # fmt: skip
        problem.observer = observer
        itself = Affine(asked.model, lambda stamps: readings(host(stamps), 1.0, 1.0, 0.0))
        problem.native = native(term, x, request, itself)
        made = run_of(programme, problem, request, term, x)
        made.cleans, made.between = True, between
        return made

    return scheme


def check_term(term: PathODE | PathSDE, request: Request) -> None:
    """Refuse a term that a semi-linear sampler cannot run."""
    name = request.method.name
    if not term.path.gaussian_base:
        raise Unsupported(
            f"{name} needs a path with a Gaussian base, where data and noise tell each other. Use heun, "
            "rk4 or dopri5."
        )
    if term.path.element and request.backend == "rust":
        raise Unsupported(
            "the rust engine has one coefficient a step for all elements, and the coefficients of this "
            'path differ between them. Use backend="torch" or "auto".'
        )
    if isinstance(term, PathSDE) and (term.diffusion != "reverse" or not term.exponential):
        raise Unsupported(
            f"{name} draws the noise of the reverse SDE or of its own option eta, and this term has an "
            'eps of its own. Give path.ode(model), diffusion="reverse", or method="euler_maruyama".'
        )


class _Hooked:
    """A term's data estimate behind a hook, as a model of the data that is told t."""

    view, exact_time = "data", True

    def __init__(self, term: PathTerm, hook: Hook) -> None:
        self.term, self.hook = term, hook

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        data = self.term.as_view("data", t, x, cond)
        return like(self.hook(t, data), data, "data_hook")


def hooked(term: PathODE | PathSDE, request: Request) -> PathTerm:
    """The term with the hook on its data estimate, from which a noise estimate follows; or as it is."""
    hook = request.options.get("data_hook")
    if hook is None:
        return term
    if not callable(hook):
        raise OptionError(
            f"data_hook is a {type(hook).__name__}, not a function. Give data_hook(t, data), e.g. "
            "interp.hooks.clip(-1, 1)."
        )
    if (Levels.of(term.path, request.times[:-1]).sigma == 0).any():
        raise OptionError(
            f"the run begins at clean data, t = {request.times[0]:g}, where x is its own data estimate "
            "and there is nothing to hook. Begin where sigma is not 0, or leave out data_hook."
        )
    return PathTerm(term.path, _Hooked(term, hook), "data", "t")


def written(
    sampler: Sampler, term: PathODE | PathSDE, asked: PathTerm, request: Request
) -> tuple[Programme, Between | None]:
    """The programme of a sampler, and what makes states between its steps.

    The last ones on paths that do not change are kept: making one takes about as long as running it on one
    row, and batch after batch asks for the same. Not those with a coefficient an element, which are large.
    """
    path, options = term.path, request.options
    plain = all(isinstance(v, (str, float, int)) for v in options.values())
    keep = path.constant and not path.element and plain and not transforming()
    clean = ending.wanted(term, request.ends, options)
    given = tuple((name, type(v), v) for name, v in options.items()) if keep else options.items()
    make = _kept if keep else _written
    return make(
        sampler, path, asked.view, asked.time, tuple(request.times), clean, given,
        tuple(request.saves),
    )  # fmt: skip


def _written(
    sampler: Sampler,
    path: Interpolant,
    view: str,
    time: str | tuple[str, int],
    times: tuple[float, ...],
    clean: bool,
    options: Iterable[tuple[Any, ...]],
    saves: tuple[float, ...],
) -> tuple[Programme, Between | None]:
    levels = Levels.of(path, times)
    if clean:
        levels = levels.then_clean()
    moves = sampler(levels, {name: value for name, *_, value in options})
    between = on_path(levels, saves)
    at = saves if between is None else between.nodes
    programme = programme_for(path, view, time, moves, levels, at)
    if between is not None and programme.noisy:
        raise between_steps(next(s for s in saves if s not in times))
    return programme, between


_kept = functools.lru_cache(maxsize=8)(_written)


def programme_for(
    path: Interpolant,
    view: str,
    time: str | tuple[str, int],
    moves: list[Move],
    levels: Levels,
    saves: Sequence[float],
) -> Programme:
    """The moves compiled for a model of a view, told what it wants to be told.

    What the path is at the ``levels`` is not asked for again.
    """
    # Clean data may follow at the time of the last level, where nothing is asked.
    place = {t: i for i, t in reversed([*enumerate(levels.t.tolist())])}

    def stamps(times: list[float]) -> list[float]:
        if time == "t":
            return times
        given: list[float] = told(path, time, host(times)).tolist()
        return given

    def coefficients(times: list[float]) -> Coefficients:
        where = [place.get(t, -1) for t in times]
        if view in views.SLOPED or min(where) < 0:
            return path.coefficients(host(times))
        beta, sigma = (torch.from_numpy(v[where]) for v in (levels.beta, levels.sigma))
        return Coefficients.at_rest(host(times), beta, sigma)

    def converted(
        times: list[float], kinds: list[str | None]
    ) -> list[tuple[Coefficient, Coefficient]]:
        pairs: list[tuple[Coefficient, Coefficient]] = [(0.0, 1.0)] * len(times)
        for kind in {kind for kind in kinds if kind is not None and kind != view}:
            chosen = [i for i, k in enumerate(kinds) if k == kind]
            p, q = views.weights(coefficients([times[i] for i in chosen]), view, kind)
            p = torch.zeros_like(q) if p is None else p
            for i, pq in zip(
                chosen, zip(rows(p.numpy()), rows(q.numpy()), strict=True), strict=True
            ):
                pairs[i] = pq
        return pairs

    with torch.no_grad():
        made = compiled(moves, float(levels.t[0]), saves, stamps, converted)
    made.basis = path.basis
    return made


# Noise


def noise_key(
    term: SDE | PathODE | PathSDE | PathMap, x: Tensor, grid: list[float], request: Request
) -> NoiseKey:
    """What keys the noise of a run on a grid."""
    options = request.options
    span = (min(request.ends), max(request.ends)) if term.path is None else (0.0, 1.0)
    if options.get("span") is not None:
        span = _span(options["span"], span, term.path is not None)
    depth = whole("depth", options.get("depth", 10), 1, 48)
    seed = fresh_seed() if request.seed is None else check_seed(request.seed)
    rows = len(x) if x.ndim else 1
    first_row = check_first_row(request.first_row, rows)
    depth = depth_for(grid, span, depth)
    return NoiseKey(seed, STREAMS["path"], first_row, span, depth)


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
