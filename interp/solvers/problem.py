"""What a backend is handed and what it hands back: one shape for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ..native import NativeField
from ..terms import Field

Observer = Callable[[Any, Tensor, int], Any]
"""observer(t, y, nfe) after each step; a true answer stops the run there. Where rows have steps of
their own, t is a list of one time a row, and the answer names the rows that stop."""


@dataclass(slots=True)
class Problem:
    """A run in the coordinates in which it is integrated.

    Attributes:
        field: field(t, y) -> tensor like y.
        y: the state at the start; the backend copies what it must not write to, and drops it.
        row: elements in a row of y.
        saves: times at which to save, in the order of the run.
        xs: (len(saves), *y.shape), where the saved states go.
        time: the dtype in which the field is told the time.
        times: from readings of the run's clock to the times that the field is told; None where they
            are one.
        native: the field without Python, for the engine; None where there is none.
        diffusion: g(t, y) -> tensor like y, or None.
        cut: cut(rows) -> the field of these rows alone; None where all rows always go together.
        correction: (t, y) -> g dg/dy, or None.
        channels: columns of the diffusion, where it is a matrix a row; else None.
        observer: called with t, y and the number of evaluations after each step.
    """

    field: Field
    y: Tensor | None
    row: int
    saves: list[float]
    xs: Tensor
    time: torch.dtype
    times: Callable[[list[float]], list[float]] | None = None
    native: NativeField | None = None
    diffusion: Field | None = None
    cut: Callable[[list[int]], Field] | None = None
    correction: Field | None = None
    channels: int | None = None
    observer: Observer | None = None

    def told(self, clock: float) -> Tensor:
        """What the field is told when the run's clock shows this."""
        t = clock if self.times is None else self.times([clock])[0]
        return torch.tensor(t, dtype=self.time, device=self.xs.device)

    def told_rows(self, clocks: list[float]) -> Tensor:
        """The same for a clock of each row."""
        times = clocks if self.times is None else self.times(clocks)
        return torch.tensor(times, dtype=self.time, device=self.xs.device)

    @staticmethod
    def plain(result: Tensor) -> Tensor:
        """A fresh contiguous tensor of torch's own class, whatever kind of tensor came."""
        if type(result) is not Tensor:
            with torch._C.DisableTorchFunctionSubclass():
                result = result.as_subclass(Tensor)
        return torch.empty(result.shape, dtype=result.dtype, device=result.device).copy_(result)


@dataclass(slots=True)
class Adaptive:
    """Ends, tolerances and control of a run with adaptive steps.

    Attributes:
        from_, to: the ends.
        rtol, atol: a local error is measured against atol + rtol max(|y|, |y_new|).
        first_step: or None, to choose it from the field.
        max_steps: tried, accepted or not.
        gains: exponents of the last three errors in the controller, the newest first.
        norm: how the scaled errors of all elements become one number, see `interp.solvers.control`.
    """

    from_: float
    to: float
    rtol: float
    atol: float
    first_step: float | None
    max_steps: int
    gains: tuple[float, float, float]
    norm: str


@dataclass(frozen=True)
class NoiseKey:
    """What keys the noise of a run."""

    seed: int
    stream: int
    first_row: int
    span: tuple[float, float]
    depth: int


@dataclass(slots=True)
class Chain:
    """A chain on an energy, as a backend is told of it.

    Attributes:
        energies: of each level, energy(x) -> (U of each row, float64, or None; dU/dx).
        y: the state at the start, which the backend copies.
        row: elements in a row of y.
        xs: (saves, *y.shape), where the saved states go.
        dynamics: "langevin", "mala", "underdamped" or "hmc".
        step_sizes: of each level.
        steps: of each level.
        temperature, friction, leapfrog: of the dynamics.
        adapt, target: steps that look for a step size first, and the acceptance at which they aim.
        save_every: after so many steps of a level its state is saved; 0 for never.
        key, first_row: what keys the noise.
        columns: at most so many elements of a row count for the effective sample size.
        observer: observer(step, x, nfe) after each step; a true answer stops the chain there.
    """

    energies: list[Callable[[Tensor], tuple[Tensor | None, Tensor]]]
    y: Tensor
    row: int
    xs: Tensor
    saves: int
    dynamics: str
    step_sizes: list[float]
    steps: int
    temperature: float
    friction: float
    leapfrog: int
    adapt: int
    target: float
    save_every: int
    key: tuple[int, int]
    first_row: int
    columns: int
    observer: Callable[[int, Tensor, int], object] | None = None

    plain = staticmethod(Problem.plain)


class ChainReport(TypedDict):
    """How a chain ended: "done", "stopped", "bad_start", "nothing_accepted" or "non_finite"."""

    y: Tensor
    status: str
    step: int
    step_size: float
    acceptance: float | None
    ess: float
    saved: list[int]
    rows: list[int]
    nfe: int
    field_s: float


class RowsReport(TypedDict):
    """How each row of a run ended: lists of one entry a row."""

    t: list[float]
    accepted: list[int]
    rejected: list[int]
    nfe: list[int]
    status: list[str]


class Report(TypedDict):
    """How a run ended; ``each`` where rows have steps of their own."""

    y: Tensor
    status: str
    t: float
    accepted: int
    rejected: int
    nfe: int
    step: float
    rows: list[int]
    field_s: float
    each: NotRequired[RowsReport]
