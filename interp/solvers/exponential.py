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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arguments import host
from ..interpolant import Interpolant
from ..inverse import bisected
from ..terms.model import NEGLIGIBLE

Array = NDArray[np.float64]

KINDS = ("data", "noise")


@dataclass(frozen=True)
class Levels:
    """The coefficients of a path at a list of times.

    On a path whose schedules differ between elements, of shape E, the columns are (n, *E).

    Attributes:
        t: the times, (n,).
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
        with torch.no_grad():
            beta, sigma, lam = (v.detach().numpy() for v in path.levels(t))
        for i in [i for i, s in enumerate(times) if s in (0.0, 1.0)]:
            beta, sigma, lam = _cleaned(i, beta, sigma, lam)
        return cls(t.numpy(), beta, sigma, lam, path)

    def then_clean(self) -> Levels:
        """These levels, followed by clean data at the same time as the last."""
        ends = (self.t[-1], 1.0, 0.0, np.inf)
        columns = (self.t, self.beta, self.sigma, self.lam)
        t, beta, sigma, lam = (
            np.concatenate([c, np.full_like(c[:1], e)]) for c, e in zip(columns, ends, strict=True)
        )
        return Levels(t, beta, sigma, lam, self.path, self.kind)

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
        """The levels of the path at other values of lambda (finite, in this kind's own sign).

        Where lambda differs between elements: at the times at which its mean over them is that of the
        values over them.
        """
        path = self.path
        wanted = over_elements(lam if self.kind == "data" else -lam)
        if path.element:
            t = bisected(lambda t: _mean(path.levels(t)[2]), host(wanted.tolist()))
        else:
            low, high = sorted((path.log_snr(0.0).item(), path.log_snr(1.0).item()))
            t = path.time_at_log_snr(host(np.clip(2.0 * wanted, low, high).tolist()))
        found = Levels.of(path, t.tolist())
        return found if self.kind == "data" else found.other

    @property
    def mean(self) -> Array:
        """Lambda's mean over the elements."""
        return over_elements(self.lam)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """At which levels lambda is finite for all elements."""
        return all_elements(np.isfinite(self.lam))

    @property
    def leaves_clean(self) -> NDArray[np.bool_]:
        """On which steps noise comes to some element that has none."""
        return ~all_elements((self.sigma[:-1] != 0) | (self.sigma[1:] == 0))

    def __len__(self) -> int:
        return len(self.t)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def over_elements(values: Array) -> Array:
    """The mean over the elements at each level: (n, *E) to (n,)."""
    return values if values.ndim == 1 else values.mean(tuple(range(1, values.ndim)))


def all_elements(which: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether something holds for all elements at each level: (n, *E) to (n,)."""
    axes = tuple(range(1, which.ndim))
    return np.asarray(which.all(axes)) if axes else which


def _cleaned(i: int, beta: Array, sigma: Array, lam: Array) -> tuple[Array, Array, Array]:
    """The columns with zeros at an end that are meant to be."""
    columns = []
    for own, infinite in ((beta, -np.inf), (sigma, np.inf)):
        zero = np.abs(own[i]) <= NEGLIGIBLE
        if zero.any():
            own, lam = own.copy(), lam.copy()
            own[i] = np.where(zero, 0.0, own[i])
            lam[i] = np.where(zero, infinite, lam[i])
        columns.append(own)
    return columns[0], columns[1], lam


def first_order(t: Levels, r: Levels, damping: Array | float = 0.0) -> tuple[Array, Array, Array]:
    """(kept, gain, noise) of the steps from t to r that are exact for a D that does not change.

    x_r = kept x_t + gain D + noise z. Infinite in ``kept`` where nothing of n is told by x_t: use the
    other kind there.
    """
    with np.errstate(all="ignore"):
        h = r.lam - t.lam
        kept = np.where(r.sigma == 0, 0.0, r.sigma / t.sigma) * np.exp(-damping)
        # Far apart nothing cancels, and the difference is right at both ends.
        near = np.abs(h + damping) < 0.7
        gain = np.where(near, -r.beta * np.expm1(-h - damping), r.beta - kept * t.beta)
        noise = r.sigma * np.sqrt(-np.expm1(-2.0 * np.asarray(damping)))
    return kept, gain, np.broadcast_to(noise, kept.shape)


def noising(t: Levels, r: Levels, eta: float) -> tuple[Array, Array, Array, Array]:
    """(kept, z, scale, noise) of the steps of an SDE from t to r, where lambda is finite:

        x_r = kept x_t + beta_r scale z int_0^1 exp(-z (1 - s)) P(s) ds + noise z',  z' ~ N(0, 1)

    with P the estimate at the share s of the step. In y = x / sigma the SDE is one of these, for any
    eta >= 0 with the marginals of the flow, which is eta = 0; eta = 1 is the reverse SDE:

        dy = ((1 + eta) exp(lambda) D - eta y) dlambda + sqrt(2 eta) dW
        dy = (y - (1 + eta) n) dlambda + sqrt(2 eta) dW

    so that one who holds D damps the old noise, and one who holds n does not.
    """
    h = r.lam - t.lam
    kept, _, noise = first_order(t, r, eta * h if t.kind == "data" else 0.0)
    if t.kind == "data":
        return kept, (1.0 + eta) * h, np.ones_like(h), noise
    if eta:  # else 0, where the other factor may be infinite
        noise = r.beta * np.sqrt(eta * np.expm1(-2.0 * h))
    return kept, h, np.full_like(h, 1.0 + eta), noise


#: k! / (k + j + 1)! with the sign of (-1)^j, by k and j: M_k(z) / z as a power series.
_SERIES: Array = np.array(
    [
        [(-1) ** j * math.factorial(k) / math.factorial(k + j + 1) for j in range(26)]
        for k in range(6)
    ]
)


def moments(z: Array, count: int) -> Array:
    """M_k(z) = z int_0^1 exp(-z (1 - s)) s^k ds for k < count, at most 6: (count, *z.shape).

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
        out[1:, small] = x * (_SERIES[1:count] @ np.vander(x, _SERIES.shape[1], increasing=True).T)
    return out


def weights(z: Array, nodes: Array) -> Array:
    """w with sum_j w_j P(theta_j) = z int_0^1 exp(-z (1 - s)) P(s) ds for each polynomial P.

    Args:
        z: the length of the steps in lambda, times what multiplies it in the exponent: (steps, ...).
        nodes: theta, where P is known, in units of the step: 0 at its start, 1 at its end;
            (steps, ..., m) with m different ones, for degrees below m.
    """
    m = nodes.shape[-1]
    powers = np.stack([nodes**k for k in range(m)], axis=-2)
    right = np.moveaxis(moments(z, m), 0, -1)[..., None]
    return np.asarray(np.linalg.solve(powers, right)[..., 0], dtype=np.float64)


def integrals(z: Array, points: Array, nodes: Array) -> Array:
    """`weights` for polynomials in another variable u, given at the Gauss-Legendre points of the step.

    Args:
        z: as there, (steps, ...).
        points: u at s = `POINTS` of each step, (steps, ..., 16).
        nodes: u where P is known, (steps, ..., m).
    """
    kernel = z[..., None] * np.exp(-z[..., None] * (1.0 - POINTS)) * _SHARES
    out = np.empty(np.broadcast_shapes(nodes.shape, (*z.shape, 1)))
    for j in range(nodes.shape[-1]):
        basis = np.ones_like(points)
        for k in range(nodes.shape[-1]):
            if k != j:
                others = nodes[..., j, None] - nodes[..., k, None]
                basis = basis * (points - nodes[..., k, None]) / others
        out[..., j] = (kernel * basis).sum(-1)
    return out


_x, _w = np.polynomial.legendre.leggauss(16)
POINTS: Array = (_x + 1.0) / 2.0
_SHARES: Array = _w / 2.0
