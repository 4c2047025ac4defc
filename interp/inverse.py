"""The inverse of a log-SNR that rises, where there is no closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def bisected(rising: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The last double in [0, 1] at which ``rising`` is at most ``value``.

    Doubles in [0, 1] are ordered as their bits are, so that 62 halvings of the bits reach full
    precision everywhere, also at t = 1e-300. One cut a time, and always the same ones: noise inside a
    step is keyed by the last bit of its time, which equal schedules have to share.
    """
    low = torch.zeros_like(value).view(torch.int64)
    high = torch.ones_like(value).view(torch.int64)
    for _ in range(62):
        middle = (low + high) // 2
        below = rising(middle.view(torch.float64)) <= value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low.view(torch.float64)


def followed(rising: Callable[[Tensor], Tensor], t: Tensor, value: Tensor) -> Tensor:
    """``t``, at which ``rising`` is ``value``, with the derivative of the inverse.

    By the implicit function theorem dt = (d value - d rising) / rising', where d rising is by
    whatever else it depends on, such as the weights of a learned schedule. None at the ends, where
    value is infinite.
    """
    inside = value.isfinite()
    somewhere = torch.where(inside, t, 0.5).detach().requires_grad_()
    gap = torch.where(inside, value, 0.0) - torch.where(inside, rising(somewhere.detach()), 0.0)
    if not gap.requires_grad:
        return t
    with torch.enable_grad():
        found = rising(somewhere)
        (slope,) = torch.autograd.grad(found, somewhere, torch.ones_like(found))
    return t + (gap - gap.detach()) / slope
