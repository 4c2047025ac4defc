"""What a solve gives back, and what it shows on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..arguments import host


@dataclass(frozen=True)
class RowStats:
    """What a solve with `per_row=True` did in each row.

    Attributes:
        t: (rows,) float64, where the row ended.
        accepted, rejected: (rows,) int64, steps that it took and tried in vain.
        nfe: (rows,) int64, evaluations that it asked for.
        status: "done", "stopped" (by an event), or why it ended early; one a row.
    """

    t: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: Tensor
    status: tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """What a solve did.

    Attributes:
        nfe: evaluations of the field (the model, the drift), each of a whole batch; without the few
            after a long adaptive run by which it is seen whether the field was stiff.
        steps: steps of the run, ``accepted``.
        accepted, rejected: steps that were taken and tried in vain, of all rows together where each
            has its own.
        wall_s: seconds from call to return.
        field_s: seconds of these inside the field.
        method, backend: what ran.
        status: "done", or why it ended early.
        seed: of the noise; None for an ODE.
        depth: levels of the Brownian tree; None for an ODE.
        acceptance: the mean rate at which a chain's steps are accepted, or would be (langevin); None
            where there is no energy to tell.
        ess: the effective sample size of a chain, the smallest of all elements.
        step_size: of a chain, the one that was found where it was looked for.
        gradient: how the run can be differentiated; None where its result is a constant.
        rows: the same for each row, where rows have steps of their own.
    """

    nfe: int
    steps: int
    accepted: int
    rejected: int
    wall_s: float
    field_s: float
    method: str
    backend: str
    status: str
    seed: int | None = None
    depth: int | None = None
    acceptance: float | None = None
    ess: float | None = None
    step_size: float | None = None
    gradient: str | None = None
    rows: RowStats | None = None

    def __str__(self) -> str:
        head = f"{self.method} on {self.backend}: {self.status}, {self.accepted} steps"
        rejected = f" (+{self.rejected} rejected)" if self.rejected else ""
        share = f"{self.wall_s:.3g} s, {self.field_s:.3g} s of it in the field"
        return f"{head}{rejected}, {self.nfe} evaluations, {share}"


@dataclass(frozen=True)
class Occurrences:
    """Where an event's function passed through zero.

    Attributes:
        t: (k,) float64, when.
        rows: (k,) int64, in which row each; None for a function of all rows together.
        x: (k, ...), the row's state there, or that of the whole batch.
    """

    t: Tensor
    rows: Tensor | None
    x: Tensor


@dataclass(frozen=True)
class Solution:
    """The end of a run and what was saved on the way.

    Attributes:
        x: the state at the end. On the rust backend it lies in memory of the engine's, which torch
            cannot resize.
        stats: what the run did.
        events: where each of the events happened, in their order.
    """

    x: Tensor
    _ts: Tensor | float
    _xs: Tensor | None
    stats: Stats
    events: tuple[Occurrences, ...] = ()

    @property
    def ts(self) -> Tensor:
        """(m,) float64, the times of ``save_at``, or the end alone."""
        return self._ts if isinstance(self._ts, Tensor) else host([self._ts])

    @property
    def xs(self) -> Tensor:
        """(m, *x.shape), the states at these times; without ``save_at`` a view of x."""
        return self.x[None] if self._xs is None else self._xs


@dataclass(frozen=True)
class StepState:
    """What a callback sees after each step.

    Attributes:
        t: the time, in the caller's clock; (rows,) float64 with ``per_row=True``.
        x: the state there.
        nfe: evaluations so far.
        step: steps so far.
    """

    t: float | Tensor
    x: Tensor
    nfe: int
    step: int
    _data: Callable[[float | Tensor, Tensor], Tensor | None]

    @cached_property
    def data(self) -> Tensor | None:
        """The data estimate E[x1 | x], or None for a term made by hand.

        Asking costs one more call of the model, which ``nfe`` does not count.
        """
        return self._data(self.t, self.x)
