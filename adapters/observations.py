"""What a decoder's output says of the data: the laws p(x | mean), all elements independent.

Scales are learned, one for each element (some pixels of a data set never change), or fixed, one for all; log
densities are in nats, summed over a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from interp import noise
from interp.arguments import real
from interp.errors import OptionError
from interp.likelihood import level_width


class _Scaled(nn.Module):
    """A law with a scale.

    Args:
        scale: a positive number, or None to learn one for each element, from 0.3 on.
        shape: of one data point.

    Raises:
        OptionError: a scale that is not positive.
    """

    log_scale: Tensor

    def __init__(self, scale: float | None, shape: Sequence[int] = ()) -> None:
        super().__init__()
        if scale is not None and real("the scale of an observation", scale) == 0:
            raise OptionError(
                "the scale of an observation is 0, which has no density. Give a positive number, or "
                "None to learn it."
            )
        log = torch.tensor(math.log(0.3 if scale is None else scale))
        if scale is None:
            self.log_scale = nn.Parameter(log.repeat(tuple(shape)))
        else:
            self.register_buffer("log_scale", log)


class Gaussian(_Scaled):
    """N(mean, sigma^2): log p = -|x - mean|^2 / (2 sigma^2) - d log sigma - (d / 2) log 2 pi."""

    def seen(self, x: Tensor) -> Tensor:
        """What there is to know of ``x``: all of it."""
        return x

    def log_prob(self, x: Tensor, mean: Tensor) -> Tensor:
        """(rows,), nats."""
        z = (x - mean) * (-self.log_scale).exp()
        each = -0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)

    def draw(self, mean: Tensor, seed: int, first_row: int) -> Tensor:
        """A draw for each row of ``mean``."""
        return mean + self.log_scale.exp() * _normals(mean, seed, first_row)


class Logistic(_Scaled):
    """A logistic law over cells of grey levels, the outer ones open (Salimans et al., 1701.05517, eq. 2).

    P(k) = F((x_k + w/2 - mean) / s) - F((x_k - w/2 - mean) / s), F the logistic function; as a density of
    dequantised images it is P(k) / w on the cell of level k.

    Args:
        levels: how many levels there are, on [-1, 1].
        scale, shape: s, as of every such law.
    """

    def __init__(self, levels: int, scale: float | None, shape: Sequence[int] = ()) -> None:
        super().__init__(scale, shape)
        self.width = level_width(levels)

    def seen(self, x: Tensor) -> Tensor:
        """What there is to know of ``x``: the level whose cell it lies in."""
        return ((x + 1) / self.width).round().clamp(0, round(2 / self.width)) * self.width - 1

    def log_prob(self, x: Tensor, mean: Tensor) -> Tensor:
        """(rows,), nats: of the density on the cell that x lies in."""
        w, inv = self.width, (-self.log_scale).exp()
        level = self.seen(x)
        upper, lower = (level + w / 2 - mean) * inv, (level - w / 2 - mean) * inv
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)): nothing cancels.
        inner = logsigmoid(upper) + logsigmoid(-lower) + (-torch.expm1(-w * inv)).log()
        first, last = level < -1 + w / 2, level > 1 - w / 2
        each = torch.where(first, logsigmoid(upper), torch.where(last, logsigmoid(-lower), inner))
        return (each - math.log(w)).flatten(1).sum(1)

    def draw(self, mean: Tensor, seed: int, first_row: int) -> Tensor:
        """A level for each element of ``mean``."""
        u = torch.special.ndtr(_normals(mean, seed, first_row).double())
        return self.seen(mean + self.log_scale.exp() * torch.logit(u).to(mean.dtype))


def _normals(mean: Tensor, seed: int, first_row: int) -> Tensor:
    return noise.normal(
        mean.shape, seed=seed, first_row=first_row, stream="path", dtype=mean.dtype,
        device=mean.device,
    )  # fmt: skip
