"""The inverse of a log-SNR that rises, where there is no closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def bisected(rising: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The last double in [0, 1] at which ``rising`` is at most ``value``.

    Doubles in [0, 1] are ordered as their bits are, so that 62 halvings of the bits reach full
    precision everywhere, also at t = 1e-300.
    """
    low = torch.zeros_like(value).view(torch.int64)
    high = torch.ones_like(value).view(torch.int64)
    for _ in range(62):
        middle = (low + high) // 2
        below = rising(middle.view(torch.float64)) <= value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low.view(torch.float64)
