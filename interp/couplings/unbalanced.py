"""Plans that may leave mass behind: penalised marginals, or a share of the pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..arguments import positive, share
from ..errors import OptionError
from .assignment import assign
from .cost import costs, products, squared_distances
from .coupling import BatchCoupling, Pairs
from .draws import by_row, jointly, permutation
from .sinkhorn import NotConverged, log_plan

_REG = 0.05  # of the mean cost: the default entropy, which blurs the plan little and converges fast


@dataclass(frozen=True)
class Unbalanced(BatchCoupling):
    """Transport that may create and destroy mass, c(x, y) = |x - y|^2.

        minimise <pi, c> + tau0 KL(pi 1 | mu0) + tau1 KL(pi' 1 | mu1) + reg KL(pi | mu0 x mu1)

    Marginals: both ends are re-weighted; pairs are drawn from pi / |pi|, with replacement. Rows
    far from the other end come up less often, or never: the start of sampling is then the base
    re-weighted, not the base. An end whose tau is None is kept: each of its rows stands in one
    pair (of x1, where both are None). Labels go with their x1.

    Args:
        tau: the price of changing a marginal, in the unit of the cost, for both ends or as a pair
            (base, data), in which None keeps that end. None is the batch's mean cost.
        reg: of the entropy, in the unit of the cost; None is a twentieth of the mean cost.

    Raises:
        OptionError: values that are not positive; when called, costs that are not finite, a reg too
            small for them, or a tau so small that the plan's mass underflows.

    Source: Chizat et al. 2016 (1607.05816); Eyring et al. 2023 (2311.15100).
    """

    name: ClassVar[str] = "unbalanced"
    tau: float | tuple[float | None, float | None] | None = None
    reg: float | None = None

    def __post_init__(self) -> None:
        tau = self.tau
        if isinstance(tau, tuple | list):
            if len(tau) != 2:
                raise OptionError(f"tau={tau!r} does not fit. Give a number, or (base, data).")
            ends = tuple(None if end is None else positive("tau", end) for end in tau)
            object.__setattr__(self, "tau", ends)
        elif tau is not None:
            object.__setattr__(self, "tau", positive("tau", tau))
        if self.reg is not None:
            object.__setattr__(self, "reg", positive("reg", self.reg))

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """A draw from the plan."""
        plan = self.plan(x0, x1)
        keeps_base, keeps_data = self._kept()
        if keeps_data:
            return by_row(plan.T.contiguous(), generator), None
        if keeps_base:
            return None, by_row(plan, generator)
        return jointly(plan, generator)

    def plan(self, x0: Tensor, x1: Tensor) -> Tensor:
        """log pi, (rows, rows), float64, between points (rows, features)."""
        cost = costs(x0, x1, None, squared_distances)
        mean = cost.mean().item() or 1.0
        ends = self.tau if isinstance(self.tau, tuple) else (self.tau or mean,) * 2
        tau = tuple(math.inf if end is None else end for end in ends)
        reg = self.reg or _REG * mean
        try:
            plan = log_plan(cost, reg, (tau[0], tau[1]))
        except NotConverged as error:
            raise OptionError(
                f"reg={reg:g} is too small for these costs (mean {mean:.3g}) and this tau: "
                f"{error.why}. Give reg={error.usable:.3g} or more."
            ) from error
        mass = torch.logsumexp(plan.flatten(), 0).item()
        if math.exp(mass) == 0.0:
            raise OptionError(
                f"tau={min(tau):g} is too small for these costs (mean {mean:.3g}): the plan's mass "
                f"is exp({mass:.0f}), which underflows. Give a tau near the mean cost, tau={mean:.3g}."
            )
        return plan

    def _kept(self) -> tuple[bool, bool]:
        if isinstance(self.tau, tuple):
            return self.tau[0] is None, self.tau[1] is None
        return False, False


@dataclass(frozen=True)
class Partial(BatchCoupling):
    """The cheapest pairs only: of all ways to pair k = round(mass rows) rows, the cheapest.

    Marginals: both ends are re-weighted; the k rows of each end that stand in the plan weigh the
    same, the others nothing. The k pairs are repeated to fill the batch, as evenly as can be, and
    which stand in it once more is drawn. Labels go with their x1.

    Args:
        mass: the share of the rows to pair, in (0, 1].

    Raises:
        OptionError: a mass outside (0, 1]; when called, costs that are not finite.

    Source: Caffarelli, McCann 2010; Figalli 2010; as an assignment with dummy rows (Chapel, Alaya,
    Gasso 2020, 2002.08276).
    """

    name: ClassVar[str] = "partial"
    mass: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "mass", share("mass", self.mass))

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """The cheapest pairs, repeated to as many as there are rows."""
        rows = len(x0)
        kept = max(1, round(self.mass * rows))
        if kept == rows:
            return assign(costs(x0, x1, None, products)), None
        spare = rows - kept
        cost = costs(x0, x1, None, squared_distances)
        # A dummy takes a row that is left out for nothing; two dummies never meet.
        full = cost.new_zeros(rows + spare, rows + spare)
        full[:rows, :rows] = cost
        full[rows:, rows:] = 2.0 * rows * (cost.max() + 1.0)
        i = assign(full)[:rows]
        j = torch.nonzero(i < rows).flatten()
        again = permutation(kept, generator)[: rows % kept]
        chosen = torch.cat([torch.arange(kept, device="cpu").repeat(rows // kept), again])
        return i[j][chosen], j[chosen]
