"""States between the steps of methods that have none there: through those at the nearest steps.

    x_t / rho_t = sum_j l_j(t) x_j / rho_j,    l_j(t) = prod_{k != j} s(t, k) / s(j, k)

over the four nearest steps' ends, of which an error of fourth order in their distance is left. On a path
rho = hypot(beta, sigma) and s(t, k) = sin(a_t - a_k), the angle being a = atan(sigma / beta): regular at
both ends, and over two nodes beta_t D + sigma_t n, with the D and n that a first-order step moves along
(trigonometric interpolation of odd degree; the number of nodes is even). In a run's own clock rho = 1 and
s is the difference of its readings.

It costs no evaluation and changes no step. Where the weights would magnify errors, as next to nodes that
lie very close, the step's two ends serve alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interpolant import Basis
from .exponential import Array, Levels
from .programme import Coefficient, between_steps, rows
from .torch_backend.recurrence import plus, times

#: The largest sum of the sizes of the weights.
_MOST = 4.0


@dataclass(frozen=True)
class Between:
    """From the states at some nodes to those at the output times.

    Attributes:
        nodes: when the run has to save, in its clock.
        weights: for each output time, of the nodes by their number.
        basis: between which transforms weights that differ between elements multiply states.
    """

    nodes: list[float]
    weights: list[dict[int, Coefficient]]
    basis: Basis | None = None

    def reached(self, clock: float) -> int:
        """How many nodes a run has passed that ended early."""
        forward = self.nodes[-1] - self.nodes[0]
        return sum((node - clock) * forward <= 0 for node in self.nodes)

    def __call__(self, xs: Tensor) -> Tensor:
        """The states at the first output times, as many as follow from those at the first nodes."""
        known = [w for w in self.weights if max(w) < len(xs)]
        return torch.stack([self._state(w, xs) for w in known]) if known else xs[:0]

    def _state(self, weights: dict[int, Coefficient], xs: Tensor) -> Tensor:
        if list(weights.values()) == [1.0]:  # at a node
            return xs[next(iter(weights))]
        (first, c), *others = weights.items()
        into, out = self.basis or (lambda x: x, lambda x: x)
        total = times(c, into(xs[first]))
        for i, c in others:
            total = plus(total, c, into(xs[i]))
        return out(total)


def on_path(levels: Levels, saves: Sequence[float]) -> Between | None:
    """What a sampler's run over these levels needs; None where every output time is a step's end.

    Raises:
        OptionError: a time between two steps, of a path whose log-SNR does not order its times.
    """
    last = {t: i for i, t in enumerate(levels.t.tolist())}  # clean data may follow at the same time
    off = [t for t in saves if t not in last]
    if not off:
        return None
    if not levels.path.invertible:
        raise between_steps(off[0])
    grid, asked = levels[np.array(list(last.values()))], Levels.of(levels.path, saves)
    nodes, wanted = (
        _Points(np.arctan2(v.sigma, v.beta), np.hypot(v.sigma, v.beta)) for v in (grid, asked)
    )
    return _between(list(last), saves, nodes, wanted, np.sin, (4, 2), levels.path.basis)


def in_clock(grid: Sequence[float], saves: Sequence[float]) -> Between | None:
    """The same in a run's own clock, by polynomials."""
    if set(saves) <= set(grid):
        return None
    nodes, wanted = (_Points(np.array(v), np.ones(len(v))) for v in (grid, saves))
    return _between(grid, saves, nodes, wanted, lambda gap: gap, (4, 3, 2))


class _Points(NamedTuple):
    """Where times lie, and what states are measured in there: both (n, *E)."""

    at: Array
    rho: Array


def _between(
    grid: Sequence[float], saves: Sequence[float], nodes: _Points, wanted: _Points,
    gap: Callable[[Array], Array], widths: Sequence[int], basis: Basis | None = None,
) -> Between:  # fmt: skip
    forward = 1.0 if grid[-1] > grid[0] else -1.0
    ordered, place = [forward * t for t in grid], {t: i for i, t in enumerate(grid)}
    found: list[dict[int, Coefficient]] = []
    for i, t in enumerate(saves):
        if t in place:
            found.append({place[t]: 1.0})
            continue
        after = bisect.bisect(ordered, forward * t)
        for width in (w for w in widths if w <= len(grid)):
            first = min(max(after - width // 2, 0), len(grid) - width)
            here = slice(first, first + width)
            shares = _lagrange(nodes.at[here], wanted.at[i], gap)
            if width == 2 or np.abs(shares).sum(0).max() <= _MOST:
                break
        found.append(dict(enumerate(rows(shares * wanted.rho[i] / nodes.rho[here]), first)))
    used = sorted({i for weights in found for i in weights})
    number = {i: k for k, i in enumerate(used)}
    weights = [{number[i]: w for i, w in some.items()} for some in found]
    return Between([grid[i] for i in used], weights, basis)


def _lagrange(nodes: Array, value: Array, gap: Callable[[Array], Array]) -> Array:
    """The shares of the nodes, (m, *E), at the value."""
    count = len(nodes)
    ratios = [
        [gap(value - nodes[k]) / gap(nodes[j] - nodes[k]) for k in range(count) if k != j]
        for j in range(count)
    ]
    return np.asarray(np.prod(ratios, axis=1), dtype=np.float64)
