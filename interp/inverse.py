"""The inverse of a log-SNR that rises, where there is no closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def bisected(rising: Callable[[Tensor], Tensor], value: Tensor, parts: int = 64) -> Tensor:
    """The last double in [0, 1] at which ``rising`` is at most ``value``.

    Doubles in [0, 1] are ordered as their bits are, so that cutting the 62 bits reaches full precision
    everywhere, also at t = 1e-300. Each cut is into ``parts``, whose ends are looked at together: a
    schedule's call costs the same for one time as for a hundred.
    """
    shape, wanted = value.shape, value.reshape(-1, 1)
    low = torch.zeros_like(wanted).view(torch.int64)
    high = torch.ones_like(wanted).view(torch.int64)
    shares = torch.arange(1, parts, device=value.device)
    for _ in range(math.ceil(62 / math.log2(parts)) + 1):
        gap = high - low
        ends = low + gap // parts * shares + gap % parts * shares // parts
        times = ends.view(torch.float64).reshape(-1)
        below = (rising(times).reshape(ends.shape) <= wanted).long().cumprod(1)
        ends, count = torch.cat([low, ends, high], 1), below.sum(1, keepdim=True)
        low, high = ends.gather(1, count), ends.gather(1, count + 1)
    return low.view(torch.float64).reshape(shape)


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
