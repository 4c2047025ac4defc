"""A transformer on the patches of an image, told the time by adaptive norms: a DiT."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from interp.errors import OptionError

from .attention import attend
from .conditioning import Conditioning, zero


class DiT(nn.Module):
    """Patches of an image as tokens, ``depth`` blocks, and back to pixels.

    Peebles and Xie, 2212.09748, with adaLN-Zero: every block starts as nothing, and so does the last
    layer. Positions are sines and cosines of the row and of the column.

    Args:
        shape: (channels, height, width) of one image.
        width: of a token; a multiple of 4 and of ``heads``.
        depth: the number of blocks.
        heads: of the attention.
        patch: the side of a patch, which divides the image's sides.
        classes: the number of labels, or None.
        outputs: how many images come out, along the channels.
        times, fastest: see `Conditioning`.

    Raises:
        OptionError: a shape that is not an image's, or sides or widths that do not divide.
    """

    position: Tensor

    def __init__(
        self, shape: Sequence[int], width: int = 64, depth: int = 2, heads: int = 4, patch: int = 2,
        classes: int | None = None, outputs: int = 1, times: int = 1, fastest: float = 1000.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(shape) != 3 or any(side % patch for side in shape[1:]) or width % (4 * heads):
            raise OptionError(
                f"a DiT was asked for points of shape {tuple(shape)} in patches of {patch}, {width} wide "
                f"with {heads} heads. Give (channels, height, width) with sides that divide by the "
                "patch, and a width that divides by 4 times the heads."
            )
        self.patch, self.grid = patch, (shape[1] // patch, shape[2] // patch)
        self.conditioning = Conditioning(width, classes, times=times, fastest=fastest)
        self.first = nn.Linear(shape[0] * patch**2, width)
        self.register_buffer("position", _positions(*self.grid, width), persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate = zero(nn.Linear(width, 2 * width))
        self.last = zero(nn.Linear(width, outputs * shape[0] * patch**2))

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``outputs`` tensors of x's shape; ``t`` is 0-d or (rows,), ``label`` (rows,) or None."""
        e = silu(self.conditioning(t, label))
        p = self.patch
        tokens = rearrange(x, "n c (y p) (x q) -> n (y x) (c p q)", p=p, q=p)
        h = self.first(tokens) + self.position
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulate(e)[:, None].chunk(2, dim=-1)
        out: Tensor = self.last(_modulated(self.norm(h), shift, scale))
        return rearrange(out, "n (y x) (c p q) -> n c (y p) (x q)", y=self.grid[0], p=p, q=p)


class DiTBlock(nn.Module):
    """h += a1 attention(mod1(norm(h))), then h += a2 mlp(mod2(norm(h))); a1, a2 start at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulate = zero(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """``h`` of shape (rows, tokens, width), ``e`` of shape (rows or 1, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(e)[:, None].chunk(6, dim=-1)
        mixed = self._attention(_modulated(self.norm1(h), shift1, scale1))
        h = torch.addcmul(h, gate1, mixed)
        out: Tensor = torch.addcmul(h, gate2, self.mlp(_modulated(self.norm2(h), shift2, scale2)))
        return out

    def _attention(self, h: Tensor) -> Tensor:
        q, k, v = rearrange(self.project(h), "n t (s g c) -> s n g t c", s=3, g=self.heads)
        out: Tensor = self.out(rearrange(attend(q, k, v), "n g t c -> n t (g c)"))
        return out


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, 1 + scale, h)


def _positions(height: int, width: int, channels: int) -> Tensor:
    """(height width, channels): sines and cosines of the row, then of the column."""
    frequency = torch.exp(-math.log(10000.0) * torch.arange(channels // 4) / (channels // 4))
    y, x = (torch.arange(n)[:, None] * frequency for n in (height, width))
    y, x = (torch.cat([a.sin(), a.cos()], dim=1) for a in (y, x))
    grid = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)
