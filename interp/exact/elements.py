"""Laws along a path of one schedule an element, in the path's own basis.

I_t = V^T (alpha V x0 + beta V x1 + gamma V z) with V orthonormal and alpha, beta, gamma diagonal: in
the coordinates V x it is a path of diagonal coefficients between the laws of V x0 and V x1, whose
density is the same. V and the diagonals depend on the shape of a row, which is known when a field is
called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..arguments import Time, check_element, host
from ..errors import OptionError
from ..interpolant import Interpolant
from .target import Along, Field, FlowMap

Row = tuple[int, ...]
L = TypeVar("L", bound=Along)


class PerElement(Generic[L]):
    """What `Along` asks for, by the law of V x for each shape of a row.

    Args:
        path: the path.
        dim: the number of dimensions.
        make: gives the law of V x for the shape of one row and V (d, d), None for 1.
    """

    def __init__(
        self, path: Interpolant, dim: int, make: Callable[[Row, Tensor | None], L]
    ) -> None:
        self.path, self.dim, self._make = path, dim, make
        self._laws: dict[Row, L] = {}

    def law(self, row: Row) -> L:
        """The law of V x for rows of this shape."""
        if row not in self._laws:
            self._laws[row] = self._make(row, self.matrix(row))
        return self._laws[row]

    def matrix(self, row: Row) -> Tensor | None:
        """V (d, d) for rows of this shape; None where it is 1."""
        if self.path.basis is None:
            return None
        units = torch.eye(self.dim, dtype=torch.float64).reshape(self.dim, *row)
        return self.path.basis[0](units).reshape(self.dim, self.dim).mT

    def _entered(self, x: Tensor) -> tuple[Row, Tensor]:
        """The shape of a row of ``x``, and V x in float64."""
        row = tuple(x.shape[1:])
        if x.ndim == 0 or math.prod(row) != self.dim:
            raise OptionError(
                f"x has shape {tuple(x.shape)}, but the target has {self.dim} dimensions. "
                f"Give rows of {self.dim} elements, e.g. shape (n, {self.dim})."
            )
        check_element(host(0.0), x, self.path.element)
        x = x.double()
        return row, x if self.path.basis is None else self.path.basis[0](x)

    def _left(self, y: Tensor, x: Tensor) -> Tensor:
        """V^T y in the clothes of ``x``."""
        return (y if self.path.basis is None else self.path.basis[1](y)).to(x.dtype)

    def _vector(self, pick: Callable[[L], Field], t: Time, x: Tensor) -> Tensor:
        row, y = self._entered(x)
        return self._left(pick(self.law(row))(t, y), x)

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.velocity, t, x)

    def score(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.score, t, x)

    def data(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.data, t, x)

    def base(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.base, t, x)

    def latent(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.latent, t, x)

    def noise(self, t: Time, x: Tensor) -> Tensor:
        return self._vector(lambda law: law.noise, t, x)

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        row, y = self._entered(x)
        return self.law(row).log_density(t, y).to(x.dtype)

    def covariance(self, t: Time, x: Tensor) -> Tensor:
        row, y = self._entered(x)
        found, V = self.law(row).covariance(t, y), self.matrix(row)
        if V is not None:
            V = V.to(found.device)
            found = V.mT @ found @ V
        return found.to(x.dtype)

    def flow(self, flow_of: Callable[[L], FlowMap]) -> FlowMap:
        """The flow of V x, carried back."""

        def flow(t: Time, r: Time, x: Tensor) -> Tensor:
            row, y = self._entered(x)
            return self._left(flow_of(self.law(row))(t, r, y), x)

        return flow
