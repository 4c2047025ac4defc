"""What a pair costs: the squared distance, by one product of matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arguments import require_finite
from ..errors import OptionError

Cost = Callable[[Tensor, Tensor], Tensor]
"""cost(x0, x1) -> (rows, rows) from points (rows, features)."""


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2, (rows, rows), float64.

    From |a|^2 + |b|^2 - 2 a.b of points around their common mean: the rounding is then that of the
    distances and not of how far the data are from zero.
    """
    a, b = x0.double(), x1.double()
    centre = 0.5 * (a.mean(0) + b.mean(0))
    a, b = a - centre, b - centre
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2.0).clamp_(min=0.0)


def products(x0: Tensor, x1: Tensor) -> Tensor:
    """-x0_i . (x1_j - mean x1), (rows, rows), in the points' own dtype.

    Half the squared distance but for a number for each row and one for each column, which no
    assignment can change. With one end around its mean, a shift of the other adds no more rounding
    than holding the shifted points did.
    """
    return x0 @ (x1.mean(0) - x1).T


def costs(x0: Tensor, x1: Tensor, cost: Cost | None, default: Cost) -> Tensor:
    """The costs (rows, rows) by the user's ``cost``, or the ``default``, on the CPU.

    Raises:
        OptionError: a cost that is not finite or not one number a pair; names the first bad row.
    """
    found = default(x0, x1) if cost is None else cost(x0, x1)
    wanted = (len(x0), len(x1))
    if not isinstance(found, Tensor) or found.shape != wanted or found.is_complex():
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise OptionError(f"the cost gave {got}. Return a real tensor of shape {wanted}.")
    found = found.detach().cpu()
    if found.dtype is not torch.float32:
        found = found.double()
    # The sum is finite where all are, but for an overflow, and takes a tenth of looking at each.
    if not (bool(found.sum().isfinite()) or bool(found.isfinite().all())):
        raise OptionError(_reason(x0, x1, found))
    return found


def _reason(x0: Tensor, x1: Tensor, found: Tensor) -> str:
    """Why the costs of finite points are not finite, and what to do."""
    for name, x in (("x0", x0), ("x1", x1)):
        require_finite(name, x)
    i, j = (~found.isfinite()).nonzero()[0].tolist()
    return (
        f"the cost of row {i} of x0 and row {j} of x1 is {found[i, j].item()}. Give points of "
        f"smaller scale (the largest is {max(x0.abs().max().item(), x1.abs().max().item()):.3g}), "
        "or a finite cost."
    )
