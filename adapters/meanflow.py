"""MeanFlow: the network is the mean velocity between two times, so that one step is the whole flow.

Geng, Deng, Bai, Kolter, He, 2505.13447. Their time u runs from data at 0 to noise at 1: t = 1 - u, and
their v = noise - data is minus ours. With V = dI/dt and U(t, r, x) = (X(t, r, x) - x) / (r - t), r >= t,
the derivative of (r - t) U = X - x along the flow, on which X does not change, is

    U = v + (r - t) (v dU/dx + dU/dt):

theirs with another sign, since t is our first time and their last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import Interpolant
from interp.arguments import positive, real
from interp.errors import OptionError

from .arguments import as_path, checked_shape
from .few_step import FewStep, rowwise, total_derivative
from .path_family import Common
from .protocol import Batch


class MeanFlow(FewStep):
    """Regress U(t, r, I_t) on sg[V + (r - t) (V dU/dx + dU/dt)], one JVP with tangents (1, 0, V).

    The pair's V takes the place of the marginal v, in which the target is linear. A row counts
    |error|^2 / sg(|error|^2 + c)^power. Such weights leave the mean where it is as far as |error| is much the
    same for all rows of a time, which it is in many dimensions; in few they draw U from the mean of V
    towards its mode. So power is 0 for points: on five Gaussians in the plane the flow at r = t was, with 1,
    no better than a Gaussian fit, however many steps it was followed in.

    The defaults are the paper's for CIFAR-10: times logit-normal, mean 2 and std 2 here (-2 in u), r other
    than t in three quarters of the rows, power 0.75; c = 0.01 is the code's. One step from 0 to 1 is learned
    where t is drawn near 0 and r near 1, of which their law for ImageNet (tables 1 and 4: mean -0.4 and std 1
    in u, a quarter of the rows, power 1) has little: in 1500 steps on digits samples of one step were
    recognised half as often with it, those of two steps more often. (The others' t is one draw, where the
    code keeps the larger of two in u.) Ours, for small networks: lr 1e-3, for ImageNet theirs is 1e-4, and
    times are told at frequencies up to 30.

    Args:
        shape, network: as for every `PathFamily`; the network is ``network(t, r, x[, label])``.
        path: the name of a path, its config, or an Interpolant; the paper's is "linear".
        spread: the share of rows with r > t; the others are flow matching.
        power: of the weight of a row; None is 0.75, for points 0.
        c: of that weight; None is 0.01.
        omega, kappa: guidance inside the target, V -> omega V + kappa v_label + (1 - omega - kappa) v_null
            (the paper's eq. 21), with the network's own v at r = t; an effective scale
            omega / (1 - kappa), sampled in one call a step. 1 and 0 are none.
        common: see `adapters.path_family.Common`.

    Raises:
        OptionError: guidance without ``classes``; a share or a power out of range; and as `PathFamily`.
    """

    name = "meanflow"
    defaults: ClassVar[Common] = {
        "times": {"name": "logit_normal", "mean": 2.0, "std": 2.0}, "lr": 1e-3,
    }  # fmt: skip

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        path: Interpolant | str | Mapping[str, object] = "linear",
        spread: float = 0.75,
        power: float | None = None,
        c: float | None = None,
        omega: float = 1.0,
        kappa: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        path = as_path(path)
        shape = checked_shape(shape)
        weighs = (0.75 if len(shape) == 3 else 0.0) if power is None else real("power", power)
        if weighs == 0:
            self.refuse_idle("power=0 weighs all rows alike. Leave it out, or give a power.", c=c)
        beside = 0.01 if c is None else positive("c", c)
        if not real("spread", spread) <= 1 or not real("kappa", kappa) < 1:
            raise OptionError(
                f"spread={spread} and kappa={kappa} do not fit. Give a share in [0, 1] and a kappa in [0, 1)."
            )
        real("omega", omega)
        own = {"spread": spread, "power": power, "c": c, "omega": omega, "kappa": kappa}
        if (omega, kappa) != (1, 0) and common.get("classes") is None:
            raise OptionError(
                f"omega={omega} and kappa={kappa} guide by labels, and the model has none. Give "
                "classes=..., or leave guidance out."
            )
        super().__init__(
            shape, network, path, {"path": path.config, **own},
            embedding={"times": 2, "fastest": 30.0}, **common,
        )  # fmt: skip
        self.view = "mean_velocity"
        self.spread, self.power, self.c = spread, weighs, beside
        self.omega, self.kappa = omega, kappa

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The mean over rows of the weighted squared error."""
        x0, x1, cond = self.ends(batch, generator)
        t, r = self._times(len(x1), generator, x1.device)
        z = self.latent(x1, generator)
        x, V = self.path.at(t, x0, x1, z), self.path.rate(t, x0, x1, z)
        target = self.target(t, r, x, V, cond)
        error = self.mapping(t.to(x.dtype), r.to(x.dtype), x, **cond) - target
        rows = error.square().flatten(1).sum(1)
        return self.weighed(rows / (rows.detach() + self.c) ** self.power, t)

    def target(self, t: Tensor, r: Tensor, x: Tensor, V: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """V + (r - t) (V dU/dx + dU/dt), a constant; V guided first."""
        t, r = t.to(x.dtype), r.to(x.dtype)
        V = self._guided(t, x, V, cond)
        if not bool((t != r).any()):
            return V

        def model(t: Tensor, r: Tensor, x: Tensor) -> Tensor:
            return self.mapping(t, r, x, **cond)

        tangents = (torch.ones_like(t), torch.zeros_like(r), V)
        _, slope = total_derivative(model, (t, r, x), tangents)
        return V + rowwise(r - t, x) * slope

    @torch.no_grad()
    def _guided(self, t: Tensor, x: Tensor, V: Tensor, cond: Mapping[str, Any]) -> Tensor:
        if (self.omega, self.kappa) == (1, 0) or "label" not in cond:
            return V
        without = self.mapping(t, t, x)
        guided = self.omega * V + (1 - self.omega - self.kappa) * without
        if self.kappa:
            guided = guided + self.kappa * self.mapping(t, t, x, **cond)
        shown = cond["label"] != self.classes
        return torch.where(rowwise(shown, x).bool(), guided, V)

    def _times(
        self, rows: int, generator: Generator | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """t <= r, two draws of the law of time in order, and r = t in all rows but a share."""
        law = self.regression.times
        a, b = (law.draw(rows, generator=generator, device=device) for _ in range(2))
        t, r = torch.minimum(a, b), torch.maximum(a, b)
        apart = torch.rand(rows, generator=generator, device=device) < self.spread
        # Those rows see the law itself, not that of the smaller of two.
        return torch.where(apart, t, a), torch.where(apart, r, a)
