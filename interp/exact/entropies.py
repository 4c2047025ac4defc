"""The entropy of a mixture: closed for one normal, by quadrature on the line, else by sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .covariances import Components
from .target import Estimate

_REACH = 13.0  # deviations on either side: what lies beyond weighs 1e-37
_FINEST = 2**21


def normal_entropy(parts: Components) -> Estimate:
    """(d log(2 pi e) + log det C) / 2."""
    log_det = parts.spectrum[0].log().sum().item()
    constant = parts.means.shape[1] * (1 + math.log(2 * math.pi))
    return Estimate(0.5 * (constant + log_det), 0.0, "closed form")


def line_entropy(parts: Components, log_prob: Callable[[Tensor], Tensor]) -> Estimate:
    """-int rho log rho dx by the trapezium rule, whose error for analytic rho falls like exp(-c / h).

    Halved until two results agree to 1e-13. Components whose widths and distances differ so much
    that 2^21 points do not suffice leave an error that is larger, or infinite.
    """
    means, deviations = parts.means[:, 0], parts.spectrum[:, 0].sqrt()
    low = (means - _REACH * deviations).min().item()
    high = (means + _REACH * deviations).max().item()
    points = 2 ** math.ceil(math.log2((high - low) / deviations.min().item() * 4))
    value, error = math.nan, math.inf
    while not error < 1e-13 * max(1.0, abs(value)) and points <= _FINEST:
        x = torch.linspace(low, high, points + 1, dtype=means.dtype, device=means.device)[:, None]
        density = log_prob(x)
        before, value = value, -(density.exp() * density).sum().item() * (high - low) / points
        error = abs(value - before) if math.isfinite(before) else math.inf
        points *= 2
    return Estimate(value, max(error, 1e-15 * abs(value)), "quadrature")


def sampled_entropy(
    sample: Callable[[int, int], Tensor], log_prob: Callable[[Tensor], Tensor], n: int
) -> Estimate:
    """The mean of -log rho over ``n`` samples, and its standard error."""
    chunk = 65_536
    parts = [log_prob(sample(min(chunk, n - i), i)) for i in range(0, n, chunk)]
    surprise = -torch.cat(parts)
    return Estimate(surprise.mean().item(), surprise.std().item() / math.sqrt(n), "Monte Carlo")
