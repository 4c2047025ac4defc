"""The paths of diffusion models in continuous time; the papers' time is u = 1 - t."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from ..arguments import positive, real
from ..errors import OptionError
from ..interpolant import Interpolant
from ..scalar import Schedule
from .forms import Complement, Exponential, Power


class _LinearRate:
    """A rate of noising linear in u: B(u) = low + u (high - low), and log beta = -int_0^u B / 2."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        positive("beta_min", beta_min)
        positive("beta_max", beta_max)
        self.low, self.growth = beta_min, beta_max - beta_min
        self.config = {"beta_min": beta_min, "beta_max": beta_max}

    def half(self, t: Tensor) -> Tensor:
        """D log beta / dt = B(u) / 2."""
        return (0.5 * self.growth) * (1.0 - t) + 0.5 * self.low

    def log_beta(self, t: Tensor) -> Tensor:
        u = 1.0 - t
        return -u * (u * (0.25 * self.growth) + 0.5 * self.low)

    def time_at(self, depth: Tensor) -> Tensor:
        """The t at which -2 log beta, growth u^2 / 2 + low u, is ``depth``."""
        root = torch.sqrt(self.low**2 + 2.0 * self.growth * depth)
        return 1.0 - 2.0 * depth / (self.low + root)


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    """The variance-preserving diffusion with a rate linear in u = 1 - t.

        B(u) = beta_min + u (beta_max - beta_min),  log beta = -u^2 (beta_max - beta_min) / 4
        - u beta_min / 2,  alpha = sqrt(1 - beta^2)

    Near data alpha ~ sqrt(beta_min u), so that alpha' is infinite at t = 1; beta(0) is small and
    not zero (6.6e-3 for the defaults): see `Interpolant.prior_gap`.

    Args:
        beta_min: the rate of noising at the data, positive.
        beta_max: the rate of noising at the base, positive.

    Raises:
        OptionError: a rate that is not positive and finite.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2020 (2011.13456), eq. 32-33.
    """
    rate = _LinearRate(beta_min, beta_max)
    return Interpolant(
        Complement(rate.log_beta, rate.half),
        Exponential(rate.log_beta, rate.half),
        config={"name": "variance_preserving", **rate.config},
        # beta^2 = sigmoid(lambda)
        time_at_log_snr=lambda lam: rate.time_at(torch.logaddexp(torch.zeros_like(lam), -lam)),
    )


def sub_variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    """The sub-VP diffusion: beta of `variance_preserving`, alpha = 1 - beta^2.

    Its variance stays below that of `variance_preserving`: alpha^2 + beta^2 < 1 inside. Near data
    alpha ~ beta_min u, so that every derivative is finite. alpha(0) = .99996 and beta(0) = 6.6e-3
    for the defaults.

    Args:
        beta_min: the rate of noising at the data, positive.
        beta_max: the rate of noising at the base, positive.

    Raises:
        OptionError: a rate that is not positive and finite.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2020 (2011.13456).
    """
    rate = _LinearRate(beta_min, beta_max)
    return Interpolant(
        Schedule(
            lambda t: -torch.expm1(2.0 * rate.log_beta(t)),
            lambda t: -2.0 * torch.exp(2.0 * rate.log_beta(t)) * rate.half(t),
        ),
        Exponential(rate.log_beta, rate.half),
        config={"name": "sub_variance_preserving", **rate.config},
        # alpha / beta = 1 / beta - beta = 2 sinh(-log beta)
        time_at_log_snr=lambda lam: rate.time_at(2.0 * torch.asinh(0.5 * torch.exp(-lam / 2))),
    )


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Interpolant:
    """The variance-exploding diffusion: beta = 1, alpha = sigma_max (sigma_min / sigma_max)^t.

    No end is reached: alpha(1) = sigma_min, from where a run ends with one first-order step to
    clean data, and beta(0) = 1: the data are in the base, see `Interpolant.prior_gap`.

    Args:
        sigma_min: the noise left at t = 1, positive.
        sigma_max: the noise at t = 0, above ``sigma_min``.

    Raises:
        OptionError: sizes that are not positive, finite and in this order.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2020 (2011.13456); the
    defaults are theirs for CIFAR-10.
    """
    _check_order(sigma_min, sigma_max, 0.0)
    fall = math.log(sigma_max / sigma_min)
    top = math.log(sigma_max)
    return Interpolant(
        Exponential(lambda t: top - fall * t, lambda t: torch.full_like(t, -fall)),
        Schedule(lambda t: 1.0, lambda t: 0.0),
        config={"name": "variance_exploding", "sigma_min": sigma_min, "sigma_max": sigma_max},
        time_at_log_snr=lambda lam: (top + lam / 2) / fall,
    )


def edm(sigma_min: float = 0.0, sigma_max: float = 80.0, rho: float = 7.0) -> Interpolant:
    """The path of Karras et al.: beta = 1 and alpha^(1 / rho) straight from sigma_max to sigma_min.

        alpha = sigma_max (r + (1 - r) (1 - t))^rho,   r = (sigma_min / sigma_max)^(1 / rho)

    With sigma_min = 0 it ends at clean data, and the paper's N noise levels from 80 to .002 are the
    times i / (N - 1) (1 - (.002 / 80)^(1 / 7)) = .77993 i / (N - 1); with sigma_min = .002 they are
    i / (N - 1), and a run ends with one first-order step, as the paper's does.

    Args:
        sigma_min: the noise left at t = 1, zero or more.
        sigma_max: the noise at t = 0, above ``sigma_min``.
        rho: the power, 1/2 or more; 1 is sigma straight in t.

    Raises:
        OptionError: sizes that are not finite and in this order, or a rho below 1/2.

    Source: Karras, Aittala, Aila, Laine 2022 (2206.00364), eq. 5.
    """
    _check_order(sigma_min, sigma_max, -1.0)
    rho = real("rho", rho, 0.5)
    low = (sigma_min / sigma_max) ** (1.0 / rho)
    top = 2.0 * math.log(sigma_max)
    return Interpolant(
        Power(rho, sigma_max, low, falling=True),
        Schedule(lambda t: 1.0, lambda t: 0.0),
        config={"name": "edm", "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
        time_at_log_snr=lambda lam: torch.expm1((lam + top) / (-2.0 * rho)) / (low - 1.0),
    )


def _check_order(low: float, high: float, least: float) -> None:
    plain = all(isinstance(v, numbers.Real) for v in (low, high))
    if not plain or not least < low < high < math.inf or low < 0:
        raise OptionError(
            f"sigma_min={low!r} and sigma_max={high!r} do not fit. Give finite noise levels with "
            f"0 {'<' if least == 0.0 else '<='} sigma_min < sigma_max."
        )
