"""Heun's method in (x / beta, s = sigma / beta), with churn, and restarts; Langevin's corrector.

In x a step of Heun's from s to r is, by the noise estimates n_1 at its beginning and n_2 at its end,

    x' = (beta_r / beta_s) x + beta_r (r - s) n_1,    x_r = x' + (beta_r (r - s) / 2) (n_2 - n_1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arguments import real, whole
from ..errors import OptionError
from .ancestral import exact_step, towards_data
from .exponential import Levels, first_order
from .programme import Move, Noise


class _Script:
    """Moves as they are written, with the numbers of answers and of fresh normals."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.answers = self.normals = 0

    def heun(self, pair: Levels, end: float | None) -> None:
        """One step over a pair of levels (of noise); the first-order one where one is at an end."""
        number = self.answers
        if pair.beta[0] == 0 or pair.sigma[0] == 0 or pair.beta[1] == 0:
            move = exact_step(pair, 0, number)
            move.end = end
            self.moves.append(move)
            self.answers += 1
            return
        kept, gain, _ = (float(v[0]) for v in first_order(pair[:1], pair[1:]))
        t, r = (float(v) for v in pair.t)
        half = 0.5 * gain
        self.moves.append(Move(t, "noise", here=kept, slopes={number: gain}))
        back = {number: -half, number + 1: half}
        self.moves.append(Move(r, "noise", here=1.0, slopes=back, end=end))
        self.answers += 2

    def noised(self, low: Levels, high: Levels, size: float) -> None:
        """From one level up to another: x scaled, and the missing noise drawn afresh."""
        scale = float(high.sigma[0] / low.sigma[0])  # sigma is beta here: levels of noise
        s, r = float(np.exp(low.lam[0])), float(np.exp(high.lam[0]))
        kick = size * float(high.sigma[0]) * math.sqrt(max(r * r - s * s, 0.0))
        noise = [(kick, float(self.normals), None, 0.0)]
        self.moves.append(Move(here=scale, noise=noise))
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
    if gamma:
        towards_data(levels.other[:-1], levels.other[1:], "edm_heun with churn")
    for i in range(len(levels) - 1):
        pair = levels[i : i + 2]
        s = float(np.exp(pair.lam[0]))
        if gamma and math.isfinite(s) and low <= s <= high:
            up = levels.at(pair.lam[:1] + math.log1p(gamma))
            if up.lam[0] > pair.lam[0]:
                script.noised(pair[:1], up, size)
                pair = _pair(up, pair[1:])
        script.heun(pair, float(levels.t[i + 1]))
    return script.moves


def _pair(a: Levels, b: Levels) -> Levels:
    columns = ((a.t, b.t), (a.beta, b.beta), (a.sigma, b.sigma), (a.lam, b.lam))
    t, beta, sigma, lam = (np.concatenate(c) for c in columns)
    return Levels(t, beta, sigma, lam, a.path, a.kind)


def restart(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Heun's steps that go back: at s_min noise is added up to s_max, and the way from there is gone again.

    ``segments``: a list of (s_min, s_max, repeats, steps); s_min is taken at the grid's last level that is
    not below it, and the steps back are spaced as Karras et al.'s (rho = 7). Without them, two of
    [0.06, 0.30] in three steps and one of [0.30, 0.59] in three.

    Source: Xu, Deng, Cheng, Tian, Liu, Jaakkola 2023 (2306.14878), algorithm 1.
    """
    segments = options.get("segments", [(0.06, 0.30, 2, 3), (0.30, 0.59, 1, 3)])
    levels, script = levels.other, _Script()
    towards_data(levels.other[:-1], levels.other[1:], "restart")
    s = np.exp(levels.lam)
    due: dict[int, list[tuple[float, int, int]]] = {}
    for segment in segments:
        low, high, repeats, steps = _segment(segment)
        above = np.flatnonzero((s >= low) & (np.arange(len(s)) > 0))
        if len(above) and s[above[-1]] < high and s[above[-1]] > 0:
            due.setdefault(int(above[-1]), []).append((high, repeats, steps))
    for i in range(len(levels) - 1):
        end = float(levels.t[i + 1])
        script.heun(levels[i : i + 2], end)
        for high, repeats, steps in due.get(i + 1, []):
            ramp = np.linspace(high ** (1 / 7), s[i + 1] ** (1 / 7), steps + 1) ** 7
            inner = levels.at(np.log(ramp))
            inner = _pair(inner[:-1], levels[i + 1 : i + 2])
            for _ in range(repeats):
                script.noised(inner[-1:], inner[:1], 1.0)
                for k in range(steps):
                    script.heun(inner[k : k + 2], end if k == steps - 1 else None)
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
    moves: list[Move] = []
    number = fresh = 0
    for i in range(len(h)):
        s, sigma = float(t.t[i]), float(t.sigma[i])
        for _ in range(many if t.beta[i] > 0 else 0):
            kick: list[Noise] = [(2 * snr * sigma, float(fresh), None, 0.0)]
            slopes = {number: -2 * snr**2 * sigma}
            moves.append(Move(s, "noise", here=1.0, slopes=slopes, noise=kick))
            number, fresh = number + 1, fresh + 1
        e = float(r.t[i])
        size = float(noise[i]) / math.sqrt(abs(e - s)) if noise[i] else 0.0
        slopes = {number: float(gain[i])}
        kick = [(size, s, e, 0.0)] if size else []
        moves.append(Move(s, "data", here=float(kept[i]), slopes=slopes, noise=kick, end=e))
        number += 1
    return moves
