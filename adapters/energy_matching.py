"""Energy matching: one potential, whose slope carries noise to the data and whose depth is their law.

Balcerak, Amiranashvili, Terpin, Shit, Bogensperger, Kaltenbach, Koumoutsakos, Menze, 2504.10612. Their
time runs as ours. There is no time in V: far from the data -grad V is the velocity of optimal
transport, near them exp(-V / eps) is their density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

import interp
from interp import schedules
from interp.arguments import positive, real, spread, whole
from interp.errors import OptionError
from interp.losses import Regression
from interp.noise import normal_like
from interp.solvers import solve
from interp.solvers.catalogue import find
from interp.weights import Weight

from .arguments import given, recorded
from .networks.potential import potential, slope
from .protocol import Batch, Family, Losses

_ZERO = torch.zeros(())


class EnergyMatching(Family):
    """Fit V by transport, then by contrast; sample dX = -grad V dt + sqrt(2 eps(t)) dW, to past t = 1.

    Phase "flow": E w(t) |grad V(x_t) + x1 - x0|^2 on the straight path between pairs of optimal
    transport. Phase "contrast" adds contrast (E V(data) - E V(negatives)), negatives being ends of
    ``chain_steps`` steps of ``step_size``, half of them begun at data, where the clock of eps stands at
    t = 1, and half at noise, where it runs evenly from 0 to 1, as in the authors' code. eps is 0 up to
    t = cutoff, then rises in a line to ``temperature`` at t = 1 and stays; w is 1 up to the cutoff, then
    falls in a line to 0 at 1.

    The authors' code takes temperature .01, contrast 1e-3 (in two dimensions), cutoff 1 or .9, and
    negatives by 200 steps of .01; steps of .05 are ours, for as long a time in a fifth of the calls.

    Args:
        shape: of one data point.
        network: network(t, x) -> (rows,) of the user's own, told t = 0 at all times; or "mlp", "unet" or
            "dit", of which V = x . network(0, x); None is "mlp".
        temperature: eps_max, at which exp(-V / eps) is the law of the data.
        cutoff: where noise sets in, in (0, 1].
        contrast: the weight of the contrastive term.
        contrast_share: the share of training that has it; 0 leaves it out.
        negatives: how many chains a step has.
        chain_steps: of a negative.
        step_size: of the negatives' dynamics and of `sample`.
        until: where `sample` ends, 1 or more: later the longer the contrast was trained, as what lies
            past t = 1 is its work.
        clamp: the contrastive term goes no lower than -clamp, so that V cannot run off; the code's.
        coupling: pairs noise and data; a name of `interp.couplings.names`, a mapping, or None.
        width: of a network made here.
        lr: the largest learning rate.

    Raises:
        OptionError: an option out of range.
        UnknownName: a network or a coupling that does not exist.
    """

    name = "energy_matching"
    no_path = (
        "one potential without time carries noise to data and rests in their density; the velocity of a "
        "path depends on time."
    )
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode",
        "reverse": "ode",
        "loss": "exact",
        "sample": "exact",
    }
    phase: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        temperature: float = 0.01,
        cutoff: float = 0.9,
        contrast: float = 1e-3,
        contrast_share: float = 0.2,
        negatives: int = 64,
        chain_steps: int = 40,
        step_size: float = 0.05,
        until: float = 1.25,
        clamp: float = 1.0,
        coupling: Any = "optimal_transport",
        width: int | None = None,
        lr: float = 1e-3,
    ) -> None:
        numbers = {
            "temperature": temperature, "contrast": contrast, "step_size": step_size, "clamp": clamp,
        }  # fmt: skip
        for name, value in numbers.items():
            positive(name, value)
        if (
            not 0 < real("cutoff", cutoff) <= 1
            or not 0 <= real("contrast_share", contrast_share) < 1
        ):
            raise OptionError(
                f"cutoff={cutoff} and contrast_share={contrast_share} do not fit. Give a cutoff in "
                "(0, 1] and a share in [0, 1)."
            )
        if contrast_share == 0:
            self.refuse_idle(
                "contrast_share=0 leaves the contrast out. Leave it out too, or give a share.",
                contrast=contrast, negatives=negatives, chain_steps=chain_steps, clamp=clamp,
            )  # fmt: skip
        given("coupling", coupling)
        real("until", until, 1.0)
        whole("negatives", negatives, 2)
        whole("chain_steps", chain_steps, 1)
        made, kind = potential(network, shape, width, constant=False)
        config = {
            "network": kind, "cutoff": cutoff, "contrast_share": contrast_share, **numbers,
            "negatives": negatives, "chain_steps": chain_steps, "until": until,
            "coupling": recorded(coupling), "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.network = made
        self.temperature, self.cutoff, self.until = temperature, cutoff, until
        self.contrast, self.contrast_share, self.clamp = contrast, contrast_share, clamp
        self.negatives, self.chain_steps, self.step_size = negatives, chain_steps, step_size
        fading = Weight(lambda lam, rate: 1 - self._ramp(torch.sigmoid(lam / 2)), "velocity")
        self.regression = Regression(
            schedules.linear(), weight="simple" if cutoff == 1 else fading, coupling=coupling
        )
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))

    # The potential

    def energy(self, x: Tensor) -> Tensor:
        """V of each row: (rows,). -V / temperature is the log density of the data up to a constant."""
        return self._energy(self.points(x))

    def _energy(self, x: Tensor) -> Tensor:
        value: Tensor = self.network(_ZERO.to(x), x)
        return value

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """-grad V, whatever t."""
        return -slope(self.network, _ZERO.to(x), x)

    def boltzmann(self, temperature: float | None = None) -> interp.Energy:
        """The law exp(-V / temperature), for chains and for arithmetic with others."""
        return interp.Energy(self._energy, temperature or self.temperature)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(2 eps(t))."""
        return (2 * self.temperature * self._ramp(t)).sqrt()

    def _ramp(self, t: Tensor) -> Tensor:
        """eps(t) / temperature: 0 up to the cutoff, then a line to 1 at t = 1."""
        if self.cutoff == 1:
            return (t >= 1).to(t.dtype)
        return ((t - self.cutoff) / (1 - self.cutoff)).clamp(0, 1)

    # Training

    def stages(self) -> Sequence[str]:
        """The phases: "flow", and then "contrast"."""
        return ("flow", "contrast") if self.contrast_share else ("flow",)

    def stage(self, step: int, total: int) -> str:
        """The phase of a step: the last ``contrast_share`` of them have the contrast."""
        first = max(1, round((1 - self.contrast_share) * total))
        return self.stages()[-1] if step >= first else "flow"

    def after_stage(self, step: int, total: int) -> None:
        """The flow is learned: the contrast begins."""
        self.phase += 1

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The transport's loss, and in the second phase the contrast's."""
        x1, _ = self.split(batch)
        flow: Tensor = self.regression(self.velocity, x1, generator=generator)
        if not int(self.phase):
            return {"flow": flow}
        negatives = self._negatives(x1, generator)
        gap = self._energy(x1).mean() - self._energy(negatives).mean()
        return {"flow": flow, "contrast": (self.contrast * gap).clamp(min=-self.clamp)}

    @torch.no_grad()
    def _negatives(self, x1: Tensor, generator: Generator | None) -> Tensor:
        """Ends of the dynamics: half begun at data and t = 1, half at noise and t = 0."""
        half = min(self.negatives // 2, len(x1))
        x = torch.cat([x1[:half], normal_like(x1[:half], generator)])
        h, started = self.step_size, torch.tensor([1.0] * half + [0.0] * half, dtype=torch.float64)
        for k in range(self.chain_steps):
            t = started + (1 - started) * (k + 1) / self.chain_steps
            noise = spread(self.diffusion(t), x) * math.sqrt(h)
            x = x + h * self.velocity(t, x) + noise * normal_like(x, generator)
        return x

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        until: float | None = None,
        **options: Any,
    ) -> Tensor:
        """``n`` samples from N(0, 1): by the dynamics, by its flow alone, or by the flow and a chain.

        Args:
            n: how many rows.
            seed: of the noise; None draws one.
            first_row: the number of the first row.
            until: where the dynamics end, 1 or more; None is the family's own.
            options: of `interp.solve`. A method for SDEs (euler_maruyama unless told) runs the
                dynamics to t = until; one for ODEs its flow to t = 1; a chain (langevin, mala, hmc,
                underdamped) runs on exp(-V / temperature) from where the flow ends.
        """
        seed = interp.noise.fresh_seed() if seed is None else seed
        x = self.normals(n, seed, first_row)
        rows: dict[str, Any] = {"seed": seed, "first_row": first_row}
        method = find(options.setdefault("method", "euler_maruyama"))
        if method.kind == "chain":
            x = self.reverse(x)
            options = {"steps": 200, "step_size": self.step_size, **options}
            return solve(self.boltzmann(), x, **rows, **options).x
        end = self.until if until is None else real("until", until, 1.0)
        t = (0.0, 1.0 if method.kind == "ode" else end)
        if not method.adaptive and not {"steps", "grid"} & options.keys():
            options["steps"] = math.ceil((t[1] - t[0]) / self.step_size)
        if method.kind == "ode":
            return solve(interp.ODE(self.velocity), x, t=t, **options).x
        return solve(interp.SDE(self.velocity, self.diffusion), x, t=t, **rows, **options).x

    @torch.no_grad()
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Where the flow dx/dt = -grad V carries ``x`` from t = 1 back to 0."""
        x = self.points(x)
        return solve(interp.ODE(self.velocity), x, t=(1.0, 0.0), **options).x

    @torch.no_grad()
    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """Where the flow dx/dt = -grad V carries ``z`` from t = 0 to 1."""
        z = self.points(z)
        return solve(interp.ODE(self.velocity), z, t=(0.0, 1.0), **options).x
