"""Normal laws and their mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import Time, whole
from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant
from .covariances import Components, Covariances, rotated
from .elements import PerElement
from .entropies import line_entropy, normal_entropy, sampled_entropy
from .flows import affine_flow, quantile_flow
from .laws import Law, coefficients_at, rows_of
from .plans import cross_covariance, resolve
from .target import Coupling, Estimate, FlowMap, Target, numbered_normals, one_time

Values = float | Tensor | Sequence[float]

_LOG_2PI = math.log(2 * math.pi)


class Mixture(Target):
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
        normal = numbered_normals(n, seed, first_row, self.means.device)
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

    def entropy(self, n: int = 262_144, seed: int = 0) -> Estimate:
        """-E[log rho], nats: closed for one component, by quadrature on the line, else sampled.

        Args:
            n: how many samples a Monte Carlo estimate takes.
            seed: keys them.
        """
        if len(self.weights) == 1:
            return normal_entropy(self._components)
        if self.dim == 1:
            estimate = line_entropy(self._components, self.log_prob)
            if estimate.error < 1e-9:
                return estimate
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
    ) -> Mixture:
        """The law of I_t on ``path`` at one time; a `Gaussian` where it has one component."""
        time, law = one_time(t), self._law(path, base, coupling)
        if isinstance(law, PerElement):
            row = (self.dim,)
            return _marginal(law.law(row), time, law.matrix(row))
        return _marginal(law, time, None)

    def flow(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> FlowMap:
        """The probability flow, a function of (t, r, x): x carried from t to r.

            Gaussian          x_r = mu_r + S_r^(1/2) S_t^(-1/2) (x - mu_t)
            mixture, d = 1    x keeps its quantile, F_r(x_r) = F_t(x)

        Between Gaussians whose covariances have no common eigenbasis the linear flow is integrated to
        1e-12, for one pair of times.

        Raises:
            Unsupported: a mixture in more than one dimension. Also as the other methods.
        """
        law = self._law(path, base, coupling)
        pairs = len(self.weights) * (len(base.weights) if isinstance(base, Mixture) else 1)
        if pairs > 1 and self.dim > 1:
            raise Unsupported(
                f"the flow of {pairs} components in {self.dim} dimensions is no closed form. "
                "Integrate it: interp.solve(path.ode(target.velocity(path)), x)."
            )
        kind = affine_flow if pairs == 1 else quantile_flow
        return law.flow(kind) if isinstance(law, PerElement) else kind(law)

    def _law(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Law | PerElement[Law]:
        zeroth = self._check_base(path, base)
        plan, cross = resolve(coupling), None
        if plan is not None:
            zeroth = _standard(self._components) if zeroth is None else zeroth
            if len(zeroth.weights) * len(self.weights) > 1:
                raise Unsupported(
                    "between mixtures only independent ends have a closed form. Use coupling=None, or "
                    "a Gaussian at both ends."
                )
            cross = cross_covariance(plan, zeroth, self._components)
        if not path.element:  # a basis changes nothing then
            return Law(self._components, path, zeroth, cross)

        def law_of(row: tuple[int, ...], V: Tensor | None) -> Law:
            if V is None:
                return Law(self._components, path, zeroth, cross, row)
            V = V.to(self.means.device)
            return Law(
                rotated(self._components, V),
                path,
                None if zeroth is None else rotated(zeroth, V),
                None if cross is None else V @ cross @ V.mT,
                row,
            )

        return PerElement(path, self.dim, law_of)

    def _check_base(self, path: Interpolant, base: Target | None) -> Components | None:
        if base is not None and not isinstance(base, Mixture):
            raise OptionError(f"base is a {type(base).__name__}. Give a Gaussian or a Mixture.")
        if base is None and not path.gaussian_base:
            raise OptionError(
                "this path was built with gaussian_base=False, so the law of x0 is not known. "
                "Give base=, a Gaussian or a Mixture."
            )
        if base is not None and base.dim != self.dim:
            raise OptionError(
                f"the base has {base.dim} dimensions and the target {self.dim}. "
                f"Give the base's mean the shape ({self.dim},)."
            )
        return None if base is None else base._components


def _marginal(law: Law, t: Tensor, V: Tensor | None) -> Mixture:
    """The law of I_t, from that of V I_t."""
    k = coefficients_at(law.path, t, law.row)
    pairs, d = law.m1.shape
    means = law.means(k.alpha, k.beta).reshape(pairs, d)
    S, basis = law.covariances.combine(law.variance(k)), law.covariances.basis
    if law.covariances.dense:
        S, basis = torch.linalg.eigh(S.reshape(pairs, d, d))
    if V is not None:
        own = torch.eye(d).to(V) if basis is None else basis
        means, basis = means @ V, (V.mT @ own).expand(pairs, d, d)
    kind = Gaussian if pairs == 1 else Mixture
    marginal = kind.__new__(kind)
    marginal._components = Components(law.log_weights.exp(), means, S.reshape(pairs, d), basis)
    return marginal


def _standard(like: Components) -> Components:
    """N(0, 1) beside ``like``."""
    zero = torch.zeros_like(like.means[:1])
    return Components(torch.ones_like(zero[:, 0]), zero, torch.ones_like(zero), None)


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
