"""Paths that the strategies make: functions of plain numbers, so that a failing example can be
copied out of Hypothesis' report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import OptionError
from ..interpolant import Interpolant
from ..scalar import Schedule
from ..schedules import gammas

_GAMMAS: dict[str, Callable[[float], Schedule]] = {
    "root": gammas.root,
    "parabola": gammas.parabola,
    "sine_squared": gammas.sine_squared,
}


def rising(rises: Sequence[float]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A smooth monotone map tau of [0, 1] onto itself, and 1 - tau without a difference.

        tau = sum_j c_j C(n, j) t^j (1 - t)^(n - j),   c_j = (rises_1 + ... + rises_j) / sum

    Args:
        rises: positive numbers, the differences of the Bernstein coefficients; n of them.

    Raises:
        OptionError: others.
    """
    if not rises or not all(r > 0 for r in rises):
        raise OptionError(f"rises={rises!r}. Give positive numbers.")
    n, total = len(rises), math.fsum(rises)
    up = [math.comb(n, j) * math.fsum(rises[:j]) / total for j in range(n + 1)]
    down = [math.comb(n, j) * math.fsum(rises[j:]) / total for j in range(n + 1)]

    def bernstein(c: Sequence[float], t: Tensor) -> Tensor:
        terms = (c[j] * t**j * (1 - t) ** (n - j) for j in range(n + 1))
        return sum(terms, torch.zeros_like(t))

    return lambda t: bernstein(up, t), lambda t: bernstein(down, t)


def monotone(
    rises: Sequence[float], log_snr: tuple[float, float] | None = None, tilt: float = 0.0
) -> Interpolant:
    """A smooth path whose log-SNR rises with the tau of `rising`.

    With ``log_snr`` = (low, high) the log-SNR is low + (high - low) tau, and beta^2 + sigma^2 =
    exp(2 tilt (1 - t)); without it, alpha and beta are 1 - tau and tau times exp(tilt (1 - t)), so
    that the ends are pure.

    Args:
        rises: what makes tau.
        log_snr: the log-SNR at both ends, or None for -inf and +inf.
        tilt: how the scale of the path changes.
    """
    up, down = rising(rises)

    def scale(t: Tensor) -> Tensor:
        return torch.exp(tilt * (1 - t))

    if log_snr is None:
        return Interpolant(lambda t: scale(t) * down(t), lambda t: scale(t) * up(t))
    low, high = log_snr

    def lam(t: Tensor) -> Tensor:
        return low * down(t) + high * up(t)

    return Interpolant(
        lambda t: scale(t) * torch.sigmoid(-lam(t)).sqrt(),
        lambda t: scale(t) * torch.sigmoid(lam(t)).sqrt(),
    )


def composed(path: Interpolant, rises: Sequence[float], tilt: float) -> Interpolant:
    """``path`` by the clock of `rising`, times exp(tilt (1 - t))."""
    return path.warp(rising(rises)[0]).rescale(lambda t: torch.exp(tilt * (1 - t)))


def two_sided(path: Interpolant, gamma: str, a: float) -> Interpolant:
    """The alpha and beta of ``path`` between any two laws, with a latent of its own.

    Args:
        path: gives alpha and beta.
        gamma: "root", "parabola" or "sine_squared", of `interp.schedules.gammas`.
        a: its factor.
    """
    return Interpolant(path.alpha, path.beta, _GAMMAS[gamma](a), gaussian_base=False)
