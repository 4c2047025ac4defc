"""An energy, whose Boltzmann law a chain samples, and the arithmetic of such laws."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import like, positive, spread
from ..errors import FieldError, OptionError, Unsupported
from .model import Cond, check_callable


@dataclass(frozen=True)
class Energy:
    """The law proportional to f(x) = exp(-U(x) / T).

    Arithmetic on energies is that of these unnormalised densities:

        a * b    f_a f_b           product: what both find likely
        a / b    f_a / f_b         negation: what a finds likely and b does not
        a ** p   f_a^p             power: p > 1 sharpens, which is the temperature T / p
        w * a    w f_a             a weight in a mixture, w > 0
        a + b    f_a + f_b         mixture

    (Hinton 2002; Du, Li, Mordatch, 2004.06030.) The result has temperature 1. Normalising constants
    are as unknown as before: the shares of ``0.3 * a + 0.7 * b`` are 0.3 Z_a to 0.7 Z_b, with Z the
    integrals of f_a and f_b. A quotient is a law only where it can be integrated.

    Args:
        potential: potential(x) -> (rows,), U of each row; None where only the gradient is known, and
            no step can be accepted or refused.
        temperature: T, positive.
        gradient: gradient(x) -> like x; None is autograd's of the potential.

    Raises:
        OptionError: a temperature that is not positive, or neither a potential nor a gradient.
        Unsupported: a mixture of energies of which one has no potential.
    """

    potential: Callable[..., Tensor] | None
    temperature: float = 1.0
    gradient: Callable[..., Tensor] | None = None

    kind = "chain"

    def __post_init__(self) -> None:
        for what in ("potential", "gradient"):
            if (function := getattr(self, what)) is not None:
                check_callable(what, function)
        if self.potential is None and self.gradient is None:
            raise OptionError("an Energy without a potential needs gradient=. Give one of the two.")
        positive("temperature", self.temperature)

    def __mul__(self, other: object) -> Energy:
        if isinstance(other, Energy):
            return _linear(((1.0, self), (1.0, other)))
        if not isinstance(other, numbers.Real):
            return NotImplemented
        return _linear(((1.0, self),), -math.log(positive("weight", other)))

    __rmul__ = __mul__

    def __truediv__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        return _linear(((1.0, self), (-1.0, other)))

    def __pow__(self, power: float) -> Energy:
        return _linear(((positive("power", power), self),))

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        return _mixture(self, other)

    def value_and_gradient(
        self, x: Tensor, extra: tuple[Any, ...], cond: Cond
    ) -> tuple[Tensor | None, Tensor]:
        """U of each row, float64, where it is known, and dU/dx; both detached.

        Raises:
            FieldError: a potential that is not one real number a row, or hangs on no x.
        """
        if self.potential is None or self.gradient is not None:
            gradient = self.gradient or self.potential  # __post_init__: one of the two is there
            with torch.no_grad():
                slope = like(gradient(x, *extra, **cond), x, "the gradient")  # type: ignore[misc]
                value = None
                if self.potential is not None:
                    value = self._checked(self.potential(x, *extra, **cond), x)
            return value, slope.detach()
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            value = self._checked(self.potential(at, *extra, **cond), at)
            if not value.requires_grad:
                raise FieldError(
                    "the potential does not depend on x in a way that autograd sees. Compute it from x "
                    "in torch, or give gradient=."
                )
            (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), slope

    @staticmethod
    def _checked(value: object, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != x.shape[:1] or value.is_complex():
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise FieldError(
                f"the potential returned {shown} for x of shape {tuple(x.shape)}. Return one number a "
                f"row, of shape {tuple(x.shape[:1])}."
            )
        return value.double()


def _linear(parts: tuple[tuple[float, Energy], ...], shift: float = 0.0) -> Energy:
    """sum_i c_i U_i / T_i + shift, at temperature 1."""
    scales = [c / e.temperature for c, e in parts]

    def potential(x: Tensor, *extra: Any, **cond: Any) -> Tensor:
        each = (e._checked(e.potential(x, *extra, **cond), x) for _, e in parts)  # type: ignore[misc]
        return sum((c * u for c, u in zip(scales, each, strict=True)), x.new_full((), shift))

    def gradient(x: Tensor, *extra: Any, **cond: Any) -> Tensor:
        each = (e.value_and_gradient(x, extra, cond)[1] for _, e in parts)
        return sum((c * g for c, g in zip(scales, each, strict=True)), torch.zeros_like(x))

    known = all(e.potential is not None for _, e in parts)
    by_hand = any(e.gradient is not None for _, e in parts)
    return Energy(potential if known else None, gradient=gradient if by_hand else None)


def _mixture(a: Energy, b: Energy) -> Energy:
    """-log(exp(-U_a / T_a) + exp(-U_b / T_b)), at temperature 1."""
    if a.potential is None or b.potential is None:
        raise Unsupported(
            "a mixture weighs its parts by their densities, and one of these energies knows only its "
            "gradient. Give it a potential, or take a product."
        )

    def logits(x: Tensor, *extra: Any, **cond: Any) -> Tensor:
        each = (-e._checked(e.potential(x, *extra, **cond), x) / e.temperature for e in (a, b))  # type: ignore[misc]
        return torch.stack([*each])

    def potential(x: Tensor, *extra: Any, **cond: Any) -> Tensor:
        return -torch.logsumexp(logits(x, *extra, **cond), 0)

    def gradient(x: Tensor, *extra: Any, **cond: Any) -> Tensor:
        shares = torch.softmax(logits(x, *extra, **cond), 0)
        slopes = (e.value_and_gradient(x, extra, cond)[1] / e.temperature for e in (a, b))
        return sum(
            (spread(r, x) * g for r, g in zip(shares, slopes, strict=True)), torch.zeros_like(x)
        )

    by_hand = a.gradient is not None or b.gradient is not None
    return Energy(potential, gradient=gradient if by_hand else None)
