"""Independent blocks of coordinates, each with a law of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import noise
from ..arguments import Time
from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant
from .laws import rows_like, rows_of
from .target import Along, Coupling, Estimate, Field, FlowMap, Target


class Product(Target):
    """The law of (x^1, x^2, ...) with independent blocks x^i, side by side.

    A base of a Product is N(0, 1) or a Product of blocks of the same dimensions; a coupling is taken
    block by block.

    Args:
        factors: the blocks' laws.

    Raises:
        OptionError: no blocks, or something that is no target.
    """

    def __init__(self, factors: Sequence[Target]) -> None:
        self.factors = tuple(factors)
        strangers = [type(f).__name__ for f in self.factors if not isinstance(f, Target)]
        if not self.factors or strangers:
            raise OptionError(
                f"the factors are {strangers or 'none'}. Give a list of Gaussian, Mixture, ..."
            )

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return sum(self._dims)

    @property
    def _dims(self) -> list[int]:
        return [factor.dim for factor in self.factors]

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.factors))})"

    def sample(
        self,
        n: int,
        seed: int | None = None,
        first_row: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``first_row`` to ``first_row + n`` of the numbered sample of ``seed``: (n, d)."""
        seed = noise.fresh_seed() if seed is None else noise.check_seed(seed)

        def block_seed(i: int) -> int:  # one of its own, or all blocks would share their normals
            low, high = noise.stream_key(seed, 64 + i)
            return low | high << 32

        return torch.cat(
            [f.sample(n, block_seed(i), first_row, dtype) for i, f in enumerate(self.factors)], 1
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (n,), nats, in x's dtype."""
        parts = zip(self.factors, self._split(x), strict=True)
        return _total([factor.log_prob(block) for factor, block in parts]).to(x)

    def entropy(self) -> Estimate:
        """-E[log rho], nats: the sum over blocks; errors of estimates add in squares."""
        parts = [factor.entropy() for factor in self.factors]
        error = sum(part.error**2 for part in parts) ** 0.5
        how = max((p.how for p in parts), key=["closed form", "quadrature", "Monte Carlo"].index)
        return Estimate(sum(part.value for part in parts), error, how)

    def marginal(
        self,
        path: Interpolant,
        t: Time,
        base: Target | None = None,
        coupling: Coupling = None,
    ) -> Product:
        """The law of I_t on ``path`` at one time."""
        bases = self._bases(base, coupling)
        return Product(
            [f.marginal(path, t, b, coupling) for f, b in zip(self.factors, bases, strict=True)]
        )

    def flow(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> FlowMap:
        """The probability flow, block by block; `Unsupported` where a block has none."""
        bases = self._bases(base, coupling)
        flows = [f.flow(path, b, coupling) for f, b in zip(self.factors, bases, strict=True)]

        def flow(t: Time, r: Time, x: Tensor) -> Tensor:
            parts = zip(flows, self._split(x), strict=True)
            return rows_like(torch.cat([move(t, r, block) for move, block in parts], 1), x)

        return flow

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows_of(x, torch.empty(0, self.dim, device=x.device)), self._dims, 1)

    def _bases(self, base: Target | None, coupling: Coupling) -> Sequence[Target | None]:
        if isinstance(coupling, Tensor):
            raise Unsupported(
                "a Product takes no matrix for its coupling. Use a Gaussian with a joint covariance, or "
                "a name, which each block takes for itself."
            )
        if base is None:
            return [None] * len(self.factors)
        if not isinstance(base, Product) or base._dims != self._dims:
            raise OptionError(
                f"the base is {base!r}, and the target has blocks of {self._dims} dimensions. "
                "Give a Product of such blocks, or None for N(0, 1)."
            )
        return base.factors

    def _law(
        self, path: Interpolant, base: Target | None = None, coupling: Coupling = None
    ) -> Along:
        bases = self._bases(base, coupling)
        if path.element:
            raise Unsupported(
                f"one schedule an element, of shape {path.element}, does not split into the blocks of a "
                "Product. Use a Gaussian or a Mixture of all dimensions."
            )
        return _ProductLaw(
            self, [f._law(path, b, coupling) for f, b in zip(self.factors, bases, strict=True)]
        )


class _ProductLaw:
    """The laws of the blocks, side by side."""

    def __init__(self, target: Product, laws: Sequence[Along]) -> None:
        self._target, self._laws = target, laws

    def _side_by_side(self, pick: Callable[[Along], Field], t: Time, x: Tensor) -> Tensor:
        blocks = self._each(pick, t, x)
        return rows_like(torch.cat(blocks, 1), x)

    def _each(self, pick: Callable[[Along], Field], t: Time, x: Tensor) -> list[Tensor]:
        parts = zip(self._laws, self._target._split(x), strict=True)
        return [pick(law)(t, block) for law, block in parts]

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.velocity, t, x)

    def score(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.score, t, x)

    def data(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.data, t, x)

    def base(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.base, t, x)

    def latent(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.latent, t, x)

    def noise(self, t: Time, x: Tensor) -> Tensor:
        return self._side_by_side(lambda law: law.noise, t, x)

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        return _total(self._each(lambda law: law.log_density, t, x)).to(x)

    def covariance(self, t: Time, x: Tensor) -> Tensor:
        blocks = self._each(lambda law: law.covariance, t, x)
        whole = torch.zeros(len(x), self._target.dim, self._target.dim).to(blocks[0])
        first = 0
        for block in blocks:
            last = first + block.shape[1]
            whole[:, first:last, first:last] = block
            first = last
        return whole.to(x)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)
