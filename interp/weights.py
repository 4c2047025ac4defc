"""How much the error counts at each time: weights that are functions of log-SNR.

Each is stated in its paper for the squared error of one view. At a fixed point x the errors of two
views are proportional (`interp.views`), so that a weight for one is a weight for all:

    w_A = w_B (dB / dA)^2,  e.g.  |dn|^2 = SNR |dD|^2,  |dv|^2 = (W / beta)^2 |dn|^2

With lambda the log-SNR and s = sigma / beta = exp(-lambda / 2):

    name        of the paper's view                     of the noise
    simple      1 on the view that is trained
    snr         SNR on data                             1
    min_snr     min(SNR, gamma) on data                 min(1, gamma exp(-lambda))
    edm         (s^2 + sd^2) / (s sd)^2 on data         1 + s^2 / sd^2
    likelihood  G^2 / 2 on the score                    lambda' / 2
    sigmoid     (lambda' / 2) sigmoid(b - lambda)       the same
                on the noise
    learned     another, divided by exp(u), plus u      the other's

On the noise all are finite at clean data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import views
from .arguments import positive, real, whole
from .coefficients import Coefficients
from .errors import OptionError, ScheduleError
from .named import build

if TYPE_CHECKING:
    from .interpolant import Interpolant


@dataclass(frozen=True)
class Weight:
    """w(lambda, dlambda/dt) on the squared error of ``view``; of the trained view where it is None.

    Args:
        function: of log-SNR and its rate, float64 tensors of one shape, elementwise.
        view: whose error it is stated for.
        rate: whether the function uses the rate, which is then checked to be positive.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    view: str | None = "noise"
    rate: bool = False

    def __post_init__(self) -> None:
        if self.view is not None:
            views.check(self.view)

    def check(self, path: Interpolant, view: str) -> None:
        """Refuse a path on which the weight means nothing for an error of ``view``.

        Raises:
            OptionError: a path without a Gaussian base, where errors do not convert.
            ScheduleError: a weight by the rate of log-SNR, where that falls.
        """
        if not path.gaussian_base and self.view not in (None, view):
            raise OptionError(
                f"the weight is stated for the error of the {self.view}, which the {view} does not "
                'tell where the base is not Gaussian. Use weight="simple".'
            )
        if self.rate and not path.monotone:
            raise ScheduleError(
                "the weight is the rate of log-SNR, which falls somewhere on this path. Use a path "
                'with `path.monotone`, or weight="simple".'
            )

    def on(self, k: Coefficients, view: str) -> Tensor | None:
        """The weight for the squared error of ``view``, float64; None for 1."""
        if self.view is None:
            return None
        lam = 2 * (k.beta.log() - k.sigma.log())
        w = self.function(lam, views.log_snr_rate(k) if self.rate else lam)
        return w if view == self.view else w * views.weights(k, view, self.view)[1].square()


def simple() -> Weight:
    """1 on the view that is trained."""
    return Weight(lambda lam, rate: torch.ones_like(lam), None)


def snr() -> Weight:
    """SNR on data, so 1 on the noise: DDPM's simple loss (Ho, Jain, Abbeel, 2006.11239, eq. 14)."""
    return Weight(lambda lam, rate: torch.ones_like(lam))


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) on data (Hang et al., 2303.09556)."""
    gamma = positive("gamma", gamma)
    return Weight(lambda lam, rate: torch.clamp(gamma * torch.exp(-lam), max=1.0))


def edm(sigma_data: float = 0.5) -> Weight:
    """(s^2 + sd^2) / (s sd)^2 on data: 1 on a network of EDM's (Karras et al., 2206.00364).

    Args:
        sigma_data: sd, the standard deviation of the data.
    """
    sigma_data = positive("sigma_data", sigma_data)
    return Weight(lambda lam, rate: 1.0 + torch.exp(-lam) / sigma_data**2)


def likelihood() -> Weight:
    """G^2 / 2 on the score: with it the loss bounds the negative log likelihood up to a constant.

    In nats per dimension for a path of uniform time (Song, Durkan, Murray, Ermon, 2101.09258, thm. 1;
    Kingma, Salimans, Poole, Ho, 2107.00630, as lambda' / 2 on the noise).
    """
    return Weight(lambda lam, rate: 0.5 * rate, rate=True)


def sigmoid(bias: float = 2.0) -> Weight:
    """(lambda' / 2) sigmoid(bias - lambda) on the noise (Kingma, Gao, 2303.00848).

    Args:
        bias: the log-SNR about which the weight falls; lower for larger images (Hoogeboom et al.,
            2410.19324).
    """
    bias = real("bias", bias, -math.inf)
    return Weight(lambda lam, rate: 0.5 * rate * torch.sigmoid(bias - lam), rate=True)


class Learned(nn.Module):
    """Another weight divided by exp(u(lambda)), plus u: each noise level then counts alike.

    u is linear in random Fourier features of log(s) / 4 = -lambda / 8; at its best exp(u) is the
    weighted loss at that noise level (Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, 2312.02696).
    It starts as 0, and is trained with the model: give its parameters to the optimizer.

    Args:
        base: the other weight, by name, config or itself.
        features: how many.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, base: Weight | str | Mapping[str, Any] = "edm", features: int = 128) -> None:
        super().__init__()
        features = whole("features", features, 1)
        fixed = resolve(base)
        if not isinstance(fixed, Weight):
            raise OptionError("a learned weight divides a fixed one. Give another base.")
        self.base = fixed
        rng = torch.Generator().manual_seed(0)  # the same features in every run
        normal = torch.randn(features, generator=rng)
        self.register_buffer("frequencies", 2 * math.pi * normal)
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=rng))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def check(self, path: Interpolant, view: str) -> None:
        """As the base's.

        Raises:
            OptionError: also a path with a schedule for each element, which has no one log-SNR.
        """
        self.base.check(path, view)
        if path.element:
            raise OptionError(
                f"a learned weight is a function of log-SNR, and this path has one for each element of "
                f"shape {path.element}. Use a fixed weight."
            )

    def on(self, k: Coefficients, view: str) -> Tensor | None:
        """The base's weight."""
        return self.base.on(k, view)

    def log_scale(self, k: Coefficients) -> Tensor:
        """u, float64, of t's shape."""
        log_s = k.sigma.log() - k.beta.log()
        angle = (log_s / 4).to(self.phases)[..., None] * self.frequencies + self.phases
        features = math.sqrt(2.0 / len(self.phases)) * torch.cos(angle)
        u: Tensor = self.linear(features)[..., 0]
        return u.double()


_BUILDERS: dict[str, Callable[..., Weight | Learned]] = {
    "edm": edm,
    "learned": Learned,
    "likelihood": likelihood,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "simple": simple,
    "snr": snr,
}


def names() -> tuple[str, ...]:
    """The names that a config may give."""
    return tuple(sorted(_BUILDERS))


def resolve(
    weight: Weight | Learned | str | Mapping[str, Any] | Callable[[Tensor], Tensor],
) -> Weight | Learned:
    """A weight from itself, its name, {"name": ..., and its options}, or a function of log-SNR.

    Such a function weighs the squared error of the noise.

    Raises:
        UnknownName, OptionError: what does not exist, or cannot be.
    """
    if isinstance(weight, (Weight, Learned)):
        return weight
    if callable(weight):
        own = weight
        return Weight(lambda lam, rate: own(lam))
    return build("weight", weight, _BUILDERS)
