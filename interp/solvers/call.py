"""The one call that integrates anything."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import host, mapping, now, real, transforming
from ..errors import FieldError, OptionError, SolveError, StiffWarning, UnknownName, Unsupported
from ..terms import ODE, SDE, Cond, Energy, PathMap, PathODE, PathSDE, Term
from . import chains, ending, gradients, grids, stiffness
from .catalogue import METHODS, Method, find
from .events import Watch, listed
from .plan import Plan, Request, failure
from .problem import Observer, Report
from .result import RowStats, Solution, Stats, StepState
from .torch_backend.run import bad_rows, finite

Bar = Callable[[float | Tensor, int], None]
"""Shown a time, or that of each row, and the number of evaluations."""

BACKENDS = ("auto", "rust", "torch", "torchdiffeq")
_COMMON = ("on_failure", "denoise")


def solve(
    term: Term | Energy | Callable[..., Tensor],
    x: Tensor,
    t: grids.Times | None = None,
    method: str = "dopri5",
    backend: str = "auto",
    steps: int | None = None,
    grid: grids.Grid | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    save_at: grids.Times | None = None,
    seed: int | None = None,
    first_row: int = 0,
    per_row: bool = False,
    cond: Mapping[str, Any] | None = None,
    events: object = None,
    callback: Callable[[StepState], object] | None = None,
    progress: bool = False,
    gradient: str | None = None,
    **method_options: Any,
) -> Solution:
    """Integrate a term from x at t[0] to t[1], forwards or backwards.

    Args:
        term: `path.ode(model)`, `path.sde(model)`, `path.flow_map(model)`, `ODE`, `SDE`, or a bare
            field(t, x); or an `Energy`, for a chain.
        x: the state at t[0], (rows, ...), floating.
        t: the two ends; None is (0, 1), or the interval of an adapted model. A path's term lives on
            [0, 1]; one made by hand on any finite interval.
        method: a name of `interp.methods()`.
        backend: "rust" (CPU, float32 and float64, no gradients), "torch" (any device,
            differentiable), "torchdiffeq" (the methods it shares), or "auto": rust where it can.
        steps: a number of even steps in t; makes any method fixed-step.
        grid: the times of the steps, from t[0] to t[1]; the same. Or ("timesteps", [972, ..., 0]),
            indices into the path's table, or ("sigmas", [80, ..., 0]) in sigma / beta: these say
            themselves where the run begins, x being the state there, and it ends at t = 1.
        rtol: the relative tolerance of adaptive steps, on the local error in the term's coordinates.
        atol: the absolute one: an error is measured against atol + rtol max(|y|, |y_new|).
        save_at: times to save at, in the order of the run. Between two steps the state is the dense
            output of order 3 (dopri5 and tsit5: 4, dop853: 7).
        seed: keys the noise of an SDE; drawn and recorded in ``stats.seed`` where it is None.
        first_row: the number of x's first row, so that chunks draw the noise of the whole.
        per_row: each row has its own steps and its own end: the field is told t of shape (rows,) and
            gets the rows that are not done, and so does what the model is told by ``cond``.
        cond: keyword arguments for the model: labels, masks.
        events: one or several functions g(t, x) or `Event`s, whose zeros are found on the way and given
            in ``events`` of the solution; a terminal one ends the run, or its row.
        callback: called with a `StepState` after each step.
        progress: whether to show a progress bar.
        gradient: how the result is differentiated with respect to x and to the parameters of the
            model: "direct", through every operation; "checkpointed", which keeps the states and
            recomputes the model; "adjoint", the ODE of the derivative, backwards; "reversible", a
            coupled pair of runs that can be undone exactly, in constant memory. See
            `interp.solvers.gradients`. None is "direct" where x requires grad or backend="torch" is
            given; otherwise the result is a constant, as under `torch.no_grad`, also where the
            model's parameters require grad: sampling costs no graph. To train, say how.
        **method_options: on_failure="raise" or "partial"; denoise=False leaves a run at t = 1 of a
            path whose sigma(1) is not 0 without its last step, the first-order one to clean data;
            first_step, max_steps, controller ("i", "pi", "pid" or coefficients (p, i, d)) and norm
            ("rms", "max", "rows") of adaptive methods, see `interp.solvers.control`; span and depth
            of the noise; renoise=True of map, which maps to the data and noises back;
            data_hook(t, D) -> D of semi-linear samplers, which put every data estimate
            through it and so change the marginals, see `interp.hooks`; step_size, save_every, adapt
            (steps that look for a step size first), friction (underdamped), leapfrog (hmc) and levels
            (annealed) of chains.

    Raises:
        OptionError, TimeError, UnknownName, Unsupported: arguments that make no sense.
        FieldError: a field that does not return a tensor like its input.
        SolveError: a run that could not go on, with the last good state.
    """
    began = now()
    _check_extras(cond, callback)
    chosen = find(method)
    if isinstance(term, Energy):
        times = {"t": t, "grid": grid, "save_at": save_at, "gradient": gradient}
        _check_chain(chosen, x, backend, times, method_options)
        return chains.run(
            term, x, method, steps=steps, seed=seed, first_row=first_row, cond=dict(cond or {}),
            callback=callback, options=method_options,
        )  # fmt: skip
    term = term if isinstance(term, (ODE, SDE, PathODE, PathSDE, PathMap)) else ODE(_callable(term))
    request = _request(
        term, x, t, chosen, backend, steps, grid, rtol, atol, save_at, seed, first_row, per_row,
        dict(cond or {}), gradient, method_options,
    )  # fmt: skip
    with _recording(request), _progress(request, progress) as bar:
        observer = _observer(term, request.cond, callback, bar)
        watch = _watch(events, term, request, x)
        made = chosen.scheme(term, x, request, _watched(watch, observer))
        if watch is not None:
            watch.made = made
        if isinstance(term, (PathODE, PathSDE)):
            wanted = ending.wanted(term, request.ends, request.options)
            made.denoise = wanted and not made.cleans
        if made.last is not None and made.stop == made.start:
            report = _nothing(made)
        else:
            own = chosen.reversible and request.gradient == "reversible"
            engine = made.engine if own else gradients.engine(request.gradient, made.engine)
            report = engine(made.problem, *made.arguments)
        stiff = _stiff(chosen, request, made, report)
        ended = report["status"] in ("done", "stopped")
        if not ended and method_options.get("on_failure") != "partial":
            raise failure(made, report, stiff)
        if stiff is not None:
            warnings.warn(stiff, StiffWarning, stacklevel=2)
        solution = _solution(term, request, made, report, observer, began)
        return solution if watch is None else _with_events(solution, watch, request)


def _callable(term: object) -> Callable[..., Tensor]:
    if not callable(term):
        raise OptionError(
            f"a {type(term).__name__} cannot be integrated. Give path.ode(model), path.sde(model), "
            "interp.ODE(field), interp.SDE(drift, diffusion) or a function field(t, x)."
        )
    return term


# Checks


def _check_extras(cond: object, callback: object) -> None:
    if cond is not None and not isinstance(cond, Mapping):
        kind = type(cond).__name__
        raise OptionError(f'cond is a {kind}. Give a mapping of names to values, {{"label": y}}.')
    if callback is not None and not callable(callback):
        kind = type(callback).__name__
        raise OptionError(f"callback is a {kind}, not a function. Give callback(state).")


def _request(
    term: Term, x: Tensor, t: object, method: Method, backend: str, steps: int | None,
    grid: grids.Grid | None, rtol: float, atol: float, save_at: object, seed: int | None,
    first_row: int, per_row: bool, cond: Cond, gradient: str | None, options: Mapping[str, Any],
) -> Request:  # fmt: skip
    _check_kind(term, method)
    _check_state(x)
    _check_options(method, options)
    ends, times = grids.resolved(term, t, steps, grid)
    term.check(*ends)
    _check_tolerances(rtol, atol, x.dtype if times is None else None)
    if times is None and not method.adaptive:
        raise OptionError(f"{method.name} does not choose its own steps. Give steps=N or a grid.")
    if times is None and mapping():
        raise Unsupported(
            "adaptive steps follow from the state, which torch.func.vmap lets nobody ask. Give steps=N "
            "or a grid; or solve the whole batch without vmap, each row at its own step: per_row=True."
        )
    asked = grids.save_times(save_at, ends)
    eps = grids.rounding_of(save_at)
    saves = asked if times is None else grids.snapped(asked, times, ends, eps)
    gradient = _gradient(gradient, method, x, backend)
    if per_row and gradient in ("adjoint", "reversible"):
        raise Unsupported(
            f"{gradient} gradients go back over the steps of all rows together, and per_row=True gives "
            'each its own. Use gradient="direct" or "checkpointed".'
        )
    name = _backend(backend, method, x, times is not None, gradient, options)
    if per_row:
        _check_rows(method, name, x, gradient)
    return Request(
        method,
        name,
        ends,
        times,
        float(rtol),
        float(atol),
        saves,
        asked,
        seed,
        first_row,
        cond,
        options,
        gradient,
        per_row,
    )


def _check_chain(
    method: Method, x: Tensor, backend: str, times: Mapping[str, object], options: Mapping[str, Any]
) -> None:
    if method.kind != "chain":
        raise OptionError(
            f"{method.name} integrates {method.kind.upper()}s and this term is an Energy. Use one of "
            f"{', '.join(chains.CHAINS)}."
        )
    given = [name for name, value in times.items() if value is not None]
    if given:
        raise OptionError(
            f"a chain has no time, and {given[0]} was given. Give steps=N, step_size=h and, to see its "
            "states on the way, save_every=k."
        )
    if backend not in ("auto", "torch"):
        raise Unsupported(f'a chain runs in torch, not on {backend}. Use backend="auto".')
    _check_state(x)
    _check_options(method, options)


def _check_kind(term: Term, method: Method) -> None:
    if method.kind == "chain":
        raise OptionError(
            f"{method.name} is a chain on an energy and this term is an {term.kind.upper()}. Give an "
            "interp.Energy, or another method."
        )
    if method.accepts(term):
        return
    if method.kind == "path" and term.path is None:
        raise OptionError(
            f"{method.name} works in the log-SNR of a path, and a term made by hand has none. Give "
            "path.ode(model), or use heun, rk4 or dopri5."
        )
    instead = {"ode": "dopri5", "map": "map"}.get(term.kind, "euler_maruyama")
    takes = {"path": "path.ode(model)", "map": "path.flow_map(model)"}.get(
        method.kind, f"{method.kind.upper()}s"
    )
    raise OptionError(
        f"{method.name} integrates {takes} and this term is an "
        f"{term.kind.upper()}. Use another method, e.g. method={instead!r}."
    )


def _check_state(x: object) -> None:
    if not isinstance(x, Tensor):
        raise OptionError(f"x is a {type(x).__name__}, not a tensor. Give torch.as_tensor(x).")
    if not x.is_floating_point():
        raise OptionError(f"x has dtype {x.dtype}. Give floating-point numbers, e.g. x.float().")
    if x.layout is not torch.strided:
        raise OptionError(f"x has the layout {x.layout}. Give x.to_dense().")
    if x.device.type == "meta" or transforming() or math.isfinite(x.detach().sum()):
        return  # one NaN or infinity makes the sum one; a sum may overflow without
    if not finite(x):
        raise OptionError(f"x is NaN or infinite in rows {bad_rows(x)[:8]}. Give a finite state.")


def _check_rows(method: Method, backend: str, x: Tensor, gradient: str | None) -> None:
    """Refuse rows with steps of their own where there are none, or no engine for them."""
    if not method.per_row:
        raise Unsupported(
            f"{method.name} steps all rows together. Give per_row=False, or one of "
            f"{', '.join(m.name for m in METHODS.values() if m.per_row)}."
        )
    if backend == "torchdiffeq":
        raise Unsupported('torchdiffeq steps all rows together. Use backend="rust" or "torch".')
    if gradient not in (None, "direct"):
        raise Unsupported(
            f"{gradient} gradients are those of rows that step together. Give per_row=False or "
            'gradient="direct".'
        )
    if x.ndim == 0:
        raise OptionError("x has no rows: it is 0-d. Give x of shape (rows, ...).")


def _check_tolerances(rtol: object, atol: object, dtype: torch.dtype | None) -> None:
    """Refuse what is no tolerance; warn of one below the rounding of ``dtype``, if steps adapt."""
    rtol, atol = real("rtol", rtol), real("atol", atol)
    if rtol == 0 and atol == 0:
        raise OptionError("rtol and atol are both 0, which no step can meet. Raise one of them.")
    if dtype is None:
        return
    rounding = torch.finfo(dtype).eps
    if rtol < rounding and atol < rounding:
        warnings.warn(
            f"rtol={rtol} and atol={atol} are below the rounding of {dtype}, {rounding:.1e}: steps "
            "may shrink without end. Use float64 or larger tolerances.",
            stacklevel=4,
        )


def _check_options(method: Method, options: Mapping[str, Any]) -> None:
    known = (*_COMMON, *method.options)
    for name in options:
        if name not in known:
            raise UnknownName.of(f"option of {method.name}", name, known)
    if options.get("on_failure", "raise") not in ("raise", "partial"):
        raise UnknownName.of("on_failure", options["on_failure"], ("raise", "partial"))
    if not isinstance(options.get("denoise", True), bool):
        raise OptionError(f"denoise={options['denoise']!r} is neither True nor False. Give one.")


def _gradient(name: str | None, method: Method, x: Tensor, backend: str) -> str | None:
    """How to differentiate the run, after a check that it can be."""
    if method.implicit:
        if name is not None or _differentiated(x):
            raise Unsupported(
                f"{method.name} solves for its stages and gives no gradients. Use an explicit method, or "
                "torch.no_grad()."
            )
        return None
    if name is None:
        asked = backend in ("torch", "torchdiffeq") and torch.is_grad_enabled()
        return "direct" if asked or _differentiated(x) else None
    if name not in gradients.GRADIENTS:
        raise UnknownName.of("gradient", name, gradients.GRADIENTS)
    own = name == "reversible" and method.reversible
    explicit = method.tableau is not None and not method.implicit
    if name in ("adjoint", "reversible") and not (explicit or own):
        raise Unsupported(
            f"{name} gradients are there for explicit Runge-Kutta methods, and {method.name} is none. "
            'Use gradient="checkpointed" or "direct".'
        )
    if name != "direct" and transforming():
        raise Unsupported(
            f"torch.func and torch.compile follow every operation themselves, which {name} gradients "
            'hide from them. Use gradient="direct".'
        )
    return name


def _backend(
    name: str, method: Method, x: Tensor, fixed: bool, gradient: str | None,
    options: Mapping[str, Any],
) -> str:  # fmt: skip
    """The backend to use, after a check that it can."""
    if name not in BACKENDS:
        raise UnknownName.of("backend", name, BACKENDS)
    native = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    recorded = gradient not in (None, "adjoint")  # the adjoint's runs record nothing
    if name == "auto":
        return "rust" if native and not recorded and "rust" in method.backends else "torch"
    if name == "rust" and "rust" not in method.backends:
        raise Unsupported(
            f'{method.name} needs derivatives of the field, which torch has. Use backend="torch".'
        )
    if name == "rust" and (not native or recorded):
        why = (
            f"this run is to be differentiated ({gradient})"
            if native
            else f"x is {x.dtype} on {x.device}"
        )
        raise Unsupported(
            f"the rust backend runs float32 and float64 on the cpu and records no operations, and {why}. "
            'Use backend="torch" or "auto", or gradient="adjoint".'
        )
    if name == "torchdiffeq":
        if gradient in ("adjoint", "reversible"):
            raise Unsupported(
                f'{gradient} gradients are of interp\'s own backends. Leave out backend="torchdiffeq".'
            )
        if method.peer is None or name not in method.backends:
            why = (
                "is not installed" if method.peer else f"has no method with {method.name}'s tableau"
            )
            raise Unsupported(
                f'torchdiffeq {why}. Use backend="rust" or "torch" (its rk4 is our rk38, its heun2 '
                "our heun), or install interp[peers]."
            )
        if fixed and method.adaptive:
            raise Unsupported(
                f'torchdiffeq takes no fixed steps with {method.name}. Use backend="rust" or "torch".'
            )
        own = sorted({"controller", "norm"} & options.keys())
        if own:
            raise Unsupported(
                f"torchdiffeq has a controller and a norm of its own, and {own[0]} would not reach them. "
                'Use backend="rust" or "torch".'
            )
    return name


def _differentiated(x: Tensor) -> bool:
    """Whether something follows the derivative of x: autograd, forward mode, a torch.func transform."""
    if transforming():  # where even a plain x may meet transformed numbers in the field
        return True
    inside = forward_ad._current_level >= 0
    dual = inside and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    return dual or (x.requires_grad and torch.is_grad_enabled())


# Context


def _recording(request: Request) -> contextlib.AbstractContextManager[object]:
    """Rust records no gradients; its buffers must be normal tensors, whose writes torch counts."""
    if request.backend == "rust" and torch.is_inference_mode_enabled():
        return _normal_mode()
    constant = request.gradient is None and torch.is_grad_enabled()
    return torch.no_grad() if constant else contextlib.nullcontext()


@contextlib.contextmanager
def _normal_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def _progress(request: Request, wanted: bool) -> contextlib.AbstractContextManager[Bar | None]:
    """A progress bar as a function of (t, evaluations), or None."""
    return _bar(request) if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def _bar(request: Request) -> Iterator[Bar]:
    from tqdm import tqdm

    start, stop = request.ends
    with tqdm(total=100, desc=request.method.name, unit="%", bar_format=_BAR) as bar:

        def show(t: float | Tensor, nfe: int) -> None:
            done = (t - start) / (stop - start)
            least = float(done.min()) if isinstance(done, Tensor) else done
            bar.set_postfix_str(f"t={start + least * (stop - start):.3f}, {nfe} evaluations")
            bar.update(100 * least - bar.n)

        yield show


_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def _observer(
    term: Term,
    cond: Cond,
    callback: Callable[[StepState], object] | None,
    bar: Bar | None,
) -> Observer | None:
    if callback is None and bar is None:
        return None
    count = 0

    def data(t: float | Tensor, x: Tensor) -> Tensor | None:
        return term.data(t, x, cond) if isinstance(term, (PathODE, PathSDE)) else None

    def observe(t: float | Tensor, x: Tensor, nfe: int) -> None:
        nonlocal count
        count += 1
        if bar is not None:
            bar(t, nfe)
        if callback is not None:
            callback(StepState(t, x, nfe, count, data))

    return observe


def _watch(events: object, term: Term, request: Request, x: Tensor) -> Watch | None:
    """What looks for events, after a check that it can."""
    several = listed(events)
    if not several:
        return None
    one_step = request.method.tableau is not None and request.backend != "torchdiffeq"
    if not one_step or request.gradient not in (None, "direct") or transforming():
        raise Unsupported(
            "events are found in runs of interp's own Runge-Kutta methods, with gradients through every "
            'operation or none. Use e.g. method="dopri5".'
        )
    return Watch(several, term, request, x, solve)


def _watched(watch: Watch | None, observer: Observer | None) -> Observer | None:
    if watch is None:
        return observer

    def observe(t: float | Tensor, x: Tensor, nfe: int) -> object:
        if observer is not None:
            observer(t, x, nfe)
        return watch.observe(t, x, nfe)

    return observe


# Results


def _stiff(method: Method, request: Request, made: Plan, report: Report) -> str | None:
    """The complaint about a stiff field under an explicit method whose steps adapted."""
    adapted = method.adaptive and request.grid is None and not method.implicit
    if not adapted or transforming():
        return None
    return stiffness.complaint(made, report)


def _nothing(made: Plan) -> Report:
    """The report of a run whose only step is the first-order one."""
    y, problem = made.problem.y, made.problem
    if y is None:
        raise FieldError("the state of this run is gone")
    for i in range(len(problem.saves)):
        problem.xs[i] = y
    return Report(
        y=y, status="done", t=problem.saves[0] if problem.saves else 0.0, accepted=0, rejected=0,
        nfe=0, step=0.0, rows=[], field_s=0.0,
    )  # fmt: skip


def _solution(
    term: Term, request: Request, made: Plan, report: Report, observer: Observer | None,
    began: float,
) -> Solution:  # fmt: skip
    done = report["status"] == "done"
    stop = made.stop if done else made.time(report["t"])
    rows = _row_stats(made, report, request, len(report["y"]) if report["y"].ndim else 1)
    x = made.state(stop if rows is None else rows.t, report["y"])
    if request.backend == "rust" and made.coordinates is None:
        x = x.clone()  # out of the engine's memory, which torch cannot resize, into torch's own
    saves, xs = made.saves[: len(made.problem.saves)], made.problem.xs
    if not done and rows is None:
        forward = request.ends[1] - request.ends[0]
        saves = [s for s in saves if (s - stop) * forward <= 0]
        xs = xs[: len(saves)]
    if made.coordinates is not None and saves:
        scale = made.coordinates.scale(host(saves))
        xs = spread_rows(scale, xs)
    stats = Stats(
        nfe=report["nfe"], steps=report["accepted"], accepted=report["accepted"],
        rejected=report["rejected"], wall_s=now() - began, field_s=report["field_s"],
        method=request.method.name, backend=request.backend, status=report["status"],
        seed=made.noise.seed if made.noise else None, depth=made.noise.depth if made.noise else None,
        gradient=request.gradient if torch.is_grad_enabled() else None,
        rows=rows,
    )  # fmt: skip
    ended = stats
    if done and made.last is not None and isinstance(term, PathODE):
        x, xs, stats = _last_step(term, request, made, x, xs, stats, observer)
    if stats.status == "done" and made.denoise and isinstance(term, (PathODE, PathSDE)):
        x, xs, stats = ending.to_clean_data(term, request, x, xs, stats)
        if observer is not None and stats.status == "done":
            observer(1.0, x, stats.nfe)
    if stats is not ended:
        stats = replace(stats, wall_s=now() - began)
    if rows is not None and stats.status == "done":
        whole = torch.tensor([s == "done" for s in rows.status], dtype=torch.bool)
        stats = replace(stats, rows=replace(rows, t=torch.where(whole, request.ends[1], rows.t)))
    ts = host(made.asked[: len(xs)])
    return Solution(x, ts, xs, stats)


def _with_events(sol: Solution, watch: Watch, request: Request) -> Solution:
    """The solution that ends where its events ended it."""
    forward = 1 if request.ends[1] > request.ends[0] else -1
    x, xs, ts, stats = sol.x, sol.xs, sol.ts, sol.stats
    if None in watch.ends:
        t, x = watch.ends[None]
        kept = int(((ts - t) * forward <= 0).sum())
        ts, xs = ts[:kept], xs[:kept]
        if request.asked == [request.ends[1]]:  # the end, wherever that is
            ts, xs = host([t]), x[None]
    elif watch.ends and stats.rows is not None:
        x, xs, times = x.clone(), xs.clone(), stats.rows.t.clone()
        for row, (t, state) in watch.ends.items():
            x[row], times[row] = state, t
            xs[(ts - t) * forward > 0, row] = float("nan")
            if request.asked == [request.ends[1]]:
                xs[0, row] = state
        stats = replace(stats, rows=replace(stats.rows, t=times))
    return Solution(x, ts, xs, stats, watch.occurrences())


def _row_stats(made: Plan, report: Report, request: Request, count: int) -> RowStats | None:
    """The statistics of each row; of rows that took the same steps, the same."""
    if not request.per_row:
        return None
    each = report.get("each")
    if each is None:
        status = (report["status"],) * count
        t = host([made.stop if report["status"] == "done" else made.time(report["t"])] * count)
        accepted, rejected, nfe = (
            torch.full((count,), n) for n in (report["accepted"], report["rejected"], report["nfe"])
        )
    else:
        status = tuple(each["status"])
        whole = torch.tensor([s == "done" for s in status], dtype=torch.bool)
        t = torch.where(whole, made.stop, made.times(each["t"]))
        accepted, rejected, nfe = (
            torch.tensor(n, dtype=torch.int64)
            for n in (each["accepted"], each["rejected"], each["nfe"])
        )
    return RowStats(t, accepted, rejected, nfe, status)


def spread_rows(scale: Tensor, xs: Tensor) -> Tensor:
    """Multiply the i-th state by scale[i]."""
    return xs * scale.to(dtype=xs.dtype, device=xs.device).reshape(-1, *(1,) * (xs.ndim - 1))


def _last_step(
    term: PathODE, request: Request, made: Plan, x: Tensor, xs: Tensor, stats: Stats,
    observer: Observer | None,
) -> tuple[Tensor, Tensor, Stats]:  # fmt: skip
    """The first-order step to clean data, and the output times inside it."""
    began = now()
    at = host(made.stop)
    data = term.call(at, x, request.cond)
    field_s = now() - began
    stats = replace(stats, nfe=stats.nfe + 1, field_s=stats.field_s + field_s)

    def carried(t: float) -> Tensor:
        return term.first_order(at, host(t), x, data)

    end = carried(float(made.last or 0.0))
    if not finite(end):
        if request.options.get("on_failure") == "partial":
            return x, xs, replace(stats, status="non_finite")
        rows = bad_rows(end)
        raise SolveError(
            f"the model became NaN or infinite at t = {made.stop:.6g} in rows {rows[:8]}. Look at the "
            "model there.",
            time=made.stop, step=stats.accepted, rows=rows, last=x, reason="non_finite",
        )  # fmt: skip
    inside = made.saves[len(xs) :]
    xs = torch.cat([xs, torch.stack([carried(t) for t in inside])]) if inside else xs
    stats = replace(stats, steps=stats.steps + 1, accepted=stats.accepted + 1)
    if observer is not None:
        observer(float(made.last or 0.0), end, stats.nfe)
    return end, xs, stats
