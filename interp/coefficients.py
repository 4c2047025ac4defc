"""The numbers of a path at a time, and what it is at its ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-12  # below this a coefficient at an end counts as zero


@dataclass(frozen=True)
class Coefficients:
    """The schedules of a path and their derivatives at t: float64, of shape t.shape + element.

    A derivative may be infinite at an end; the products ``alpha_dalpha`` = alpha alpha' and so on
    are finite there, and ``sigma_dsigma`` = alpha alpha' + gamma gamma' is sigma sigma'.
    """

    t: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    dalpha: Tensor
    dbeta: Tensor
    dgamma: Tensor
    sigma: Tensor
    dsigma: Tensor
    alpha_dalpha: Tensor
    beta_dbeta: Tensor
    gamma_dgamma: Tensor
    sigma_dsigma: Tensor


def _common(values: Tensor) -> float:
    """The number that all ``values`` are, or NaN."""
    first = values.flatten()[0]
    return first.item() if bool((values == first).all()) else math.nan


@dataclass(frozen=True)
class Boundary:
    """What a path is at its ends, as seen when it was built.

    Where schedules differ between elements, a value that is not the same for all is NaN.
    """

    alpha0: float
    beta0: float
    gamma0: float
    alpha1: float
    beta1: float
    gamma1: float
    finite_rate0: bool
    finite_rate1: bool

    @classmethod
    def of(cls, k: Coefficients) -> Boundary:
        """The boundary of a path whose coefficients on a grid from 0 to 1 are ``k``."""
        rates = [torch.stack([d[i] for d in (k.dalpha, k.dbeta, k.dgamma)]) for i in (0, -1)]
        ends = (_common(v[i]) for i in (0, -1) for v in (k.alpha, k.beta, k.gamma))
        return cls(*ends, *(bool(rate.isfinite().all()) for rate in rates))  # type: ignore[arg-type]

    @property
    def starts_at_base(self) -> bool:
        """Whether nothing of the data is in I_0, so that `Interpolant.base` is its exact law."""
        return abs(self.beta0) <= _NEGLIGIBLE

    @property
    def ends_at_data(self) -> bool:
        """Whether I_1 is x1 itself."""
        return self.ends_clean and abs(self.beta1 - 1) <= _NEGLIGIBLE

    @property
    def ends_clean(self) -> bool:
        """Whether no noise is left in I_1."""
        return max(abs(self.alpha1), abs(self.gamma1)) <= _NEGLIGIBLE

    @property
    def finite_rate(self) -> bool:
        """Whether dI/dt is finite at both ends."""
        return self.finite_rate0 and self.finite_rate1
