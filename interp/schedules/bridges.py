"""Paths with a latent, between any two laws, and their one-sided forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import positive
from ..errors import OptionError, UnknownName
from ..interpolant import Interpolant
from ..scalar import Schedule
from . import gammas

_GAMMAS = {
    "constant": gammas.constant,
    "root": gammas.root,
    "parabola": gammas.parabola,
    "sine_squared": gammas.sine_squared,
}


def brownian_bridge(sigma: float = 1.0, gaussian_base: bool = False) -> Interpolant:
    """The Brownian bridge of diffusion sigma: alpha = 1 - t, beta = t, gamma = sigma sqrt(t (1 - t)).

    The law at t of a Brownian motion of size sigma, pinned at x0 and x1. With the entropic plan of
    regularisation 2 sigma^2 between the ends it is the Schroedinger bridge. gamma' is infinite at
    both ends.

    Args:
        sigma: the size of the Brownian motion, positive.
        gaussian_base: True is the one-sided form: x0 ~ N(0, 1) independent of x1, so that all
            views convert, with sigma(t)^2 = (1 - t) (1 - t + sigma^2 t).

    Raises:
        OptionError: a sigma that is not positive and finite.

    Source: Tong, Malkin, Fatras et al. 2023 (2307.03672).
    """
    positive("sigma", sigma)

    def time_at_log_snr(lam: Tensor) -> Tensor:
        # With r = (1 - t) / t, exp(-lam) = r^2 + sigma^2 r; all over exp(-lam / 2).
        half = torch.exp(lam / 2)
        b = 0.5 * sigma**2 * half
        inverse_r = half * (b + torch.sqrt(b * b + 1.0))  # 1 / r = t / (1 - t)
        return torch.where(inverse_r.isinf(), 1.0, inverse_r / (1.0 + inverse_r))

    return Interpolant(
        Schedule(lambda t: 1.0 - t, lambda t: -1.0, lambda t: t - 1.0),
        Schedule(lambda t: t, lambda t: 1.0, lambda t: t),
        gammas.root(sigma**2),
        gaussian_base,
        config={"name": "brownian_bridge", "sigma": sigma, "gaussian_base": gaussian_base},
        time_at_log_snr=time_at_log_snr,
    )


def foellmer(sigma: float = 1.0) -> Interpolant:
    """The Brownian bridge from the point 0: alpha = sigma sqrt(t (1 - t)), beta = t.

    Every path begins at x = 0, and the drift that takes a Brownian motion of size sigma from there
    to the data is that of Foellmer. Its log-SNR is log(t / (1 - t)) - 2 log sigma; x / sqrt(t) is a
    variance-preserving path where sigma = 1. There is no `Interpolant.base`: start from zeros.

    Args:
        sigma: the size of the Brownian motion, positive.

    Raises:
        OptionError: a sigma that is not positive and finite.

    Source: Foellmer 1985; Huang, Jiao, Kang et al. 2021, Schroedinger-Foellmer sampler (2106.10880).
    """
    positive("sigma", sigma)
    shift = 2 * math.log(sigma)
    return Interpolant(
        gammas.root(sigma**2),
        Schedule(lambda t: t, lambda t: 1.0, lambda t: t),
        config={"name": "foellmer", "sigma": sigma},
        time_at_log_snr=lambda lam: torch.sigmoid(lam + shift),
    )


def encode_decode() -> Interpolant:
    """Into the latent and out again: all of it is z at t = 1/2.

        alpha = cos^2(pi t) for t < 1/2, else 0;  beta = cos^2(pi t) for t > 1/2, else 0;
        gamma = sin^2(pi t)

    So both ends are carried to a Gaussian in between, whatever their coupling. The base is any law.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797).
    """

    def half(first: bool) -> Schedule:
        def inside(t: Tensor) -> Tensor:  # what is left until t = 1/2, or has passed since
            return torch.clamp_min(0.5 - t if first else t - 0.5, 0.0)

        def slope(t: Tensor) -> Tensor:  # sin(2 pi t), by the nearest of its zeros
            x = inside(t)
            near = torch.minimum(x, t if first else 1.0 - t)
            return torch.sin((2 * math.pi) * near) * (-math.pi if first else math.pi)

        return Schedule(lambda t: torch.sin(math.pi * inside(t)) ** 2, slope)

    return Interpolant(
        half(True), half(False), gammas.sine_squared(), False, config={"name": "encode_decode"}
    )


def mirror(gamma: str = "root", a: float | None = None) -> Interpolant:
    """The data at both ends, noised between: alpha = 0, beta = 1, and one of the `gammas`.

    x0 has no share. Since the noise is Gaussian all views convert inside (0, 1); log-SNR falls and
    rises again, so that only a velocity is integrated from end to end.

    Args:
        gamma: "root" (sqrt(a t (1 - t))), "parabola" (a t (1 - t)) or "sine_squared" (a sin^2).
        a: its factor, positive; None for its own default, 2 for the root and 1 for the others.

    Raises:
        UnknownName: another gamma.
        OptionError: an ``a`` that is not positive and finite.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797), mirror interpolants.
    """
    return Interpolant(
        Schedule(lambda t: 0.0, lambda t: 0.0),
        Schedule(lambda t: 1.0, lambda t: 0.0),
        _gamma(gamma, a),
        config={"name": "mirror", "gamma": gamma, "a": a},
    )


def with_gamma(
    path: Interpolant,
    gamma: str = "root",
    a: float | None = None,
    gaussian_base: bool | None = None,
) -> Interpolant:
    """``path`` with a latent of its own: its alpha and beta, and one of the `gammas`.

    Args:
        path: any path without a latent.
        gamma: "root", "parabola", "sine_squared" or "constant", whose factor is 0.1 by itself.
        a: its factor, as for `mirror`.
        gaussian_base: whether x0 ~ N(0, 1) independent of x1; None is as on ``path``. Under a coupling
            it is not: then x0 and z are two functions of x.

    Raises:
        OptionError: a path that has a latent, or an ``a`` that is not positive and finite.
        UnknownName: another gamma.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797).
    """
    if not isinstance(path, Interpolant):
        raise OptionError(
            f"path is a {type(path).__name__}, not a path. Give one, or its config, e.g. "
            '{"name": "linear"}.'
        )
    if path.gamma is not None:
        raise OptionError(f"{path!r} has a gamma already. Give a path without one.")
    config = None
    if path.config is not None:
        config = {"name": "with_gamma", "path": path.config, "gamma": gamma, "a": a}
        if gaussian_base is not None:
            config["gaussian_base"] = gaussian_base
    normal = path.gaussian_base if gaussian_base is None else gaussian_base
    return Interpolant(path.alpha, path.beta, _gamma(gamma, a), normal, config=config)


def _gamma(name: str, a: float | None) -> Schedule:
    if name not in _GAMMAS:
        raise UnknownName.of("gamma", name, _GAMMAS)
    return _GAMMAS[name]() if a is None else _GAMMAS[name](a)
