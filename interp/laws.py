"""The law of I_t between two mixtures of normals, and the posterior means that go with it.

With independent ends I_t is again a mixture, over pairs of a component of the base (m0, C0) and one
of the target (m1, C1), of N(mu, S) with

    mu = alpha m0 + beta m1,    S = alpha^2 C0 + beta^2 C1 + gamma^2.

Given the pair, (I_t, dI_t/dt, x1) is jointly normal, so that with y = S^-1 (x - mu) and r the
posterior weight of each pair at x

    velocity   E[dI/dt | x] = sum r (mu' + (alpha alpha' C0 + beta beta' C1 + gamma gamma') y)
    score      grad log rho = -sum r y
    data       E[x1 | x]    = sum r (m1 + beta C1 y)

For the standard base m0 = 0 and C0 = 1, and alpha' enters only in alpha alpha', which is finite
where alpha' is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Time, as_time, check_rows, require_floating
from .coefficients import Coefficients
from .errors import OptionError, TimeError, Unsupported
from .interpolant import Interpolant


@dataclass(frozen=True)
class Components:
    """K normals in d dimensions, float64: weights (K,), means (K, d), covariances by spectrum.

    ``spectrum`` (K, d) holds the eigenvalues and ``basis`` (K, d, d) the eigenvectors in columns;
    None where these are the axes.
    """

    weights: Tensor
    means: Tensor
    spectrum: Tensor
    basis: Tensor | None

    @property
    def covs(self) -> Tensor:
        """The covariances as matrices, (K, d, d)."""
        if self.basis is None:
            return torch.diag_embed(self.spectrum)
        return (self.basis * self.spectrum[:, None, :]) @ self.basis.mT

    @property
    def isotropic(self) -> bool:
        """Whether every component is."""
        return bool((self.spectrum == self.spectrum[:, :1]).all())


@dataclass(frozen=True)
class Covariances:
    """C0 and C1 of K pairs: eigenvalues (K, d) in a ``basis`` they share, else matrices (K, d, d).

    C0 is None where it is 1 and so belongs to the identity's share. Local coordinates are those of
    the basis.
    """

    zeroth: Tensor | None
    first: Tensor
    basis: Tensor | None
    dense: bool = False

    def combine(self, identity: Tensor, zeroth: Tensor, first: Tensor) -> Tensor:
        """Identity + zeroth C0 + first C1: (K, d[, d]), or (n, K, d[, d]) for weights (n,)."""
        axes = self.first.ndim
        one = torch.eye(self.first.shape[-1]).to(self.first) if self.dense else 1.0
        total = _column(first, axes) * self.first + _column(identity, axes) * one
        return total if self.zeroth is None else total + _column(zeroth, axes) * self.zeroth

    def enter(self, v: Tensor) -> Tensor:
        """Vectors (n, K, d) in local coordinates."""
        return v if self.basis is None else torch.einsum("kde,nkd->nke", self.basis, v)

    def leave(self, v: Tensor) -> Tensor:
        """Local coordinates as vectors (n, K, d)."""
        return v if self.basis is None else torch.einsum("kde,nke->nkd", self.basis, v)

    def solve(self, S: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """S^-1 r (n, K, d) and log det S, in local coordinates."""
        if not self.dense:
            return r / S, S.log().sum(-1)
        root = torch.linalg.cholesky(S)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.apply(torch.cholesky_inverse(root), r), log_det

    def apply(self, S: Tensor, y: Tensor) -> Tensor:
        """S y (n, K, d), in local coordinates."""
        if not self.dense:
            return S * y
        return torch.einsum("kde,nke->nkd" if S.ndim == 3 else "nkde,nke->nkd", S, y)


class Law:
    """The law of I_t and the posterior means that go with it, over pairs of components."""

    def __init__(
        self,
        target: Components,
        path: Interpolant,
        base: Components | None,
        coupling: str | None = None,
    ) -> None:
        if coupling not in (None, "independent"):
            raise Unsupported(
                f"there is no closed form for the coupling {coupling!r}. Use coupling=None or "
                '"independent", or a Monte Carlo estimate.'
            )
        if base is None and not path.gaussian_base:
            raise OptionError(
                "this path was built with gaussian_base=False, so the law of x0 is not known. "
                "Give base=, a Gaussian or a Mixture."
            )
        d = target.means.shape[1]
        if base is not None and base.means.shape[1] != d:
            raise OptionError(
                f"the base has {base.means.shape[1]} dimensions and the target {d}. "
                f"Give the base's mean the shape ({d},)."
            )
        self.path = path
        self.standard = base is None
        if base is None:
            self.m0, self.m1, self.log_weights = None, target.means, target.weights.log()
            self.covariances = Covariances(None, target.spectrum, target.basis)
            return
        pairs = len(base.weights), len(target.weights)
        self.log_weights = (base.weights.log()[:, None] + target.weights.log()).flatten()
        m0, self.m1 = _pair(base.means, target.means, *pairs)
        self.m0 = m0 if m0.any() else None
        self.covariances = _pair_covariances(base, target, *pairs)

    # Weights of the identity, of C0 and of C1

    def squares(self, k: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        """The weights that make S."""
        identity = k.sigma if self.standard else k.gamma
        return identity**2, k.alpha**2, k.beta**2

    def products(self, k: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        """The weights that make S' / 2, the covariance of dI/dt with I."""
        return k.sigma_dsigma if self.standard else k.gamma_dgamma, k.alpha_dalpha, k.beta_dbeta

    def means(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """Alpha m0 + beta m1, (K, d) or (n, K, d)."""
        mean = _column(beta, 2) * self.m1
        return mean if self.m0 is None else mean + _column(alpha, 2) * self.m0

    # In and out

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        time = as_time(t)
        check_rows(time, x)
        if time.ndim > 1:
            raise TimeError(f"t has shape {tuple(time.shape)}. Give one time, or one per row.")
        return self.path.coefficients(time.to(self.m1.device) if time.ndim else time)

    def residual(self, k: Coefficients, x: Tensor) -> Tensor:
        return rows_of(x, self.m1)[:, None] - self.means(k.alpha, k.beta)

    def back(self, rows: Tensor, x: Tensor) -> Tensor:
        """Rows (n, d) in the clothes of ``x``."""
        return rows.to(device=x.device, dtype=x.dtype).reshape(x.shape)

    # Posterior means

    def _posterior(self, k: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
        """y = S^-1 (x - mu) in local coordinates, (n, K, d), and the pairs' weights (n, K)."""
        residual = self.covariances.enter(self.residual(k, x))
        S = self.covariances.combine(*self.squares(k))
        y, log_det = self.covariances.solve(S, residual)
        if len(self.log_weights) == 1:
            return y, torch.ones_like(y[..., 0])
        logits = self.log_weights - 0.5 * (log_det + (residual * y).sum(-1))
        return y, torch.log_softmax(logits, -1).exp()

    def _average(self, weights: Tensor, values: Tensor, x: Tensor) -> Tensor:
        if values.shape[1] == 1:
            return self.back(values[:, 0], x)
        return self.back(torch.einsum("nk,nkd->nd", weights, values), x)

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        """E[dI/dt | I_t = x]."""
        k = self.coefficients(t, x)
        if not self.path.boundary.finite_rate:
            self._require_finite(k)
        y, weights = self._posterior(k, x)
        half_dS = self.covariances.combine(*self.products(k))
        drift = self.covariances.leave(self.covariances.apply(half_dS, y))
        return self._average(weights, self.means(k.dalpha, k.dbeta) + drift, x)

    def _require_finite(self, k: Coefficients) -> None:
        slope = k.dbeta if self.m0 is None else k.dbeta + k.dalpha
        if not slope.isfinite().all():
            t = k.t[~slope.isfinite()][0] if k.t.ndim else k.t
            raise TimeError(
                f"the velocity is infinite at t = {t.item():g}, where the mean's derivative is. "
                "Use a time strictly inside (0, 1)."
            )

    def score(self, t: Time, x: Tensor) -> Tensor:
        """Grad log rho_t(x)."""
        y, weights = self._posterior(self.coefficients(t, x), x)
        return self._average(weights, -self.covariances.leave(y), x)

    def data(self, t: Time, x: Tensor) -> Tensor:
        """E[x1 | I_t = x]."""
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        nothing = torch.zeros_like(k.beta)
        gain = self.covariances.combine(nothing, nothing, k.beta)
        shift = self.covariances.leave(self.covariances.apply(gain, y))
        return self._average(weights, self.m1 + shift, x)

    def noise(self, t: Time, x: Tensor) -> Tensor:
        """E[(alpha x0 + gamma z) / sigma | I_t = x] = -sigma score."""
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        return self._average(weights, _column(k.sigma, 2) * self.covariances.leave(y), x)


def _column(c: Tensor, axes: int) -> Tensor:
    """(n,) as (n, 1, ...) with ``axes`` further axes; 0-d as it is."""
    return c.reshape(-1, *(1,) * axes) if c.ndim else c


def rows_of(x: Tensor, like: Tensor) -> Tensor:
    """``x`` (n, ...) as rows (n, d) in float64 beside ``like`` (K, d)."""
    require_floating(x=x)
    d = like.shape[1]
    if x.ndim == 0 or math.prod(x.shape[1:]) != d:
        raise OptionError(
            f"x has shape {tuple(x.shape)}, but the target has {d} dimensions. "
            f"Give rows of {d} elements, e.g. shape (n, {d})."
        )
    return x.reshape(x.shape[0], d).to(device=like.device, dtype=torch.float64)


def _pair(zeroth: Tensor, first: Tensor, n0: int, n1: int) -> tuple[Tensor, Tensor]:
    """Both (K, ...) over the n0 n1 pairs of components, the base's index first."""
    return zeroth.repeat_interleave(n1, 0), first.repeat(n0, *(1,) * (first.ndim - 1))


def _pair_covariances(base: Components, target: Components, n0: int, n1: int) -> Covariances:
    """Eigenvalues where one basis serves both ends, matrices where none does."""
    isotropic = base.isotropic, target.isotropic
    if not (any(isotropic) or base.basis is target.basis is None):
        return Covariances(*_pair(base.covs, target.covs, n0, n1), basis=None, dense=True)
    basis = None
    if target.basis is not None and isotropic[0]:
        basis = target.basis.repeat(n0, 1, 1)
    elif base.basis is not None and isotropic[1]:
        basis = base.basis.repeat_interleave(n1, 0)
    return Covariances(*_pair(base.spectrum, target.spectrum, n0, n1), basis=basis)
