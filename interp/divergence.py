"""The divergence of a field, exact or estimated: what turns a flow into a density.

    exact        sum_i e_i . J e_i                                        d products forward
    hutchinson   mean_k e_k . J^T e_k                                     m products backward
    hutch++      tr(Q^T J Q) + mean_k h_k . J^T h_k,  h = (1 - Q Q^T) e   3 m products backward

with e_k of independent elements of mean 0 and variance 1, and Q an orthonormal basis of J^T S for m
further vectors S of normals (Hutchinson 1990, Commun. Stat. 19; Meyer, Musco, Musco, Woodruff, 2010.09649,
algorithm 1). One S and one e serve a whole solve, so that an estimate is a smooth function of time
and state; Q follows J along the way. Each is unbiased at every time, since S and e are independent
and the flow depends on neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import noise
from .arguments import whole
from .errors import FieldError, OptionError, UnknownName, Unsupported
from .solvers.torch_backend.run import load_forward_mode

Field = Callable[[Tensor, Tensor], Tensor]
WithDivergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

DIVERGENCES = ("exact", "hutchinson", "hutch++")
PROBES = ("rademacher", "gaussian")

_CHUNK = 2**22  # elements that the exact divergence pushes through the model at once
_SKETCH = 2**32  # the node of the first of the sketch's vectors, clear of the probes'


def estimator(
    name: str, x: Tensor, probe: str, probes: int, seed: int, first_row: int
) -> Callable[[Field], WithDivergence]:
    """What makes of a field the function that gives its value and divergence.

    Raises:
        UnknownName: a divergence or a probe that does not exist.
        OptionError: no probe, or a sketch of as many vectors as there are dimensions.
    """
    if name not in DIVERGENCES:
        raise UnknownName.of("divergence", name, DIVERGENCES)
    if probe not in PROBES:
        raise UnknownName.of("probe", probe, PROBES)
    probes, d = whole("probes", probes, 1), math.prod(x.shape[1:])
    if name == "exact":
        return exact

    def draw(first: int, probe: str) -> Tensor:
        drawn = [
            noise.normal(
                x.shape, seed=seed, first_row=first_row, stream="probe", node=first + k,
                dtype=x.dtype, device=x.device,
            )
            for k in range(probes)
        ]  # fmt: skip
        e = torch.stack(drawn)
        return e.sign() if probe == "rademacher" else e

    if name == "hutchinson":
        return functools.partial(hutchinson, e=draw(0, probe))
    if probes >= d:
        raise OptionError(
            f"probes={probes} is a sketch of all {d} dimensions, at three times the cost of the exact "
            'divergence. Give fewer, or divergence="exact".'
        )
    # Signs in few dimensions are often the same vector twice; normals never are.
    sketch = draw(_SKETCH, "gaussian")
    return functools.partial(hutch_plus_plus, e=draw(0, probe), s=sketch)


def exact(field: Field) -> WithDivergence:
    """v and sum_i dv_i/dx_i, by forward mode along the basis, a chunk of directions at a time."""

    def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        d = math.prod(x.shape[1:])
        if x.numel() == 0:
            return _checked(field, t, x), x.new_zeros(len(x))
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])

        def diagonal(direction: Tensor) -> tuple[Tensor, Tensor]:
            f = functools.partial(_checked, field, t)
            v, slope = torch.func.jvp(f, (x,), (direction.expand_as(x),))[:2]
            return v, (slope * direction).reshape(len(x), -1).sum(1)

        load_forward_mode()
        chunk = max(1, _CHUNK // x.numel())
        try:
            parts = [torch.func.vmap(diagonal)(some) for some in torch.split(basis, chunk)]
        except (NotImplementedError, RuntimeError) as error:
            _checked(field, t, x)  # an error of the model's own comes out as itself
            why = str(error).splitlines()[0]
            raise Unsupported(
                f"the exact divergence cannot pass through this model: {why} "
                'Use divergence="hutchinson", which needs only the backward pass.'
            ) from error
        return parts[0][0][0], torch.cat([slopes for _, slopes in parts]).sum(0)

    return both


def hutchinson(field: Field, e: Tensor) -> WithDivergence:
    """v and the mean of e_k . (J^T e_k), e (m, rows, ...)."""

    def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v, pulled = _pulled(field, t, x)
        return v, _row_sums(pulled(e) * e).mean(0)

    return both


def hutch_plus_plus(field: Field, e: Tensor, s: Tensor) -> WithDivergence:
    """v and tr(Q^T J Q) + mean_k h_k . (J^T h_k), Q = orth(J^T s), h = (1 - Q Q^T) e.

    Q is a constant to derivatives: the estimate is unbiased for every Q, and so is its derivative,
    which a QR decomposition of a Jacobian that vanishes (a network at its start) would not have.
    """
    m, rows, d = *e.shape[:2], math.prod(e.shape[2:])

    def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v, pulled = _pulled(field, t, x)
        range_ = pulled(s).detach().reshape(m, rows, d).permute(1, 2, 0)
        q = torch.linalg.qr(range_).Q.permute(2, 0, 1)  # (m, rows, d)
        flat = e.reshape(m, rows, d)
        rest = flat - torch.einsum("krd,jrd,jrc->krc", flat, q, q)
        directions = torch.cat([q, rest]).reshape(2 * m, *x.shape)
        products = _row_sums(pulled(directions) * directions)
        return v, products[:m].sum(0) + products[m:].mean(0)

    return both


def _pulled(field: Field, t: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """v, and J^T e for a stack of e."""
    v, pull = torch.func.vjp(functools.partial(_checked, field, t), x)[:2]

    def pulled(e: Tensor) -> Tensor:
        if len(e) == 1:
            one: Tensor = pull(e[0])[0]
            return one[None]
        many: Tensor = torch.func.vmap(pull)(e)[0]
        return many

    return v, pulled


def _row_sums(stack: Tensor) -> Tensor:
    """(m, rows, ...) summed over the elements of a row."""
    return stack.reshape(*stack.shape[:2], math.prod(stack.shape[2:])).sum(2)


def _checked(field: Field, t: Tensor, x: Tensor) -> Tensor:
    v: Any = field(t, x)
    if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
        got = f"{v.dtype} of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        raise FieldError(
            f"the field returned {got} for x, {x.dtype} of shape {tuple(x.shape)}. Return a tensor "
            "like x."
        )
    return v
