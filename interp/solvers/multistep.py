"""Multistep exponential integrators: DPM-Solver++(2M)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UnknownName
from .ancestral import exact_step, one_step
from .exponential import Levels, moments
from .programme import Move


def dpmpp_2m(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """x_r = kept x + gain (D_i + (D_i - D_{i-1}) / (2 ratio)),  ratio = h_{i-1} / h_i.

    First and last step are of order 1. ``variant="heun"`` weighs the difference by the exact integral
    of its line, (M_1 / M_0) / ratio, in place of the midpoint's 1 / (2 ratio).

    Source: Lu et al. 2022 (2211.01095), algorithm 2.
    """
    variant = options.get("variant", "midpoint")
    if variant not in ("midpoint", "heun"):
        raise UnknownName.of("variant of dpm++2m", variant, ("midpoint", "heun"))
    kept, gain, _ = one_step(levels)
    with np.errstate(all="ignore"):
        h = np.diff(levels.lam)
        half = np.full_like(h, 0.5)
        if variant == "heun":
            m = moments(h, 2)
            half = m[1] / m[0]
        share = np.append(0.0, half[1:] * h[1:] / h[:-1])
    t, n = levels.t.tolist(), len(h)
    moves = []
    for i in range(n):
        if i == 0 or i == n - 1 or not np.isfinite(share[i]) or share[i] == 0:
            moves.append(exact_step(levels, i, i))
            continue
        g, c = float(gain[i]), float(share[i])
        slopes = {i: g * (1 + c), i - 1: -g * c}
        moves.append(Move(t[i], levels.kind, here=float(kept[i]), slopes=slopes, end=t[i + 1]))
    return moves
