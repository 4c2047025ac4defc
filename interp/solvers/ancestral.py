"""DDIM and DDPM: first-order steps, with any part of the noise drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arguments import real
from ..errors import OptionError, UnknownName
from .exponential import Array, Levels, all_elements, first_order
from .programme import Move, Noise, rows


def ddim(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """x_r = beta_r D + sqrt(sigma_r^2 - q^2) n + q z,  q = eta sigma_r sqrt(1 - exp(-2 h)).

    eta = 0 is the first-order exponential integrator of the probability flow, which is Euler's method
    in (x / beta, sigma / beta); eta = 1 is DDPM with its small variance, at any stride. In the
    variance-preserving case q = eta sqrt((1 - abar_r) / (1 - abar_t)) sqrt(1 - abar_t / abar_r).

    Source: Song, Meng, Ermon 2021 (2010.02502), eq. 12 and 16.
    """
    eta = real("eta", options.get("eta", 0.0))
    if eta > 1:
        raise OptionError(f"eta={eta!r} draws more noise than there is. Give a number in [0, 1].")
    t, r = levels[:-1], levels[1:]
    if eta == 0:
        return steps(levels, *one_step(levels))
    h = towards_data(t, r, "ddim with eta > 0")
    with np.errstate(divide="ignore"):  # from nothing but noise, all of it is drawn anew
        damping = -0.5 * np.log1p(eta**2 * np.expm1(-2.0 * h))
    return steps(levels, *first_order(t, r, damping))


def ddpm(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """The ancestral step: the mean of q(x_r | x_t, D), and one of the paper's two variances.

    "small" is the variance of q(x_r | x_t, x_1), sigma_r^2 (1 - exp(-2 h)); "large" that of the
    noising from r to t, sigma_t^2 (1 - exp(-2 h)) = 1 - abar_t / abar_r, here in the units of x_r where
    a path does not preserve the variance. The last step to clean data draws none.

    Source: Ho, Jain, Abbeel 2020 (2006.11239), eq. 7 and section 3.2.
    """
    variance = options.get("variance", "small")
    if variance not in ("small", "large"):
        raise UnknownName.of("variance of ddpm", variance, ("small", "large"))
    t, r = levels[:-1], levels[1:]
    h = towards_data(t, r, "ddpm")
    kept, gain, noise = first_order(t, r, h)
    if variance == "large":
        size = np.hypot(r.beta, r.sigma) / np.hypot(t.beta, t.sigma)
        noise = np.where(r.sigma == 0, 0.0, size * t.sigma * np.sqrt(-np.expm1(-2.0 * h)))
    return steps(levels, kept, gain, noise)


def towards_data(t: Levels, r: Levels, name: str) -> Array:
    """The steps in lambda, which have to be positive where noise is taken away."""
    h: Array = r.lam - t.lam
    if not (h > 0).all():
        raise OptionError(
            f"{name} goes from noise to data, and this run goes the other way. Use ddim with eta=0, or "
            'euler_maruyama on path.sde(model, diffusion="reverse"), which noises.'
        )
    return h


def one_step(levels: Levels) -> tuple[Array, Array, Array]:
    """`first_order` of each step, without noise."""
    return first_order(levels[:-1], levels[1:])


def steps(levels: Levels, kept: Array, gain: Array, noise: Array) -> list[Move]:
    """One move a step, x_r = kept x + gain D + noise z, with z the increment of W.

    A step from clean data, where x tells D and nothing of n, asks for n instead.
    """
    t, kind = levels.t.tolist(), levels.kind
    kicks = increments(levels[:-1], levels[1:], noise)
    moves = [
        Move(t[i], kind, 0.0, a, {i: b}, kick, t[i + 1])
        for i, (a, b, kick) in enumerate(zip(rows(kept), rows(gain), kicks, strict=True))
    ]
    for i in np.flatnonzero(levels.leaves_clean).tolist():
        moves[i] = exact_step(levels, i, i)
    return moves


def increments(t: Levels, r: Levels, noise: Array) -> list[list[Noise]]:
    """For each step from t to r the increment of W over it, of the size ``noise``; none where that is 0."""
    if not noise.any():
        return [[]] * len(noise)
    lengths = np.abs(r.t - t.t).reshape(-1, *(1,) * (noise.ndim - 1))
    with np.errstate(all="ignore"):
        size = np.where(noise == 0, 0.0, noise / np.sqrt(lengths))
    some = (~all_elements(size == 0)).tolist()
    steps = zip(rows(size), t.t.tolist(), r.t.tolist(), some, strict=True)
    return [[(s, at, end, 0.0)] if drawn else [] for s, at, end, drawn in steps]


def exact_step(levels: Levels, i: int, number: int, eta: float = 0.0) -> Move:
    """The first-order step from level i, by whichever of D and n is told there.

    With ``eta`` as in `noising`: from nothing but noise all of it is drawn anew, to clean data none.
    """
    side = levels.other if levels.leaves_clean[i] else levels
    t, r = side[i : i + 1], side[i + 1 : i + 2]
    damping = eta * (r.lam - t.lam) if eta and side.kind == "data" else 0.0
    kept, gain, noise = first_order(t, r, damping)
    if not np.isfinite(kept).all():
        raise OptionError(
            f"at t = {levels.t[i]:g} some elements of this path are clean data and others nothing but "
            "noise, and no one estimate of the model tells both. Start away from there."
        )
    slopes = {number: rows(gain)[0]}
    kicks = increments(t, r, noise)[0]
    return Move(
        float(levels.t[i]), side.kind, 0.0, rows(kept)[0], slopes, kicks, float(levels.t[i + 1])
    )
