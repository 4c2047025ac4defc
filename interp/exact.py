"""Targets whose law at every time of every path is a closed form: Gaussians and their mixtures.

What they give along a path is worked out in `interp.laws`: in float64 on the target's device, and
handed back in x's shape and dtype and on its device. Rows of x may have any shape of as many
elements as the target has dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import noise
from .arguments import Time, as_time, whole
from .errors import OptionError, TimeError
from .interpolant import Interpolant
from .laws import Components, Covariances, Law, rows_of

Values = float | Tensor | Sequence[float]
Field = Callable[[Time, Tensor], Tensor]

_LOG_2PI = math.log(2 * math.pi)


class Mixture:
    """The mixture sum_k w_k N(m_k, C_k) in d dimensions.

    Args:
        weights: (K,), positive, of sum 1.
        means: K means, each a float (one dimension) or (d,).
        covs: K covariances, each a variance, a diagonal (d,) or a matrix (d, d).

    Raises:
        OptionError: weights that are no probabilities, a covariance that is not symmetric positive
            definite, or shapes that do not agree.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Values] | Tensor,
        covs: Sequence[Values] | Tensor,
    ) -> None:
        w = torch.as_tensor(weights, dtype=torch.float64)
        if w.ndim != 1 or not len(w) == len(means) == len(covs):
            raise OptionError(
                f"weights of shape {tuple(w.shape)}, {len(means)} means and {len(covs)} "
                "covariances do not agree. Give one of each for every component."
            )
        if not (w > 0).all() or abs(w.sum().item() - 1) > 1e-6:  # float32 weights sum to 1 +- 1e-7
            raise OptionError(f"weights = {w.tolist()}. Give positive numbers of sum 1.")
        parts = [_component(m, c, k) for k, (m, c) in enumerate(zip(means, covs, strict=True))]
        if len({m.shape for m, _, _ in parts}) > 1:
            raise OptionError(
                f"the components have dimensions {[len(m) for m, _, _ in parts]}. "
                "Give all means the same shape."
            )
        rotated = any(basis is not None for _, _, basis in parts)
        eye = torch.eye(len(parts[0][0]), dtype=torch.float64, device=parts[0][0].device)
        bases = [eye if basis is None else basis for _, _, basis in parts]
        self._components = Components(
            w.to(eye.device) / w.sum().item(),
            torch.stack([m for m, _, _ in parts]),
            torch.stack([spectrum for _, spectrum, _ in parts]),
            torch.stack(bases) if rotated else None,
        )

    @property
    def weights(self) -> Tensor:
        """(K,) float64."""
        return self._components.weights

    @property
    def means(self) -> Tensor:
        """(K, d) float64."""
        return self._components.means

    @property
    def covs(self) -> Tensor:
        """The covariances as matrices, (K, d, d) float64."""
        return self._components.covs

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return self.means.shape[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.weights)} components, {self.dim} dimensions)"

    def sample(
        self,
        n: int,
        seed: int | None = None,
        first_row: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``first_row`` to ``first_row + n`` of the numbered sample of ``seed``: (n, d)."""
        n = whole("n", n, 0)
        seed = noise.fresh_seed() if seed is None else seed

        def normal(width: int, node: int) -> Tensor:
            return noise.normal(
                (n, width), seed=seed, first_row=first_row, stream="target", node=node,
                dtype=torch.float64, device=self.means.device,
            )  # fmt: skip

        z, uniform = normal(self.dim, 0), torch.special.ndtr(normal(1, 1)[:, 0])
        parts, last = self._components, len(self.weights) - 1
        k = torch.searchsorted(parts.weights.cumsum(0), uniform).clamp(max=last)  # the sum rounds
        x = parts.spectrum.sqrt()[k] * z
        if parts.basis is not None:
            x = torch.einsum("nde,ne->nd", parts.basis[k], x)
        return (parts.means[k] + x).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (n,), nats, in x's dtype."""
        parts = self._components
        covariances = Covariances(None, parts.spectrum, parts.basis)
        residual = covariances.enter(rows_of(x, parts.means)[:, None] - parts.means)
        y, log_det = covariances.solve(parts.spectrum, residual)
        logits = parts.weights.log() - 0.5 * (log_det + (residual * y).sum(-1))
        density = torch.logsumexp(logits, -1) - 0.5 * self.dim * _LOG_2PI
        return density.to(device=x.device, dtype=x.dtype)

    def marginal(self, path: Interpolant, t: Time, base: Mixture | None = None) -> Mixture:
        """The law of I_t on ``path``; a `Gaussian` where it has one component.

        Raises:
            TimeError: a ``t`` that is not one time in [0, 1].
            OptionError: as `velocity`.
        """
        time = as_time(t)
        if time.ndim:
            raise TimeError(f"t has shape {tuple(time.shape)}. Give one time for one law.")
        law = self._law(path, base)
        k = path.coefficients(time)
        S = law.covariances.combine(*law.squares(k))
        if law.covariances.dense:
            S, basis = torch.linalg.eigh(S)
        else:
            basis = law.covariances.basis
        kind = Gaussian if len(law.log_weights) == 1 else Mixture
        marginal = kind.__new__(kind)
        means = law.means(k.alpha, k.beta)
        marginal._components = Components(law.log_weights.exp(), means, S, basis)
        return marginal

    def velocity(
        self, path: Interpolant, base: Mixture | None = None, coupling: str | None = None
    ) -> Field:
        """E[dI/dt | I_t = x] as a function of (t, x), t 0-d or (rows,).

        Args:
            path: the path.
            base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
            coupling: None or "independent": x0 and x1 are drawn apart.

        Raises:
            Unsupported: another coupling.
            OptionError: a base of other dimension, or none on a path whose base is not Gaussian.
            TimeError: when called, t outside [0, 1], of another shape, or an end where the velocity
                is infinite.
        """
        return self._law(path, base, coupling).velocity

    def score(
        self, path: Interpolant, base: Mixture | None = None, coupling: str | None = None
    ) -> Field:
        """Grad log rho_t(x) as a function of (t, x); arguments and errors as in `velocity`."""
        return self._law(path, base, coupling).score

    def data(
        self, path: Interpolant, base: Mixture | None = None, coupling: str | None = None
    ) -> Field:
        """E[x1 | I_t = x] as a function of (t, x); arguments and errors as in `velocity`."""
        return self._law(path, base, coupling).data

    def noise(self, path: Interpolant) -> Field:
        """E[(alpha x0 + gamma z) / sigma | I_t = x] for the base N(0, 1); errors as `velocity`."""
        return self._law(path).noise

    def _law(
        self, path: Interpolant, base: Mixture | None = None, coupling: str | None = None
    ) -> Law:
        if base is not None and not isinstance(base, Mixture):
            raise OptionError(f"base is a {type(base).__name__}. Give a Gaussian or a Mixture.")
        return Law(self._components, path, None if base is None else base._components, coupling)


class Gaussian(Mixture):
    """The law N(mean, cov).

    Args:
        mean: a float (one dimension, or as many as ``cov`` has) or (d,).
        cov: a variance, a diagonal (d,) or a matrix (d, d).

    Raises:
        OptionError: a covariance that is not symmetric positive definite, or shapes that do not
            agree.
    """

    def __init__(self, mean: Values, cov: Values) -> None:
        super().__init__([1.0], [mean], [cov])

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self.means[0]

    @property
    def cov(self) -> Tensor:
        """(d, d) float64."""
        return self.covs[0]

    def flow(self, path: Interpolant) -> Callable[[Time, Time, Tensor], Tensor]:
        """The probability flow from the base N(0, 1), a function of (t, r, x): x carried t to r.

            x_r = beta_r m + S_r^(1/2) S_t^(-1/2) (x - beta_t m),   S = beta^2 C + sigma^2

        Raises:
            OptionError: a path whose base is not Gaussian.
            TimeError: when called, times outside [0, 1] or of another shape.
        """
        law = self._law(path)

        def flow(t: Time, r: Time, x: Tensor) -> Tensor:
            start, end = (law.coefficients(time, x) for time in (t, r))
            S_t, S_r = (law.covariances.combine(*law.squares(k)) for k in (start, end))
            local = law.covariances.enter(law.residual(start, x)) * (S_r / S_t).sqrt()
            carried = law.means(end.alpha, end.beta) + law.covariances.leave(local)
            return law.back(carried[:, 0], x)

        return flow


def _component(mean: Values, cov: Values, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The mean (d,), the eigenvalues (d,) and the eigenvectors (d, d; None for axes) of one."""
    m = torch.as_tensor(mean, dtype=torch.float64)
    C = torch.as_tensor(cov, dtype=torch.float64).to(m.device)
    d = m.shape[0] if m.ndim else C.shape[0] if C.ndim else 1
    if m.ndim > 1 or C.ndim > 2 or C.shape not in ((), (d,), (d, d)) or d == 0:
        raise OptionError(
            f"component {k} has a mean of shape {tuple(m.shape)} and a covariance of shape "
            f"{tuple(C.shape)}. Give (d,) with a number, (d,) or (d, d)."
        )
    if not (m.isfinite().all() and C.isfinite().all()):
        raise OptionError(f"component {k} holds a number that is not finite. Give finite ones.")
    if C.ndim < 2:
        spectrum, basis = C.expand(d), None
    elif (C - C.mT).abs().max() > 1e-6 * C.abs().max():  # room for a product in float32
        raise OptionError(f"the covariance of component {k} is not symmetric. Give (C + C.T) / 2.")
    else:
        spectrum, basis = torch.linalg.eigh((C + C.mT) / 2)
    # The eigenvalues of a matrix are right to eps times the largest: below that, none is positive.
    floor = 0.0 if basis is None else d * torch.finfo(torch.float64).eps * spectrum.max().item()
    if not spectrum.min() > floor:
        raise OptionError(
            f"the covariance of component {k} has the eigenvalue {spectrum.min().item():g}. "
            "Give a positive definite one (variances, not standard deviations)."
        )
    return m.expand(d), spectrum, basis
