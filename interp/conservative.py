"""Whether a field is a gradient, and the energy that it then is the gradient of.

A field s is the gradient of a function of x, on a domain without holes, exactly where its Jacobian is
symmetric. A network that was trained as a score need not be; how far it is from it is measured by

    curl(x) = |J - J^T| / |J|,   J = ds/dx at x, | | the Frobenius norm

which is 0 for a gradient, sqrt(2) on average for a J of independent elements, and 2 for a rotation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import noise
from .arguments import like, real, require_floating, whole
from .errors import FieldError, OptionError
from .solvers.torch_backend.run import load_forward_mode
from .terms import Energy

_EXACT = 64  # the dimension up to which all of J is worked out by default


def curl(
    field: Callable[[Tensor], Tensor],
    x: Tensor,
    probes: int | None = None,
    *,
    seed: int = 0,
    first_row: int = 0,
) -> Tensor:
    """|J - J^T| / |J| of each row, J the Jacobian of ``field`` at ``x``: (rows,); 0 where J vanishes.

    With probes e of mean 0 and variance 1, |A|^2 = E |A e|^2 for any matrix A, here J - J^T and J of the
    same probes (Hutchinson 1990). The ratio's relative error is about 1 / sqrt(probes) where J is of
    low rank, less elsewhere; a gradient gives 0 by any probe.

    Args:
        field: field(x) -> like x, differentiable, each row of its own.
        x: (rows, ...), floating.
        probes: how many signs e; None is exact, by as many products as a row has elements, up to 64
            elements, and 16 probes above.
        seed: of the probes, by row from ``first_row``.
        first_row: the number of the first row.

    Raises:
        FieldError: a field that returns no tensor like x.
        OptionError: no rows or no elements, or a number of probes that is not positive.
    """
    require_floating(x=x)
    d = math.prod(x.shape[1:])
    if x.ndim < 2 or x.numel() == 0:
        raise OptionError(
            f"x has shape {tuple(x.shape)}. Give points of shape (rows, ...), one or more."
        )
    if probes is None and d <= _EXACT:
        e = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        e = e.expand(d, *x.shape)
    else:
        count = 16 if probes is None else whole("probes", probes, 1)
        drawn = [
            noise.normal(
                x.shape, seed=seed, first_row=first_row, stream="probe", node=k,
                dtype=x.dtype, device=x.device,
            )
            for k in range(count)
        ]  # fmt: skip
        e = torch.stack(drawn).sign()

    checked = functools.partial(_checked, field)
    load_forward_mode()
    _, pull = torch.func.vjp(checked, x)[:2]

    def squares(direction: Tensor) -> tuple[Tensor, Tensor]:
        along = torch.func.jvp(checked, (x,), (direction,))[1]
        across = pull(direction)[0]
        return _squared(along - across), _squared(along)

    skew, total = (s.sum(0) for s in torch.func.vmap(squares)(e))
    return torch.where(total > 0, (skew / total.clamp(min=torch.finfo(x.dtype).tiny)).sqrt(), 0.0)


def energy_of_score(
    score: Callable[[Tensor], Tensor],
    near: Tensor,
    tolerance: float = 0.05,
    *,
    nodes: int = 32,
    probes: int | None = None,
) -> Energy:
    """The energy U of a score s = -grad U, where the score is a gradient: the view of any score model.

        U(x) = -int_0^1 s(c + r (x - c)) . (x - c) dr,   c the mean of ``near``

    by Gauss and Legendre's rule, so that chains can accept and refuse by it. Where s has a curl, the
    integral depends on its way and is no potential of it: that is measured before and refused.

    Args:
        score: score(x) -> like x; of a model on a path, at a fixed time.
        near: (rows, ...), points where the energy will be asked for, at which the curl is measured.
        tolerance: of the root mean square of `curl` over these points.
        nodes: of the rule.
        probes: of `curl`.

    Raises:
        FieldError: the curl is above the tolerance; says by how much.
    """
    tolerance, nodes = real("tolerance", tolerance), whole("nodes", nodes, 1)
    measured = float(curl(score, near, probes).square().mean().sqrt())
    if not measured <= tolerance:
        raise FieldError(
            f"the field is no gradient: |J - J^T| / |J| is {measured:.3g} in the root mean square over "
            f"{len(near)} points, above the tolerance of {tolerance:g}. Train a potential "
            "(energy_matching), take chains on Energy(None, gradient=...), which need no potential, or "
            "raise tolerance= if so much curl is none to you."
        )
    centre = near.detach().mean(0)
    at, weights = np.polynomial.legendre.leggauss(nodes)
    rule = [((a + 1) / 2, w / 2) for a, w in zip(at.tolist(), weights.tolist(), strict=True)]

    def potential(x: Tensor) -> Tensor:
        away = x - centre
        total = x.new_zeros(len(x), dtype=torch.float64)
        for r, weight in rule:
            s = _checked(score, centre + r * away)
            total = total - weight * (s * away).flatten(1).sum(1, dtype=torch.float64)
        return total

    return Energy(potential, gradient=lambda x: -_checked(score, x))


def _checked(field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return like(field(x), x, "the field")


def _squared(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
