"""How a run is differentiated, with respect to its start and to what the field is made of.

    gradient      numbers         derivative               memory, in states    field calls, of nfe
    direct        the method's    of the numbers, exact    activations x nfe    1 + backward
    checkpointed  the method's    of the numbers, exact    nfe + activations    2 + backward
    adjoint       the method's    to the tolerance         stages + 3           2 + backward
    reversible    a coupled pair  of the numbers, exact    stages + 6           4 + 2 backward

"activations" is what one evaluation of the field keeps for its own backward pass. The steps that an
adaptive run has chosen are constants to every derivative. Adjoint and reversible reach the start
and the leaf tensors (parameters) that the field uses at the start.

direct: torch records every operation; also under torch.func and for higher derivatives.
checkpointed: each evaluation of the field is recomputed in the backward pass (Chen, Xu, Zhang,
Guestrin, 1604.06174).

adjoint (Pontryagin; Chen, Rubanova, Bettencourt, Duvenaud, 1806.07366): from the end back,

    dy/dt = f,   da/dt = -a df/dy,   dg/dt = -a df/dtheta.

The error of g does not choose steps (Kidger, Chen, Lyons, 2009.09457). A flow that contracts is
unstable backwards, and y is then not what the run went through (Gholami, Keutzer, Biros,
1902.10298); nor is it for a view of the data, whose run ends where its state has forgotten the noise.

reversible (McCallum, Foster, 2410.11648): two states, coupled, with Psi_h(t, y) a method's
increment from t to t + h and c = 0.999,

    y_new = c y + (1 - c) z + Psi_h(t, z),        z_new = z - Psi_-h(t + h, y_new),

of the method's order, whose every step is undone algebraically: a derivative goes back along the
states that the run went through, to rounding. Where the flow contracts at the rate l the gap between
the two states grows as exp(l t) c^n: not for stiff fields.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..arguments import like, now
from ..errors import OptionError, SolveError
from ..terms import Field
from . import torch_backend
from .plan import Engine
from .problem import Adaptive, Problem, Report
from .tableaus import Numbers
from .torch_backend.run import combine, finite
from .torch_backend.runge_kutta import stage_time

GRADIENTS = ("direct", "checkpointed", "adjoint", "reversible")
COUPLING = 0.999


def engine(gradient: str | None, inner: Engine) -> Engine:
    """What runs ``inner`` and is differentiated as ``gradient`` says."""
    if gradient == "checkpointed":
        return _checkpointed(inner)
    if gradient == "adjoint":
        return _chained(_AdjointLeg, inner)
    if gradient == "reversible":
        return _chained(_ReversibleLeg, inner)
    return inner


def _checkpointed(inner: Engine) -> Engine:
    def recomputed(function: Field) -> Field:
        return lambda t, y: checkpoint(function, t, y, use_reentrant=False)

    def run(problem: Problem, *arguments: Any) -> Report:
        problem.field = recomputed(problem.field)
        if problem.diffusion is not None:
            problem.diffusion = recomputed(problem.diffusion)
        return inner(problem, *arguments)

    return run


# A run as a chain of legs, from one output time to the next, each a function of autograd's own


@dataclass
class _Leg:
    """The run from one output time to the next."""

    problem: Problem
    inner: Engine
    numbers: Numbers
    grid: list[float] | None
    adaptive: Adaptive | None
    report: Report = field(init=False)

    def forward(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def backward(
        self, y: Tensor, gradient: Tensor, leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """From the state at the end and the derivative by it, those by the start and the leaves."""
        raise NotImplementedError

    @staticmethod
    def enter(y: Tensor) -> Tensor:
        """The state of a leg from that of the run."""
        return y

    @staticmethod
    def leave(state: Tensor) -> Tensor:
        """The state of the run from that of a leg."""
        return state


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leg: _Leg, y: Tensor, *leaves: Tensor) -> Tensor:
        end = leg.forward(y)
        ctx.leg = leg
        ctx.save_for_backward(end, *leaves)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        end, *leaves = ctx.saved_tensors
        by_start, by_leaves = ctx.leg.backward(end, gradient, leaves)
        return (None, by_start, *by_leaves)


def _chained(kind: type[_Leg], inner: Engine) -> Engine:
    def run(
        problem: Problem,
        numbers: Numbers,
        grid: list[float] | None = None,
        adaptive: Adaptive | None = None,
    ) -> Report:
        if problem.y is None:
            raise ValueError("the state of this problem was already taken by a run")
        y, problem.y = problem.y, None
        kept: list[Tensor] = []
        leaves, total = _leaves(problem, y, _ends(grid, adaptive)[0])
        state, first = kind.enter(y), (grid[0] if grid else _ends(grid, adaptive)[0])
        kept += [y] * problem.saves.count(first)
        for grid_of_leg, adaptive_of_leg in _legs(problem.saves, grid, adaptive):
            leg = kind(problem, inner, numbers, grid_of_leg, adaptive_of_leg)
            state = carried(leg, state, leaves)
            total = _sum(total, leg.report)
            if leg.report["status"] != "done":
                break
            kept += [kind.leave(state)] * problem.saves.count(
                _ends(grid_of_leg, adaptive_of_leg)[1]
            )
        if kept:
            problem.xs = torch.stack(kept)
        total["y"] = kind.leave(state)
        return total

    return run


def _ends(grid: list[float] | None, adaptive: Adaptive | None) -> tuple[float, float]:
    if grid is not None:
        return grid[0], grid[-1]
    if adaptive is None:
        raise ValueError("either a grid or adaptive steps")
    return adaptive.from_, adaptive.to


def _legs(
    saves: list[float], grid: list[float] | None, adaptive: Adaptive | None
) -> Iterator[tuple[list[float] | None, Adaptive | None]]:
    """The grid, or the ends and tolerances, of each leg.

    Raises:
        OptionError: an output time between two steps of a grid.
    """
    start, stop = _ends(grid, adaptive)
    marks = [start, *(s for s in saves if s not in (start, stop)), stop]
    if grid is not None:
        missing = [s for s in saves if s not in grid]
        if missing:
            raise OptionError(
                f"save_at holds a time between two steps (the run's clock shows {missing[0]!r} there), "
                "where this gradient has no state. Give times of the grid, or a grid= that holds them."
            )
    for begin, end in itertools.pairwise(marks):
        if grid is not None:
            yield grid[grid.index(begin) : grid.index(end) + 1], None
        elif adaptive is not None:
            yield None, replace(adaptive, from_=begin, to=end)


def _leaves(problem: Problem, y: Tensor, t: float) -> tuple[list[Tensor], Report]:
    """The leaf tensors that want a derivative and that the field uses at the start."""
    began = now()
    found = leaves_of([problem.field], problem, y, t)
    report = Report(
        y=y, status="done", t=t, accepted=0, rejected=0, nfe=int(torch.is_grad_enabled()), step=0.0,
        rows=[], field_s=now() - began,
    )  # fmt: skip
    return found, report


def leaves_of(
    functions: Sequence[Field | None], problem: Problem, y: Tensor, t: float
) -> list[Tensor]:
    """The leaf tensors that want a derivative and that the functions of (t, y) use at the start."""
    found: dict[int, Tensor] = {}
    if not torch.is_grad_enabled():
        return []
    at = y.detach().requires_grad_()
    for function in functions:
        if function is None:
            continue
        value = function(problem.told(t), at)
        value = like(value, at, "the field") if function is problem.field else value
        waiting, seen = [value.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf is not at:
                found[id(leaf)] = leaf
            waiting += [after for after, _ in node.next_functions]
    return list(found.values())


def carried(leg: Any, state: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """The end of a leg, of which autograd sees no more than its two ends."""
    end: Tensor = _Carry.apply(leg, state, *leaves)
    return end


def _sum(total: Report, leg: Report) -> Report:
    summed = leg.copy()
    for count in ("accepted", "rejected", "nfe"):
        summed[count] += total[count]
    summed["field_s"] += total["field_s"]
    return summed


def pulled(value: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor]:
    """gradient dvalue/dinput for each input, 0 where value does not depend on it."""
    if not value.requires_grad:
        return [torch.zeros_like(i) for i in inputs]
    # What the field is made of outside of it stays for the next evaluation.
    return torch.autograd.grad(
        value, inputs, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
    )


# The continuous adjoint


class _AdjointLeg(_Leg):
    def forward(self, y: Tensor) -> Tensor:
        part = replace(self.problem, y=y.detach().contiguous(), saves=[], xs=self.problem.xs[:0])
        self.report = self.inner(part, self.numbers, self.grid, self.adaptive)
        return self.report["y"].clone()

    def backward(
        self, y: Tensor, gradient: Tensor, leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        n, scale = y.numel(), unit(y.dtype)
        sizes = [n, n, *(leaf.numel() for leaf in leaves)]

        def slope(t: Tensor, state: Tensor) -> Tensor:
            at, a = (part.reshape(y.shape) for part in torch.split(state, sizes)[:2])
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                value = like(self.problem.field(t, at), at, "the field")
                by_y, *by_leaves = pulled(value, [at, *leaves], a)
            parts = [-scale * by.reshape(-1).to(y.dtype) for by in by_leaves]
            return torch.cat([value.detach().reshape(-1), -by_y.reshape(-1), *parts])

        start = torch.cat(
            [y.reshape(-1), gradient.reshape(-1), y.new_zeros(sum(sizes[2:]))]
        )  # fmt: skip
        back = replace(
            self.problem, field=slope, y=start, row=1, saves=[], xs=start.new_empty(0, len(start)),
            observer=None, native=None, cut=None,
        )  # fmt: skip
        grid = self.grid[::-1] if self.grid is not None else None
        goal = self.adaptive and _uncounted(self.adaptive, 2 * n, len(start))
        report = self.inner(back, self.numbers, grid, goal)
        if report["status"] != "done":
            raise SolveError(
                f"the adjoint run back became {report['status']} where the run's clock shows "
                f'{report["t"]:.6g}. Use gradient="reversible" or "checkpointed", which follow the '
                "states of the run itself.",
                time=report["t"], step=report["accepted"], rows=[], last=y, reason=report["status"],
            )  # fmt: skip
        _, by_start, *by_leaves = torch.split(report["y"], sizes)
        found = [
            (by / scale).to(leaf.dtype).reshape(leaf.shape)
            for by, leaf in zip(by_leaves, leaves, strict=True)
        ]
        return by_start.reshape(y.shape).clone(), found


def unit(dtype: torch.dtype) -> float:
    """A power of two so small that an error in its units is none, and so large that nothing underflows.

    A part of the state in these units is integrated with the rest and has no say in its steps.
    """
    return 2.0 ** (math.frexp(torch.finfo(dtype).tiny)[1] // 2)


def _uncounted(goal: Adaptive, counted: int, total: int) -> Adaptive:
    """The same run back, at tolerances that make the mean over all the mean over what counts."""
    factor = math.sqrt(counted / total) if total and goal.norm == "rms" else 1.0
    return replace(
        goal, from_=goal.to, to=goal.from_, rtol=factor * goal.rtol, atol=factor * goal.atol,
        first_step=None,
    )  # fmt: skip


# Exactly reversible steps


class _ReversibleLeg(_Leg):
    @staticmethod
    def enter(y: Tensor) -> Tensor:
        return torch.stack([y, y])

    @staticmethod
    def leave(state: Tensor) -> Tensor:
        return state[0]

    def forward(self, y: Tensor) -> Tensor:
        first, second = y.detach()
        self.nfe, self.field_s = 0, 0.0
        rejected, grid = 0, self.grid
        if grid is None:
            grid, report = self._steps(first)
            if report["status"] != "done":
                self.report = report
                return torch.stack([report["y"], report["y"]])
            self.nfe, rejected, self.grid = report["nfe"], report["rejected"], grid
        status, i = "done", 0
        for i, (t, end) in enumerate(itertools.pairwise(grid), 1):
            gap = first - second
            after = second + COUPLING * gap + self._increment(second, t, end)
            if not finite(after):
                status, i = "non_finite", i - 1
                break
            first, second = after, second - self._increment(after, end, t)
            if self.problem.observer is not None:
                self.problem.observer(end, first, self.nfe)
        self.report = Report(
            y=first, status=status, t=grid[i], accepted=i, rejected=rejected, nfe=self.nfe,
            step=abs(grid[-1] - grid[-2]), rows=[], field_s=self.field_s,
        )  # fmt: skip
        return torch.stack([first, second])

    def backward(
        self, y: Tensor, gradient: Tensor, leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        (first, second), (by_first, by_second) = y, gradient
        by_leaves = [torch.zeros_like(leaf) for leaf in leaves]

        def undo(at: Tensor, t: float, end: float, by: Tensor) -> tuple[Tensor, Tensor]:
            """An increment, and what its derivative adds to that by the state it is taken at."""
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                value = self._increment(at, t, end)
                by_at, *more = pulled(value, [at, *leaves], by)
            for sum_, term in zip(by_leaves, more, strict=True):
                sum_ += term
            return value.detach(), by_at

        for end, t in itertools.pairwise(reversed(self.grid or [])):
            step, by = undo(first, end, t, -by_second)
            second, by_first = second + step, by_first + by
            step, by = undo(second, t, end, by_first)
            first = second + (first - second - step) / COUPLING
            by_second = by_second + (1 - COUPLING) * by_first + by
            by_first = COUPLING * by_first
        return torch.stack([by_first, by_second]), by_leaves

    def _increment(self, y: Tensor, t: float, end: float) -> Tensor:
        """h sum_i b_i k_i of the method from t to end."""
        numbers, h = self.numbers, end - t
        slopes: list[Tensor] = []
        for i in range(len(numbers.b) - numbers.fsal):
            stage = combine(y, h, numbers.a[i], slopes)
            began = now()
            told = self.problem.told(stage_time(numbers.c[i], t, end))
            slopes.append(like(self.problem.field(told, stage), y, "the field"))
            self.field_s += now() - began
            self.nfe += 1
        return combine(torch.zeros_like(y), h, numbers.b, slopes)

    def _steps(self, y: Tensor) -> tuple[list[float], Report]:
        """The steps that the method itself chooses."""
        if self.adaptive is None:
            raise ValueError("either a grid or adaptive steps")
        times = [self.adaptive.from_]
        part = replace(
            self.problem, y=y, saves=[], xs=self.problem.xs[:0],
            observer=lambda t, y, nfe: times.append(t),
        )  # fmt: skip
        return times, torch_backend.runge_kutta(part, self.numbers, None, self.adaptive)
