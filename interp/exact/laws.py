"""The law of I_t between two mixtures of normals, and the posterior means that go with it.

With independent ends I_t is again a mixture, over pairs of a component of the base (m0, C0) and one
of the target (m1, C1). Two normal ends may also have a cross-covariance K = Cov[x0, x1]. Given the
pair, (I_t, dI_t/dt, x0, x1, z) is jointly normal, and I_t is N(mu, S) with

    mu = alpha m0 + beta m1
    S  = alpha^2 C0 + beta^2 C1 + gamma^2 + alpha beta (K + K^T),

so that with y = S^-1 (x - mu) and r the posterior weight of each pair at x

    velocity   E[dI/dt | x] = sum r (mu' + (alpha alpha' C0 + beta beta' C1 + gamma gamma'
                                            + alpha' beta K + alpha beta' K^T) y)
    score      grad log rho = -sum r y
    data       E[x1 | x]    = sum r (m1 + (beta C1 + alpha K^T) y)
    base       E[x0 | x]    = sum r (m0 + (alpha C0 + beta K) y)
    latent     E[z | x]     = sum r gamma y

For the standard base m0 = 0, C0 = 1 and K = 0, and alpha' enters only in alpha alpha', which is
finite where alpha' is not.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..arguments import Time, as_time, check_rows, holds, require_floating
from ..coefficients import Coefficients
from ..errors import OptionError, TimeError
from ..interpolant import Interpolant
from .covariances import Components, Share, Shares, column, of_one, of_pairs, pair, symmetric

_LOG_2PI = math.log(2 * math.pi)


class Law:
    """The law of I_t and the posterior means that go with it, over pairs of components.

    Args:
        target: the law of x1.
        path: the path.
        base: the law of x0; None is N(0, 1).
        cross: Cov[x0, x1] (d, d), for two ends of one component; None is 0.
        row: the shape of one row where the path has one schedule an element; None where it is one
            function of t.
    """

    def __init__(
        self,
        target: Components,
        path: Interpolant,
        base: Components | None,
        cross: Tensor | None = None,
        row: tuple[int, ...] | None = None,
    ) -> None:
        self.path = path
        self.row = row
        self.standard = base is None
        if base is None:
            self.m0, self.m1, self.log_weights = None, target.means, target.weights.log()
            self.covariances = of_one(target, row is not None)
            return
        pairs = len(base.weights), len(target.weights)
        self.log_weights = (base.weights.log()[:, None] + target.weights.log()).flatten()
        m0, self.m1 = pair(base.means, target.means, *pairs)
        self.m0 = m0 if m0.any() else None
        self.covariances = of_pairs(base, target, cross, row is not None)

    # Shares of the identity, C0, C1, K and K^T

    def variance(self, k: Coefficients) -> Shares:
        """Cov[I, I] = S."""
        a, b, both = k.alpha, k.beta, k.alpha * k.beta
        identity = k.sigma if self.standard else k.gamma
        zeroth, first = Share(a, a, a**2), Share(b, b, b**2)
        return Shares(identity**2, zeroth, first, Share(a, b, both), Share(b, a, both))

    def rate(self, k: Coefficients) -> Shares:
        """Cov[dI/dt, I]."""
        a, b, da, db = k.alpha, k.beta, k.dalpha, k.dbeta
        identity = k.sigma_dsigma if self.standard else k.gamma_dgamma
        zeroth, first = Share(da, a, k.alpha_dalpha), Share(db, b, k.beta_dbeta)
        return Shares(identity, zeroth, first, Share(da, b, da * b), Share(db, a, db * a))

    def end(self, k: Coefficients) -> Shares:
        """Cov[x1, I]."""
        return Shares(first=Share(None, k.beta, k.beta), crossed=Share(None, k.alpha, k.alpha))

    def start(self, k: Coefficients) -> Shares:
        """Cov[x0, I]."""
        identity = k.alpha if self.standard else None
        zeroth, cross = Share(None, k.alpha, k.alpha), Share(None, k.beta, k.beta)
        return Shares(identity, zeroth=zeroth, cross=cross)

    def means(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """Alpha m0 + beta m1, (P, d) or (n, P, d)."""
        mean = column(beta, 2) * self.m1
        return mean if self.m0 is None else mean + column(alpha, 2) * self.m0

    # In and out

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        """The path's numbers at one time or one per row of ``x``.

        Raises:
            TimeError: also where the path is a point, which has no density.
        """
        k = row_coefficients(self.path, t, x, self.m1.device, self.row)
        point = (k.beta == 0) & (k.sigma == 0)
        if not holds(~point):
            times = k.t.reshape(-1)
            at = times[point.reshape(len(times), -1).any(1)][0]
            raise TimeError(
                f"at t = {at.item():g} neither base nor data has a share in the path: its law is the "
                "point 0 and has no density. Use a time strictly inside (0, 1)."
            )
        return k

    def residual(self, k: Coefficients, x: Tensor) -> Tensor:
        """x - mu, (n, P, d)."""
        return rows_of(x, self.m1)[:, None] - self.means(k.alpha, k.beta)

    # Posterior means

    def _solved(self, k: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
        """y in local coordinates, (n, P, d), and the log of each pair's weight times density."""
        residual = self.covariances.enter(self.residual(k, x))
        S = self.covariances.combine(self.variance(k))
        y, log_det = self.covariances.solve(S, residual)
        return y, self.log_weights - 0.5 * (log_det + (residual * y).sum(-1))

    def _posterior(self, k: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
        """y in local coordinates, and the pairs' posterior weights (n, P)."""
        y, logits = self._solved(k, x)
        return y, torch.log_softmax(logits, -1).exp()

    def _average(self, weights: Tensor, values: Tensor, x: Tensor) -> Tensor:
        if values.shape[1] == 1:
            return rows_like(values[:, 0], x)
        return rows_like(torch.einsum("nk,nkd->nd", weights, values), x)

    def _regression(self, shares: Shares, y: Tensor) -> Tensor:
        """Cov[., I] y, (n, P, d)."""
        gain = self.covariances.combine(shares)
        return self.covariances.leave(self.covariances.apply(gain, y))

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        """E[dI/dt | I_t = x]."""
        k = self.coefficients(t, x)
        if not self.path.boundary.finite_rate:
            self._require_finite(k)
        y, weights = self._posterior(k, x)
        drift = self._regression(self.rate(k), y)
        return self._average(weights, self.means(k.dalpha, k.dbeta) + drift, x)

    def _require_finite(self, k: Coefficients) -> None:
        slope = k.dbeta if self.m0 is None else k.dbeta + k.dalpha
        if self.row is not None and self.covariances.zeroth is not None:
            slope = slope + k.dalpha
        if self.covariances.cross is not None:
            slope = slope + k.dalpha * k.beta + k.alpha * k.dbeta
        refuse_infinite(k, slope)

    def score(self, t: Time, x: Tensor) -> Tensor:
        """Grad log rho_t(x)."""
        y, weights = self._posterior(self.coefficients(t, x), x)
        return self._average(weights, -self.covariances.leave(y), x)

    def _data(self, k: Coefficients, y: Tensor) -> Tensor:
        """E[x1 | I_t, pair], (n, P, d)."""
        return self.m1 + self._regression(self.end(k), y)

    def data(self, t: Time, x: Tensor) -> Tensor:
        """E[x1 | I_t = x]."""
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        return self._average(weights, self._data(k, y), x)

    def _base(self, k: Coefficients, y: Tensor) -> Tensor:
        """E[x0 | I_t, pair], (n, P, d)."""
        shift = self._regression(self.start(k), y)
        return shift if self.m0 is None else self.m0 + shift

    def base(self, t: Time, x: Tensor) -> Tensor:
        """E[x0 | I_t = x]."""
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        return self._average(weights, self._base(k, y), x)

    def latent(self, t: Time, x: Tensor) -> Tensor:
        """E[z | I_t = x] = -gamma score."""
        return self._scaled_score(t, x, "gamma")

    def noise(self, t: Time, x: Tensor) -> Tensor:
        """E[(alpha x0 + gamma z) / sigma | I_t = x] = -sigma score, for the base N(0, 1)."""
        return self._scaled_score(t, x, "sigma")

    def _scaled_score(self, t: Time, x: Tensor, scale: str) -> Tensor:
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        c: Tensor = getattr(k, scale)
        return self._average(weights, column(c, 2) * self.covariances.leave(y), x)

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        """Log rho_t(x), (n,), nats."""
        _, logits = self._solved(self.coefficients(t, x), x)
        density = torch.logsumexp(logits, -1) - 0.5 * self.m1.shape[1] * _LOG_2PI
        return density.to(device=x.device, dtype=x.dtype)

    # Posterior covariance

    def covariance(self, t: Time, x: Tensor) -> Tensor:
        """Cov[x1 | I_t = x], (n, d, d): within the pairs and between them."""
        k = self.coefficients(t, x)
        y, weights = self._posterior(k, x)
        apart = self._apart(k, y, weights)
        within = self.covariances.matrices(self._within(k))
        within = within.expand(*weights.shape, *within.shape[-2:])
        total = torch.einsum("nk,nkde->nde", weights, within)
        total = total + torch.einsum("nk,nkd,nke->nde", weights, apart, apart)
        return total.to(device=x.device, dtype=x.dtype)

    # Near the data x1 is all but x / beta, and what is left of its spread is that of the rest,
    # R = x - beta x1 = alpha x0 + gamma z, over beta. Each of the two is taken where it is larger.

    def _apart(self, k: Coefficients, y: Tensor, weights: Tensor) -> Tensor:
        """E[x1 | I, pair] - E[x1 | I], (n, P, d)."""

        def centred(values: Tensor) -> Tensor:
            return values - torch.einsum("nk,nkd->nd", weights, values)[:, None]

        rest = column(k.alpha, 2) * self._base(k, y)
        rest = rest + column(k.gamma, 2) ** 2 * self.covariances.leave(y)
        late = column(k.beta > k.sigma, 2)
        return torch.where(late, -centred(rest) / column(k.beta, 2), centred(self._data(k, y)))

    def _within(self, k: Coefficients) -> Tensor:
        """Cov[x1 | I, pair] in local coordinates, (P, d[, d]) or (n, P, d[, d])."""
        c, shares = self.covariances, self.variance(k)
        S, rest = (
            c.combine(shares),
            c.combine(shares._replace(first=None, cross=None, crossed=None)),
        )
        if not c.dense:
            return c.first * rest / S
        if c.cross is None and self.row is None:
            # C1 - beta^2 C1 S^-1 C1 = C1 S^-1 (S - beta^2 C1), in which nothing cancels.
            return symmetric(c.first @ torch.linalg.solve(S, rest))
        gain = c.combine(self.end(k))
        early = c.first - gain @ torch.linalg.solve(S, gain.mT)
        if self.row is not None:
            return symmetric(early)
        gain = c.combine(shares._replace(first=None, crossed=None))
        late = (rest - gain @ torch.linalg.solve(S, gain.mT)) / column(k.beta**2, 3)
        return symmetric(torch.where(column(k.beta > k.sigma, 3), late, early))


def row_coefficients(
    path: Interpolant,
    t: Time,
    x: Tensor,
    device: torch.device,
    row: tuple[int, ...] | None = None,
) -> Coefficients:
    """The numbers of ``path`` at one time or one per row of ``x``: (), (n,), or (1 or n, d).

    The last where ``row``, the shape of one row, is given, for a path of one schedule an element.

    Raises:
        TimeError: other times.
    """
    time = as_time(t)
    check_rows(time, x)
    if time.ndim > 1:
        raise TimeError(f"t has shape {tuple(time.shape)}. Give one time, or one per row.")
    return coefficients_at(path, time.to(device) if time.ndim else time, row)


def coefficients_at(path: Interpolant, t: Time, row: tuple[int, ...] | None) -> Coefficients:
    """The numbers of ``path``, each spread over the elements of a ``row`` where there is one."""
    k = path.coefficients(t)
    if row is None:
        return k
    missing = (1,) * (len(row) - len(path.element))

    def spread(v: Tensor) -> Tensor:
        return v.reshape(-1, *missing, *path.element).expand(-1, *row).flatten(1)

    names = (f.name for f in fields(k) if f.name not in ("t", "curve"))
    numbers: dict[str, Any] = {name: spread(getattr(k, name)) for name in names}
    return replace(k, **numbers)


def refuse_infinite(k: Coefficients, slope: Tensor) -> None:
    """Refuse with a `TimeError` the times at which a ``slope`` of the path is infinite."""
    infinite = ~slope.isfinite()
    if infinite.any():
        times = k.t.reshape(-1)
        t = times[infinite.reshape(len(times), -1).any(1)][0]
        raise TimeError(
            f"the velocity is infinite at t = {t.item():g}, where a derivative of the path is. "
            "Use a time strictly inside (0, 1)."
        )


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


def rows_like(rows: Tensor, x: Tensor) -> Tensor:
    """Rows (n, d) in the clothes of ``x``."""
    return rows.to(device=x.device, dtype=x.dtype).reshape(x.shape)
