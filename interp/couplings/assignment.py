"""The assignment of least cost, by scipy's search begun near its end."""

from __future__ import annotations

import torch
from torch import Tensor

_BEGIN = 0.05  # of the mean reduced cost: the first regularisation
_HALVINGS, _SWEEPS = 2, 3


def assign(cost: Tensor) -> Tensor:
    """The row of each column in the assignment of least total cost, for a square ``cost``."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(_reduced(cost).numpy())
    order = rows.copy()
    order[columns] = rows
    return torch.from_numpy(order)


def _reduced(cost: Tensor) -> Tensor:
    """``cost`` less a number for each row and one for each column, which no assignment can change.

    Where the numbers are near the dual potentials, the search finds short paths: from 5.1 to 1.6 ms
    for 256 points in the plane. Here they are those of the entropic plan, by a few sweeps of
    Sinkhorn's scaling in float32; squaring the scaled kernel halves its regularisation.
    """
    reduced = cost - cost.amin(1, keepdim=True)
    reduced -= reduced.amin(0, keepdim=True)  # now every row and column has a zero
    reg = _BEGIN * reduced.mean().item()
    if not reg > 0.0:
        return reduced
    kernel = (reduced.float() / -reg).exp_()
    u, v = _scalings(kernel)
    f, g = reg * u.log(), reg * v.log()
    for _ in range(_HALVINGS):
        kernel, reg = kernel.mul_(u[:, None]).mul_(v).square_(), reg / 2.0
        u, v = _scalings(kernel)
        f, g = f + reg * u.log(), g + reg * v.log()
    if not bool((f + g).sum().isfinite()):
        return reduced
    return reduced.sub_(f.to(cost.dtype)[:, None]).sub_(g.to(cost.dtype))


def _scalings(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """u and v that bring the sums of u kernel v near 1."""
    v = kernel.new_ones(len(kernel))
    for _ in range(_SWEEPS):
        u = kernel.mv(v).reciprocal_()
        v = kernel.T.mv(u).reciprocal_()
    return u, v
