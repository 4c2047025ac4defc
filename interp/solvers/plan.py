"""From a term and a call's arguments to what a backend runs, and back.

A method's scheme makes the plan (see `interp.solvers.catalogue`); what all schemes share is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import host, like, positive, spread, whole
from ..errors import OptionError, SolveError
from ..native import NativeField, NativeModel
from ..terms import ODE, SDE, Cond, Coordinates, PathODE, PathSDE
from ..terms.model import Affine, needs_exact_time
from . import control
from .problem import Adaptive, NoiseKey, Observer, Problem, Report

if TYPE_CHECKING:
    from .catalogue import Method
    from .dense import Between

Engine = Callable[..., Report]


@dataclass(slots=True)
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
        cleans: whether the backend's part holds that step itself.
        between: what makes the states at ``saves`` out of those that the backend saves; None where they
            are the same.
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
    cleans: bool = False
    between: Between | None = None

    def time(self, tau: float) -> float:
        """A clock reading of the run in the caller's time."""
        if self.coordinates is None:
            return tau
        return float(self.coordinates.time(host(tau)))

    def times(self, taus: list[float]) -> Tensor:
        """Clock readings of the run in the caller's time, float64."""
        return host(taus) if self.coordinates is None else self.coordinates.time(host(taus))

    def state(self, t: float | Tensor, y: Tensor) -> Tensor:
        """A state of the run as the caller's x; t may be a time for each row."""
        if self.coordinates is None:
            return y
        return spread(self.coordinates.scale(host(t)), y) * y

    def told(self, observer: Observer) -> Observer:
        """An observer in the caller's clock and coordinates, for one in the run's."""

        def observe(tau: float | list[float], y: Tensor, nfe: int) -> object:
            t = self.times(tau) if isinstance(tau, list) else self.time(tau)
            return observer(t, self.state(t, y), nfe)

        return observe


class Request(NamedTuple):
    """The arguments of a solve, checked.

    ``end_alone``: whether no output times were asked for; ``saves`` is empty then.
    """

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
    gradient: str | None = None
    per_row: bool = False
    end_alone: bool = False

    @property
    def times(self) -> list[float]:
        """The grid of the run, which a programme has to have."""
        if self.grid is None:
            raise OptionError(f"{self.method.name} takes the steps it is given. Give steps=N.")
        return self.grid

    def adaptive(self, ends: tuple[float, float]) -> Adaptive:
        """Ends and tolerances of an adaptive run."""
        first, most = self.options.get("first_step"), self.options.get("max_steps", 100_000)
        if first is not None:
            first = positive("first_step", first)
        limit = whole("max_steps", most, 1)
        gains = control.gains(self.options.get("controller", "pi"), self.method.error_order)
        norm = control.norm(self.options.get("norm", "rms"))
        return Adaptive(*ends, self.rtol, self.atol, first, limit, gains, norm)


def clock_reader(at: Coordinates) -> Callable[[list[float]], list[float]]:
    """From readings of the clock to t, many at once: an inverse without a closed form is a search."""

    def read(taus: list[float]) -> list[float]:
        times: list[float] = at.time(host(taus)).tolist()
        return times

    return read


class Ahead:
    """A slope a model(t, c y) + b y, whose numbers are read for many stages at once, before them.

    Read at each call, they would cost a small network's time again.

    Args:
        form: the slope.
        cond: what the model is told besides.
    """

    def __init__(self, form: Affine, cond: Cond) -> None:
        self.model, self.cond = form.model, cond
        self.reads, self.exact = form.reads, needs_exact_time(form.model)
        self.numbers: dict[float, tuple[float, float, float]] = {}

    def times(self, clocks: list[float]) -> list[float]:
        """What the slope is told when the run's clock shows these: at no other time is it called."""
        rows = self.reads(clocks) if self.reads is not None else []
        self.numbers = {t: (c, a, b) for t, c, a, b in rows}
        return [row[0] for row in rows]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        c, a, b = self.numbers[float(t)]
        stamp = t if self.exact else t.to(y.dtype)
        value = like(self.model(stamp, y if c == 1 else c * y, **self.cond), y, "the model")
        value = value if a == 1 else a * value
        return value if b == 0 else value + b * y


def pose(
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
        xs=x.new_empty((len(saves), *x.shape)),
        time=torch.float64 if exact_time else x.dtype,
    )


def native(
    term: ODE | SDE | PathODE | PathSDE, x: Tensor, request: Request, form: Affine | None = None,
    per_row: bool = False,
) -> NativeField | None:  # fmt: skip
    """The term's field without Python, where its model has one and the backend can use it.

    ``form``: what the run calls, where that is not the term's own slope; ``per_row``: whether each row
    is at a time of its own.
    """
    form = term.affine() if form is None else form
    if request.backend != "rust" or form is None or not isinstance(form.model, NativeModel):
        return None
    time = torch.float64 if needs_exact_time(form.model) else x.dtype
    return form.model.native(x, time, request.cond, form.reads, per_row)


def cut(cond: Cond, rows: list[int], count: int) -> Cond:
    """What the model is told of some of ``count`` rows: tensors of as many rows are cut."""

    def part(value: object) -> object:
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == count:
            return value[torch.tensor(rows, device=value.device)]
        return value

    return {name: part(value) for name, value in cond.items()}


def clock(at: Coordinates, times: list[float]) -> dict[float, float]:
    """The clock at each time: one reading a time, so that equal times have equal readings."""
    unique = list(dict.fromkeys(times))
    taus: list[float] = at.tau(host(unique)).tolist()
    return dict(zip(unique, taus, strict=True))


def failure(made: Plan, report: Report, stiff: tuple[str, str] | None = None) -> SolveError:
    """The error that says why a run ended early."""
    t, rows = made.time(report["t"]), report["rows"]
    each = report.get("each")
    steps = report["accepted"] if each is None else each["accepted"][rows[0]]
    reached: float | Tensor = t if each is None else made.times(each["t"])
    where = f"at t = {t:.6g}, after {steps} steps"
    if report["status"] == "non_finite":
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        fields, there = "the field", "the field"
        if made.problem.diffusion is not None:
            fields, there = "the drift, the diffusion", "the two"
        what = f"{fields} or the state became NaN or infinite {where}" + (
            f", in row{'s' if len(rows) > 1 else ''} {shown}" if rows else ""
        )
        remedy = f"Look at {there} there, or take smaller steps."
    elif report["status"] == "no_convergence":
        what = f"Newton's method did not find a stage {where}"
        remedy = "Take smaller steps, and look at whether the field is smooth."
    elif report["status"] == "step_underflow":
        what = f"the step shrank to {report['step']:.1e} {where}: the field is too stiff or jumps"
        remedy = "Raise rtol and atol, or give steps=N for a fixed grid."
    else:
        what = f"the run took all the steps it may {where}, the last of length {report['step']:.1e}"
        remedy = "Raise max_steps or the tolerances."
        if stiff is not None:
            what, remedy = f"{what}; {stiff[0]}", stiff[1]
    return SolveError(
        f"{what}. {remedy} The error's .last holds the last good state.",
        time=t, step=steps, rows=rows, last=made.state(reached, report["y"]),
        reason=report["status"],
    )  # fmt: skip
