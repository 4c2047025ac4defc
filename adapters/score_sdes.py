"""Score-based generative modelling by SDEs: VP, sub-VP and VE.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, 2011.13456. Their time u runs from data at 0 to noise
at 1: u = 1 - t. With B(u) = B0 + u (B1 - B0):

    VP      dX = -B/2 X du + sqrt(B) dW      log beta = -u^2 (B1 - B0)/4 - u B0/2,  sigma^2 = 1 - beta^2
    sub-VP  the drift of VP                  the same beta,                         sigma = 1 - beta^2
    VE      dX = sqrt(d sigma^2/du) dW       beta = 1,       sigma = sigma_min (sigma_max/sigma_min)^u

The loss is theirs, E |sigma s + n|^2 over u ~ U(0, 1), with s = -noise / sigma: the regression of the
noise. ``weight="likelihood"`` is that of Song, Durkan, Murray, Ermon, 2101.09258.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from interp import schedules

from .path_family import Common, PathFamily


class VPSDE(PathFamily):
    """The variance preserving SDE: a continuous DDPM.

    Args:
        shape, network: as for every `PathFamily`; the network is told u and gives the noise.
        beta_min, beta_max: B0 and B1, 0.1 and 20 in the paper.
        common: see `adapters.path_family.Common`.
    """

    name = "vp_sde"
    diffusion = "reverse"
    schedule = staticmethod(schedules.variance_preserving)

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        **common: Unpack[Common],
    ) -> None:
        path = self.schedule(beta_min, beta_max)
        own = {"beta_min": beta_min, "beta_max": beta_max}
        super().__init__(shape, network, path, own, view="noise", time="noise", **common)


class SubVPSDE(VPSDE):
    """The sub-VP SDE, whose variance is below that of VP at every time; arguments as for `VPSDE`."""

    name = "sub_vp_sde"
    schedule = staticmethod(schedules.sub_variance_preserving)


class VESDE(PathFamily):
    """The variance exploding SDE: data under noise up to ``sigma_max``.

    x has the scale of sigma, so that a network sees x / sqrt(sigma^2 + sigma_data^2) and log(sigma) / 4,
    and gives the noise. The base N(0, sigma_max^2) leaves the data out: ``path.prior_gap`` says what that
    costs. Sampling ends with one first-order step from sigma_min to clean data.

    Args:
        shape, network: as for every `PathFamily`.
        sigma_min, sigma_max: 0.01 and 50 in the paper, on CIFAR-10.
        sigma_data: the standard deviation of the data.
        common: see `adapters.path_family.Common`.
    """

    name = "ve_sde"
    diffusion = "reverse"
    # The error of the data estimate over sigma is that of the noise: the paper's loss.
    defaults: ClassVar[Common] = {"weight": "snr"}

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        sigma_data: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        path = schedules.variance_exploding(sigma_min, sigma_max)
        own = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        scaled = {"kind": "noise", "noise": "edm", "sigma_data": sigma_data}
        super().__init__(shape, network, path, own, view="data", precondition=scaled, **common)
