"""A finite data set as a law: the optimal denoiser in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..arguments import Time, real, require_floating, whole
from ..coefficients import Coefficients
from ..errors import OptionError, TimeError, Unsupported
from ..interpolant import Interpolant
from .elements import PerElement
from .entropies import sampled_entropy
from .laws import refuse_infinite, row_coefficients, rows_like, rows_of
from .plans import resolve
from .target import Coupling, Estimate, FlowMap, Target, numbered_normals, one_time

_LOG_2PI = math.log(2 * math.pi)
_DIRECT = 32  # up to so many dimensions distances come from differences, beyond from products


class Empirical(Target):
    """The law of a finite data set: each of N points with weight 1 / N.

    Along a path with a Gaussian base I_t is N normals of one variance S around beta d_i, so that
    with r_i the softmax over i of -|x - beta d_i|^2 / (2 S) and D = sum_i r_i d_i

        S        = sigma^2 + beta^2 h^2
        data     = D + beta h^2 (x - beta D) / S
        score    = -(x - beta D) / S
        velocity = beta' D + (sigma sigma' + beta beta' h^2) (x - beta D) / S

    where h is the bandwidth, 0 for the data themselves. The sums run over chunks of rows and of
    data, so that 60000 x 784 needs some tens of megabytes beside the data. Above 32 dimensions
    distances come from matrix products: exponents are then right to 1e-16 (|x|^2 + |beta d|^2) / S.

    Args:
        data: (N, ...), floating; kept as it is, not copied.
        bandwidth: h, zero or more; a positive one makes a kernel density estimate.
        chunk: how many points of the data are taken at a time.

    Raises:
        OptionError: data that are empty or not finite, or a bandwidth below zero.

    Source: the optimal denoiser is eq. 57 of Karras, Aittala, Aila, Laine 2022 (2206.00364).
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0, chunk: int = 4096) -> None:
        if not isinstance(data, Tensor):
            raise OptionError(f"data is a {type(data).__name__}. Give a tensor (N, ...).")
        require_floating(data=data)
        if data.ndim == 0 or data.numel() == 0:
            raise OptionError(f"data has shape {tuple(data.shape)}. Give at least one point.")
        rows = data.reshape(len(data), -1)
        finite = torch.cat([block.isfinite().all(1) for block in torch.split(rows, 65_536)])
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise OptionError(f"data[{bad}] is not finite. Drop such rows.")
        self.points = rows
        self.bandwidth = real("bandwidth", bandwidth)
        self.chunk = whole("chunk", chunk, 1)

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return self.points.shape[1]

    def __repr__(self) -> str:
        return f"Empirical({len(self.points)} points, {self.dim} dimensions)"

    def sample(
        self,
        n: int,
        seed: int | None = None,
        first_row: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``first_row`` to ``first_row + n`` of a sample with replacement: (n, d)."""
        normal = numbered_normals(n, seed, first_row, self.points.device)
        uniform = torch.special.ndtr(normal(1, 1)[:, 0])
        index = (uniform * len(self.points)).long().clamp(max=len(self.points) - 1)
        drawn = self.points[index]
        if self.bandwidth:
            drawn = drawn + self.bandwidth * normal(self.dim, 0)
        return drawn.to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (n,), nats, in x's dtype.

        Raises:
            Unsupported: a bandwidth of 0, whose law is discrete.
        """
        if not self.bandwidth:
            raise Unsupported(
                "a finite data set has no density. Give a bandwidth, or take marginal(path, t) at "
                "t < 1."
            )
        one = torch.ones((), dtype=torch.float64)
        log_density = _Sums(self, rows_of(x, self.points), one, one * self.bandwidth**2).log_density
        return log_density.to(device=x.device, dtype=x.dtype)

    def entropy(self, n: int = 4096, seed: int = 0) -> Estimate:
        """-E[log rho], nats, by Monte Carlo over ``n`` samples of ``seed``; errors as `log_prob`."""
        n = whole("n", n, 2)
        return sampled_entropy(
            lambda m, i: self.sample(m, seed, i, torch.float64), self.log_prob, n
        )

    def marginal(
        self,
        path: Interpolant,
        t: Time,
        base: Target | None = None,
        coupling: Coupling = None,
    ) -> Empirical:
        """The law of I_t: the data scaled by beta, with the bandwidth sqrt(S)."""
        time = one_time(t)
        self._law(path, base, coupling)
        k = path.coefficients(time)
        if path.element:
            raise Unsupported(
                "the law of a data set on a path with one schedule an element has kernels of many "
                "widths. Use log_density, score and velocity, which are closed forms there too."
            )
        bandwidth = math.hypot(k.sigma.item(), k.beta.item() * self.bandwidth)
        return Empirical(k.beta.item() * self.points, bandwidth, self.chunk)

    def flow(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> FlowMap:
        """No closed form.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            "the flow of a data set is no closed form. Integrate it: "
            'interp.solve(path.ode(target.data(path), view="data"), x).'
        )

    def _law(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> EmpiricalLaw | PerElement[EmpiricalLaw]:
        if base is not None or not path.gaussian_base:
            raise Unsupported(
                "a data set has closed forms along paths with a Gaussian base only. Use base=None and "
                "such a path, or a Mixture."
            )
        if resolve(coupling) is not None:
            raise Unsupported(
                f"there is no closed form for the coupling {coupling!r} with a data set. Use "
                "coupling=None."
            )
        if not path.element:
            return EmpiricalLaw(self, path)

        def law_of(row: tuple[int, ...], V: Tensor | None) -> EmpiricalLaw:
            if V is None:
                return EmpiricalLaw(self, path, row)
            points = self.points @ V.mT.to(self.points)
            return EmpiricalLaw(Empirical(points, self.bandwidth, self.chunk), path, row)

        return PerElement(path, self.dim, law_of)


class EmpiricalLaw:
    """The law of I_t and the posterior means that go with it.

    ``row`` is the shape of a row where the path has one schedule an element: then S has one variance
    an element, and all below holds element by element.
    """

    def __init__(
        self, target: Empirical, path: Interpolant, row: tuple[int, ...] | None = None
    ) -> None:
        self.target, self.path, self.row = target, path, row

    def _sums(self, t: Time, x: Tensor) -> tuple[Coefficients, Tensor, _Sums]:
        """The path's numbers, S, and the softmax over the data."""
        k = row_coefficients(self.path, t, x, self.target.points.device, self.row)
        S = k.sigma**2 + (k.beta * self.target.bandwidth) ** 2
        clean = S <= 0
        if clean.any():
            times = k.t.reshape(-1)
            at = times[clean.reshape(len(times), -1).any(1)][0]
            raise TimeError(
                f"at t = {at.item():g} no noise is left, and the law of a data set is discrete. Use a "
                "time below it, or a bandwidth."
            )
        return k, S, _Sums(self.target, rows_of(x, self.target.points), k.beta, S)

    def data(self, t: Time, x: Tensor) -> Tensor:
        """E[x1 | I_t = x]."""
        k, S, sums = self._sums(t, x)
        kept = k.beta * self.target.bandwidth**2 / S
        return rows_like(sums.mean + _rows(kept) * sums.residual, x)

    def score(self, t: Time, x: Tensor) -> Tensor:
        """Grad log rho_t(x)."""
        _, S, sums = self._sums(t, x)
        return rows_like(-sums.residual / _rows(S), x)

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        """E[dI/dt | I_t = x]."""
        k, S, sums = self._sums(t, x)
        refuse_infinite(k, k.dbeta)
        gain = (k.sigma_dsigma + k.beta_dbeta * self.target.bandwidth**2) / S
        return rows_like(_rows(k.dbeta) * sums.mean + _rows(gain) * sums.residual, x)

    def base(self, t: Time, x: Tensor) -> Tensor:
        """E[x0 | I_t = x]."""
        k, S, sums = self._sums(t, x)
        return rows_like(_rows(k.alpha / S) * sums.residual, x)

    def latent(self, t: Time, x: Tensor) -> Tensor:
        """E[z | I_t = x]."""
        k, S, sums = self._sums(t, x)
        return rows_like(_rows(k.gamma / S) * sums.residual, x)

    def noise(self, t: Time, x: Tensor) -> Tensor:
        """E[(alpha x0 + gamma z) / sigma | I_t = x]."""
        k, S, sums = self._sums(t, x)
        return rows_like(_rows(k.sigma / S) * sums.residual, x)

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        """Log rho_t(x), (n,), nats."""
        return self._sums(t, x)[2].log_density.to(device=x.device, dtype=x.dtype)

    def covariance(self, t: Time, x: Tensor) -> Tensor:
        """Cov[x1 | I_t = x], (n, d, d)."""
        k, S, sums = self._sums(t, x)
        h2 = self.target.bandwidth**2
        own = h2 * k.sigma**2 / S  # of one kernel; between kernels x1's mean moves by sigma^2 / S
        moved = k.sigma**2 / S
        own, moved = (_rows(c).expand(len(x), self.target.dim) for c in (own, moved))
        total = moved[:, :, None] * sums.covariance() * moved[:, None, :] + torch.diag_embed(own)
        return total.to(device=x.device, dtype=x.dtype)


def _rows(c: Tensor) -> Tensor:
    """(n,) as (n, 1), ready to multiply rows; 0-d and (n, d) as they are."""
    return c[:, None] if c.ndim == 1 else c


class _Sums:
    """The softmax over the data for rows x (n, d): its normaliser, mean, and covariance, in chunks.

    A running maximum keeps the exponents at or below 0 whatever the order of the data.
    """

    def __init__(self, target: Empirical, x: Tensor, beta: Tensor, S: Tensor) -> None:
        self._target, self._S = target, _rows(S.to(x))
        # In units of sqrt(S) every kernel is N(w d_i, 1).
        root = self._S.sqrt()
        self._x, self._w = x / root, (_rows(beta.to(x)) / root).expand(len(x), -1 if S.ndim else 1)
        # A block of rows and one of data make a matrix of 2^21 numbers at most.
        self._rows = max(1, 2**21 // target.chunk)
        blocks = [self._reduced(rows) for rows in self._slices()]
        top, total, self.mean = (torch.cat(part) for part in zip(*blocks, strict=True))
        self.residual = x - _rows(beta.to(x)) * self.mean
        self._log_total = top + total.log()

    @property
    def log_density(self) -> Tensor:
        """Log rho(x), (n,)."""
        d, N = self._x.shape[1], len(self._target.points)
        log_det = self._S.log().expand(len(self._x), d).sum(1)
        return self._log_total - math.log(N) - 0.5 * (d * _LOG_2PI + log_det)

    def _slices(self) -> list[slice]:
        return [slice(i, i + self._rows) for i in range(0, max(len(self._x), 1), self._rows)]

    def _logits(self, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Exponents (n, c) and points (c, d), a chunk of the data at a time."""
        x, w = self._x[rows], self._w[rows]
        for points in torch.split(self._target.points, self._target.chunk):
            d = points.to(x)
            yield -0.5 * _squared_distances(x, d, w), d

    def _reduced(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The largest exponent, the sum of exp beside it, and the mean."""
        x = self._x[rows]
        top, total, mean = torch.full_like(x[:, 0], -math.inf), torch.zeros_like(x[:, 0]), 0 * x
        for logits, d in self._logits(rows):
            high = torch.maximum(top, logits.amax(1)).detach()
            weights, kept = (logits - high[:, None]).exp(), (top - high).exp()
            total, mean = kept * total + weights.sum(1), kept[:, None] * mean + weights @ d
            top = high
        return top, total, mean / total[:, None]

    def covariance(self) -> Tensor:
        """The covariance of the data under the softmax, (n, d, d), around the mean."""
        return torch.cat([self._spread(rows) for rows in self._slices()])

    def _spread(self, rows: slice) -> Tensor:
        mean, log_total = self.mean[rows], self._log_total[rows]
        total = torch.zeros(len(mean), mean.shape[1], mean.shape[1]).to(mean)
        for logits, d in self._logits(rows):
            weights = (logits - log_total[:, None]).exp()
            for i in range(len(mean)):  # a row at a time: (c, d) and not (n, c, d)
                apart = d - mean[i]
                total[i] += (weights[i, :, None] * apart).mT @ apart
        return total


def _squared_distances(x: Tensor, points: Tensor, w: Tensor) -> Tensor:
    """|x_i - w_i d_j|^2 (n, c), for w (n, 1) or (n, d)."""
    if x.shape[1] > _DIRECT:
        squares = points.square()
        squares = w**2 * squares.sum(1) if w.shape[1] == 1 else w**2 @ squares.mT
        across = (w * x) @ points.mT
        return (x.square().sum(1)[:, None] - 2 * across + squares).clamp(min=0)
    total = torch.zeros(len(x), len(points)).to(x)
    for i, w_i in enumerate(w.expand_as(x).unbind(1)):
        total = total + (x[:, i, None] - w_i[:, None] * points[:, i]).square()
    return total
