"""EDM: a denoiser preconditioned to unit scale, noise levels drawn log-normal.

Karras, Aittala, Aila, Laine, 2206.00364. Their sigma is ours, sigma / beta with beta = 1, and falls
from sigma_max at t = 0 to sigma_min at t = 1 as their grid does: sigma = (sigma_max^(1/rho) + t
(sigma_min^(1/rho) - sigma_max^(1/rho)))^rho. So a uniform grid in t is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from interp import schedules

from .path_family import Common, PathFamily


class EDM(PathFamily):
    """Minimise E w(sigma) |D(x1 + sigma n) - x1|^2, D = c_skip x + c_out network(log(sigma)/4, c_in x).

    w = 1 / c_out^2 counts every error of the network alike, and log sigma ~ N(-1.2, 1.2^2): table 1.

    Args:
        shape, network: as for every `PathFamily`.
        sigma_data: the standard deviation of the data, in w and in D.
        sigma_min, sigma_max, rho: of the grid, 0.002, 80 and 7 in the paper.
        common: see `adapters.path_family.Common`; ``times={"name": "log_normal", "mean": -0.4,
            "std": 1.0}`` is EDM2's (Karras et al., 2312.02696).
    """

    name = "edm"
    diffusion = "reverse"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        **common: Unpack[Common],
    ) -> None:
        path = schedules.edm(sigma_min, sigma_max, rho)
        own = {
            "sigma_data": sigma_data, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho,
        }  # fmt: skip
        weight = {"name": "edm", "sigma_data": sigma_data}
        scaled = {"kind": "edm", "sigma_data": sigma_data}
        filled: Common = {"weight": weight, **common}
        super().__init__(shape, network, path, own, view="data", precondition=scaled, **filled)

    defaults: ClassVar[Common] = {"times": {"name": "log_normal", "mean": -1.2, "std": 1.2}}
