"""Nonlinear least squares by differences: Gauss-Newton, mended by secants where residuals stay.

A run of a solver is a function of some numbers (a grid, a clock) that gives many residuals, and no
solver need be differentiable. The cost's second derivative is J^T J + sum_i r_i r_i''; the first part
is measured by differences, the second, which does not vanish as the errors of few steps do not, is
built up from the changes of J: Dennis, Gay, Welsch 1981 (NL2SOL), "An adaptive nonlinear least-squares
algorithm", ACM Trans. Math. Softw. 7. Steps are damped after Levenberg and Marquardt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InterpError

Residuals = Callable[[Tensor], Tensor]

_ENOUGH = 1e-3  # a step that gains less, relatively, gains nothing
_PATIENCE = 2  # such steps in a row end the search
_TRIES = 10  # of a step, each shorter than the one before


@dataclass(frozen=True)
class Fit:
    """What a search found.

    Attributes:
        parameters: (p,) float64.
        cost: the sum of squares there.
        history: the cost at the start and after each step that was taken.
        evaluations: calls of the residuals.
    """

    parameters: Tensor
    cost: float
    history: tuple[float, ...]
    evaluations: int


class _Counted:
    """The residuals, counted; a run that fails is infinitely far off."""

    def __init__(self, residuals: Residuals) -> None:
        self._residuals, self.calls = residuals, 0

    def __call__(self, at: Tensor) -> tuple[Tensor, float]:
        self.calls += 1
        try:
            r = self._residuals(at)
        except InterpError:  # a state that overflowed, a grid whose times met
            return torch.empty(0, dtype=torch.float64), math.inf
        cost = float(r.square().sum())
        return r, cost if math.isfinite(cost) else math.inf


def minimise(residuals: Residuals, start: Tensor, difference: float, iterations: int) -> Fit:
    """The least sum of squares downhill of ``start``; never more than at ``start``.

    Args:
        residuals: (p,) float64 -> (m,) float64.
        start: (p,) float64, from where the residuals are finite.
        difference: the step of the differences.
        iterations: steps at most.
    """
    f = _Counted(residuals)
    at = start
    r, cost = f(at)
    if not math.isfinite(cost):
        residuals(at)  # raises what is wrong
        return Fit(at, cost, (cost,), f.calls)
    history, damping, idle = [cost], 1e-2, 0
    J = _differences(f, at, r, difference)
    S = torch.zeros(len(at), len(at), dtype=torch.float64)
    for _ in range(iterations):
        for _ in range(_TRIES):
            step = _step(J, S, r, damping)
            r_new, cost_new = f(at + step)
            if cost_new < cost:
                break
            damping *= 6
        else:
            break
        J_new = _differences(f, at + step, r_new, difference)
        S = _bent(S, step, J, J_new, r, r_new)
        idle = 0 if cost_new < (1 - _ENOUGH) * cost else idle + 1
        at, r, cost, J = at + step, r_new, cost_new, J_new
        history.append(cost)
        damping = max(damping / 6, 1e-8)
        if idle == _PATIENCE:
            break
    return Fit(at, cost, tuple(history), f.calls)


def _step(J: Tensor, S: Tensor, r: Tensor, damping: float) -> Tensor:
    """Down the model r^T r + ... with J^T J + S where that curves upwards, else with J^T J."""
    normal = J.mT @ J
    size = normal.diagonal()
    weight = (size + 1e-3 * size.max() + 1e-300).diag() * damping
    for model in (normal + S, normal):
        factor, failed = torch.linalg.cholesky_ex(model + weight)
        if not int(failed):
            break
    return torch.cholesky_solve(-(J.mT @ r)[:, None], factor)[:, 0]


def _bent(S: Tensor, step: Tensor, J: Tensor, J_new: Tensor, r: Tensor, r_new: Tensor) -> Tensor:
    """S after a step: symmetric, with S step = (J_new - J)^T r_new; sized down where it shrinks."""
    turned = (J_new - J).mT @ r_new
    change = J_new.mT @ r_new - J.mT @ r
    along = change @ step
    if along <= 0:  # no curvature upwards along the step
        return S
    before = step @ S @ step
    S = S * min(1.0, float((step @ turned).abs() / before.abs())) if before != 0 else S
    missing = turned - S @ step
    outer = torch.outer(missing, change)
    twice = (step @ missing) / along
    return S + (outer + outer.mT) / along - twice * torch.outer(change, change) / along


def _differences(f: _Counted, at: Tensor, r: Tensor, h: float) -> Tensor:
    """The Jacobian by forward differences, backward where forward fails: (m, p)."""
    columns = []
    for j in range(len(at)):
        for step in (h, -h):
            moved = at.clone()
            moved[j] += step
            r_moved, cost = f(moved)
            if math.isfinite(cost):
                columns.append((r_moved - r) / step)
                break
        else:
            columns.append(torch.zeros_like(r))
    return torch.stack(columns, -1)
