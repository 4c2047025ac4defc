"""The coordinates in which a view is regular."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..arguments import host

if TYPE_CHECKING:
    from ..interpolant import Interpolant


class Coordinates(Protocol):
    """A clock tau(t) and a scale c(t) in which x = c y, and y(tau) is integrated."""

    def tau(self, t: Tensor) -> Tensor:
        """The clock at t, float64."""
        ...

    def time(self, tau: Tensor) -> Tensor:
        """The t at which the clock shows tau."""
        ...

    def scale(self, t: Tensor) -> Tensor:
        """What y is multiplied by to give x."""
        ...


@dataclass(frozen=True)
class _OfPath:
    """A clock that tells the log-SNR of a path; one is made for each run."""

    path: Interpolant

    @cached_property
    def _ends(self) -> Tensor:
        return self.path.log_snr(host([0.0, 1.0])).detach()

    def _time_at(self, log_snr: Tensor) -> Tensor:
        # A clock that has gone through a logarithm and back may miss an end by its last bit.
        low, high = self._ends
        inside = torch.minimum(torch.maximum(log_snr, low), high)
        return self.path._time_between(inside, low, high)


@dataclass(frozen=True)
class NoiseClock(_OfPath):
    """tau = sigma / beta and x = beta y."""

    def tau(self, t: Tensor) -> Tensor:
        """Sigma / beta."""
        return self.path.noise_scale(t)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of sigma / beta."""
        return self._time_at(-2 * tau.log())

    def scale(self, t: Tensor) -> Tensor:
        """Beta."""
        return self.path.beta(t)


@dataclass(frozen=True)
class DataClock(_OfPath):
    """tau = beta / sigma and x = sigma y."""

    def tau(self, t: Tensor) -> Tensor:
        """Beta / sigma."""
        return 1 / self.path.noise_scale(t)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of beta / sigma."""
        return self._time_at(2 * tau.log())

    def scale(self, t: Tensor) -> Tensor:
        """Sigma."""
        return self.path.coefficients(t).sigma


@dataclass(frozen=True)
class AngleClock(_OfPath):
    """tau = atan(sigma / beta) and x = sqrt(beta^2 + sigma^2) y: regular at both ends."""

    def tau(self, t: Tensor) -> Tensor:
        """The angle, from pi / 2 for pure noise to 0 for clean data."""
        k = self.path.coefficients(t)
        return torch.atan2(k.sigma, k.beta)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of the angle."""
        noise, data = torch.sin(tau), torch.sin(math.pi / 2 - tau)
        return self._time_at(2 * (data.log() - noise.log()))

    def scale(self, t: Tensor) -> Tensor:
        """sqrt(beta^2 + sigma^2)."""
        k = self.path.coefficients(t)
        return torch.hypot(k.beta, k.sigma)


@dataclass(frozen=True)
class LineClock(_OfPath):
    """tau = sigma / (beta + sigma) and x = (beta + sigma) y: the linear path, from 1 to 0."""

    def tau(self, t: Tensor) -> Tensor:
        """The share of the noise, from 1 for pure noise to 0 for clean data."""
        k = self.path.coefficients(t)
        return k.sigma / (k.beta + k.sigma)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of the share."""
        return self._time_at(2 * (torch.log1p(-tau) - tau.log()))

    def scale(self, t: Tensor) -> Tensor:
        """Beta + sigma."""
        k = self.path.coefficients(t)
        return k.beta + k.sigma


@dataclass(frozen=True)
class Carried:
    """tau = t and x = c y, with c known at some times: those at which a run asks for it.

    Attributes:
        times: these times, rising, float64.
        scales: c there.
        kicks: the root mean square of eps / c until the next time of the run, from each of them.
        share: how much of the noise's own drift is carried, 1 where all is.
    """

    times: Tensor
    scales: Tensor
    kicks: Tensor
    share: float = 1.0

    def tau(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def time(self, tau: Tensor) -> Tensor:
        """The same."""
        return tau

    def scale(self, t: Tensor) -> Tensor:
        """The scale c at the nearest of the times, which a last bit may be off."""
        return self.scales[self._nearest(t)]

    def kick(self, t: Tensor) -> Tensor:
        """The size of the noise of a step that begins at t and is told it once."""
        return self.kicks[self._nearest(t)]

    def _nearest(self, t: Tensor) -> Tensor:
        after = torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1)
        before = after - 1
        nearer = t - self.times[before] < self.times[after] - t
        return torch.where(nearer, before, after)
