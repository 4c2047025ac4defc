"""Singlestep exponential integrators: several answers inside a step, none of earlier ones.

A method is a list of stages (c, nodes): a stage ends at lambda_t + c h, and the polynomial through the
answers of the ``nodes`` (numbers of earlier stages' beginnings) stands under its integral. The last has
c = 1. A step from or to where log-SNR is infinite is the first-order one, with one answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .ancestral import exact_step
from .exponential import Levels, first_order, weights
from .programme import Move, rows

Stages = tuple[tuple[float, tuple[int, ...]], ...]

MIDPOINT: Stages = ((0.5, (0,)), (1.0, (1,)))
HEUN3: Stages = ((1 / 3, (0,)), (2 / 3, (0, 1)), (1.0, (0, 2)))


def singlestep(levels: Levels, stages: Stages) -> list[Move]:
    """The moves of a method."""
    finite = np.flatnonzero(levels.finite[:-1] & levels.finite[1:])
    begins, ends = levels[finite], levels[finite + 1]
    h = ends.lam - begins.lam
    inside = [begins, *(levels.at(begins.lam + c * h) for c, _ in stages[:-1]), ends]
    # Where lambda differs between elements, each has its own share of the step.
    cs = [(level.lam - begins.lam) / h for level in inside]
    plans = []
    for k, (_, nodes) in enumerate(stages, 1):
        held, _, _ = first_order(begins, inside[k])
        theta = np.stack([cs[j] / cs[k] for j in nodes], -1)
        share = inside[k].beta[..., None] * weights(cs[k] * h, theta)
        columns = [rows(share[..., j]) for j in range(len(nodes))]
        plans.append((inside[k - 1].t.tolist(), rows(held), columns, nodes))
    moves: list[Move] = []
    place = {i: at for at, i in enumerate(finite.tolist())}
    number = 0
    for i in range(len(levels) - 1):
        if i not in place:
            moves.append(exact_step(levels, i, number))
            number += 1
            continue
        at = place[i]
        for t, kept, columns, nodes in plans:
            slopes = {number + j: column[at] for j, column in zip(nodes, columns, strict=True)}
            moves.append(Move(t[at], levels.kind, kept[at], 0.0, slopes))
        moves[-1].end = float(levels.t[i + 1])
        number += len(plans)
    return moves


def dpmpp_2s(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """The data estimate at the middle of the step in lambda (Lu et al. 2022, 2211.01095, algorithm 1)."""
    return singlestep(levels, MIDPOINT)


def dpmpp_3s(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Three data estimates, at 0, 1/3 and 2/3 of the step (the same, appendix)."""
    return singlestep(levels, HEUN3)


def dpm_1(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """One noise estimate: DDIM (Lu et al. 2022, 2206.00927, eq. 3.7)."""
    return singlestep(levels.other, ((1.0, (0,)),))


def dpm_2(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """The noise estimate at the middle of the step in lambda (the same, algorithm 1)."""
    return singlestep(levels.other, MIDPOINT)


def dpm_3(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Three noise estimates, at 0, 1/3 and 2/3 of the step (the same, algorithm 2)."""
    return singlestep(levels.other, HEUN3)
