"""An energy, whose Boltzmann law a chain samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import like, real
from ..errors import FieldError, OptionError
from .model import Cond, check_callable


@dataclass(frozen=True)
class Energy:
    """The law proportional to exp(-U(x) / T).

    Args:
        potential: potential(x) -> (rows,), U of each row; None where only the gradient is known, and
            no step can be accepted or refused.
        temperature: T, positive.
        gradient: gradient(x) -> like x; None is autograd's of the potential.

    Raises:
        OptionError: a temperature that is not positive, or neither a potential nor a gradient.
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
        if real("temperature", self.temperature) == 0:
            raise OptionError("temperature=0 leaves one point of a law. Give a positive number.")

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
