"""Terms made by hand: a field, or a drift and a diffusion, over any finite interval."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import real, transforming
from ..errors import FieldError, OptionError, UnknownName
from .model import Affine, Cond, Field, Model, bound, check_callable


@dataclass(frozen=True)
class ODE:
    """dx/dt = field(t, x), over any finite interval.

    Args:
        field: called with t, a 0-d tensor of x's dtype, and x; returns a tensor like x.
    """

    field: Model

    def __post_init__(self) -> None:
        check_callable("field", self.field)

    kind = "ode"
    path = None
    exact_time = False
    interval = (0.0, 1.0)
    coordinates = None

    def check(self, t0: float, t1: float) -> None:
        """Any finite interval will do."""

    def bind(self, cond: Cond) -> Field:
        """The field, with ``cond`` as keyword arguments."""
        return bound(self.field, cond)

    slope = bind

    def affine(self) -> Affine:
        """The field itself."""
        return Affine(self.field)


@dataclass(frozen=True)
class SDE:
    """dX = drift(t, X) dt + diffusion(t, X) dW, over any finite interval.

    Args:
        drift: called with t and x as an ODE's field.
        diffusion: a number, a tensor of x's shape, diffusion(t) or diffusion(t, x), which give one
            or the other; or a matrix a row, of x's shape and one more axis, the Brownian motions of
            the row: (rows, d, m), where m = 1 is one motion for all elements. Tensors may be negative:
            -dW is as likely as dW.
        calculus: "ito" or "stratonovich".

    Raises:
        UnknownName: another calculus.
        OptionError: a diffusion that is negative, as a number, or not finite.
    """

    drift: Model
    diffusion: float | Tensor | Model
    calculus: str = "ito"

    kind = "sde"
    path = None
    exact_time = False
    interval = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_callable("drift", self.drift)
        if not callable(self.diffusion) and not isinstance(self.diffusion, Tensor):
            real("diffusion", self.diffusion)
        if isinstance(g := self.diffusion, Tensor) and not (g.is_meta or transforming()):
            bad = g.detach()[~g.isfinite()].tolist()
            if bad:
                raise OptionError(f"the diffusion holds {bad[0]}. Give finite numbers.")
        if self.calculus not in ("ito", "stratonovich"):
            raise UnknownName.of("calculus", self.calculus, ("ito", "stratonovich"))

    def check(self, t0: float, t1: float) -> None:
        """Any finite interval will do."""

    def affine(self) -> Affine:
        """The drift itself."""
        return Affine(self.drift)

    @property
    def additive(self) -> bool:
        """Whether the diffusion does not depend on x, so that both calculi are one."""
        return not callable(self.diffusion) or not _takes_state(self.diffusion)

    def drift_field(self, cond: Cond) -> Field:
        """The drift, with ``cond`` as keyword arguments."""
        return bound(self.drift, cond)

    def diffusion_field(self, cond: Cond) -> float | Field:
        """The diffusion as a number, or as a function of (t, x) that gives a tensor like x."""
        g = self.diffusion
        if isinstance(g, Tensor):
            return lambda t, x: _spread_diffusion(g, x)
        if not callable(g):
            return float(g)
        if _takes_state(g):
            return lambda t, x: _spread_diffusion(g(t, x, **cond), x)
        return lambda t, x: _spread_diffusion(g(t), x)


def _spread_diffusion(value: object, x: Tensor) -> Tensor:
    """A diffusion's value as a tensor like x."""
    if not isinstance(value, (Tensor, int, float)):
        kind = type(value).__name__
        raise FieldError(f"the diffusion returned a {kind}. Return a number or a tensor like x.")
    if isinstance(value, Tensor):
        elsewhere = value.ndim > 0 and value.device != x.device
        if value.is_complex() or value.layout is not torch.strided or elsewhere:
            raise FieldError(
                f"the diffusion is a tensor of {value.dtype} and {value.layout} on {value.device}. "
                f"Return real, dense numbers on {x.device}."
            )
    tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if tensor.ndim == x.ndim + 1 and tensor.shape[:-1] == x.shape and tensor.shape[-1] > 0:
        return tensor
    if not _broadcasts(tensor, x):
        raise FieldError(
            f"the diffusion has shape {tuple(tensor.shape)} where the state has {tuple(x.shape)}. "
            "Return a scalar, a tensor that broadcasts to the state's shape, or a matrix a row, of the "
            "state's shape and one more axis."
        )
    return tensor.expand_as(x)


def _broadcasts(value: Tensor, x: Tensor) -> bool:
    pairs = zip(reversed(value.shape), reversed(x.shape), strict=False)
    return value.ndim <= x.ndim and all(n in (1, m) for n, m in pairs)


def _takes_state(function: Model) -> bool:
    """Whether a diffusion is a function of (t, x) rather than of t alone."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: the general form
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
