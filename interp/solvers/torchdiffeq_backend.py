"""torchdiffeq behind the same call, for the methods whose tableau it shares.

Chen, torchdiffeq (2018). Its clock, controller and output are its own; on one grid the numbers are
ours to rounding.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..arguments import like
from .problem import Adaptive, Problem, Report


class _Counted(torch.nn.Module):
    """The field as torchdiffeq wants it, counted and timed, with its hooks."""

    def __init__(self, problem: Problem, adaptive: bool) -> None:
        super().__init__()
        self.problem = problem
        if adaptive:  # its fixed-step solvers warn of hooks that they do not call
            self.callback_accept_step = self._accepted
            self.callback_reject_step = self._rejected
        self.nfe = self.accepted = self.rejected = 0
        self.field_s = 0.0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        start = time.perf_counter()
        given = y if y.requires_grad else y.clone()  # its own state is not the field's to write
        result = self.problem.field(self.problem.told(float(t)), given)
        self.field_s += time.perf_counter() - start
        result = like(result, y, "the field")
        # It keeps what it is given, and a reused buffer would change under it.
        return result if result.requires_grad else result.clone()

    def _accepted(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.accepted += 1

    def _rejected(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.rejected += 1

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        # Called before a step: the state is that of the last accepted one.
        if self.problem.observer is not None and self.nfe > 1:
            self.problem.observer(float(t0), y0, self.nfe)


def runge_kutta(
    problem: Problem,
    peer: str,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by torchdiffeq's method ``peer``, on a grid or adaptively."""
    import torchdiffeq

    y = problem.y
    if y is None:
        raise ValueError("the state of this problem was already taken by a run")
    field = _Counted(problem, adaptive is not None)
    ends = (grid[0], grid[-1]) if grid is not None else _ends(adaptive)
    wanted = sorted({*ends, *problem.saves}, reverse=ends[1] < ends[0])
    options: dict[str, Any] = {}
    tolerances: dict[str, float] = {}
    if grid is not None:
        nodes = torch.tensor(grid, dtype=torch.float64, device=y.device)
        options = {"grid_constructor": lambda f, y0, t: nodes, "interp": "cubic"}
    elif adaptive is not None:
        tolerances = {"rtol": adaptive.rtol, "atol": adaptive.atol}
        # It steps over the end of the run and interpolates back, unless it is told to stop there; and
        # bosh3's interpolant is of low order, so that it has to stop at every output time.
        stops = torch.tensor(
            wanted[1:] if peer == "bosh3" else [ends[1]], dtype=torch.float64, device=y.device
        )
        options = {"max_num_steps": adaptive.max_steps, "dtype": torch.float64, "step_t": stops}
        if adaptive.first_step is not None:
            options["first_step"] = adaptive.first_step
    times = torch.tensor(wanted, dtype=torch.float64, device=y.device)
    if y.numel() == 0:
        problem.field(problem.told(ends[0]), y)
        return _report(field, y, "done", ends[0], 0)
    try:
        states = torchdiffeq.odeint(field, y, times, method=peer, options=options, **tolerances)
    except AssertionError as error:  # how it says that it cannot go on; the state is lost
        reason = next((r for words, r in _REASONS if words in str(error)), "non_finite")
        return _report(field, y, reason, ends[0], field.accepted)
    for i, t in enumerate(problem.saves):
        problem.xs[i] = states[wanted.index(t)]
    accepted = len(grid) - 1 if grid is not None else field.accepted
    if problem.observer is not None:
        problem.observer(ends[1], states[-1], field.nfe)
    finite = bool(states[-1].isfinite().all())
    return _report(field, states[-1], "done" if finite else "non_finite", ends[1], accepted)


_REASONS = (("underflow", "step_underflow"), ("max_num_steps", "too_many_steps"))


def _report(field: _Counted, y: Tensor, status: str, t: float, accepted: int) -> Report:
    return Report(
        y=y, status=status, t=t, accepted=accepted, rejected=field.rejected, nfe=field.nfe,
        step=0.0, rows=[], field_s=field.field_s,
    )  # fmt: skip


def _ends(adaptive: Adaptive | None) -> tuple[float, float]:
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return adaptive.from_, adaptive.to
