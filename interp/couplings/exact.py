"""Optimal transport of a batch onto a batch: exact, or entropic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from ..arguments import positive
from ..errors import OptionError
from .assignment import assign
from .cost import Cost, costs, products, squared_distances
from .coupling import BatchCoupling, Pairs
from .draws import by_row
from .sinkhorn import NotConverged, log_plan


@dataclass(frozen=True)
class OptimalTransport(BatchCoupling):
    """The plan of least total cost between the two batches, c(x, y) = |x - y|^2.

        reg=None    the permutation s of least sum_i c(x0_s(i), x1_i)
        reg         pi of least <pi, c> + reg KL(pi | mu0 x mu1), pi having both marginals

    Marginals, reg=None: both kept exactly, each row of either end stands in one pair. With reg:
    each row of x1 stands in one pair, with x0 drawn from pi(x0 | x1); rows of x0 come up once in
    expectation (to 0.1 %), some twice and some not at all. x1 and labels keep their order.

    Labels are carried and not looked at: the base given a label is then no longer the base. For
    models with labels use `conditional`.

    Args:
        reg: of the entropy, in the unit of the cost, positive; None for the exact plan.
        cost: cost(x0, x1) -> (rows, rows) from flattened points; None is |x - y|^2.

    Raises:
        OptionError: a reg that is not positive; when called, costs that are not finite, or a reg
            too small for them.

    Source: Tong et al. 2023 (2302.00482); Pooladian et al. 2023 (2304.14772); the assignment by
    Crouse 2016 (scipy's linear_sum_assignment).
    """

    name: ClassVar[str] = "optimal_transport"
    reg: float | None = None
    cost: Cost | None = None

    def __post_init__(self) -> None:
        if self.reg is not None:
            object.__setattr__(self, "reg", positive("reg", self.reg))
        if self.cost is not None and not callable(self.cost):
            raise OptionError(
                f"cost is {self.cost!r}. Give a function cost(x0, x1) -> (rows, rows), or None."
            )

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """The best permutation of x0, or a draw of x0 for each x1."""
        if self.reg is None:
            return assign(costs(x0, x1, self.cost, products)), None
        cost = costs(x0, x1, self.cost, squared_distances).double()
        plan = balanced(cost, self.reg, "reg", self.reg)
        return by_row(plan.T.contiguous(), generator), None


def balanced(cost: Tensor, reg: float, option: str, value: float, power: float = 1.0) -> Tensor:
    """The logarithm of the entropic plan with both marginals.

    Raises:
        OptionError: reg is too small; names the ``option`` it came from, its ``value``, and one
            that is large enough, reg being proportional to the option's ``power``.
    """
    try:
        return log_plan(cost, reg)
    except NotConverged as error:
        factor: float = (error.usable / reg) ** (1.0 / power)
        raise OptionError(
            f"{option}={value:g} is too small for these costs (mean {cost.mean().item():.3g}): "
            f"{error.why}. Give {option}={value * factor:.3g} or more, or take "
            "optimal_transport(reg=None), the exact plan."
        ) from error
