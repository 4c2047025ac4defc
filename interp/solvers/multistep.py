"""Multistep exponential integrators: a polynomial through the last answers, under the integral.

All of them are x_r = kept x_t + beta_r sum_j w_j P_{i - j} with P the data estimate, or the noise
estimate with the roles of beta and sigma exchanged; they differ in the weights. A step from or to where
log-SNR is infinite, and the first one, is the first-order one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arguments import real, whole
from ..errors import OptionError, UnknownName
from .ancestral import exact_step, one_step, towards_data
from .exponential import POINTS, Array, Levels, first_order, integrals, moments, weights
from .programme import Move

Weights = list[list[float]]
"""For each step the weights of its answers, the newest first; empty where it is of first order."""


def choice(name: str, options: Mapping[str, Any], what: str, known: tuple[str, ...]) -> str:
    """An option that is one of a few names, the first unless it is given."""
    value = options.get(what, known[0])
    if value not in known:
        raise UnknownName.of(f"{what} of {name}", value, known)
    return str(value)


def answers(levels: Levels, order: int) -> Array:
    """How many answers each step can use: those since log-SNR is finite, at most ``order``."""
    n = len(levels) - 1
    first = int(np.argmax(np.isfinite(levels.lam)))
    count = np.clip(np.arange(n) - first + 1, 1, order)
    return np.where(np.isfinite(np.diff(levels.lam)), count, 0)


def extrapolated(levels: Levels, count: Array, variable: Array | None = None) -> Weights:
    """The exact integrals of the polynomials through ``count`` answers, in lambda.

    ``variable``: the values of another variable at the levels and, after them in each row, at the
    points of the step: (steps, 1 + 16); the polynomials are in it then.
    """
    h = np.diff(levels.lam)
    out: Weights = [[] for _ in range(len(count))]
    for m in set(count.tolist()) - {0}:
        i = np.flatnonzero(count == m)
        back = i[:, None] - np.arange(m)
        if variable is None:
            w = weights(h[i], (levels.lam[back] - levels.lam[i, None]) / h[i, None])
        else:
            w = integrals(h[i], variable[i, 1:], variable[back, 0])
        for at, row in zip(i.tolist(), w.tolist(), strict=True):
            out[at] = row
    return out


def multistep(levels: Levels, shares: Weights, corrections: Weights | None = None) -> list[Move]:
    """The moves of weights.

    ``corrections``: what is added to the state at the beginning of a step before it is taken: weights
    of the answers, the one at the step's beginning first, in units of its beta.
    """
    kept, gain, _ = one_step(levels)
    t = levels.t.tolist()
    moves = []
    for i, share in enumerate(shares):
        if not share and levels.sigma[i] == 0:
            moves.append(exact_step(levels, i, i))
            continue
        a, b = float(kept[i]), float(levels.beta[i + 1])
        slopes = {i - j: b * w for j, w in enumerate(share)} or {i: float(gain[i])}
        for j, w in enumerate(corrections[i] if corrections else []):
            slopes[i - j] = slopes.get(i - j, 0.0) + a * float(levels.beta[i]) * w
        moves.append(Move(t[i], levels.kind, here=a, slopes=slopes, end=t[i + 1]))
    return moves


def dpmpp_2m(levels: Levels, options: Mapping[str, Any], eta: float = 0.0) -> list[Move]:
    """x_r = kept x + gain (D_i + (D_i - D_{i-1}) / (2 ratio)) + noise,  ratio = h_{i-1} / h_i.

    First and last step are of order 1. ``variant="heun"`` weighs the difference by the exact integral
    of its line, (M_1 / M_0) / ratio, in place of the midpoint's 1 / (2 ratio). With ``eta`` the old noise
    is damped by K = eta h and as much is drawn anew: eta = 1 is the reverse SDE (dpm++2m_sde).

    Source: Lu et al. 2022 (2211.01095), algorithm 2 and eq. 19.
    """
    heun = choice("dpm++2m", options, "variant", ("midpoint", "heun")) == "heun"
    eta = real("eta", options.get("eta", eta))
    t, r = levels[:-1], levels[1:]
    h = towards_data(t, r, "dpm++2m_sde") if eta else r.lam - t.lam
    damping = eta * h if eta else 0.0
    kept, gain, noise = first_order(t, r, damping)
    with np.errstate(all="ignore"):
        half = np.full_like(h, 0.5)
        if heun:
            m = moments(h + damping, 2)
            half = m[1] / m[0]
        share = np.append(0.0, half[1:] * h[1:] / h[:-1])
        size = np.where(noise == 0, 0.0, noise / np.sqrt(np.abs(r.t - t.t)))
    share[-1] = 0.0
    share[~np.isfinite(share)] = 0.0
    moves = []
    for i in range(len(h)):
        if levels.sigma[i] == 0:
            moves.append(exact_step(levels, i, i))
            continue
        g, c, s, e = float(gain[i]), float(share[i]), float(t.t[i]), float(r.t[i])
        slopes = {i: g * (1 + c)} | ({i - 1: -g * c} if c else {})
        kick = [(float(size[i]), s, e, 0.0)] if size[i] else []
        moves.append(Move(s, levels.kind, here=float(kept[i]), slopes=slopes, noise=kick, end=e))
    return moves


def dpmpp_2m_sde(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpmpp_2m` with eta = 1."""
    return dpmpp_2m(levels, options, eta=1.0)


