"""The shares gamma of the latent z, for any alpha and beta: zero at both ends, or constant.

    Interpolant(alpha, beta, gammas.root(), gaussian_base=False)

Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import positive
from ..scalar import Schedule
from .forms import Root


def root(a: float = 2.0) -> Schedule:
    """Gamma = sqrt(a t (1 - t)); gamma' is infinite at both ends, gamma gamma' = a (1 - 2 t) / 2.

    Raises:
        OptionError: an ``a`` that is not positive and finite.
    """
    positive("a", a)
    return Root(lambda t: a * t * (1.0 - t), lambda t: (0.5 * a) * (1.0 - 2.0 * t))


def parabola(a: float = 1.0) -> Schedule:
    """Gamma = a t (1 - t).

    Raises:
        OptionError: an ``a`` that is not positive and finite.
    """
    positive("a", a)
    return Schedule(lambda t: a * t * (1.0 - t), lambda t: a * (1.0 - 2.0 * t))


def sine_squared(a: float = 1.0) -> Schedule:
    """Gamma = a sin^2(pi t).

    Raises:
        OptionError: an ``a`` that is not positive and finite.
    """
    positive("a", a)

    def near(t: Tensor) -> Tensor:  # the distance to the nearer end
        return torch.minimum(t, 1.0 - t)

    return Schedule(
        lambda t: a * torch.sin(math.pi * near(t)) ** 2,
        lambda t: (a * math.pi) * torch.sin((2 * math.pi) * near(t)) * torch.sign(0.5 - t),
        second_derivative=lambda t: (2 * a * math.pi**2) * torch.cos((2 * math.pi) * near(t)),
    )


def constant(a: float = 0.1) -> Schedule:
    """Gamma = a: both ends are smoothed by N(0, a^2).

    Raises:
        OptionError: an ``a`` that is not positive and finite.

    Source: Tong et al. 2023 (2302.00482), I-CFM and OT-CFM.
    """
    positive("a", a)
    return Schedule(lambda t: a, lambda t: 0.0)
