"""Minimising movements: each map takes a step down a functional, at the price of its transport.

    rho_k+1 = argmin_rho  F(rho) + W2^2(rho, rho_k) / (2 h)

Jordan, Kinderlehrer, Otto 1998: as h falls this is the gradient flow of F in the Wasserstein metric;
for F = KL(. | exp(-U)) the Fokker-Planck equation of Langevin's dynamics. With rho_k+1 = T # rho_k, and the
F of an unknown law of data, the step is a game of the map and a critic of the two laws (Fan, Zhang,
Taghvaei, Chen, 2112.02424; as a semi-dual of unbalanced transport: S-JKO, Choi, Choi, Kang, 2402.05443).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from interp.arguments import positive, real, whole
from interp.errors import OptionError, UnknownName
from interp.noise import normal_like

from . import networks
from .arguments import checked_shape
from .networks.convex import ConvexGradient
from .networks.potential import potential, slope
from .protocol import Batch, Family, Losses, Objective, Optimizer

_FIRST_VARIATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda lr: -lr,
    "reverse_kl": lambda lr: -lr.exp(),
    "js": lambda lr: -0.5 * softplus(lr),
    "chi2": lambda lr: 2 * torch.exp(-lr),
}
"""f'(rho / nu) of each divergence E_nu f(rho / nu), up to a constant, by lr = log(nu / rho):
f(r) = r log r, -log r, (r log r - (1 + r) log((1 + r) / 2)) / 2 and (r - 1)^2."""

_CONJUGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda s: torch.expm1(s),
    "chi2": lambda s: torch.where(s >= -2, s + s * s / 4, -1.0),
}
"""f*(s) = sup_r r s - f(r), of r log r - r + 1 and (r - 1)^2 over r >= 0."""

FUNCTIONALS = (*_FIRST_VARIATIONS, "mmd")


class JKO(Family):
    """Train one map a step; sample by all of them, from N(0, 1).

    With nu the data, y = T(x), x ~ rho_k, and l the logit of a discriminator of data and y,

        map     E |y - x|^2 / (2 h) + E f'(exp(-l(y)))          f' the first variation of F
        critic  E_nu softplus(-l) + E softplus(l(y)).

    With F = "mmd" there is no critic: F = E|Y - X| - E|Y - Y'| / 2, half the squared maximum mean
    discrepancy of the kernel -|x - y|. T is x + a network that starts at zero: near the identity, as a
    step's optimal map. That is the gradient of a convex function besides (Brenier 1991), which "convex" makes
    sure of by an input-convex network: Mokrov, Korotin, Li, Genevay, Solomon, Burnaev, 2106.00736;
    Alvarez-Melis, Schiff, Mroueh, 2106.00774. Theirs is an F of a known density, with the entropy from the
    Hessian's log-determinant; of a law known by its samples F is the critic's to tell here as well.

    S-JKO is ``one_map=True, semi_dual=True``: one map from N(0, 1) to the latest rho, which starts each step
    from its last self (so that a step costs one map, not k), against a potential v with a loss of its own,

        sup_v inf_T  E [|T(z) - T_k(z)|^2 / (2 h) - v(T(z))] - E_nu f*(-v).

    The semi-dual's optimum is v = -f'(rho / nu), the discriminator's log(nu / rho), which for "kl" is the
    same up to a constant; both go with one map or with many. The semi-dual's loss
    has no bound where rho lies and no data do: in runs of some hundred steps it was seen to lose modes
    that the discriminator, with the same maps, kept.

    Args:
        shape: of one data point.
        network: network(t, x) -> like x of the user's own, told t = 0 and copied for each step; or "mlp",
            "unet", "dit", "convex"; None is "mlp", as a step runs through all maps before it.
        critic: network(t, x) -> (rows,) of the user's own, or a kind, as in `networks.potential`.
        functional: the F of which the data are the minimum: "kl", "reverse_kl", "js", "chi2" or "mmd".
        h: the step, in units of |x|^2 / F; None is half the number of elements, with which a move by 1 in
            each of them costs one nat. The "mmd" is a small number and wants some 30 times as much.
        maps: how many steps.
        one_map: whether one map is trained on, instead of a new one a step.
        semi_dual: the critic's loss is the semi-dual's; "kl" or "chi2".
        critic_steps: of the critic for each one of a map.
        r1: adds (r1 / 2) E_nu |grad critic|^2 to the critic's loss, which tames a critic of laws that
            hardly meet (Mescheder, Geiger, Nowozin, 1801.04406); it then is no longer the exact ratio.
            None is 1 for images, of which the critic else soon tells all from all and says no way, and 0
            for points.
        width: of networks made here.
        lr: the largest learning rate; "convex" likes one of .01.

    Raises:
        UnknownName: a functional or a network that does not exist.
        OptionError: an option out of range, a functional that has no semi-dual here, or one convex map for
            all steps, whose gradients do not compose to a gradient.
    """

    name = "jko"
    solver_options: ClassVar[tuple[str, ...]] = ("steps",)
    no_path = (
        "its law descends a functional of laws step by step, and what lies between is found, not "
        "prescribed."
    )
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "reverse": "exact",
        "loss": "exact",
        "sample": "exact",
    }
    phase: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        critic: nn.Module | str | None = None,
        functional: str = "kl",
        h: float | None = None,
        maps: int = 4,
        one_map: bool = False,
        semi_dual: bool = False,
        critic_steps: int = 2,
        r1: float | None = None,
        width: int | None = None,
        lr: float = 1e-3,
    ) -> None:
        if functional not in FUNCTIONALS:
            raise UnknownName.of("functional", functional, FUNCTIONALS)
        if semi_dual and functional not in _CONJUGATES:
            raise OptionError(
                f"functional={functional!r} has no semi-dual here. Give one of {sorted(_CONJUGATES)}, or "
                "semi_dual=False."
            )
        if h is not None:
            positive("h", h)
        shape = checked_shape(shape)
        whole("maps", maps, 1)
        whole("critic_steps", critic_steps, 1)
        if network == "convex" and one_map:
            raise OptionError(
                'one_map=True learns the composition of all steps, and network="convex" a gradient, which '
                "that is not. Give one_map=False, or another network."
            )
        widths = networks.widths(width, network, critic)
        made, kind = networks.resolve(
            "mlp" if network is None else network,
            shape,
            width=widths[0],
            more={"convex": ConvexGradient},
        )
        judge: nn.Module | None = None
        judged: str | None = None
        if functional == "mmd":
            self.refuse_idle(
                'functional="mmd" has no critic. Leave it out, or take another functional.',
                critic=critic, critic_steps=critic_steps, r1=r1,
            )  # fmt: skip
        else:
            judge, judged = potential(critic, shape, widths[1])
            r1 = real("r1", float(len(shape) == 3) if r1 is None else r1)
        config = {
            "network": kind, "critic": judged, "functional": functional, "h": h, "maps": maps,
            "one_map": one_map, "semi_dual": semi_dual, "critic_steps": critic_steps, "r1": r1,
            "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.h = math.prod(self.shape) / 2 if h is None else h
        self.functional, self.semi_dual = functional, semi_dual
        self.critic_steps, self.steps, self.r1 = critic_steps, maps, r1 or 0.0
        copies = 1 if one_map else maps
        self.networks = nn.ModuleList(
            made if k == 0 else copy.deepcopy(made) for k in range(copies)
        )
        self.critic = judge
        # The one map as the step before left it; part of the state, so that a run resumes.
        self.last = copy.deepcopy(made).requires_grad_(False) if one_map else None
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))

    # The maps

    def reverse(self, z: Tensor, steps: int | None = None, **options: Any) -> Tensor:
        """Where all maps, or the first ``steps`` of them, carry ``z``."""
        if options:
            raise UnknownName.of("option of jko's maps", next(iter(options)), ("steps",))
        z = self.points(z)
        count = len(self.networks)
        for network in self.networks[: count if steps is None else whole("steps", steps, 0, count)]:
            z = _moved(network, z)
        return z

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """``n`` samples: the maps on rows ``first_row ...`` of the numbered normals of ``seed``."""
        return self.reverse(self.normals(n, seed, first_row), **options)

    # Training

    def stages(self) -> Sequence[str]:
        """One phase a step."""
        return tuple(f"step {k + 1}" for k in range(self.steps))

    def after_stage(self, step: int, total: int) -> None:
        """The law that a step has reached is where the next one starts."""
        if self.last is not None:
            self.last.load_state_dict(self.networks[0].state_dict())
        self.phase += 1

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """The critic, ``critic_steps`` times, then the map of this step."""
        how = self.optimizer(step, total)
        if self.critic is not None:
            for _ in range(self.critic_steps):
                yield Objective("critic", [*self.critic.parameters()], self.critic_loss, how)
        k = 0 if self.last is not None else int(self.phase)
        yield Objective(f"map {k + 1}", [*self.networks[k].parameters()], self.map_loss, how)

    def optimizer(self, step: int, total: int) -> Optimizer:
        """Adam for a game, betas (.5, .9): warmed up and let fall to zero in each step of the flow."""
        base = super().optimizer(*self.in_stage(step, total))
        return Optimizer(base.lr, "Adam", {"betas": (0.5, 0.9)})

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The map's loss and the critic's; neither moves the other's weights."""
        if self.critic is None:
            return {"map": self.map_loss(batch, generator)}
        return {
            "map": self.map_loss(batch, generator),
            "critic": self.critic_loss(batch, generator),
        }

    def map_loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """E |y - x|^2 / (2 h) and the first variation of F at y; the critic's weights are constants."""
        x1, _ = self.split(batch)
        x, y = self._moved(x1, generator)
        cost = (y - x).flatten(1).square().sum(1).mean() / (2 * self.h)
        if self.critic is None:
            return cost + _half_discrepancy(y.flatten(1), x1.flatten(1))
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        value = torch.func.functional_call(self.critic, weights, (x1.new_zeros(()), y))
        descent = -value if self.semi_dual else _FIRST_VARIATIONS[self.functional](value)
        return cost + descent.mean()

    def critic_loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """Of the discriminator, or of the semi-dual's potential; the map is a constant."""
        x1, _ = self.split(batch)
        with torch.no_grad():
            _, y = self._moved(x1, generator)
        assert self.critic is not None  # "mmd" has no such objective
        t = x1.new_zeros(())
        at_data, at_map = self.critic(t, x1), self.critic(t, y)
        loss: Tensor = softplus(-at_data).mean() + softplus(at_map).mean()
        if self.semi_dual:
            loss = at_map.mean() + _CONJUGATES[self.functional](-at_data).mean()
        if self.r1:
            steep = slope(self.critic, t, x1).flatten(1).square().sum(1)
            loss = loss + self.r1 / 2 * steep.mean()
        return loss

    def _moved(self, like: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """As many points as ``like`` has, where this step starts, and where its map puts them."""
        z = normal_like(like, generator)
        if self.last is not None:
            with torch.no_grad():
                x = _moved(self.last, z) if int(self.phase) else z
            return x, _moved(self.networks[0], z)
        with torch.no_grad():
            x = self.reverse(z, int(self.phase))
        return x, _moved(self.networks[int(self.phase)], x)


def _moved(network: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = x + network(x.new_zeros(()), x)
    return y


def _half_discrepancy(y: Tensor, x: Tensor) -> Tensor:
    """E|Y - X| - E|Y - Y'| / 2, over pairs of different rows."""
    pairs = max(1, len(y) * (len(y) - 1))
    return torch.cdist(y, x).mean() - torch.cdist(y, y).sum() / (2 * pairs)
