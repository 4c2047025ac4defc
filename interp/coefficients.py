"""The numbers of a path at a time, and what it is at its ends."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .curve import Curve

_NEGLIGIBLE = 1e-12  # below this a coefficient at an end counts as zero


@dataclass(frozen=True)
class Coefficients:
    """The schedules of a path and their derivatives at t: float64, of shape t.shape + element.

    A derivative may be infinite at an end; the products ``alpha_dalpha`` = alpha alpha' and so on
    are finite there, and ``sigma_dsigma`` = alpha alpha' + gamma gamma' is sigma sigma'. Second
    derivatives, ``ddalpha`` and so on, cost nothing until they are read.
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
    curve: Curve | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def ddalpha(self) -> Tensor:
        """alpha''; the second derivatives are worked out when they are asked for."""
        return self._second("alpha")

    @functools.cached_property
    def ddbeta(self) -> Tensor:
        """beta''."""
        return self._second("beta")

    @functools.cached_property
    def ddgamma(self) -> Tensor:
        """gamma''."""
        return self._second("gamma")

    @functools.cached_property
    def ddsigma(self) -> Tensor:
        """sigma'' = (alpha'^2 + alpha alpha'' + gamma'^2 + gamma gamma'' - sigma'^2) / sigma."""
        if self.alpha is self.sigma:
            return self.ddalpha
        grown = self.dalpha**2 + self.alpha * self.ddalpha
        grown = grown + self.dgamma**2 + self.gamma * self.ddgamma
        return (grown - self.dsigma**2) / self.sigma

    def _second(self, name: str) -> Tensor:
        schedule = getattr(self.curve, name)
        if schedule is None:
            return torch.zeros_like(self.alpha)
        second: Tensor = schedule.second_derivative(self.t)
        return second


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