def dpmpp_3m(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """The exact integral of the parabola through the last three D, of order 3.

    The first step's own error, of second order, is taken back at the second step, which knows the
    line through both ends; that costs no evaluation. ``published=True`` is the printed update, which
    weighs the second divided difference by half of its integral and is of order 2. Its second step is
    dpm++2m's by the midpoint, as in the authors' own program and in diffusers (k-diffusion's is by the
    exact integral of the line).

    Source: Lu et al. 2022 (2211.01095), appendix; as k-diffusion and diffusers have it.
    """
    published = options.get("published", False)
    if not isinstance(published, bool):
        raise OptionError(f"published={published!r} is neither True nor False. Give one.")
    count = answers(levels, 3)
    if published:
        return multistep(levels, _printed(levels, count))
    corrections: Weights = [[] for _ in count]
    if len(count) > 1 and levels.sigma[0] != 0:
        h = np.diff(levels.lam)[:1]
        ahead = weights(h, np.array([[0.0, 1.0]]))[0, 1] if np.isfinite(h[0]) else 0.5
        corrections[1] = [float(ahead), -float(ahead)]
    return multistep(levels, extrapolated(levels, count), corrections)


def _printed(levels: Levels, count: Array) -> Weights:
    h = np.diff(levels.lam)
    out: Weights = []
    for i, m in enumerate(count.tolist()):
        if m == 0:
            out.append([])
            continue
        m0, m1, m2 = (float(v) for v in moments(h[i : i + 1], 3)[:, 0])
        w = [m0, 0.0, 0.0]
        if m == 2:
            half = 0.5 * m0 * h[i] / h[i - 1]
            w = [m0 + half, -half, 0.0]
        elif m == 3:
            r, s = h[i - 1] / h[i], h[i - 2] / h[i]
            one, two = np.array([1 / r, -1 / r, 0.0]), np.array([0.0, 1 / s, -1 / s])
            second = (one - two) / (r + s)
            w = list(np.array(w) + m1 * (one + r * second) + 0.5 * m2 * second)
        out.append([float(v) for v in w[:m]])
    return out


def unipc(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """A predictor of order p, and a corrector that knows the answer at the step's end.

    The corrected state follows from the answer that the next step asks for anyway; it is corrected
    everywhere but after the last step. Of order 2 the predictor weighs the difference by B(h) / 2, the
    corrector of order 1 likewise: B(h) = exp(h) - 1 ("bh2", in lambda's own sign) or h ("bh1").

    Args:
        levels: the grid.
        options: order (2), variant ("bh2", "bh1"), prediction ("data", "noise").

    Source: Zhao, Bai, Rao, Zhou, Lu 2023 (2302.04867), algorithms 1, 2 and 5 to 8.
    """
    p = whole("order", options.get("order", 2), 1, 4)
    bh1 = choice("unipc", options, "variant", ("bh2", "bh1")) == "bh1"
    if choice("unipc", options, "prediction", ("data", "noise")) == "noise":
        levels = levels.other
    h, n = np.diff(levels.lam), len(levels) - 1
    count = np.minimum(answers(levels, p), np.arange(n, 0, -1))
    shares = extrapolated(levels, count)
    with np.errstate(all="ignore"):
        B = h if bh1 else -np.expm1(-h)
    corrections: Weights = [[] for _ in range(n)]
    for i in range(n):
        if count[i] == 2:
            half = 0.5 * float(B[i] * h[i] / h[i - 1])
            first = -float(np.expm1(-h[i]))
            shares[i] = [first + half, -half]
        if i == 0 or levels.sigma[i - 1] == 0:
            continue
        q = max(int(count[i - 1]), 1)
        if q == 1:
            half = 0.5 * float(B[i - 1])
            corrections[i] = [half, -half] if np.isfinite(half) else []
            continue
        nodes = (levels.lam[i - q : i + 1][::-1] - levels.lam[i - 1]) / h[i - 1]
        better = weights(h[i - 1 : i], nodes[None])[0]
        corrections[i] = [float(w) for w in better - np.append(0.0, shares[i - 1])]
    return multistep(levels, shares, corrections)


def deis(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Polynomials through the last noise estimates: in log rho = -lambda, in rho = sigma / beta, or in t.

    Args:
        levels: the grid.
        options: order (3), variant ("log_rho", "rho", "t"): of the variable. As published the first step
            is of order 1, whose error of second order stays.

    Source: Zhang, Chen 2023 (2204.13902), eq. 14 and 15 (t: tAB, rho: rhoAB).
    """
    levels = levels.other
    variant = choice("deis", options, "variant", ("log_rho", "rho", "t"))
    count = answers(levels, whole("order", options.get("order", 3), 1, 4))
    if variant == "log_rho":
        return multistep(levels, extrapolated(levels, count))
    finite = np.flatnonzero(count > 0)
    variable = np.full((len(levels), 1 + len(POINTS)), np.nan)
    lam = levels.lam[finite, None] + np.diff(levels.lam)[finite, None] * POINTS
    with np.errstate(over="ignore"):
        variable[:, 0] = levels.t if variant == "t" else np.exp(levels.lam)
    inside = levels.at(lam.ravel()).t.reshape(lam.shape) if variant == "t" else np.exp(lam)
    variable[finite, 1:] = inside
    return multistep(levels, extrapolated(levels, count, variable))


_ADAMS = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def ipndm(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """DDIM's step with Adams and Bashforth's combination of the last noise estimates, as on even steps.

    Of second order on any smooth grid, whatever ``order`` (4): the combination is the mean of n over the
    step's index, where the step needs that over sigma / beta.

    Source: Zhang, Chen 2023 (2204.13902), section 3.3 (iPNDM), after Liu, Ren, Lin, Zhao 2022 (2202.09778).
    """
    levels = levels.other
    _, gain, _ = one_step(levels)
    count = answers(levels, whole("order", options.get("order", 4), 1, 4))
    with np.errstate(all="ignore"):
        unit = gain / levels.beta[1:]
    shares = [[float(unit[i]) * c for c in _ADAMS.get(m, [])] for i, m in enumerate(count.tolist())]
    return multistep(levels, shares)
