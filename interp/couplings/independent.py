"""The two couplings that look at nothing: independent ends, and pairs that are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from .coupling import BatchCoupling, Pairs
from .draws import permutation


@dataclass(frozen=True)
class Independent(BatchCoupling):
    """The ends are independent: x0 is permuted at random, whatever order the rows came in.

        pi = mu0 x mu1

    Marginals: both kept exactly, each row of either end stands in one pair; x1 and labels keep
    their order.
    """

    name: ClassVar[str] = "independent"

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """A random permutation of x0."""
        return permutation(len(x0), generator), None


@dataclass(frozen=True)
class Given(BatchCoupling):
    """The pairs as they were given: row i of x0 with row i of x1, as for paired data.

    Marginals: both kept exactly; nothing is moved, copied or drawn.
    """

    name: ClassVar[str] = "given"

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """All rows as they come."""
        return None, None
