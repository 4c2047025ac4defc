"""Densities by the change of variables along a flow, and what they are in bits.

    log p_1(x_1) = log p_0(x_0) - int_0^1 div v(t, x_t) dt,   dx/dt = v

Chen, Rubanova, Bettencourt, Duvenaud, 1806.07366; Grathwohl, Chen, Bettencourt, Sutskever,
Duvenaud, 1810.01367.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from . import noise, solvers, terms
from .arguments import require_floating
from .errors import DataError, FieldError, OptionError, UnknownName, Unsupported
from .solvers.torch_backend.run import load_forward_mode

Field = Callable[[Tensor, Tensor], Tensor]
Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_CHUNK = 2**22  # elements that the exact divergence pushes through the model at once


class Law(Protocol):
    """Anything with a density."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (rows,), nats."""
        ...


def log_prob(
    term: Any,
    x: Tensor,
    base: Law | None = None,
    divergence: str = "exact",
    *,
    seed: int = 0,
    first_row: int = 0,
    cond: Mapping[str, Any] | None = None,
    t: tuple[float, float] = (1.0, 0.0),
    **options: Any,
) -> Tensor:
    """The log density of each row of ``x`` under the flow of an ODE ``term``: (rows,), nats.

    The integral of the divergence is one more column of the state, and so under the same error
    control. The rows are taken to be independent of one another (no batch statistics).

    Args:
        term: an ODE, by hand or from a path, or a bare field(t, x).
        x: (rows, ...), the points at t[0].
        base: the law at t[1], anything with ``log_prob(x) -> (rows,)``; None is the path's base.
        divergence: "exact", by forward mode in every dimension: as many Jacobian-vector products
            as x has elements a row; or "hutchinson", e . (J^T e) for one Rademacher e a row, the
            same for the whole solve: one product, unbiased, of variance 2 (|A|^2 - sum a_ii^2)
            with A the symmetric part of J.
        seed: of e, by row from ``first_row``.
        first_row: the number of the first row.
        cond: what the model is told beside (t, x).
        t: from where to where.
        options: of `interp.solve`; dopri5 at its default tolerance where none is given.

    Raises:
        UnknownName: a divergence that does not exist.
        OptionError: no base, or x not floating.
        Unsupported: "exact" for a model that forward mode cannot pass through; or a term that is
            not an ODE.
    """
    require_floating(x=x)
    if not hasattr(term, "kind"):
        term = terms.ODE(term)
    if term.kind != "ode":
        raise Unsupported(
            "the likelihood was asked of an SDE, whose samples follow no single flow. Use the "
            "probability flow, path.ode(model), or interp.ODE(field)."
        )
    law = _base(term, base)
    flow = _flow(term, dict(cond or {}), t)
    d = math.prod(x.shape[1:])
    if divergence == "exact":
        both = _exact(flow.field)
    elif divergence == "hutchinson":
        e = noise.normal(x.shape, seed=seed, first_row=first_row, stream="probe", dtype=x.dtype)
        both = _hutchinson(flow.field, e.to(x.device).sign())
    else:
        raise UnknownName.of("divergence", divergence, ("exact", "hutchinson"))

    def augmented(time: Tensor, state: Tensor) -> Tensor:
        v, div = both(time, state[:, :d].reshape(x.shape))
        return torch.cat([v.reshape(len(x), d), div[:, None]], dim=1)

    start = torch.cat([x.reshape(len(x), d) / flow.scale[0], x.new_zeros(len(x), 1)], dim=1)
    end = solvers.solve(terms.ODE(augmented), start, t=flow.interval, **options).x
    last = (end[:, :d] * flow.scale[1]).reshape(x.shape)
    return law.log_prob(last) + end[:, d] + d * math.log(flow.scale[1] / flow.scale[0])


class _Flow(NamedTuple):
    """dy/dtau = field over an interval of tau, with x = scale y at its two ends."""

    field: Field
    interval: tuple[float, float]
    scale: tuple[float, float]


