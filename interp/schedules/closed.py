"""Named paths in closed form: three functions of t, their derivatives and the inverse log-SNR."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import positive, real
from ..errors import OptionError
from ..interpolant import Interpolant
from ..scalar import Schedule
from .forms import Power, Root


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


def power(p: float = 1.0, q: float = 1.0) -> Interpolant:
    """The powers alpha = (1 - t)^p and beta = t^q.

    p = q = 1 is `linear`; p = q = 1/2 keeps the variance of unit data, with vertical tangents at
    both ends. Log-SNR 2 (q log t - p log(1 - t)) has a closed inverse where p = q.

    Args:
        p: the power of the base's share, 1/2 or more, below which alpha alpha' is infinite.
        q: the power of the data's share, the same.

    Raises:
        OptionError: a power below 1/2 or not finite.

    Source: the family of Lipman et al. 2022 (2210.02747) with other powers.
    """
    p, q = real("p", p, 0.5), real("q", q, 0.5)
    return Interpolant(
        Power(p, falling=True),
        Power(q),
        config={"name": "power", "p": p, "q": q},
        time_at_log_snr=(lambda lam: torch.sigmoid(lam / (2 * p))) if p == q else None,
    )


def polynomial(n: float = 2.0) -> Interpolant:
    """The straight path run at the speed of t^n: beta = t^n, alpha = 1 - t^n.

    Args:
        n: the power, 1/2 or more; 1 is `linear`.

    Raises:
        OptionError: a power below 1/2 or not finite.

    Source: Lipman et al. 2024, Flow Matching Guide and Code (2412.06264), the convex schedulers.
    """
    n = real("n", n, 0.5)
    beta = Power(n)
    return Interpolant(
        Schedule(lambda t: 0.0 - torch.expm1(n * torch.log(t)), lambda t: -beta.derivative(t)),
        beta,
        config={"name": "polynomial", "n": n},
        time_at_log_snr=lambda lam: torch.exp(torch.nn.functional.logsigmoid(lam / 2) / n),
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
    positive("theta", theta)
    if theta >= math.pi:
        raise OptionError(
            f"theta={theta!r} does not fit. Give an angle inside (0, pi), e.g. pi / 2."
        )
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
            second_derivative=lambda t: torch.sin(theta * (1.0 - t)) * (-(theta**2) / sine),
        ),
        Schedule(
            lambda t: torch.sin(theta * t) / sine,
            lambda t: torch.sin(theta * (1.0 - t) + shift) * (theta / sine),
            second_derivative=lambda t: torch.sin(theta * t) * (-(theta**2) / sine),
        ),
        config={"name": "trigonometric", "theta": theta},
        time_at_log_snr=time_at_log_snr,
    )


def cosine(s: float = 0.008) -> Interpolant:
    """The cosine diffusion in continuous time: beta^2 = cos^2((u + s) c) / cos^2(s c), u = 1 - t.

        c = pi / (2 (1 + s)),   beta = sin(c t) / sin(c),
        alpha = sqrt(1 - beta^2) = sqrt(sin(c u) sin(c (u + 2 s))) / sin(c)

    Both ends are exact: beta(0) = 0 and alpha(1) = 0, where alpha ~ sqrt(2 s c^2 u) has a vertical
    tangent. The paper's table clips its last beta at .999 and so has beta(0) = 5e-5:
    ``from_betas("cosine", 1000)``.

    Args:
        s: the offset at the data, positive; as s -> 0 this becomes `trigonometric`.

    Raises:
        OptionError: an s that is not positive and finite.

    Source: Nichol, Dhariwal 2021 (2102.09672), eq. 17; their t / T is our u.
    """
    positive("s", s)
    c = math.pi / (2.0 * (1.0 + s))
    sine, cosine = math.cos(s * c), math.sin(s * c)  # of c itself, its complement being s c

    def product(t: Tensor) -> Tensor:  # -beta beta'
        return torch.sin(c * t) * torch.sin(c * (1.0 - t + s)) * (-c / sine**2)

    def square(t: Tensor) -> Tensor:
        u = 1.0 - t
        return torch.sin(c * u) * torch.sin(c * (u + 2.0 * s)) / sine**2

    def time_at_log_snr(lam: Tensor) -> Tensor:
        # sin^2(c t) = sin^2(c) sigmoid(lam), and its complement without a difference.
        up, down = torch.sigmoid(lam), torch.sigmoid(-lam)
        return torch.atan2(sine * up.sqrt(), torch.sqrt(cosine**2 + sine**2 * down)) / c

    return Interpolant(
        Root(square, product),
        Schedule(
            lambda t: torch.sin(c * t) / sine,
            lambda t: torch.sin(c * (1.0 - t + s)) * (c / sine),
            second_derivative=lambda t: torch.sin(c * t) * (-(c**2) / sine),
        ),
        config={"name": "cosine", "s": s},
        time_at_log_snr=time_at_log_snr,
    )
