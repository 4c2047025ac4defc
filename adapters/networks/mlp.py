"""A residual multi-layer perceptron for points of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .conditioning import Conditioning, Modulated, zero


class MLP(nn.Module):
    """``depth`` residual blocks on the flattened point, h += W2 silu(W1 film(norm(h))), and beside them

        out = W silu(h) + U (g(t) * V x),

    which is all that the velocity of a Gaussian about zero is: linear in x, in a basis of its own, each
    direction with its share at each time. What is left to the blocks is what the data are beyond a Gaussian.

    Args:
        shape: of one point, without the batch.
        width: of the hidden layers.
        depth: the number of blocks.
        classes: the number of labels, or None.
        outputs: how many tensors of x's shape come out, along the first axis of a point.
        times, fastest: see `Conditioning`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 256,
        depth: int = 3,
        classes: int | None = None,
        outputs: int = 1,
        times: int = 1,
        fastest: float = 1000.0,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.shape = (outputs * shape[0], *shape[1:])
        self.conditioning = Conditioning(width, classes, times=times, fastest=fastest)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.last = zero(nn.Linear(width, outputs * size))
        rank = min(size, width)
        self.into = nn.Linear(size, rank, bias=False)
        self.gate = nn.Linear(width, rank)
        self.out = zero(nn.Linear(rank, outputs * size, bias=False))

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``outputs`` tensors of x's shape; ``t`` is 0-d or (rows,), ``label`` (rows,) or None."""
        e = nn.functional.silu(self.conditioning(t, label))
        flat = x.flatten(1)
        h = self.first(flat)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.last(nn.functional.silu(h)) + self.out(self.gate(e) * self.into(flat))
        return out.reshape(x.shape[0], *self.shape)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Modulated(nn.LayerNorm(width, elementwise_affine=False), width, width)
        self.up = nn.Linear(width, width)
        self.down = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        out: Tensor = h + self.down(nn.functional.silu(self.up(self.norm(h, e))))
        return out
