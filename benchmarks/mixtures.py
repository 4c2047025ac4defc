"""Many small mixtures at once, so that a search over all of them costs one call of a field a stage."""

from __future__ import annotations

import torch
from torch import Tensor

import interp
from interp import exact, schedules
from interp.exact.target import Along, Target

F64 = torch.float64
COMPONENTS, DIM = 5, 2


class Several(Target):
    """Mixtures side by side: row i is of mixture i mod n.

    One call for all of them; each is `interp.exact.Mixture`, which `check` sees to.
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        self.log_weights, self.means, self.variances = weights.log(), means, variances

    @classmethod
    def drawn(cls, n: int, seed: int) -> Several:
        """``n`` mixtures of about unit variance, with components 0.1 to 0.4 wide."""
        g = torch.Generator().manual_seed(seed)
        weights = torch.rand(n, COMPONENTS, generator=g, dtype=F64) + 0.3
        means = torch.randn(n, COMPONENTS, DIM, generator=g, dtype=F64)
        widths = 0.1 * 4 ** torch.rand(n, COMPONENTS, generator=g, dtype=F64)
        return cls(weights / weights.sum(-1, keepdim=True), means, widths**2)

    @property
    def dim(self) -> int:
        return DIM

    def part(self, rows: slice) -> Several:
        """Some of them."""
        return Several(self.log_weights[rows].exp(), self.means[rows], self.variances[rows])

    def one(self, k: int) -> exact.Mixture:
        """The k-th."""
        return exact.Mixture(
            self.log_weights[k].exp(), list(self.means[k]), [v.item() for v in self.variances[k]]
        )

    def _law(self, path: object, base: object = None, coupling: object = None) -> Along:
        return _Law(self, path)  # type: ignore[arg-type, return-value]

    def sample(self, *given: object, **options: object) -> Tensor:
        raise interp.errors.Unsupported("not needed here")

    log_prob = entropy = marginal = flow = sample  # type: ignore[assignment]


class _Law:
    """E[dI/dt | x], E[x1 | x] and E[noise | x] of isotropic components."""

    def __init__(self, laws: Several, path: interp.Interpolant) -> None:
        self.laws, self.path = laws, path

    def _posterior(self, t: Tensor, x: Tensor) -> tuple[object, Tensor, Tensor]:
        k, laws = self.path.coefficients(t), self.laws
        rest = x.reshape(-1, len(laws.means), 1, DIM) - k.beta * laws.means
        S = k.beta**2 * laws.variances + k.sigma**2
        logits = laws.log_weights - 0.5 * (rest.square().sum(-1) / S + DIM * S.log())
        return k, torch.softmax(logits, -1), rest / S[..., None]

    def _mean(self, r: Tensor, values: Tensor, x: Tensor) -> Tensor:
        return (r[..., None] * values).sum(-2).reshape(x.shape)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        k, r, y = self._posterior(t, x)
        gain = (k.beta_dbeta * self.laws.variances + k.sigma_dsigma)[..., None]
        return self._mean(r, k.dbeta * self.laws.means + gain * y, x)

    def data(self, t: Tensor, x: Tensor) -> Tensor:
        k, r, y = self._posterior(t, x)
        gain = (k.beta * self.laws.variances)[..., None]
        return self._mean(r, self.laws.means + gain * y, x)

    def noise(self, t: Tensor, x: Tensor) -> Tensor:
        k, r, y = self._posterior(t, x)
        return self._mean(r, k.sigma * y, x)


def check(laws: Several) -> None:
    """Several is the mixtures that it says it is."""
    x, t = torch.randn(6, DIM, dtype=F64), torch.tensor(0.4, dtype=F64)
    path = schedules.trigonometric()
    for view in ("velocity", "data", "noise"):
        found = getattr(laws, view)(path)(t, x)
        torch.testing.assert_close(found[1::2], getattr(laws.one(1), view)(path)(t, x[1::2]))
