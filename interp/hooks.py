"""Hooks on the data estimate of a semi-linear sampler: hook(t, D) -> D, as `solve(..., data_hook=hook)`.

They keep samples in the range of the data where guidance or few steps would leave it. What is sampled
is then no longer the model's law: every marginal changes wherever a hook moves D.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import real, share, spread
from .errors import OptionError

Hook = Callable[[Tensor, Tensor], Tensor]
"""hook(t, D): t 0-d and float64, D the estimate E[x1 | x] of all rows; a tensor like D."""


def clip(low: float = -1.0, high: float = 1.0) -> Hook:
    """D <- min(max(D, low), high), element by element.

    Source: the code of Ho, Jain, Abbeel 2020 (2006.11239).

    Raises:
        OptionError: bounds that are not finite numbers, or not in order.
    """
    low, high = (real(what, v, -math.inf) for what, v in (("low", low), ("high", high)))
    if not low < high:
        raise OptionError(f"low={low!r} is not below high={high!r}. Give low < high.")
    return lambda t, data: data.clamp(low, high)


def threshold(quantile: float = 0.995) -> Hook:
    """D <- min(max(D, -s), s) / s with s = max(1, the quantile of |D|), of each row.

    Source: Saharia et al. 2022 (2205.11487), section 2.3, dynamic thresholding.

    Raises:
        OptionError: a quantile outside (0, 1].
    """
    quantile = share("quantile", quantile)

    def hook(t: Tensor, data: Tensor) -> Tensor:
        if data.numel() == 0:
            return data
        sizes = data.abs().reshape(len(data) if data.ndim else 1, -1)
        s = spread(_quantile(sizes, quantile).clamp(min=1.0).reshape(data.shape[:1]), data)
        return torch.minimum(torch.maximum(data, -s), s) / s

    return hook


def _quantile(values: Tensor, q: float) -> Tensor:
    """The quantile of each row, linear between the values; torch.quantile stops at 2^24 of them."""
    place = q * (values.shape[1] - 1)
    below = math.floor(place)
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, below], ordered[:, math.ceil(place)], place - below)
