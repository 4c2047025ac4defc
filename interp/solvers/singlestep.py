"""Singlestep exponential integrators: several answers inside a step, none of earlier ones.

A method is a list of stages (c, nodes): a stage ends at lambda_t + c h, and the polynomial through the
answers of the ``nodes`` (numbers of earlier stages' beginnings) stands under its integral. The last has
c = 1. A step from or to where log-SNR is infinite is the first-order one, with one answer.

A noise estimate that stands still over a step of the SDE pushes x further than it comes back: where there
is little but noise, n = x / sigma, one stage multiplies x / sigma by 1 - eta (exp(h) - 1), which grows from
h = log(1 + 2 / eta) on, where exp(-eta h) is right. The first-order step of the data estimate is off there by
(beta / sigma)^2 at its end, in units of data of variance 1. It is taken where that is less, and where the
noise estimate's is off by more than a half, of the steps that begin with more noise than data.

With ``eta`` the noise of each stage is that of one Brownian path: a stage goes on from the state of the
one before, which holds the path so far, and draws the increment between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arguments import real
from .ancestral import exact_step, increments, towards_data
from .exponential import Array, Levels, all_elements, noising, weights
from .programme import Move, rows

Stages = tuple[tuple[float, tuple[int, ...]], ...]

EULER: Stages = ((1.0, (0,)),)
MIDPOINT: Stages = ((0.5, (0,)), (1.0, (1,)))
HEUN3: Stages = ((1 / 3, (0,)), (2 / 3, (0, 1)), (1.0, (0, 2)))


def singlestep(levels: Levels, stages: Stages, eta: float = 0.0) -> list[Move]:
    """The moves of a method, for the flow or for the SDE of an ``eta`` (see `noising`)."""
    finite = np.flatnonzero(levels.finite[:-1] & levels.finite[1:])
    begins, ends = levels[finite], levels[finite + 1]
    h = ends.lam - begins.lam
    inside = [begins, *(levels.at(begins.lam + c * h) for c, _ in stages[:-1]), ends]
    # Where lambda differs between elements, each has its own share of the step.
    cs = [(level.lam - begins.lam) / h for level in inside]
    plans = []
    before: dict[int, Array] = {}
    still, answers = begins.beta, []  # what the step makes of an estimate that goes with x
    for k, (_, nodes) in enumerate(stages, 1):
        held, z, scale, noise = noising(begins, inside[k], eta)
        theta = np.stack([cs[j] / cs[k] for j in nodes], -1)
        share = (inside[k].beta * scale)[..., None] * weights(z, theta)
        shares = {j: share[..., i] for i, j in enumerate(nodes)}
        if eta:
            held, _, _, noise = noising(inside[k - 1], inside[k], eta)
            had, before = before, shares
            shares = {
                j: shares.get(j, 0.0) - held * had.get(j, 0.0) for j in sorted({*had, *shares})
            }
        answers.append(still / inside[k - 1].beta)
        still = held * still + sum(share * answers[j] for j, share in shares.items())
        columns = {j: rows(share) for j, share in shares.items()}
        kicks = increments(inside[k - 1], inside[k], noise)
        plans.append((inside[k - 1].t.tolist(), rows(held), columns, kicks))
    far = np.zeros(len(finite), dtype=bool)
    if eta and levels.kind == "noise":
        off = np.abs(still / ends.beta - np.exp(eta * h))
        allowed = np.minimum((ends.sigma / ends.beta) ** 2, 0.5)
        far = ~all_elements((off <= allowed) | (begins.beta <= begins.sigma))
    moves: list[Move] = []
    place = {i: at for at, i in enumerate(finite.tolist())}
    number = 0
    for i in range(len(levels) - 1):
        if i not in place or far[place[i]]:
            side = levels if i not in place else levels.other
            moves.append(exact_step(side, i, number, eta))
            number += 1
            continue
        at = place[i]
        for t, kept, columns, kicks in plans:
            slopes = {number + j: column[at] for j, column in columns.items()}
            start, here = (0.0, kept[at]) if eta else (kept[at], 0.0)
            moves.append(Move(t[at], levels.kind, start, here, slopes, kicks[at]))
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
    return singlestep(levels.other, EULER)


def dpm_2(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """The noise estimate at the middle of the step in lambda (the same, algorithm 1)."""
    return singlestep(levels.other, MIDPOINT)


def dpm_3(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Three noise estimates, at 0, 1/3 and 2/3 of the step (the same, algorithm 2)."""
    return singlestep(levels.other, HEUN3)


def _noised(name: str, levels: Levels, stages: Stages, options: Mapping[str, Any]) -> list[Move]:
    """The SDE's, of the option ``eta``."""
    eta = real("eta", options.get("eta", 1.0))
    if eta:
        data = levels if levels.kind == "data" else levels.other
        towards_data(data[:-1], data[1:], f"{name} with eta > 0")
    return singlestep(levels, stages, eta)


def dpmpp_2s_sde(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpmpp_2s` on the SDE of ``eta`` (1): SEEDS-2 of a data estimate.

    At eta = 1 k-diffusion's dpmpp_sde is the same but for the correlation of its two normals, which it takes
    from a path in sigma / beta; the SDE's own is exp(-h / 2) sqrt((1 - exp(-h)) / (1 - exp(-2 h))).

    Source: the step of Lu et al. 2022 (2211.01095, algorithm 1), on the SDE of `noising`.
    """
    return _noised("dpm++2s_sde", levels, MIDPOINT, options)


def dpmpp_3s_sde(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpmpp_3s` on the SDE of ``eta`` (1): SEEDS-3 of a data estimate."""
    return _noised("dpm++3s_sde", levels, HEUN3, options)


def seeds_1(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpm_1` on the SDE of ``eta`` (1), as the authors' program has it; of a data estimate it is ddpm.

        x_r = (beta_r / beta_t) x - (1 + eta) sigma_r (exp(h) - 1) n + sigma_r sqrt(eta (exp(2 h) - 1)) z

    An error of n is multiplied by exp(h), so that its long steps at much noise are those of ddpm (see
    above in this file).

    Source: Gonzalez, Fernandez Pinto, Tran, Gherbi, Hajri, Masmoudi 2023 (2305.14267).
    """
    return _noised("seeds1", levels.other, EULER, options)


def seeds_2(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpm_2` on the SDE of ``eta`` (1): the noise estimate at the middle of the step (the same)."""
    return _noised("seeds2", levels.other, MIDPOINT, options)


def seeds_3(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpm_3` on the SDE of ``eta`` (1): noise estimates at 0, 1/3 and 2/3 of the step (the same).

    The authors' program exchanges the weights of its first two normals at the last stage, whose states are
    then on no path.
    """
    return _noised("seeds3", levels.other, HEUN3, options)
