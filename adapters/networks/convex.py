"""The gradient of an input-convex network, for maps that are optimal transports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

_SHARP = 8.0
"""Of the softplus: how fast a slope can turn, as where a map parts one mode from the next."""


class ConvexGradient(nn.Module):
    """grad phi(x) - x, of a convex phi: x + this is the optimal map from any law to where it leads.

        phi(x) = |V x|^2 / 2 + b . x + w . h,   h <- softplus(W h + A x + c),   w, W >= 0

    Convex in x, as softplus is convex and does not fall and no weight of an h is negative (Amos, Xu, Kolter,
    1609.07152); the gradients of convex functions are the optimal maps of |x - y|^2 (Brenier 1991), and
    those of the quadratic all that lie between two Gaussians. At first V^T V = 1 and w is small: the
    identity, to a hundredth or two.

    Args:
        shape: of one point.
        width: of the hidden layers.
        depth: their number.
    """

    def __init__(self, shape: Sequence[int], width: int = 128, depth: int = 2) -> None:
        super().__init__()
        size = math.prod(shape)
        self.across = nn.ModuleList(nn.Linear(size, width) for _ in range(depth))
        # Squares are the weights that must not be negative.
        self.between = nn.ParameterList(
            torch.full((width, width), width**-0.5) for _ in range(depth - 1)
        )
        self.last = nn.Parameter(torch.full((width,), 0.2 * width**-0.5))
        # As many rows as may be, so that small steps of each add up to a large one of V^T V.
        self.linear = nn.Parameter(nn.init.orthogonal_(torch.empty(max(size, width), size)))
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Of x's shape; the time is the map's own and is not read."""
        gradient: Tensor = torch.func.grad(lambda at: self.potential(at).sum())(x)
        return gradient - x

    def potential(self, x: Tensor) -> Tensor:
        """phi of each row."""
        flat = x.flatten(1)
        h = softplus(self.across[0](flat), _SHARP)
        for across, between in zip(self.across[1:], self.between, strict=True):
            h = softplus(h @ between.square().T + across(flat), _SHARP)
        linear = (flat @ self.linear.T).square().sum(1) / 2 + flat @ self.shift
        value: Tensor = linear + h @ self.last.square()
        return value
