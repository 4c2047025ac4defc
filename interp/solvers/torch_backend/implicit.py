"""The steps of diagonally implicit Runge-Kutta methods: Newton's method, a dense system a row.

A stage solves Y = base + h gamma f(t_i, Y), with base = y + h sum_{j<i} a_ij k_j, by

    (1 - h gamma J) (Y_new - Y) = base + h gamma f(t_i, Y) - Y,   J = df/dx at the step's start,

and its slope is k_i = (Y - base) / (h gamma), which a stiff field's value at Y would drown in the
rounding of Y (Hairer and Wanner, Solving ODEs II, IV.8).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp

from ...errors import Unsupported
from ..problem import Adaptive, Problem, Report
from ..tableaus import Numbers
from .control import error_norm
from .run import Run, combine, finite, load_forward_mode
from .runge_kutta import Step, integrate, stage_time

#: Elements of a row beyond which the dense matrices, of its square, are refused.
LARGEST = 512
#: An iteration ends when its next change would be this much of the tolerance.
SMALL = 0.01
ITERATIONS = 12


def esdirk(
    problem: Problem,
    numbers: Numbers,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by a stiffly accurate, diagonally implicit method with an explicit first stage."""
    load_forward_mode()
    with torch.no_grad():
        return integrate(ImplicitStep, problem, numbers, grid, adaptive)


class ImplicitStep(Step):
    """A step whose stages are solved for; the last one is the state at its end."""

    def __init__(
        self, run: Run, numbers: Numbers, first: Tensor, t: float, end: float,
        goal: Adaptive | None,
    ) -> None:  # fmt: skip
        self.goal = goal
        super().__init__(run, numbers, first, t, end, goal)

    def advance(self) -> Tensor:
        gamma = self.numbers.a[1][1]
        matrix = torch.linalg.lu_factor_ex(self._matrix(self.h * gamma))
        y = self.run.y
        for i in range(1, len(self.numbers.b)):
            base = combine(self.run.y, self.h, self.numbers.a[i][:i], self.slopes)
            guess = base + (self.h * gamma) * self.slopes[-1]
            t = stage_time(self.numbers.c[i], self.t, self.end)
            y = self._solved(t, base, guess, self.h * gamma, (matrix.LU, matrix.pivots))
            if not finite(y):
                break
            self.slopes.append((y - base) / (self.h * gamma))
        return y

    def finish(self) -> Tensor:
        """The slope at the end: that of the last stage."""
        if len(self.slopes) == len(self.numbers.b):
            self.slopes.append(self.slopes[-1])
        return self.slopes[-1]

    def _matrix(self, step: float) -> Tensor:
        """1 - step J for each row, from one derivative of the field in each direction."""
        run, y = self.run, self.run.y
        size = y[0].numel() if y.ndim and len(y) else y.numel()
        if size > LARGEST:
            raise Unsupported(
                f"an implicit method solves a dense system of as many equations as a row has elements, "
                f"here {size}; {LARGEST} are the most. Use an explicit method, e.g. "
                'method="dopri5".'
            )
        told, field = run.problem.told(self.t), run.problem.field
        columns = []
        for j in range(size):
            unit = torch.zeros_like(y).reshape(-1, size)
            unit[:, j] = 1.0
            run.nfe += 1
            columns.append(jvp(lambda x: field(told, x), (y,), (unit.reshape(y.shape),))[1])
        rows = [column.reshape(-1, size) for column in columns]
        jacobian = torch.stack(rows, -1) if rows else y.new_zeros(0, 0, 0)
        return torch.eye(size, dtype=y.dtype, device=y.device) - step * jacobian

    def _solved(
        self, t: float, base: Tensor, y: Tensor, step: float, lu: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The stage's state; NaN where the field is, and everywhere if Newton's method does not converge."""
        before = None
        for _ in range(ITERATIONS if self.goal is not None else 3 * ITERATIONS):
            slope = self.run.slope(t, y)
            if not finite(slope):
                self.status = "non_finite"
                return base + step * slope
            residual = base + step * slope - y
            change = torch.linalg.lu_solve(*lu, residual.reshape(*lu[0].shape[:2], 1))
            y = y + change.reshape(y.shape)
            size = self._size(change.reshape(y.shape), y)
            # What further iterations would add, were each the same fraction of the one before.
            rate = 1.0 if before is None else size / before
            if size < 1e-3 * SMALL or (rate < 1 and rate / (1 - rate) * size < SMALL):
                return y
            if not size < float("inf") or rate > 4:
                break
            before = size
        self.status = "no_convergence"
        return torch.full_like(y, float("nan"))

    def _size(self, change: Tensor, y: Tensor) -> float:
        """A change in units of the tolerance; on a grid, of a hundred roundings."""
        if self.goal is not None:
            return error_norm(y, y, 1.0, [1.0], [change], self.goal)
        scale = 100 * torch.finfo(y.dtype).eps
        exact = Adaptive(0.0, 1.0, scale, scale, None, 1, (0.0, 0.0, 0.0), "max")
        return SMALL * error_norm(y, y, 1.0, [1.0], [change], exact)
