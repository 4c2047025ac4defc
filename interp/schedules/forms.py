"""The shapes that closed forms are made of, each with its value, slope and their product at once.

Near both ends nothing is lost: the complement u = 1 - t is taken first and exactly, and what is
small there comes from sin, expm1, log or a power of it, never from a difference of numbers near 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..scalar import Schedule

Function = Callable[[Tensor], Tensor]


class Exponential(Schedule):
    """f = exp(g) from g and g'."""

    def __init__(self, g: Function, dg: Function) -> None:
        super().__init__(lambda t: torch.exp(g(t)))
        self._g, self._dg = g, dg

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.exp(self._g(t))
        slope = value * self._dg(t)
        return value, slope, value * slope


class Complement(Schedule):
    """f = sqrt(1 - exp(2 g)), the root that keeps the variance beside exp(g): f f' = -exp(2 g) g'.

    f' is -inf where g = 0, and f f' is not.
    """

    def __init__(self, g: Function, dg: Function) -> None:
        super().__init__(lambda t: torch.sqrt(-torch.expm1(2.0 * g(t))))
        self._g, self._dg = g, dg

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        twice = 2.0 * self._g(t)
        value = torch.sqrt(-torch.expm1(twice))
        product = -torch.exp(twice) * self._dg(t)
        return value, product / value, product


class Root(Schedule):
    """f = sqrt(q) from q and q' / 2 = f f', which is finite where f' is not."""

    def __init__(self, q: Function, half_dq: Function) -> None:
        super().__init__(lambda t: torch.sqrt(q(t)))
        self._q, self._half_dq = q, half_dq

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, product = torch.sqrt(self._q(t)), self._half_dq(t)
        return value, product / value, product


class Power(Schedule):
    """f = scale (low + (1 - low) v)^p with v = t, or v = 1 - t where ``falling``."""

    def __init__(
        self, p: float, scale: float = 1.0, low: float = 0.0, *, falling: bool = False
    ) -> None:
        def inner(t: Tensor) -> Tensor:
            v = 1.0 - t if falling else t
            return v * (1.0 - low) + low if low else v

        super().__init__(lambda t: scale * inner(t) ** p)
        self._inner, self._p, self._scale = inner, p, scale
        self._rate = p * (low - 1.0 if falling else 1.0 - low)

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, p, c = self._inner(t), self._p, self._scale
        return c * v**p, (c * self._rate) * v ** (p - 1), (c * c * self._rate) * v ** (2 * p - 1)
