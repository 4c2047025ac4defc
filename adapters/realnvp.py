"""Real NVP: an invertible network of affine couplings, with its exact density.

Dinh, Sohl-Dickstein, Bengio, 1605.08803. Each layer keeps the elements of its mask b and moves the rest,

    y = b x + (1 - b) (x exp(s(b x)) + t(b x)),   log |det dy/dx| = sum (1 - b) s(b x),

so that log p(x) = log N(f(x); 0, 1) + sum of the log determinants. Images with grey levels are spread over
their cells and taken to the line by logit(a + (1 - 2 a) u), u in [0, 1], a = 0.05, whose determinant is
counted. No path and no time. The paper's multi-scale factoring out and batch normalisation are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid

from interp.arguments import whole
from interp.base import IsotropicNormal
from interp.errors import DataError, OptionError
from interp.families import VERBS
from interp.likelihood import dequantise, level_width

from . import networks
from .arguments import checked_shape, refuse
from .protocol import Batch, Family


class RealNVP(Family):
    """Minimise -log p(x), nats a dimension, over ``layers`` affine couplings.

    Masks alternate between a half and the other: of a vector its two halves, then its even and odd
    elements; of an image a checkerboard, then rows and columns of either parity, which are the channels
    that the paper's squeezing makes of a pixel's block of four.

    Args:
        shape: of one data point.
        network: "conv" or "mlp", what gives (s, t) of a layer; or the user's own, one a layer, from x to
            (rows, 2 c, ...), s before its tanh and t; None is "conv" for images.
        layers: how many couplings.
        levels: the number of grey levels of images on a grid over [-1, 1]; None takes x as it is.
        margin: a of the logit, in (0, 1/2).
        width: of networks made here.
        lr: the largest learning rate.

    Raises:
        UnknownName: a kind of network that does not exist.
        OptionError: an option out of range.
    """

    name = "realnvp"
    solver_options: ClassVar[tuple[str, ...]] = ()
    no_path = (
        "one invertible network leads from data to noise in one step, with an exact density; no law of "
        "points between is prescribed."
    )
    verbs: ClassVar[Mapping[str, bool | str]] = dict.fromkeys(VERBS, "exact")

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        layers: int = 8,
        levels: int | None = None,
        margin: float = 0.05,
        width: int | None = None,
        lr: float = 2e-3,
    ) -> None:
        shape = checked_shape(shape)
        if not 0 < margin < 0.5:
            raise OptionError(f"margin is {margin}. Give a number in (0, 0.5), such as 0.05.")
        if levels is not None:
            level_width(levels)
        if width is not None:
            whole("width", width, 1)
        if levels is None:
            self.refuse_idle(
                "it is of the logit of grey levels, and levels is None. Give levels=..., such as 256, or "
                "leave it out.",
                margin=margin,
            )
        count = whole("layers", layers, 1)
        makers = {f"layer {k}": lambda kind: _made(kind, shape, width) for k in range(count)}
        made, kind = networks.several(network, shape, makers, width)
        config = {
            "network": kind, "layers": count, "levels": levels, "margin": margin, "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.levels, self.margin = levels, margin
        self.couplings = nn.ModuleList(
            Coupling(net, mask, shape) for net, mask in zip(made, masks(shape, count), strict=True)
        )

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """z = f(x)."""
        refuse(self.name, "forward", options)
        return self._flow(x)[0]

    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """x = f^{-1}(z), layer by layer."""
        refuse(self.name, "reverse", options)
        x = self.points(z)
        for layer in reversed(list(self.couplings)):
            assert isinstance(layer, Coupling)
            x = layer.inverse(x)
        if self.levels is None:
            return x
        u = (torch.sigmoid(x) - self.margin) / (1 - 2 * self.margin)
        return (u - 0.5) * self._span

    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """log N(f(x); 0, 1) + log |det df/dx| of each row: (rows,), nats, exact."""
        refuse(self.name, "log_prob", options)
        z, log_det = self._flow(x)
        return IsotropicNormal(1.0).log_prob(z) + log_det

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The mean of -log p(x) over rows, nats a dimension; grey levels spread over their cells."""
        x, _ = self.split(batch)
        if self.levels is not None:
            x = dequantise(x, self.levels, generator)
        return -self.log_prob(x).mean() / math.prod(self.shape)

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """``n`` draws of f^{-1}(z), z ~ N(0, 1)."""
        refuse(self.name, "sample", options)
        return self.reverse(self.normals(n, seed, first_row))

    @property
    def _span(self) -> float:
        """How wide all cells of grey levels are together: [-1, 1] and half a cell on either side."""
        return 2 + level_width(self.levels or 2)

    def _flow(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx|, (rows,)."""
        y = self.points(x)
        log_det = y.new_zeros(len(y))
        if self.levels is not None:
            y, log_det = self._to_line(y)
        for layer in self.couplings:
            y, more = layer(y)
            log_det = log_det + more
        return y, log_det

    def _to_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """logit(a + (1 - 2 a) u) with u the place of x in the cells, and its log determinant."""
        # Half a rounding error of room: the outer cells end exactly at half the span.
        if x.numel() and x.detach().abs().max().item() > self._span / 2 * (1 + 1e-6):
            raise DataError(
                f"images of {self.levels} levels run to {x.detach().abs().max().item():g}, outside "
                "[-1, 1]. Rescale them, e.g.  x / 127.5 - 1 for bytes."
            )
        p = self.margin + (1 - 2 * self.margin) * (x / self._span + 0.5)
        y = torch.logit(p)
        # d logit(p) = dp / (p (1 - p)), and p (1 - p) = sigmoid(y) sigmoid(-y).
        each = -logsigmoid(y) - logsigmoid(-y) + math.log((1 - 2 * self.margin) / self._span)
        return y, each.flatten(1).sum(1)


class Coupling(nn.Module):
    """One affine layer; s = c tanh(its network), with c learned, one an element.

    Args:
        network: from b x to s and t one after the other, along the first axis of a point.
        mask: b, of a point's shape.
        shape: of a point.
    """

    mask: Tensor

    def __init__(self, network: nn.Module, mask: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.scale = nn.Parameter(torch.ones(tuple(shape)))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|, (rows,)."""
        s, t = self.affine(x)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """x: the kept elements are as they were, so s and t are too."""
        s, t = self.affine(y)
        return (y - t) * (-s).exp()

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and t, zero where the mask keeps x."""
        raw, t = self.network(self.mask * x).chunk(2, dim=1)
        moved = 1 - self.mask
        return moved * self.scale * raw.tanh(), moved * t


def masks(shape: Sequence[int], count: int) -> list[Tensor]:
    """The masks of ``count`` layers: each of a cycle's, then what it left."""
    if math.prod(shape) == 1:  # nothing to keep: s and t are numbers
        return [torch.zeros(tuple(shape))] * count
    if len(shape) == 3 and min(shape[1:]) > 1:
        rows, columns = torch.arange(shape[1])[:, None], torch.arange(shape[2])
        cycle = [
            (rows + columns) % 2,
            (rows % 2).expand(shape[1:]),
            (columns % 2).expand(shape[1:]),
        ]
        cycle = [one.expand(tuple(shape)) for one in cycle]
    else:
        index = torch.arange(math.prod(shape)).reshape(tuple(shape))
        cycle = [(index >= index.numel() // 2).long(), index % 2]
    both = [m.float() for one in cycle for m in (1 - one, one)]
    return [both[k % len(both)] for k in range(count)]


def _made(kind: str, shape: Sequence[int], width: int | None) -> nn.Module:
    """A network that starts at zero, so that its layer starts as the identity."""
    both = (2 * shape[0], *shape[1:])
    if kind == "conv":
        return networks.Level(shape, both, width or 32)
    return networks.Dense(shape, both, width or 256, depth=2, still=True)
