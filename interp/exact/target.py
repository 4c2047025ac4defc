"""What every exact target gives along a path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import noise
from ..arguments import Time, as_time, whole
from ..couplings import Coupling as Pairing
from ..errors import TimeError
from ..interpolant import Interpolant

Field = Callable[[Time, Tensor], Tensor]
FlowMap = Callable[[Time, Time, Tensor], Tensor]
Coupling = Pairing | Mapping[str, Any] | str | Tensor | None
"""A coupling of `interp.couplings`, its name or config; or the matrix Cov[x0, x1]."""


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known.

    Attributes:
        value: the number.
        error: 0 for a closed form; a bound on the quadrature's error; one standard error of a
            Monte Carlo mean.
        how: "closed form", "quadrature" or "Monte Carlo".
    """

    value: float
    error: float
    how: str

    def __float__(self) -> float:
        return self.value


class Along(Protocol):
    """The law of I_t on one path and the posterior means that go with it."""

    def velocity(self, t: Time, x: Tensor) -> Tensor: ...
    def score(self, t: Time, x: Tensor) -> Tensor: ...
    def data(self, t: Time, x: Tensor) -> Tensor: ...
    def base(self, t: Time, x: Tensor) -> Tensor: ...
    def latent(self, t: Time, x: Tensor) -> Tensor: ...
    def noise(self, t: Time, x: Tensor) -> Tensor: ...
    def log_density(self, t: Time, x: Tensor) -> Tensor: ...
    def covariance(self, t: Time, x: Tensor) -> Tensor: ...


def numbered_normals(
    n: int, seed: int | None, first_row: int, device: torch.device
) -> Callable[[int, int], Tensor]:
    """normal(width, node) -> (n, width), float64: what rows ``first_row`` on of a sample draw from.

    The nodes of one seed are independent; without a seed one is drawn afresh, for all nodes.
    """
    n, seed = whole("n", n, 0), noise.fresh_seed() if seed is None else seed

    def normal(width: int, node: int) -> Tensor:
        return noise.normal(
            (n, width), seed=seed, first_row=first_row, stream="target", node=node,
            dtype=torch.float64, device=device,
        )  # fmt: skip

    return normal


class Target(ABC):
    """A law of x1 in ``dim`` dimensions.

    Along a path every method takes the path, the law of x0 and the coupling of the two, and gives a
    function of (t, x) with t 0-d or (rows,). They share these arguments and errors:

    Args:
        path: the path.
        base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
        coupling: None or independent: x0 and x1 are drawn apart. Between two Gaussians also
            optimal_transport and schroedinger_bridge of `interp.couplings`, by name, config or as they
            are: the plan between the laws, to which that of a batch comes as the batch grows. Or the
            matrix Cov[x0, x1] (d, d).

    Raises:
        Unsupported: what has no closed form for this law, base or coupling.
        OptionError: a base of another dimension, or none on a path whose base is not Gaussian; a
            matrix that is no cross-covariance of the two laws.
        TimeError: when called, t outside [0, 1], of another shape, or an end where the answer is
            infinite.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of dimensions."""

    @abstractmethod
    def sample(
        self,
        n: int,
        seed: int | None = None,
        first_row: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``first_row`` to ``first_row + n`` of the numbered sample of ``seed``: (n, d)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (n,), nats, in x's dtype."""

    @abstractmethod
    def entropy(self) -> Estimate:
        """-E[log rho], nats, and how well it is known."""

    @abstractmethod
    def marginal(
        self,
        path: Interpolant,
        t: Time,
        base: Target | None = None,
        coupling: Coupling = None,
    ) -> Target:
        """The law of I_t at one time, of the same kind."""

    @abstractmethod
    def flow(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> FlowMap:
        """The probability flow, a function of (t, r, x): x carried from t to r."""

    def flow_map(
        self,
        path: Interpolant,
        view: str = "point",
        base: Target | None = None,
        coupling: Coupling = None,
    ) -> FlowMap:
        """The exact model of `Interpolant.flow_map`, a function of (t, r, x): `flow` as any view.

        Where `flow` is no closed form it is integrated by DOP853 to 1e-11. On the diagonal r = t the
        mean velocity is the velocity, and data and noise are those of one time.

        Args:
            path: the path.
            base: the law of x0.
            coupling: of the two.
            view: one of `interp.views.MAP_VIEWS`.

        Raises:
            UnknownName: a view that does not exist.
            UndeterminedView: when called, where the view has no limit.
        """
        from .maps import exact_map

        return exact_map(self, path, view, base, coupling)

    @abstractmethod
    def _law(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Along: ...

    def velocity(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """E[dI/dt | I_t = x]."""
        return self._law(path, base, coupling).velocity

    def score(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """Grad log rho_t(x)."""
        return self._law(path, base, coupling).score

    def data(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """E[x1 | I_t = x]: the optimal denoiser."""
        return self._law(path, base, coupling).data

    def base(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """E[x0 | I_t = x]."""
        return self._law(path, base, coupling).base

    def latent(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """E[z | I_t = x] = -gamma score."""
        return self._law(path, base, coupling).latent

    def noise(self, path: Interpolant) -> Field:
        """E[(alpha x0 + gamma z) / sigma | I_t = x] = -sigma score, for the base N(0, 1)."""
        return self._law(path).noise

    def posterior_cov(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """Cov[x1 | I_t = x], (n, d, d).

        With a Gaussian base it is (sigma^2 / beta) d E[x1 | x] / dx.
        """
        return self._law(path, base, coupling).covariance

    def log_density(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Field:
        """Log rho_t(x), (n,), nats."""
        return self._law(path, base, coupling).log_density


def one_time(t: Time) -> Tensor:
    """``t`` as one float64 number, refused with a `TimeError` where it is more."""
    time = as_time(t)
    if time.ndim:
        raise TimeError(f"t has shape {tuple(time.shape)}. Give one time for one law.")
    return time
