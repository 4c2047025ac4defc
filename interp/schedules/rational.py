"""Monotone rational-quadratic splines between given nodes, with slope and inverse in closed form.

On a cell of width w and rise h, with q in [0, 1] along it, D = h / w and slopes d0, d1 at its ends,

    y = y0 + h (D q^2 + d0 q (1 - q)) / (D + (d0 + d1 - 2 D) q (1 - q)).

Gregory, Delbourgo 1982; Durkan, Bekasov, Murray, Papamakarios 2019 (1906.04032), eq. 4-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """A spline: its nodes, and one row of numbers for each cell between them."""

    x: Tensor
    y: Tensor
    #: (cells, 8): x and y at its beginning, w, h, D, d0, d1 and d0 + d1 - 2 D.
    numbers: Tensor

    def to(self, device: torch.device) -> Cells:
        """The same on a device."""
        return self if self.x.device == device else Cells(*(v.to(device) for v in self))


def cells(x: Tensor, y: Tensor, slopes: Tensor) -> Cells:
    """The spline through (x, y) with ``slopes`` there, all (n,) and rising; slopes positive."""
    w, h, d0, d1 = x.diff(), y.diff(), slopes[:-1], slopes[1:]
    D = h / w
    numbers = torch.stack([x[:-1], y[:-1], w, h, D, d0, d1, d0 + d1 - 2 * D], -1)
    return Cells(x, y, numbers)


def value(spline: Cells, x: Tensor) -> Tensor:
    """Value at x."""
    x0, y0, w, h, D, d0, _, e = cell(spline.numbers, spline.x, x)
    q = (x - x0) / w
    p = 1 - q
    return y0 + h * q * (D * q + d0 * p) / (D + e * (q * p))


def jet(spline: Cells, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope at x."""
    x0, y0, w, h, D, d0, d1, e = cell(spline.numbers, spline.x, x)
    q = (x - x0) / w
    p = 1 - q
    below = D + e * (q * p)
    value = y0 + h * q * (D * q + d0 * p) / below
    slope = (D / below) ** 2 * ((d1 * q + 2 * D * p) * q + d0 * p * p)
    return value, slope


def inverse(spline: Cells, y: Tensor) -> Tensor:
    """The x at which the value is y: the stable root of a quadratic."""
    x0, y0, w, h, D, d0, _, e = cell(spline.numbers, spline.y, y)
    rise = y - y0
    a, b, c = h * (D - d0) + rise * e, h * d0 - rise * e, -D * rise
    root = (b * b - 4 * a * c).clamp(min=0).sqrt()
    return x0 + w * 2 * c / (-b - root)


def cell(numbers: Tensor, edges: Tensor, at: Tensor) -> tuple[Tensor, ...]:
    """The numbers of the cell that holds each of ``at``."""
    k = torch.searchsorted(edges.detach(), at.detach().contiguous(), right=True) - 1
    return numbers[k.clamp(0, len(numbers) - 1)].unbind(-1)
