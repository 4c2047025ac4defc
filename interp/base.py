"""The law that sampling starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import require_floating
from .errors import OptionError


@dataclass(frozen=True)
class IsotropicNormal:
    """The law N(0, scale^2) of every element alone: what sampling starts from."""

    scale: float

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise OptionError(
                f"the scale of a normal law is {self.scale}. Give a positive number; a path whose "
                "sigma(0) is 0 has no Gaussian base to start from."
            )

    def sample(
        self,
        shape: tuple[int, ...],
        seed: int | None = None,
        first_row: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Rows ``first_row ...`` of the numbered sample of ``seed``, of ``shape`` (rows, ...)."""
        from . import noise

        z = noise.normal(shape, seed=seed, first_row=first_row, dtype=dtype, device=device)
        return z * self.scale

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x`` (rows, ...): (rows,), nats, summed in float64."""
        require_floating(x=x)
        n, d = x.shape[0], math.prod(x.shape[1:])
        z = x.reshape(n, d) / self.scale
        total = z.square().sum(1, dtype=torch.float64)
        return (-0.5 * total - d * (0.5 * math.log(2 * math.pi) + math.log(self.scale))).to(x.dtype)
