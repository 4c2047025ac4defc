"""Heun's method in (x / beta, s = sigma / beta), with churn, and restarts; Langevin's corrector.

In x a step of Heun's from s to r is, by the noise estimates n_1 at its beginning and n_2 at its end,

    x' = (beta_r / beta_s) x + beta_r (r - s) n_1,    x_r = x' + (beta_r (r - s) / 2) (n_2 - n_1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arguments import real, whole
from ..errors import OptionError
from .ancestral import exact_step, increments, towards_data
from .exponential import Levels, all_elements, first_order
from .programme import Move, Noise, rows


class _Script:
    """Moves as they are written, with the numbers of answers and of fresh normals."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.answers = self.normals = 0

    def heun(self, begins: Levels, ends: Levels, stop: Sequence[float | None]) -> None:
        """Steps from levels (of noise) to others, and the times that these end, None inside a step.

        The first-order one where a level is at an end.
        """
        kept, gain, _ = first_order(begins, ends)
        inside = all_elements((begins.beta != 0) & (begins.sigma != 0) & (ends.beta != 0)).tolist()
        t, r = begins.t.tolist(), ends.t.tolist()
        columns = zip(rows(kept), rows(gain), rows(0.5 * gain), stop, strict=True)
        for i, (a, all_of_it, half, end) in enumerate(columns):
            n = self.answers
            if not inside[i]:
                pair = _joined(begins[i : i + 1], ends[i : i + 1])
                self.moves.append(replace(exact_step(pair, 0, n), end=end))
                self.answers += 1
                continue
            self.moves.append(Move(t[i], "noise", 0.0, a, {n: all_of_it}))
            self.moves.append(Move(r[i], "noise", 0.0, 1.0, {n: -half, n + 1: half}, (), end))
            self.answers += 2

    def noised(self, low: Levels, high: Levels, size: float) -> None:
        """From one level up to another: x scaled, and the missing noise drawn afresh."""
        scale = high.sigma / low.sigma  # sigma is beta here: levels of noise
        s, r = np.exp(low.lam), np.exp(high.lam)
        kick = size * high.sigma * np.sqrt(np.maximum(r * r - s * s, 0.0))
        noise = [(rows(kick)[0], float(self.normals), None, 0.0)]
        self.moves.append(Move(here=rows(scale)[0], noise=noise))
        self.normals += 1


