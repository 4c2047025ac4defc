"""The last rows that training saw of a law that only samples tell: it goes with the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interp import noise
from interp.errors import OptionError
from interp.seeds import derive


class LastRows(nn.Module):
    """Up to ``size`` points of ``shape``, from which samples are drawn with replacement."""

    kept: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int], size: int = 1024) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Put the rows of ``x`` in the places of the oldest."""
        size = len(self.kept)
        x = x[-size:]
        at = (torch.arange(len(x), device=x.device) + self.count) % size
        self.kept[at] = x.to(self.kept.dtype)
        self.count += len(x)

    def draw(self, n: int, seed: int | None, first_row: int) -> Tensor:
        """``n`` of them: row i depends on (seed, first_row + i) alone.

        Raises:
            OptionError: none was seen.
        """
        rows = min(int(self.count), len(self.kept))
        if rows == 0:
            raise OptionError(
                "this family starts from points that its batches bring, and has seen none. Give x0=, the "
                "points to start from, or train it first."
            )
        seed = None if seed is None else derive(seed, "base")
        z = noise.normal((n, 1), seed=seed, first_row=first_row, dtype=torch.float64)[:, 0]
        at = (torch.special.ndtr(z) * rows).long().clamp(max=rows - 1)
        return self.kept[at.to(self.kept.device)]
