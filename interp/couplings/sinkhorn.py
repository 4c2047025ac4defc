"""Entropic plans, balanced and not, by Sinkhorn's scaling with the potentials in logarithms.

    minimise <P, C> + reg KL(P | a b') + tau0 KL(P 1 | a) + tau1 KL(P' 1 | b),  a = b = 1 / rows

where tau = inf holds a marginal exactly. The plan is P = a b' exp((f + g - C) / reg). As in
Schmitzer 2016 (1610.06519) the loop multiplies by a kernel into which the potentials f and g are
absorbed, and reg comes down in halves from the spread of the costs, so that nothing underflows
however small reg is, at the price of a product of a matrix and a vector an update.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""The largest mean relative error of a marginal; a batch of n draws shows 1 / sqrt(n)."""

_ITERATIONS = 2000
_DIGITS = 2.0**-40  # of the largest cost: below, rounding moves the plan by more than TOLERANCE
_ABSORB = 100.0  # of a logarithm: far from the 745 at which exp underflows


class NotConverged(Exception):
    """The scaling did not settle, and why; ``usable`` is a reg at which it does."""

    def __init__(self, why: str, usable: float) -> None:
        super().__init__(why, usable)
        self.why, self.usable = why, usable


def log_plan(cost: Tensor, reg: float, tau: tuple[float, float] = (math.inf, math.inf)) -> Tensor:
    """log P for a ``cost`` (rows, rows) in float64; see the formula above.

    Raises:
        NotConverged: reg is too small for these costs.
    """
    spread = (cost.max() - cost.min()).item()
    f, g = cost.new_zeros(len(cost)), cost.new_zeros(len(cost))
    f = _exact_update(cost, g, max(spread, reg), tau[0])
    levels = max(0, math.ceil(math.log2(spread / reg))) if spread > reg else 0
    least = _DIGITS * cost.abs().max().item()
    if reg < least:
        why = "costs over reg have no digits left in float64"
        raise NotConverged(why, max(spread / 100.0, 2.0 * least))
    usable = math.inf
    for level in range(levels, -1, -1):
        now = reg * 2.0**level
        f, g, error = _scale(cost, f, g, now, tau)
        if not error < TOLERANCE:
            share = min(100.0, 100.0 * error)
            raise NotConverged(f"the plan still moves by {share:.2g} % a sweep", usable)
        usable = now
    return (f[:, None] + g - cost) / reg - 2 * math.log(len(cost))


def _scale(
    cost: Tensor, f: Tensor, g: Tensor, reg: float, tau: tuple[float, float]
) -> tuple[Tensor, Tensor, float]:
    """The potentials at ``reg``, from those at another; and the error of the rows' marginal."""
    keep0, keep1 = (1.0 / (1.0 + reg / end) for end in tau)  # tau / (tau + reg), also for inf
    error, kernel = math.inf, None
    u, v = torch.zeros_like(f), torch.zeros_like(g)
    for sweep in range(_ITERATIONS):
        if kernel is None:
            f, g = f + reg * u, g + reg * v
            u, v = torch.zeros_like(f), torch.zeros_like(g)
            kernel = torch.exp((f[:, None] + g - cost) / reg) / len(cost)
        new = (keep0 - 1.0) / reg * f - keep0 * kernel.mv(v.exp()).log()
        error = torch.expm1(u - new).abs().mean().item()
        if sweep and error < TOLERANCE:  # g was set after f, and f has nothing to add
            break
        v = (keep1 - 1.0) / reg * g - keep1 * kernel.T.mv(new.exp()).log()
        u = new
        if min(tau) < math.inf:
            shift = _translation(f + reg * u, g + reg * v, tau) / reg
            u, v = u + shift, v - shift
        largest = max(u.abs().max().item(), v.abs().max().item())
        if largest < _ABSORB:
            continue
        kernel = None
        if not math.isfinite(largest):  # a row or column of zeros: update in the log domain
            u = (_exact_update(cost, g, reg, tau[0]) - f) / reg
            v = (_exact_update(cost.T, f + reg * u, reg, tau[1]) - g) / reg
            error = torch.expm1(u).abs().mean().item()
            if sweep and error < TOLERANCE:
                break
    return f + reg * u, g + reg * v, error


def _exact_update(cost: Tensor, g: Tensor, reg: float, tau: float) -> Tensor:
    """f from g by a sum of exponentials that cannot underflow."""
    sums = torch.logsumexp((g - cost) / reg, 1) - math.log(len(cost))
    return -reg / (1.0 + reg / tau) * sums


def _translation(f: Tensor, g: Tensor, tau: tuple[float, float]) -> Tensor:
    """The best t of (f + t, g - t), which leaves the plan as it is: the slow direction where tau > reg.

    Sejourne, Vialard, Peyre 2022 (2201.00730): mean exp(-(f + t) / tau0) = mean exp(-(g - t) / tau1),
    where one of the two may be infinite.
    """
    low, high = (torch.logsumexp(-p / end, 0) for p, end in zip((f, g), tau, strict=True))
    return (low - high) / (1.0 / tau[0] + 1.0 / tau[1])