def _flow(term: Any, cond: Mapping[str, Any], t: tuple[float, float]) -> _Flow:
    """The flow of ``term`` in the coordinates in which it is regular."""
    term.check(*t)
    at, slope = term.coordinates, term.slope(cond)
    if at is None:
        return _Flow(slope, t, (1.0, 1.0))
    ends = [torch.tensor(end, dtype=torch.float64) for end in t]
    tau, scale = ([float(f(end)) for end in ends] for f in (at.tau, at.scale))

    def field(now: Tensor, y: Tensor) -> Tensor:
        velocity: Tensor = slope(at.time(now.double()), y)
        return velocity

    return _Flow(field, (tau[0], tau[1]), (scale[0], scale[1]))


def _base(term: Any, base: Law | None) -> Law:
    if base is not None:
        return base
    if term.path is None:
        raise OptionError(
            "a field made by hand has no base of its own. Give base=, any law with log_prob(x)."
        )
    law: Law = term.path.base
    return law


def _exact(field: Field) -> Divergence:
    """v and sum_i dv_i/dx_i, by forward mode along the basis, a chunk of directions at a time."""

    def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        d = math.prod(x.shape[1:])
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])

        def diagonal(direction: Tensor) -> tuple[Tensor, Tensor]:
            f = functools.partial(_checked, field, t)
            v, slope = torch.func.jvp(f, (x,), (direction.expand_as(x),))[:2]
            return v, (slope * direction).flatten(1).sum(1)

        load_forward_mode()
        chunk = max(1, _CHUNK // max(1, x.numel()))
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


def _hutchinson(field: Field, e: Tensor) -> Divergence:
    """v and e . (J^T e), by one backward pass."""

    def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v, pull = torch.func.vjp(functools.partial(_checked, field, t), x)[:2]
        return v, (pull(e)[0] * e).flatten(1).sum(1)

    return both


def _checked(field: Field, t: Tensor, x: Tensor) -> Tensor:
    v = field(t, x)
    if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
        got = f"{v.dtype} of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        raise FieldError(
            f"the field returned {got} for x, {x.dtype} of shape {tuple(x.shape)}. Return a tensor "
            "like x."
        )
    return v


# Densities of images in bits


def level_width(levels: int) -> float:
    """How far apart ``levels`` grey levels are on [-1, 1]: 2 / (levels - 1).

    Raises:
        OptionError: fewer than two levels.
    """
    if levels < 2:
        raise OptionError(f"levels is {levels}. Give the number of grey levels, 2 or more.")
    return 2 / (levels - 1)


def dequantise(x: Tensor, levels: int, generator: Generator | None = None) -> Tensor:
    """Each grey level spread evenly over its width: x + (2 / (levels - 1)) (u - 1/2), u ~ U[0, 1).

    Theis, van den Oord, Bethge, 1511.01844, sec. 3.1, on our scale of [-1, 1].

    Args:
        x: images on the grid of ``levels`` values from -1 to 1.
        levels: how many there are.
        generator: what u is drawn from; None is torch's global one.

    Raises:
        DataError: x outside [-1, 1].
        OptionError: fewer than two levels.
    """
    width = level_width(levels)
    if x.numel() and not bool((x.abs() <= 1).all()):
        low, high = x.min().item(), x.max().item()
        raise DataError(
            f"images run from {low:g} to {high:g}, outside [-1, 1]. Rescale them, e.g. "
            " x / 127.5 - 1 for bytes."
        )
    u = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x + width * (u - 0.5)


def bits_per_dim(nats: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Bits per dimension of grey-level images from the log density of their dequantisation.

    Level k sits at 2 k / (levels - 1) - 1 and owns a cell of width w = 2 / (levels - 1), so that
    P(k) is the integral of p over d such cells and, by Jensen, for u uniform in the cell

        log P(k) >= E_u log p(k + u) + d log w,
        bits / dim <= -(E log p) / (d log 2) + log2((levels - 1) / 2).

    Args:
        nats: log p of dequantised images on [-1, 1], (rows,).
        shape: of one image; d is its number of elements.
        levels: the number of grey levels.

    Raises:
        OptionError: fewer than two levels.
    """
    return -nats / (math.prod(shape) * math.log(2)) - math.log2(level_width(levels))
