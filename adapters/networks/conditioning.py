"""What a network is told beside x: the time and, perhaps, a label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from interp.errors import OptionError


class Conditioning(nn.Module):
    """A vector for each row out of its time, or times, and its label.

        e = MLP([cos(w_k t), sin(w_k t)]_k) + table[label],   w_k from 1 to ``fastest``, log-spaced

    Args:
        width: of the vector.
        classes: the number of labels; None for a network without them. The table has one more
            entry, the null label ``classes``, which also stands where no label is given.
        frequencies: how many w_k there are.
        times: how many times a row has.
        fastest: the largest w_k; what is differentiated in time wants a small one (Lu, Song, 2410.11081,
            section 4.1).

    Raises:
        OptionError: a width or number of classes that is not positive.
    """

    frequency: Tensor

    def __init__(
        self, width: int, classes: int | None = None, frequencies: int = 32, times: int = 1,
        fastest: float = 1000.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width < 1 or (classes is not None and classes < 1):
            raise OptionError(
                f"a network has width {width} and {classes} classes. Give positive numbers, or "
                "classes=None for a network without labels."
            )
        self.classes, self.times = classes, times
        grid = torch.logspace(0, math.log10(fastest), frequencies)
        self.register_buffer("frequency", grid, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * frequencies * times, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.table = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """(rows, width), or (1, width) where neither ``t`` nor ``label`` has rows.

        Args:
            t: 0-d or (rows,), of any floating dtype; with more ``times``, those on a last axis.
            label: integers (rows,), or None for the null label.

        Raises:
            OptionError: a label for a network without labels.
        """
        # w_k t is formed in t's own dtype, float64 from a solver, and cast when it is an angle.
        angle = t.reshape(-1, self.times, 1) * self.frequency.to(t.dtype)
        angle = angle.flatten(1)
        features = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.frequency.dtype)
        vector: Tensor = self.embed(features * math.sqrt(2))
        if self.table is None:
            if label is not None:
                raise OptionError(
                    "this network was made without labels and got some. Make the family with "
                    "classes=..., or leave the labels out."
                )
            return vector
        if label is None:
            label = torch.full((1,), self.table.num_embeddings - 1, device=vector.device)
        return vector + torch.nn.functional.embedding(label, self.table.weight)


class Modulated(nn.Module):
    """h -> (1 + a) norm(h) + b with a, b linear in the conditioning (FiLM).

    Perez, Strub, de Vries, Dumoulin, Courville, 1709.07871.
    """

    def __init__(self, norm: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.project = nn.Linear(width, 2 * channels)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """``h`` of shape (rows, channels, ...), ``e`` of shape (rows or 1, width)."""
        a, b = self.project(e).reshape(len(e), -1, *(1,) * (h.ndim - 2)).chunk(2, dim=1)
        out: Tensor = torch.addcmul(b, 1 + a, self.norm(h))
        return out


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The same ``layer`` with all its weights at zero: a block that starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
