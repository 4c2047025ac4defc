"""The Schroedinger bridge between two batches: its plan, and its points between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Generator, Tensor

from ..arguments import Time, as_time, positive, spread
from ..errors import OptionError, TimeError
from .cost import costs, squared_distances
from .coupling import BatchCoupling, Pairs
from .draws import by_row
from .exact import balanced

if TYPE_CHECKING:
    from ..interpolant import Interpolant


class BridgePoint(NamedTuple):
    """A point of a Brownian bridge and what a model regresses on there, each of the point's shape.

    Attributes:
        x: (1 - t) x0 + t x1 + gamma z.
        velocity: x1 - x0 + gamma' z, whose mean given x is the velocity.
        score: -z / gamma, whose mean given x is the score.
    """

    x: Tensor
    velocity: Tensor
    score: Tensor


@dataclass(frozen=True)
class SchroedingerBridge(BatchCoupling):
    """The ends of the Schroedinger bridge to a Brownian motion of size sigma.

        pi minimises <pi, |x - y|^2> + 2 sigma^2 KL(pi | mu0 x mu1), with both marginals
        given the ends: a Brownian bridge, x_t ~ N((1 - t) x0 + t x1, sigma^2 t (1 - t))

    Marginals: each row of x1 stands in one pair, with x0 drawn from pi(x0 | x1); rows of x0 come up
    once in expectation (to 0.1 %). x1 and labels keep their order. Labels are not looked at: for
    models with labels use `conditional`.

    Args:
        sigma: the size of the Brownian motion, in the unit of the points, positive.

    Raises:
        OptionError: a sigma that is not positive; when called, costs that are not finite, or a
            sigma too small for them.

    Source: Tong, Malkin, Fatras et al. 2023 (2307.03672), proposition 3.1 and algorithm 1.
    """

    name: ClassVar[str] = "schroedinger_bridge"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", positive("sigma", self.sigma))

    @property
    def reg(self) -> float:
        """The regularisation of the plan, 2 sigma^2."""
        return 2.0 * self.sigma**2

    @property
    def path(self) -> Interpolant:
        """The path of the bridge, ``schedules.brownian_bridge(sigma)``."""
        from ..schedules import brownian_bridge

        return brownian_bridge(self.sigma)

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """A draw of x0 for each x1."""
        cost = costs(x0, x1, None, squared_distances)
        plan = balanced(cost, self.reg, "sigma", self.sigma, power=2.0)
        return by_row(plan.T.contiguous(), generator), None

    def between(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor) -> BridgePoint:
        """The point of each pair's Brownian bridge at ``t``, and its targets.

            gamma = sigma sqrt(t (1 - t)),  gamma' = sigma (1 - 2 t) / (2 sqrt(t (1 - t)))

        The drift of the bridge's SDE is velocity + (sigma^2 / 2) score forwards in time and
        -velocity + (sigma^2 / 2) score backwards. Near the ends both targets grow like 1 / gamma:
        weight them by gamma.

        Args:
            t: a float, a 0-d tensor, or a tensor of x's leading axes, strictly inside (0, 1).
            x0: base points (rows, ...), paired with ``x1``.
            x1: data points, like ``x0``.
            z: standard normals, like ``x0``.

        Raises:
            TimeError: t at 0 or 1, where the targets are infinite, or outside.
            OptionError: points that do not match.
        """
        time = as_time(t)
        if bool(((time == 0.0) | (time == 1.0)).any()):
            raise TimeError(
                "t is 0 or 1 in some row, where the bridge's velocity and score are infinite. Draw t "
                "inside (0, 1), or take `path.at` for the point alone."
            )
        path = self.path
        point, velocity = path.at(time, x0, x1, z), path.rate(time, x0, x1, z)
        if path.gamma is None:  # to a type checker: a bridge has one
            raise OptionError("this bridge has no latent. Give sigma above zero.")
        return BridgePoint(point, velocity, z / spread(-path.gamma(time), z))
