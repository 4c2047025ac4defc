"""The flows that a schedule is made for: what is integrated, from where, and where it ends exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import schedules
from ..errors import OptionError, UnknownName
from ..exact.target import Target
from ..interpolant import Interpolant
from ..solvers import solve
from ..terms import ODE, PathODE

Term = ODE | PathODE
Ends = tuple[float, float]
Time = str | tuple[str, int] | None


class Flow:
    """One flow, with starts to search on and as many to report on.

    Args:
        on: the term on a path; called with None where there is no path.
        path: the path that it comes with, if any.
        x: the starts, (2 n, ...): the first half to search on, the second held out.
        cond: conditions of the model; tensors with a row for each start are cut with them.
        ends: the times of the run.
    """

    def __init__(
        self, on: Callable[[Interpolant | None], Term], path: Interpolant | None, x: Tensor,
        cond: Mapping[str, Any], ends: Ends,
    ) -> None:  # fmt: skip
        self.on, self.path, self.ends = on, path, ends
        half = len(x) // 2
        self.halves = [
            (part, {k: _cut(v, len(x), rows) for k, v in cond.items()})
            for rows in (slice(0, half), slice(half, 2 * half))
            for part in (x[rows],)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        return self.halves[0][0].dtype

    @property
    def tolerance(self) -> float:
        """Of the exact run: far below any error of a few steps, above the dtype's rounding."""
        return 1e-9 if self.dtype is torch.float64 else 1e-6

    @torch.no_grad()
    def run(self, path: Interpolant | None, half: int = 0, **options: Any) -> Tensor:
        """Where the starts of a half end, float64 on the host."""
        x, cond = self.halves[half]
        solution = solve(self.on(path), x, cond=cond, **options)
        if solution.stats.seed is not None:
            raise OptionError(
                f"{solution.stats.method} draws noise, so that its runs do not end where the flow does. "
                'Give a method that draws none; the grid of objective="likelihood" serves ancestral '
                "sampling too."
            )
        return solution.x.double().cpu()

    @functools.cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Where the flow itself takes both halves, by dopri5 at `tolerance`."""
        tight = {"rtol": self.tolerance, "atol": self.tolerance}
        first, second = (self.run(self.path, half, t=self.ends, **tight) for half in (0, 1))
        return first, second

    def error(self, path: Interpolant | None, method: str, grid: list[float], half: int) -> Tensor:
        """How far from `exact` a run of ``method`` on ``grid`` ends: like the starts."""
        t = (grid[0], grid[-1])
        return self.run(path, half, t=t, method=method, grid=grid) - self.exact[half]


def _cut(value: Any, rows: int, part: slice) -> Any:
    """``value``, or its rows where it has one for each start."""
    per_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    return value[part] if per_row else value


def flow(
    given: object, path: Interpolant | None, view: str | None, time: Time, t: Ends | None,
    x: Tensor | None, cond: Mapping[str, Any] | None, rows: int, seed: int,
) -> Flow:  # fmt: skip
    """The flow of a target, a term, a family or a model: see `best_schedule`."""
    term, shape, like = _term(given, path, view, time)
    if isinstance(term, ODE):
        if x is None:
            raise OptionError(
                "a field made by hand says nothing of where it starts. Give x=, twice as many rows as "
                "the search is to run."
            )
        return Flow(lambda _: term, None, x, cond or {}, t or term.interval)
    own, ends = term.path, t or term.interval
    if x is None:
        if shape is None:
            raise OptionError(
                "a model alone does not tell the shape of its states. Give x=, starts of the flow: "
                "twice as many rows as the search is to run."
            )
        if ends[0] != 0:
            raise OptionError(
                f"the run starts at t = {ends[0]:g}, where the law of the states is not the base. "
                "Give x=, starts of the flow there."
            )
        x = own.base.sample((2 * rows, *shape), seed=seed, dtype=like.dtype, device=like.device)
    if isinstance(given, Target):
        target = given
        return Flow(lambda p: _of_target(target, p or own, view), own, x, cond or {}, ends)
    return Flow(lambda p: _moved(term, p), own, x, cond or {}, ends)


def _term(
    given: object, path: Interpolant | None, view: str | None, time: Time
) -> tuple[Term, tuple[int, ...] | None, Tensor]:
    """What is integrated, the shape of a row where it is known, and a tensor of its kind."""
    exact = torch.empty(0, dtype=torch.float64)
    if isinstance(given, Target):
        return _of_target(given, path or schedules.linear(), view), (given.dim,), exact
    if isinstance(given, (ODE, PathODE)):
        if path is not None:
            raise OptionError(
                "a term has its own path. Leave out path=, or give the model and its view apart."
            )
        return given, None, exact
    if isinstance(given, nn.Module) and callable(getattr(given, "term", None)):
        term: object = given.term()  # type: ignore[operator]
        if isinstance(term, PathODE):
            return term, tuple(given.shape), next(given.parameters())  # type: ignore[arg-type]
    if callable(given) and path is not None:
        return path.ode(given, view=view, time=time), None, exact
    raise OptionError(
        f"a {type(given).__name__} has no flow to schedule. Give an exact target, a term such as "
        "path.ode(model), a family that samples by a flow, or a model with path=, the path that it was "
        "trained on."
    )


def _of_target(target: Target, path: Interpolant, view: str | None) -> PathODE:
    fields: dict[str, Callable[..., Any]] = {
        "velocity": target.velocity, "score": target.score, "data": target.data,
        "noise": target.noise,
    }  # fmt: skip
    view = "velocity" if view is None else view
    if view not in fields:
        raise UnknownName.of("view of a target", view, fields)
    return path.ode(fields[view](path), view=view)


def _moved(term: PathODE, path: Interpolant | None) -> PathODE:
    """The term on another path, by a model that stays as it was trained."""
    if path is None or path is term.path:
        return term
    model = path.adapt(term.model, trained_on=term.path, view=term.view, time=term.time)
    return path.ode(model, view=term.view)
