"""A small time-conditioned U-Net for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from interp.errors import OptionError

from .attention import attend
from .conditioning import Conditioning, Modulated, zero


class UNet(nn.Module):
    """Residual blocks at ever halved resolution and back, with attention at the bottom.

    Ronneberger, Fischer, Brox, 1505.04597; residual blocks told the time as in Ho, Jain, Abbeel,
    2006.11239. The last layer starts at zero.

    Args:
        shape: (channels, height, width) of one image.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of ``width``; each but the first halves
            the resolution. By default it is halved while both sides are even and above 4, at
            most twice.
        depth: residual blocks at each resolution, on the way down and on the way up.
        classes: the number of labels, or None.
        outputs: how many images come out, along the channels.
        times, fastest: see `Conditioning`.

    Raises:
        OptionError: a shape that is not an image's, or sides that cannot be halved as often.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 32,
        multipliers: Sequence[int] | None = None,
        depth: int = 1,
        classes: int | None = None,
        outputs: int = 1,
        times: int = 1,
        fastest: float = 1000.0,
    ) -> None:
        super().__init__()
        multipliers = _checked(shape, multipliers)
        wide = 4 * width
        sizes = [width * m for m in multipliers]
        self.conditioning = Conditioning(wide, classes, times=times, fastest=fastest)
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, channels = [width], width
        for level, size in enumerate(sizes):
            if level:
                self.down.append(_Down(channels))
                skips.append(channels)
            for _ in range(depth):
                self.down.append(_Block(channels, size, wide))
                channels = size
                skips.append(channels)
        self.middle = nn.ModuleList(
            [
                _Block(channels, channels, wide),
                _Attention(channels),
                _Block(channels, channels, wide),
            ]
        )
        for level, size in reversed(list(enumerate(sizes))):
            for _ in range(depth + 1):
                self.up.append(_Block(channels + skips.pop(), size, wide))
                channels = size
            if level:
                self.up.append(_Up(channels))
        self.norm = _group_norm(channels)
        self.last = zero(nn.Conv2d(channels, outputs * shape[0], 3, padding=1))

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``outputs`` tensors of x's shape; ``t`` is 0-d or (rows,), ``label`` (rows,) or None."""
        e = silu(self.conditioning(t, label))
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, e)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, e)
        for layer in self.up:
            if isinstance(layer, _Block):
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, e)
        out: Tensor = self.last(silu(self.norm(h)))
        return out


class _Block(nn.Module):
    """h + conv(silu(film(norm(conv(silu(norm(h)))))))."""

    def __init__(self, channels: int, out: int, wide: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = Modulated(_group_norm(out), out, wide)
        self.conv2 = zero(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        r = self.conv1(silu(self.norm1(h)))
        out: Tensor = self.skip(h) + self.conv2(silu(self.norm2(r, e)))
        return out


class _Attention(nn.Module):
    """Every position looks at every other."""

    def __init__(self, channels: int, head: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        while channels % self.heads:
            self.heads -= 1
        self.norm = _group_norm(channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.project(self.norm(h)), "n (s g c) y x -> s n g (y x) c", s=3, g=self.heads
        )
        mixed = rearrange(attend(q, k, v), "n g (y x) c -> n (g c) y x", y=h.shape[-2])
        out: Tensor = h + self.out(mixed)
        return out


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.conv(h)
        return out


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.conv(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        return out


def _group_norm(channels: int) -> nn.GroupNorm:
    """As many groups as divide the channels, at most 8."""
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _checked(shape: Sequence[int], multipliers: Sequence[int] | None) -> Sequence[int]:
    if len(shape) != 3:
        raise OptionError(
            f"a U-Net was asked for points of shape {tuple(shape)}. Give (channels, height, "
            'width), or take network="mlp".'
        )
    halvings = 0
    while halvings < 2 and all(
        s % 2 ** (halvings + 1) == 0 and s >> halvings > 4 for s in shape[1:]
    ):
        halvings += 1
    if multipliers is None:
        return [1, 2, 2][: halvings + 1]
    factor = 2 ** (len(multipliers) - 1)
    if not multipliers or any(s % factor for s in shape[1:]):
        raise OptionError(
            f"images of {shape[1]} x {shape[2]} cannot be halved {len(multipliers) - 1} times. "
            f"Give fewer multipliers than {list(multipliers)}, or sides that divide by {factor}."
        )
    return multipliers
