"""The numbers of a path at a time, and what it is at its ends."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .arguments import holds
from .scalar import widened

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

    @classmethod
    def at_rest(cls, t: Tensor, beta: Tensor, sigma: Tensor) -> Coefficients:
        """A path at t as if it stood still: what views without slopes in their formulas need."""
        none = torch.zeros_like(beta)
        return cls(t, sigma, beta, *(none,) * 4, sigma, *(none,) * 5)

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
        second = self._steep((grown - self.dsigma**2) / self.sigma, self.dsigma)
        if self.curve is None or holds(~second.isnan()):
            return second
        # gamma'^2 and gamma gamma'' are infinite where gamma is a root, and their sum is not: there
        # sigma' is followed inwards, by a difference of second order.
        h = torch.where(self.t < 0.5, 1e-5, -1e-5)
        near, next_ = (self.curve.coefficients(self.t + n * h).dsigma for n in (1, 2))
        inwards = (4 * near - next_ - 3 * self.dsigma) / (2 * widened(h, near))
        return torch.where(second.isnan(), inwards, second)

    def _second(self, name: str) -> Tensor:
        schedule = getattr(self.curve, name)
        if schedule is None:
            return torch.zeros_like(self.alpha)
        return self._steep(schedule.second_derivative(self.t), getattr(self, f"d{name}"))

    def _steep(self, second: Tensor, slope: Tensor) -> Tensor:
        """``second``, infinite where the slope is: from a vertical tangent at t = 0 it comes down."""
        sign = torch.where(widened(self.t, slope) < 0.5, -1.0, 1.0)
        return torch.where(slope.isinf(), sign * slope, second)


@dataclass(frozen=True)
class Secant(Coefficients):
    """A path at t, its slopes replaced by divided differences up to a second time r.

    ``dbeta`` is (beta_r - beta_t) / (r - t), and so on; where r = t it is the derivative. What turns
    the views at one time into each other then does so for the maps between two (`interp.views`).

    Attributes:
        r: the second time.
        beta_r, sigma_r: the path there.
    """

    r: Tensor = field(kw_only=True)
    beta_r: Tensor = field(kw_only=True)
    sigma_r: Tensor = field(kw_only=True)

    @classmethod
    def between(cls, k: Coefficients, k_r: Coefficients) -> Secant:
        """From the coefficients at t and at r."""
        h = widened(k_r.t - k.t, k.beta)
        divisor = torch.where(h == 0, 1.0, h)
        told = {f.name: getattr(k, f.name) for f in fields(Coefficients)}
        for name in ("alpha", "beta", "gamma", "sigma"):
            value, difference = told[name], getattr(k_r, name) - told[name]
            slope = torch.where(h == 0, told[f"d{name}"], difference / divisor)
            product = torch.where(h == 0, told[f"{name}_d{name}"], value * slope)
            told |= {f"d{name}": slope, f"{name}_d{name}": product}
        return cls(**told, r=k_r.t, beta_r=k_r.beta, sigma_r=k_r.sigma)


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
