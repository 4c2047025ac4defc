"""The one call that integrates anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..arguments import now, transforming
from ..errors import FieldError, StiffWarning
from ..terms import ODE, SDE, Energy, PathMap, PathODE, PathSDE, Term
from . import chains, checks, ending, gradients, grids, outcome, stiffness
from . import surroundings as around
from .catalogue import Method, find
from .plan import Plan, Request, failure
from .problem import Report
from .result import Solution, StepState


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
            output of order 3 (dopri5 and tsit5: 4, dop853: 7); of ab2 to ab4 and of samplers without
            noise it goes through the nearest four (see `interp.solvers.dense`). Neither changes a step.
            Runs that draw noise refuse such times: put them into ``grid``, which changes the steps,
            knowingly.
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
            (steps that look for a step size first, from step_size or from 1), friction (underdamped),
            leapfrog (hmc) and levels (annealed) of chains.

    Raises:
        OptionError, TimeError, UnknownName, Unsupported: arguments that make no sense.
        FieldError: a field that does not return a tensor like its input.
        SolveError: a run that could not go on, with the last good state.
    """
    began = now()
    checks.check_extras(cond, callback)
    chosen = find(method)
    if isinstance(term, Energy):
        times = {"t": t, "grid": grid, "save_at": save_at, "gradient": gradient}
        checks.check_chain(chosen, x, backend, times, method_options)
        return chains.run(
            term, x, method, backend=backend, steps=steps, seed=seed, first_row=first_row,
            cond=dict(cond or {}), callback=callback, options=method_options,
        )  # fmt: skip
    if not isinstance(term, (ODE, SDE, PathODE, PathSDE, PathMap)):
        term = ODE(checks.callable_field(term))
    request = checks.requested(
        term, x, t, chosen, backend, steps, grid, rtol, atol, save_at, seed, first_row, per_row,
        dict(cond or {}), gradient, method_options,
    )  # fmt: skip
    with around.recording(request), around.progress(request, progress) as bar:
        observer = around.observing(term, request.cond, callback, bar)
        watch = around.watching(events, term, request, x, solve)
        made = chosen.scheme(term, x, request, around.watched(watch, observer))
        if watch is not None:
            watch.watch(made)
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
        if report["status"] not in outcome.ENDED and method_options.get("on_failure") != "partial":
            raise failure(made, report, stiff)
        if stiff is not None:
            warnings.warn(". ".join(stiff), StiffWarning, stacklevel=2)
        solution = outcome.solution(term, request, made, report, observer, began)
        return solution if watch is None else outcome.with_events(solution, watch, request)


def _stiff(method: Method, request: Request, made: Plan, report: Report) -> tuple[str, str] | None:
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
