"""The one statement of all semi-linear samplers: exact steps in the logarithm of beta / sigma.

With lambda = log(beta / sigma), D the data and n the noise estimate along the probability flow,

    x_r = (sigma_r / sigma_t) x_t + sigma_r int_{lambda_t}^{lambda_r} exp(lambda) D dlambda
    x_r = (beta_r / beta_t) x_t - beta_r int_{lambda_t}^{lambda_r} exp(-lambda) n dlambda,

and the second is the first with (beta, sigma, lambda, D) read as (sigma, beta, -lambda, n). A sampler
is a choice of the polynomial that stands for D or n under the integral. Where a part of the noise is
drawn anew, K is what is left of an exp(-K) of the old noise:

    x_r = (sigma_r / sigma_t) exp(-K) x_t + beta_r (1 - exp(-h - K)) D + sigma_r sqrt(1 - exp(-2 K)) z

for a D that does not change, h = lambda_r - lambda_t. All coefficients are made here, in float64,
without a difference of nearly equal numbers, and have their limits where beta or sigma is 0.

Source: Lu, Zhou, Bao, Chen, Li, Zhu 2022 (2206.00927, prop. 3.1; 2211.01095, eq. 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arguments import host
from ..interpolant import Interpolant
from ..terms.model import NEGLIGIBLE

Array = NDArray[np.float64]

KINDS = ("data", "noise")


@dataclass(frozen=True)
class Levels:
    """The coefficients of a path at a list of times.

    Attributes:
        t: the times.
        beta, sigma: of the path; exactly 0 where they are negligible at an end.
        lam: log(beta / sigma).
        path: that path.
        kind: the estimate that ``beta`` multiplies: "data"; "noise" after `other`.
    """

    t: Array
    beta: Array
    sigma: Array
    lam: Array
    path: Interpolant
    kind: str = "data"

    @classmethod
    def of(cls, path: Interpolant, times: Sequence[float]) -> Levels:
        """The levels of a path."""
        t = host(list(times))
        k = path.coefficients(t)
        at_end = (t.numpy() == 0) | (t.numpy() == 1)
        beta, sigma = (_cleaned(v.detach().numpy(), at_end) for v in (k.beta, k.sigma))
        lam = path.log_snr(t).detach().numpy() / 2
        lam = np.where(beta == 0, -np.inf, np.where(sigma == 0, np.inf, lam))
        return cls(t.numpy(), beta, sigma, lam, path)

    def then_clean(self) -> Levels:
        """These levels, followed by clean data at the same time as the last."""
        ends = (self.t[-1], 1.0, 0.0, np.inf)
        columns = (self.t, self.beta, self.sigma, self.lam)
        t, beta, sigma, lam = (np.append(c, e) for c, e in zip(columns, ends, strict=True))
        return Levels(t, beta, sigma, lam, self.path)

    @property
    def other(self) -> Levels:
        """The same with data and noise exchanged."""
        kind = "noise" if self.kind == "data" else "data"
        return Levels(self.t, self.sigma, self.beta, -self.lam, self.path, kind)

    def __getitem__(self, which: slice | NDArray[np.int64]) -> Levels:
        """Some of the levels."""
        columns = (self.t, self.beta, self.sigma, self.lam)
        t, beta, sigma, lam = (column[which] for column in columns)
        return Levels(t, beta, sigma, lam, self.path, self.kind)

    def at(self, lam: Array) -> Levels:
        """The levels of the path at other values of lambda (finite, in this kind's own sign)."""
        sign = 1.0 if self.kind == "data" else -1.0
        path = self.path
        low, high = sorted((path.log_snr(0.0).item(), path.log_snr(1.0).item()))
        snr = host(np.clip(2.0 * sign * lam, low, high).tolist())
        found = Levels.of(path, path.time_at_log_snr(snr).tolist())
        return found if self.kind == "data" else found.other

    def __len__(self) -> int:
        return len(self.t)


def _cleaned(values: Array, at_end: NDArray[np.bool_]) -> Array:
    return np.where(at_end & (np.abs(values) <= NEGLIGIBLE), 0.0, values)


def first_order(t: Levels, r: Levels, damping: Array | float = 0.0) -> tuple[Array, Array, Array]:
    """(kept, gain, noise) of the steps from t to r that are exact for a D that does not change.

    x_r = kept x_t + gain D + noise z. Infinite in ``kept`` where nothing of n is told by x_t: use the
    other kind there.
    """
    with np.errstate(all="ignore"):
        h = r.lam - t.lam
        kept = (r.sigma / t.sigma) * np.exp(-damping)
        # Far apart nothing cancels, and the difference is right at both ends.
        near = np.abs(h + damping) < 0.7
        gain = np.where(near, -r.beta * np.expm1(-h - damping), r.beta - kept * t.beta)
        noise = r.sigma * np.sqrt(-np.expm1(-2.0 * np.asarray(damping)))
    return kept, gain, np.broadcast_to(noise, kept.shape)


def moments(z: Array, count: int) -> Array:
    """M_k(z) = z int_0^1 exp(-z (1 - s)) s^k ds for k < count: (count, *z.shape).

    M_0 = 1 - exp(-z), M_k = 1 - (k / z) M_{k - 1}; a power series where that would cancel.
    """
    z = np.asarray(z, dtype=np.float64)
    out = np.empty((count, *z.shape))
    with np.errstate(all="ignore"):
        out[0] = -np.expm1(-z)
        for k in range(1, count):
            out[k] = 1.0 - (k / z) * out[k - 1]
    small = np.abs(z) < 2.0
    if count > 1 and small.any():
        x = z[small]
        for k in range(1, count):
            # z sum_j (-z)^j k! / (k + j + 1)!
            term = x / (k + 1.0)
            total = term.copy()
            for j in range(1, 30):
                term = term * (-x / (k + j + 1.0))
                total += term
            out[k][small] = total
    return out


def weights(z: Array, nodes: Array) -> Array:
    """w with sum_j w_j P(theta_j) = z int_0^1 exp(-z (1 - s)) P(s) ds for each polynomial P.

    Args:
        z: the length of the steps in lambda, times what multiplies it in the exponent: (steps,).
        nodes: theta, where P is known, in units of the step: 0 at its start, 1 at its end; (steps, m)
            with m different ones, for degrees below m.
    """
    m = nodes.shape[-1]
    powers = np.stack([nodes**k for k in range(m)], axis=-2)
    right = np.moveaxis(moments(z, m), 0, -1)[..., None]
    return np.asarray(np.linalg.solve(powers, right)[..., 0], dtype=np.float64)


def integrals(z: Array, points: Array, nodes: Array) -> Array:
    """`weights` for polynomials in another variable u, given at the Gauss-Legendre points of the step.

    Args:
        z: as there, (steps,).
        points: u at s = `POINTS` of each step, (steps, 16).
        nodes: u where P is known, (steps, m).
    """
    kernel = z[:, None] * np.exp(-z[:, None] * (1.0 - POINTS)) * _SHARES
    out = np.empty_like(nodes)
    for j in range(nodes.shape[1]):
        basis = np.ones_like(points)
        for k in range(nodes.shape[1]):
            if k != j:
                basis *= (points - nodes[:, k, None]) / (nodes[:, j, None] - nodes[:, k, None])
        out[:, j] = (kernel * basis).sum(1)
    return out


_x, _w = np.polynomial.legendre.leggauss(16)
POINTS: Array = (_x + 1.0) / 2.0
_SHARES: Array = _w / 2.0