def edm_heun(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Heun's second-order steps, the last to clean data by Euler's: 2 N - 1 evaluations.

    With ``s_churn`` > 0 each step from s in [s_min, s_max] begins with noise of its own, at s (1 + gamma),
    gamma = min(s_churn / N, sqrt(2) - 1), of the size ``s_noise``; where the path begins below that, at
    its beginning.

    Source: Karras, Aittala, Aila, Laine 2022 (2206.00364), algorithms 1 and 2.
    """
    churn = real("s_churn", options.get("s_churn", 0.0))
    size = real("s_noise", options.get("s_noise", 1.0))
    low, high = real("s_min", options.get("s_min", 0.0)), options.get("s_max", math.inf)
    levels, script = levels.other, _Script()
    gamma = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    stop = levels.t[1:].tolist()
    if not gamma:
        script.heun(levels[:-1], levels[1:], stop)
        return script.moves
    towards_data(levels.other[:-1], levels.other[1:], "edm_heun with churn")
    for i, s in enumerate(np.exp(levels.mean[:-1]).tolist()):
        begin = levels[i : i + 1]
        if math.isfinite(s) and low <= s <= high:
            up = levels.at(begin.lam + math.log1p(gamma))
            if up.mean[0] > begin.mean[0]:
                script.noised(begin, up, size)
                begin = up
        script.heun(begin, levels[i + 1 : i + 2], stop[i : i + 1])
    return script.moves


def _joined(a: Levels, b: Levels) -> Levels:
    columns = ((a.t, b.t), (a.beta, b.beta), (a.sigma, b.sigma), (a.lam, b.lam))
    t, beta, sigma, lam = (np.concatenate(c) for c in columns)
    return Levels(t, beta, sigma, lam, a.path, a.kind)


def restart(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Heun's steps that go back: at s_min noise is added up to s_max, and the way from there is gone again.

    ``segments``: a list of (s_min, s_max, repeats, steps); s_min is taken at the grid's last level that is
    not below it, and the steps back are spaced as Karras et al.'s (rho = 7). (Where it differs between
    elements, sigma / beta is its geometric mean over them.) Without them, two of
    [0.06, 0.30] in three steps and one of [0.30, 0.59] in three.

    Source: Xu, Deng, Cheng, Tian, Liu, Jaakkola 2023 (2306.14878), algorithm 1.
    """
    segments = options.get("segments", [(0.06, 0.30, 2, 3), (0.30, 0.59, 1, 3)])
    levels, script = levels.other, _Script()
    towards_data(levels.other[:-1], levels.other[1:], "restart")
    s = np.exp(levels.mean)
    due: dict[int, list[tuple[float, int, int]]] = {}
    for segment in segments:
        low, high, repeats, steps = _segment(segment)
        above = np.flatnonzero((s >= low) & (np.arange(len(s)) > 0))
        if len(above) and s[above[-1]] < high and s[above[-1]] > 0:
            due.setdefault(int(above[-1]), []).append((high, repeats, steps))
    for i in range(len(levels) - 1):
        end = float(levels.t[i + 1])
        script.heun(levels[i : i + 1], levels[i + 1 : i + 2], [end])
        for high, repeats, steps in due.get(i + 1, []):
            ramp = np.linspace(high ** (1 / 7), s[i + 1] ** (1 / 7), steps + 1) ** 7
            inner = _joined(levels.at(np.log(ramp[:-1])), levels[i + 1 : i + 2])
            for _ in range(repeats):
                script.noised(inner[-1:], inner[:1], 1.0)
                script.heun(inner[:-1], inner[1:], [None] * (steps - 1) + [end])
    return script.moves


def _segment(segment: object) -> tuple[float, float, int, int]:
    if not isinstance(segment, (tuple, list)) or len(segment) != 4:
        raise OptionError(
            f"the segment {segment!r} is not (s_min, s_max, repeats, steps). Give four numbers."
        )
    low, high = real("s_min", segment[0]), real("s_max", segment[1])
    if not 0 < low < high:
        raise OptionError(f"the segment {segment!r} does not go back. Give 0 < s_min < s_max.")
    return low, high, whole("repeats", segment[2], 1), whole("steps", segment[3], 1)


def predictor_corrector(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Langevin's corrections at each time, then the ancestral step.

        x <- x + e score + sqrt(2 e) z,    e = 2 (snr sigma)^2

    ``corrections`` (1) a step, ``snr`` (0.16). The paper's e is 2 (snr |z| / |score|)^2 with means of
    norms over the batch; sigma is what that ratio is for a score of unit noise, and lets each row be
    independent of its neighbours. None where beta is 0, and no noise on the last step.

    Source: Song et al. 2021 (2011.13456), algorithms 2 to 5.
    """
    snr = real("snr", options.get("snr", 0.16))
    many = whole("corrections", options.get("corrections", 1), 0)
    t, r = levels[:-1], levels[1:]
    h = towards_data(t, r, "pc")
    kept, gain, noise = first_order(t, r, h)
    kicks, share = rows(2 * snr * t.sigma), rows(-2 * snr**2 * t.sigma)
    told = all_elements(t.beta > 0).tolist()
    drawn, at = increments(t, r, noise), levels.t.tolist()
    moves: list[Move] = []
    number = fresh = 0
    for i, (a, b) in enumerate(zip(rows(kept), rows(gain), strict=True)):
        for _ in range(many if told[i] else 0):
            kick: list[Noise] = [(kicks[i], float(fresh), None, 0.0)]
            moves.append(Move(at[i], "noise", 0.0, 1.0, {number: share[i]}, kick))
            number, fresh = number + 1, fresh + 1
        moves.append(Move(at[i], "data", 0.0, a, {number: b}, drawn[i], at[i + 1]))
        number += 1
    return moves
