"""What the networks of a Brownian bridge are regressed on, and the clock of I2SB's noise.

At x = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) z each target is straight + c z, of mean and variance

    velocity   x1 - x0    c = sigma (1 - 2 t) / (2 sqrt(t (1 - t)))
    forward    x1 - x0    c = -sigma sqrt(t / (1 - t))        (x1 - x) / (1 - t)
    backward   x0 - x1    c = -sigma sqrt((1 - t) / t)        (x0 - x) / t

infinite at an end. The weight 1 / (1 + c^2) leaves the minimiser and gives the loss a mean; the papers'
weight is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.arguments import spread

#: The square roots of I2SB's beta at its ends and in its middle, where it turns: beta_max = .3 would be
#: reached at the other end. Liu et al., 2302.05872, and its code, 1000 steps of beta / 1000.
_END, _SLOPE = math.sqrt(0.1), math.sqrt(0.3) - math.sqrt(0.1)


def _past(t: Tensor) -> Tensor:
    """The integral of beta over [0, t], t up to 1/2."""
    return ((_END + _SLOPE * t) ** 3 - _END**3) / (3 * _SLOPE)


I2SB_SIGMA = math.sqrt(2 * _past(torch.tensor(0.5, dtype=torch.float64)).item())
"""The square root of the integral of beta over [0, 1]."""


def i2sb_clock(t: Tensor) -> Tensor:
    """The share of I2SB's noise that is past at t, from 0 to 1."""
    # Not by min(t, 1 - t), whose slope at 1/2 is none.
    return torch.where(t <= 0.5, _past(t) / I2SB_SIGMA**2, 1 - _past(1 - t) / I2SB_SIGMA**2)


def velocity_loss(
    found: Tensor, x0: Tensor, x1: Tensor, z: Tensor, t: Tensor, sigma: float
) -> Tensor:
    """Of the velocity, a scalar: see the table."""
    return _loss(found, x1 - x0, sigma * (1 - 2 * t) / (2 * (t * (1 - t)).sqrt()), z)


def score_loss(found: Tensor, z: Tensor, t: Tensor, sigma: float) -> Tensor:
    """The mean of |2 g N / sigma^2 + z|^2, g = sigma sqrt(t (1 - t)): N = (sigma^2 / 2) score."""
    scale = spread(2 * (t * (1 - t)).sqrt() / sigma, z)
    return (scale * found + z).square().mean()


def drift_loss(
    way: str, found: Tensor, x0: Tensor, x1: Tensor, z: Tensor, t: Tensor, sigma: float
) -> Tensor:  # fmt: skip
    """Of the drift "forward" or "backward", a scalar: see the table."""
    if way == "forward":
        return _loss(found, x1 - x0, -sigma * (t / (1 - t)).sqrt(), z)
    return _loss(found, x0 - x1, -sigma * ((1 - t) / t).sqrt(), z)


def _loss(found: Tensor, straight: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """The mean of |found - straight - c z|^2 / (1 + c^2), c in float64, one a row."""
    root = torch.sqrt(1 + c * c)
    error = spread(1 / root, z) * (found - straight) - spread(c / root, z) * z
    return error.square().mean()
