"""Named paths, each in closed form: its three functions of t, their derivatives, its inverse.

Near both ends nothing is lost: the complement 1 - t is taken first and exactly, and what is small
there comes from sin, expm1 or log1p of it, never from a difference of numbers near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import OptionError
from ..interpolant import Interpolant
from ..scalar import Schedule


class _Exponential(Schedule):
    """f = exp(g) from g and g'."""

    def __init__(self, g: Callable[[Tensor], Tensor], dg: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda t: torch.exp(g(t)))
        self._g, self._dg = g, dg

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.exp(self._g(t))
        slope = value * self._dg(t)
        return value, slope, value * slope


class _Complement(_Exponential):
    """f = sqrt(1 - exp(2 g)), the root that keeps the variance beside exp(g): f f' = -exp(2 g) g'.

    f' is -inf where g = 0, and f f' is not.
    """

    def __init__(self, g: Callable[[Tensor], Tensor], dg: Callable[[Tensor], Tensor]) -> None:
        super().__init__(g, dg)
        self._function = lambda t: torch.sqrt(-torch.expm1(2.0 * g(t)))

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        twice = 2.0 * self._g(t)
        value = torch.sqrt(-torch.expm1(twice))
        product = -torch.exp(twice) * self._dg(t)
        return value, product / value, product


def linear() -> Interpolant:
    """The straight path, alpha = 1 - t and beta = t.

    Its rate x1 - x0 does not depend on t. Source: Liu, Gong, Liu 2022 (2209.03003); Lipman et al.
    2022 (2210.02747) with sigma_min = 0.
    """
    return Interpolant(
        Schedule(lambda t: 1.0 - t, lambda t: -1.0, lambda t: t - 1.0),
        Schedule(lambda t: t, lambda t: 1.0, lambda t: t),
        config={"name": "linear"},
        time_at_log_snr=lambda lam: torch.sigmoid(lam / 2),
    )


def trigonometric(theta: float = math.pi / 2) -> Interpolant:
    """The great circle, alpha = sin(theta (1 - t)) / sin(theta), beta = sin(theta t) / sin(theta).

    At theta = pi / 2 this is alpha = cos(pi t / 2), beta = sin(pi t / 2) and keeps the variance of
    unit data; as theta -> 0 it becomes `linear`.

    Args:
        theta: the angle between base and data, radians, in (0, pi).

    Raises:
        OptionError: theta outside (0, pi).

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797) for theta = pi / 2.
    """
    if not 0.0 < theta < math.pi:
        raise OptionError(f"theta = {theta!r}. Give an angle inside (0, pi), e.g. pi / 2.")
    sine, cosine = math.sin(theta), math.cos(theta)
    shift = math.pi / 2 - theta  # cos(theta t) as the sine of its complement: exact at t = 1

    def time_at_log_snr(lam: Tensor) -> Tensor:
        # beta / alpha = r gives tan(theta t) = r sin / (1 + r cos); both sides over sqrt(r).
        up, down = torch.exp(lam / 4), torch.exp(-lam / 4)
        return torch.atan2(up * sine, down + up * cosine) / theta

    return Interpolant(
        Schedule(
            lambda t: torch.sin(theta * (1.0 - t)) / sine,
            lambda t: torch.sin(theta * t + shift) * (-theta / sine),
        ),
        Schedule(
            lambda t: torch.sin(theta * t) / sine,
            lambda t: torch.sin(theta * (1.0 - t) + shift) * (theta / sine),
        ),
        config={"name": "trigonometric", "theta": theta},
        time_at_log_snr=time_at_log_snr,
    )


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
    for name, rate in (("beta_min", beta_min), ("beta_max", beta_max)):
        if not 0.0 < rate < math.inf:
            raise OptionError(f"{name} = {rate!r}. Give a positive, finite rate of noising.")
    growth = beta_max - beta_min

    def half_rate(t: Tensor) -> Tensor:  # d log beta / dt = B(u) / 2
        return (0.5 * growth) * (1.0 - t) + 0.5 * beta_min

    def log_beta(t: Tensor) -> Tensor:
        u = 1.0 - t
        return -u * (u * (0.25 * growth) + 0.5 * beta_min)

    def time_at_log_snr(lam: Tensor) -> Tensor:
        # -2 log beta = log(1 + exp(-lam)) = growth u^2 / 2 + beta_min u, solved for u >= 0.
        depth = torch.logaddexp(torch.zeros_like(lam), -lam)
        return 1.0 - 2.0 * depth / (beta_min + torch.sqrt(beta_min**2 + 2.0 * growth * depth))

    return Interpolant(
        _Complement(log_beta, half_rate),
        _Exponential(log_beta, half_rate),
        config={"name": "variance_preserving", "beta_min": beta_min, "beta_max": beta_max},
        time_at_log_snr=time_at_log_snr,
    )
