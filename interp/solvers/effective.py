"""How many independent draws a chain is worth, in memory that its length does not change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BATCHES = 64


class Effective:
    """The effective sample size by batch means (Glynn and Whitt, Oper. Res. Lett. 10, 1991).

        ESS = n var(x) / (b var(means of batches of length b)),

    n counting the steps of all rows. Between 32 and 64 batches a row are kept; when there are 64, each
    two become one of twice the length. So many short ones would find the steps of a short chain
    independent, whatever they are: they are put together until a batch is as long as there are
    batches. Means are taken about that of all rows, so that rows which have not found one another
    count little. However long the chain, some sqrt(2 / batches) of the size is chance, the batches
    being those of all rows.

    Args:
        x: a state, (rows, ...).
        columns: at most so many elements of a row count.
    """

    def __init__(self, x: Tensor, columns: int = 2**16) -> None:
        rows = len(x)
        self._columns = columns
        elements = min(math.prod(x.shape[1:]), columns)
        self._sums = torch.zeros(_BATCHES, rows, elements, dtype=torch.float64, device=x.device)
        self._squares = torch.zeros(rows, elements, dtype=torch.float64, device=x.device)
        self.steps = self._full = self._inside = 0
        self._length = 1

    def add(self, x: Tensor) -> None:
        """One more step of every row."""
        values = x.detach().flatten(1)[:, : self._columns].double()
        self._sums[self._full] += values
        self._squares += values.square()
        self.steps += 1
        self._inside += 1
        if self._inside < self._length:
            return
        self._full, self._inside = self._full + 1, 0
        if self._full == _BATCHES:
            pairs = self._sums.reshape(_BATCHES // 2, 2, *self._sums.shape[1:]).sum(1)
            self._sums.zero_()
            self._sums[: _BATCHES // 2] = pairs
            self._full, self._length = _BATCHES // 2, 2 * self._length

    def size(self) -> float:
        """The smallest of all elements; NaN before there are two batches."""
        full, length, rows = self._full, self._length, self._sums.shape[1]
        if full < 2 or self._sums.numel() == 0:
            return float("nan")
        joined = 1
        while full >= 4 and length < full:
            full, length, joined = full // 2, 2 * length, 2 * joined
        count = self.steps * rows
        mean = self._sums.sum((0, 1)) / count
        variance = self._squares.sum(0) / count - mean.square()
        joint = self._sums[: full * joined].reshape(full, joined, *self._sums.shape[1:])
        between = (joint.sum(1) / length - mean).square().sum((0, 1)) / (full * rows - 1)
        ratio = torch.where(between > 0, variance / (length * between), torch.nan)
        return float(count * ratio.nan_to_num(nan=torch.inf).min())
