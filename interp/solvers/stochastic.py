"""SDEs by their drift and diffusion: which scheme, which noise, which calculus."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..arguments import host, spread, transforming, whole
from ..errors import OptionError, Unsupported
from ..terms import SDE, Carried, Cond, Field, PathSDE
from ..terms.model import NEGLIGIBLE
from ..views import SCORES
from . import rust_backend, stochastic_tableaus, torch_backend
from .euler_maruyama import euler_maruyama as recurrence
from .plan import Engine, Plan, Request, native, pose
from .problem import Observer, Problem
from .recurrence import noise_key
from .stochastic_tableaus import Scheme


@dataclass(frozen=True)
class Noise:
    """What a diffusion is like.

    Attributes:
        field: g(t, x): a tensor like x, or (..., channels) where it is a matrix a row.
        additive: whether it does not depend on x, so that both calculi are one.
        shared: whether a row has one Brownian motion.
        channels: Brownian motions a row where these act through a matrix; None where each element
            has its own, or all of a row share one.
    """

    field: Field
    additive: bool
    shared: bool = False
    channels: int | None = None


def looked_at(g: Field, x: Tensor, t: float) -> tuple[Field, Tensor]:
    """A diffusion at the start, to see what it is like, and the diffusion that need not be asked again
    there where no derivative follows the run.
    """
    first = g(torch.tensor(t, dtype=x.dtype, device=x.device), x)
    kept = [] if first.requires_grad or transforming() else [first]

    def again(t_now: Tensor, x_now: Tensor) -> Tensor:
        if kept and float(t_now) == float(x.new_tensor(t)):
            return kept.pop()
        return g(t_now, x_now)

    return again, first


def noise_of(term: SDE | PathSDE, x: Tensor, t: float, cond: Cond) -> Noise:
    """The noise of a term, by one look at its diffusion where that is a function."""
    if isinstance(term, PathSDE):
        return Noise(lambda t, x: term.eps(t.double()).to(x).expand_as(x), additive=True)
    g = term.diffusion_field(cond)
    if not callable(g):
        size = float(g)
        return Noise(lambda t, x: torch.full_like(x, size), additive=True)
    g, first = looked_at(g, x, t)
    if first.ndim == x.ndim:
        return Noise(g, term.additive)
    channels = first.shape[-1]
    if channels == 1:
        return Noise(lambda t, x: g(t, x).squeeze(-1), term.additive, shared=True)
    return Noise(g, term.additive, channels=channels)


Choice = Callable[[Request, "SDE | PathSDE", Noise], Scheme]


def scheme(choose: Choice) -> Callable[..., Plan]:
    """The plan of a one-step method that ``choose`` picks for a term and its noise."""

    def plan(term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None) -> Plan:
        noise = noise_of(term, x, request.ends[0], request.cond)
        chosen = choose(request, term, noise)
        require_finite(request, term)
        grid, last = own_grid(chosen, request, term, x)
        saves = [s for s in request.saves if last is None or s != last]
        at = carried(chosen, term, grid)
        once = all(c == 0.0 for c, _, _ in chosen.stages)
        problem = posed(term, x, request, noise, saves, at, once)
        problem.correction = _correction(noise.field)
        made = _run(chosen, problem, noise, request, term, x, grid, last, at)
        problem.observer = None if observer is None else made.told(observer)
        return made

    return plan


def require_finite(request: Request, term: SDE | PathSDE) -> None:
    """Refuse a run from or to where G is infinite.

    Raises:
        Unsupported: names a method that goes there.
    """
    if not isinstance(term, PathSDE):
        return
    for t in request.ends:
        if not term.eps(host(t)).isfinite():
            inside = tuple(0.001 if end == t else end for end in request.ends)
            raise Unsupported(
                f'diffusion="reverse" is infinite at t = {t:g} of this path, where {request.method.name} '
                'has no step. Use method="euler_maruyama", whose steps are exponential, or stay a little '
                f"away, e.g. t={inside}."
            )


def own_grid(
    chosen: Scheme, request: Request, term: SDE | PathSDE, x: Tensor
) -> tuple[list[float] | None, float | None]:
    """The grid of the scheme's own steps, and the end of the first-order step to clean data behind it.

    It ends one step before clean data where the scheme would ask for the score there. A model of the data
    tells it by s = (beta D - x) / sigma^2, which is rounding from where sigma^2 is as small as that of x: its
    grid ends there.
    """
    grid, (start, stop) = request.grid, request.ends
    if (
        grid is None
        or start > stop
        or not (isinstance(term, PathSDE) and term.exponential)
        or term.view in SCORES  # which are regular there
        or float(term.path.coefficients(host(stop)).sigma) > NEGLIGIBLE
    ):
        return grid, None
    asks = any(c == 1 and kind == "drift" for c, kind, _ in chosen.stages)
    count = len(grid) - asks
    if term.view == "data":
        told = term.path.noise_scale(host(grid[:-1])) > 4 * torch.finfo(x.dtype).eps ** 0.5
        if not told.all():
            saved = [i for i, t in enumerate(grid) if t in request.saves and t != stop]
            count = min(count, max(int(told.int().argmin()), *saved, 0) + 1)
    return (grid, None) if count == len(grid) else (grid[:count], stop)


def _run(
    chosen: Scheme, problem: Problem, noise: Noise, request: Request, term: SDE | PathSDE, x: Tensor,
    grid: list[float] | None, last: float | None, at: Carried | None,
) -> Plan:  # fmt: skip
    start, stop = request.ends
    goal = None
    if grid is None:
        # Its times are the tree's own, so that the depth only says how short a step may become.
        depth = whole("depth", request.options.get("depth", 24), 1, 48)
        key = replace(noise_key(term, x, [start, stop], request), depth=depth)
        goal = request.adaptive((start, stop))
    else:
        key = noise_key(term, x, request.times, request)
        require_saves_on(request.times, request.saves)
        stop = grid[-1]
    engine: Engine = (rust_backend if request.backend == "rust" else torch_backend).stochastic
    arguments = (chosen, noise.shared, key, grid, goal)
    saves, asked = request.saves, request.asked
    return Plan(engine, arguments, problem, saves, asked, at, start, stop, last, noise=key)


def require_saves_on(grid: list[float], saves: list[float]) -> None:
    """Refuse output times between two steps, where an SDE has no state."""
    nodes = set(grid)
    missing = [s for s in saves if s not in nodes]
    if missing:
        raise OptionError(
            f"save_at holds t = {missing[0]!r}, between two steps, where an SDE has no state. Give "
            "times of the grid, or a grid= that holds them."
        )


def carried(
    chosen: Scheme, term: SDE | PathSDE, grid: list[float] | None, always: bool = False
) -> Carried | None:
    """The coordinates of given steps of a path's SDE, at the times of all stages; None for x itself.

    In x a step over a large range of sigma / beta would have to be short, for its drift alone. Steps that
    are short are taken there, but ``always``.
    """
    if grid is None or not isinstance(term, PathSDE) or not term.exponential:
        return None
    if not always and term.near(grid):
        return None
    shares = {0.0, 1.0, *(c for c, _, _ in chosen.stages)}
    inner = {t + c * (end - t) for t, end in itertools.pairwise(grid) for c in shares}
    return term.carried(sorted({*grid, *inner}, reverse=grid[-1] < grid[0]))


def posed(
    term: SDE | PathSDE, x: Tensor, request: Request, noise: Noise, saves: list[float],
    at: Carried | None = None, once: bool = False,
) -> Problem:  # fmt: skip
    """The run of a drift and a diffusion, those of a path in the coordinates ``at``.

    A scheme that asks for the diffusion ``once`` a step is told its root mean square over the step.
    """
    start, stop = request.ends
    if isinstance(term, PathSDE):
        exact, forward = True, stop > start
        field = term.explicit_drift(request.cond, forward, at)
        form = term.explicit_affine(forward, at)
    else:
        exact, field, form = term.exact_time, term.drift_field(request.cond), term.affine()
    y, diffusion = x, noise.field
    if at is not None:
        y = spread(1 / at.scale(host(start)), x) * x

        def diffusion(t: Tensor, y: Tensor) -> Tensor:
            size = noise.field(t, y) * spread(1 / at.scale(t), y)
            return size + (spread(at.kick(t), y) - size).detach() if once else size

    problem = pose(x, y, saves, field, exact, request.backend)
    problem.native = None if form is None else native(term, x, request, form)
    problem.diffusion, problem.channels = diffusion, noise.channels
    return problem


def _correction(g: Field) -> Field:
    """g dg/dx, the derivative of the diffusion along itself."""

    def correction(t: Tensor, x: Tensor) -> Tensor:
        if transforming():
            along: Tensor = torch.func.jvp(lambda x: g(t, x), (x,), (g(t, x),))[1]
            return along
        kept = torch.is_grad_enabled() and (x.requires_grad or g(t, x).requires_grad)
        with torch.enable_grad():
            # The derivative of a backward pass by what it starts from is one along a direction.
            at = x if x.requires_grad else x.detach().requires_grad_()
            value = g(t, at)
            back = torch.zeros_like(value).requires_grad_()
            if not value.requires_grad:
                return torch.zeros_like(x)
            (pulled,) = torch.autograd.grad(
                value, at, back, create_graph=True, materialize_grads=True
            )
            if not pulled.requires_grad:
                return torch.zeros_like(x)
            direction = value if kept else value.detach()
            (moved,) = torch.autograd.grad(
                pulled, back, direction, create_graph=kept, materialize_grads=True
            )
        return moved if kept else moved.detach()

    return correction


# Which calculus and noise a method is for


def require_calculus(
    name: str, term: SDE | PathSDE, noise: Noise, *, ito: bool | None, matrix: bool
) -> None:
    """Refuse a term whose noise or calculus a method is not for.

    Raises:
        Unsupported: names a method that is.
    """
    if noise.channels is not None and not matrix:
        raise Unsupported(
            f"{name} is for noise of which each element has its own, and this diffusion is a matrix of "
            f"{noise.channels} columns a row, whose double integrals it does not know. Use "
            'method="euler_maruyama" (Ito) or "heun_stratonovich".'
        )
    calculus = getattr(term, "calculus", "ito")
    if ito is None or noise.additive or (calculus == "ito") == ito:
        return
    if ito:
        raise Unsupported(
            f"{name} converges to the Ito solution, and this SDE is stratonovich. Convert the drift: "
            'subtract (1/2) g dg/dx; or use method="heun_stratonovich".'
        )
    raise Unsupported(
        f"{name} converges to the Stratonovich solution, and this SDE is ito. Convert the drift: "
        'subtract (1/2) g dg/dx and say calculus="stratonovich"; or use method="milstein".'
    )


def _euler(request: Request, term: SDE | PathSDE, noise: Noise) -> Scheme:
    require_calculus(request.method.name, term, noise, ito=True, matrix=True)
    return stochastic_tableaus.EULER_MARUYAMA


def _milstein(request: Request, term: SDE | PathSDE, noise: Noise) -> Scheme:
    require_calculus(request.method.name, term, noise, ito=None, matrix=False)
    free = request.options.get("derivative_free", False)
    if not isinstance(free, bool):
        raise OptionError(f"derivative_free={free!r} is neither True nor False. Give one.")
    return stochastic_tableaus.milstein(free, getattr(term, "calculus", "ito") == "ito")


def _srk(request: Request, term: SDE | PathSDE, noise: Noise) -> Scheme:
    require_calculus(request.method.name, term, noise, ito=True, matrix=False)
    return stochastic_tableaus.SRA1 if noise.additive else stochastic_tableaus.SRIW1


def _heun(request: Request, term: SDE | PathSDE, noise: Noise) -> Scheme:
    require_calculus(request.method.name, term, noise, ito=False, matrix=True)
    return stochastic_tableaus.HEUN


_matrix_euler = scheme(_euler)
milstein, srk, heun_stratonovich = scheme(_milstein), scheme(_srk), scheme(_heun)


def euler_maruyama(
    term: SDE | PathSDE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """Euler-Maruyama: a recurrence, but for a diffusion that is a matrix a row."""
    if isinstance(term, SDE) and callable(g := term.diffusion_field(request.cond)):
        g, first = looked_at(g, x, request.ends[0])
        if first.ndim > x.ndim:
            return _matrix_euler(term, x, request, observer)
        return recurrence(term, x, request, observer, g)
    return recurrence(term, x, request, observer)
