"""Schroedinger bridges: the most likely motion, by a Brownian motion of size sigma, between two laws.

x0 is the base and x1 the data; given both, a point is that of a Brownian bridge, with z ~ N(0, 1)

    x = (1 - t) x0 + t x1 + g z,    g = sigma sqrt(t (1 - t))

and the law of (x0, x1) is the entropic plan of |x0 - x1|^2 with 2 sigma^2. It is run from both ends,

    dX = f dt + sigma dW  forwards in t,     f = (E[x1 | x] - x) / (1 - t)
    dX = b ds + sigma dW  in s = 1 - t,      b = (E[x0 | x] - x) / t

and velocity = (f - b) / 2, score = (f + b) / sigma^2. Three ways to learn them:

    sf2m   [SF]2M: Tong, Malkin, Fatras et al., 2307.03672. Two heads on pairs from the batch's entropic
           plan: the velocity, and N = (sigma^2 / 2) score by |2 g N / sigma^2 + z|^2; f = v + N, b = N - v.
    dsbm   Iterative Markovian fitting: Shi, De Bortoli, Campbell, Doucet, 2303.16852; Peluchetti, 2304.00917.
           Two networks, of f and b. In turn one is trained on pairs which the other makes from
           data (b) or base (f); the first on independent pairs. No plan is needed.
    i2sb   Liu, Vahdat, Huang, Theodorou, Nie, Anandkumar, 2302.05872. Given pairs (x0 degraded, x1 clean),
           one network of (x - x1) / (sigma sqrt(1 - tau)), in the clock tau(t) of a noise that is largest
           in the middle: sqrt(beta) goes from sqrt(.1) half the way to sqrt(.3) and back, and
           sigma^2 = int beta = .141. There the noise has a spread of sigma / 2: where sigma is near the
           spread of the data, the middle of the bridge forgets which x0 it came from.

What is regressed, and under which weight, is in `adapters.bridge_matching`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Generator, Tensor, nn

import interp
from interp import schedules
from interp.arguments import real, spread, whole
from interp.couplings import from_config
from interp.errors import DataError, OptionError, UnknownName, Unsupported
from interp.noise import normal_like
from interp.solvers import solve
from interp.solvers.catalogue import find
from interp.terms import PathODE, PathSDE

from .arguments import within_labels
from .bridge_matching import I2SB_SIGMA, drift_loss, i2sb_clock, score_loss, velocity_loss
from .last_rows import LastRows
from .path_family import Common, Diffusion, Guidance, Label, PathFamily
from .protocol import Batch, ExactModel, Losses, Objective

METHODS = ("sf2m", "dsbm", "i2sb")
BASES = ("normal", "samples", "pairs")


class SchroedingerBridge(PathFamily):
    """Learn the bridge's drifts both ways; sample either end from the other by its SDE or its flow.

    By an SDE method a run of diffusion sigma takes steps that are exact for a constant E[x1 | x] (or
    E[x0 | x]), the posterior's own; another diffusion is any SDE of the same marginals.

    Args:
        shape, network: as for every `PathFamily`; "dsbm" begins with two copies of the network, "sf2m"
            asks of it twice as many channels, velocity and N.
        method: one of the table's.
        sigma: the size of the Brownian motion, in the unit of the data; None is 1, I2SB's own for "i2sb".
        base: what x0 is: "normal", N(0, 1); "samples", each batch has "x0" beside "x", unpaired; or
            "pairs", row by row. Sampling then starts from ``x0=``, or from those of the last 1024
            training rows, which the checkpoint keeps.
        iterations: of "dsbm", each a phase of b and a phase of f.
        simulation_steps: of the SDE that makes the pairs of "dsbm".
        common: see `adapters.path_family.Common`; the coupling is the method's.

    Raises:
        UnknownName: another method or base.
        OptionError: a sigma that is not positive, "i2sb" without pairs, a coupling or a weight,
            which are the method's, or options of "dsbm" for another method.
    """

    name = "schroedinger_bridge"
    sampler: ClassVar[Mapping[str, Any]] = {"method": "euler_maruyama", "steps": 50}

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        method: str = "sf2m",
        sigma: float | None = None,
        base: str = "normal",
        iterations: int = 4,
        simulation_steps: int = 20,
        **common: Unpack[Common],
    ) -> None:
        for kind, value, known in (("method", method, METHODS), ("base", base, BASES)):
            if value not in known:
                raise UnknownName.of(kind, value, known)
        if method == "i2sb" and base != "pairs":
            raise OptionError(
                f'i2sb learns from pairs, and base={base!r} has none. Give base="pairs" and batches with '
                'an "x0" for each "x", or take method="sf2m" or "dsbm", which need none.'
            )
        if common.get("coupling") is not None:
            raise OptionError(
                "the plan between the ends is the method's own, and a coupling was given too. Leave it out."
            )
        if "weight" in common:
            self.refuse_idle(
                "the bridge's losses have their own weights. Leave it out.", weight=common["weight"]
            )
        if method != "dsbm":
            self.refuse_idle(
                f"method={method!r} simulates no pairs. Leave it out, or take method='dsbm'.",
                iterations=iterations, simulation_steps=simulation_steps,
            )  # fmt: skip
        given = sigma
        if sigma is None:
            sigma = I2SB_SIGMA if method == "i2sb" else 1.0
        if real("sigma", sigma) == 0:
            raise OptionError(
                "sigma=0 leaves no bridge. Give a positive size; small ones near transport."
            )
        path, one = (schedules.brownian_bridge(sigma, normal) for normal in (False, True))
        if method == "i2sb":
            path, one = path.warp(i2sb_clock), one.warp(i2sb_clock)
        self.method, self.sigma, self.ends = method, float(sigma), base
        self.iterations = whole("iterations", iterations, 1)
        self.simulation_steps = whole("simulation_steps", simulation_steps, 1)
        own = {
            "method": method, "sigma": given, "base": base, "iterations": iterations,
            "simulation_steps": simulation_steps,
        }  # fmt: skip
        coupled = method == "sf2m" and base != "pairs"
        coupling = within_labels(_plan(self.sigma), common.get("classes")) if coupled else None
        options: dict[str, Any] = {**common, "coupling": coupling}
        super().__init__(
            shape, network, path, own, outputs=2 if method == "sf2m" else 1, own_base=True,
            **options,
        )  # fmt: skip
        self.config = {**self.config, "coupling": None}
        # For whoever knows not where x0 came from, the step depends on the data end alone: on this path,
        # x0 ~ N(0, 1) independent of x1, the SDE of size sigma has the drift f for every base.
        self.one_sided = one
        self.back = copy.deepcopy(self.network) if method == "dsbm" else None
        self.seen = None if base == "normal" else LastRows(self.shape)
        if self.seen is not None:
            self.prepares = 0  # an x0 that comes is not paired yet

    def exact(self) -> ExactModel:
        """The bridge: of given pairs, or of the entropic plan, at which "dsbm" stops moving too."""
        exact = super().exact()
        if self.ends == "pairs":
            pairs, plan = "as given", None
        else:
            plan = from_config(within_labels(_plan(self.sigma), self.classes))
            pairs = repr(plan) if self.ends == "normal" else f"{plan!r} of a base of samples"
        # In the clock of "i2sb" the motion is no longer of one size.
        noise = self._noise if self.method == "i2sb" else self.sigma
        return replace(exact, pairs=pairs, coupling=plan, regression=None, diffusion=noise)

    # Training

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The terms of the method by name: "velocity" and "score", "forward" and "backward", or one."""
        x0, x1, cond = self._pairs(batch, generator)
        if self.method == "dsbm":
            return {
                way: self._matched(way, x0, x1, cond, generator) for way in ("forward", "backward")
            }
        t, x, z = self._point(x0, x1, generator)
        found = self.hiding(self.network, generator)(t, x, **cond)
        if self.method == "i2sb":
            noisy = spread(self.sigma * self.path.alpha(t).sqrt(), x)
            return nn.functional.mse_loss(found, (x - x1) / noisy)
        v, n = found.chunk(2, dim=1)
        return {
            "velocity": velocity_loss(v, x0, x1, z, t, self.sigma),
            "score": score_loss(n, z, t, self.sigma),
        }

    def _matched(
        self, way: str, x0: Tensor, x1: Tensor, cond: Mapping[str, Tensor],
        generator: Generator | None,
    ) -> Tensor:  # fmt: skip
        """The regression of the drift ``way`` on the bridges of given pairs."""
        t, x, z = self._point(x0, x1, generator)
        found = self.hiding(self._net(way), generator)(t, x, **cond)
        return drift_loss(way, found, x0, x1, z, t, self.sigma)

    def _point(
        self, x0: Tensor, x1: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        times = self.regression.times
        t = times.draw(len(x1), generator=generator, device=x1.device)
        z = normal_like(x1, generator)
        return t, self.path.at(t, x0, x1, z), z

    def _pairs(
        self, batch: Batch, generator: Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x0, x1 and the label, paired as the method begins."""
        x0, x1, cond = self.drawn(batch, generator)
        paired = self.ends == "pairs" or (self.ends == "normal" and x0 is not None)
        if x0 is None and self.ends != "normal":
            raise DataError(
                f'this bridge was made with base={self.ends!r} and the batch has no "x0". Add the base '
                'points beside "x", or make it with base="normal".'
            )
        x0 = normal_like(x1, generator) if x0 is None else x0
        if self.seen is not None and self.training:
            self.seen.add(x0)
        if paired:
            return x0, x1, cond
        if self.ends == "samples" and self.method == "dsbm":  # rows that are neighbours by chance
            order = torch.randperm(len(x0), generator=generator, device=x0.device)
            return x0[order], x1, cond
        coupling = self.regression.coupling
        if coupling is not None:
            x0, x1, *rest = coupling(x0, x1, labels=cond.get("label"), generator=generator)
            cond = {"label": rest[0]} if rest else {}
        return x0, x1, cond

    def stages(self) -> Sequence[str]:
        """The phases: "train"; of "dsbm" "backward 1", "forward 1", "backward 2" and so on."""
        if self.method != "dsbm":
            return super().stages()
        every = range(1, self.iterations + 1)
        return tuple(f"{way} {k}" for k in every for way in ("backward", "forward"))

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """Of "dsbm" the drift of the phase, on pairs which the other one makes; else the loss."""
        if self.method != "dsbm":
            yield from super().objectives(step, total)
            return
        stage = self.stage(step, total)
        way = stage.split()[0]
        free = tuple(p for p in self._net(way).parameters() if p.requires_grad)
        loss = functools.partial(self._refitted, way=way, simulated=stage != "backward 1")
        yield Objective(way, free, loss, self.optimizer(*self.in_stage(step, total)))

    def _refitted(
        self, batch: Batch, generator: Generator | None = None, *, way: str, simulated: bool
    ) -> Tensor:
        x0, x1, cond = self._pairs(batch, generator)
        if simulated:
            x0, x1 = self.pair(way, x0, x1, cond, generator)
        return self._matched(way, x0, x1, cond, generator)

    @torch.no_grad()
    def pair(
        self, way: str, x0: Tensor, x1: Tensor, cond: Mapping[str, Tensor] | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The pairs that the drift ``way`` is trained on: one end kept, the other run by the other."""
        seed = torch.randint(2**62, (), generator=generator, device=x1.device)
        towards = way == "backward"  # towards the data
        term = self.term(1.0, self.sigma, towards=towards)
        x = solve(
            term, x0 if towards else x1, method="euler_maruyama", steps=self.simulation_steps,
            seed=int(seed), cond=cond,
        ).x  # fmt: skip
        return (x0, x) if towards else (x, x1)

    # Sampling

    def supports(self, verb: str) -> bool | str:
        """As the class says; "i2sb" goes one way, and no density starts from an unknown base."""
        found = super().supports(verb)
        lost = {"forward": self.method == "i2sb", "log_prob": self.ends != "normal"}
        return False if lost.get(verb, False) else found

    @property
    def model(self) -> Callable[..., Any]:
        """(velocity, score) of (t, x, label): what ``view=("velocity", "score")`` takes."""
        self._require_both("velocity and score")

        def both(t: Tensor, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
            f, b = self._drifts(t, x, cond)
            return (f - b) / 2, (f + b) / self.sigma**2

        return both

    def term(
        self,
        guidance: Guidance = 1.0,
        diffusion: Diffusion = None,
        towards: bool = True,
    ) -> PathODE | PathSDE:
        """The flow, or with ``diffusion`` an SDE, towards the data or (in s = 1 - t) the base."""

        def guided(model: Callable[..., Any]) -> Callable[..., Any]:
            if callable(guidance):
                return guidance(model)
            return model if guidance == 1 else interp.guide(model, {"label": None}, guidance)

        if diffusion is None:
            self._require_both("the flow")
            return self.path.ode(guided(lambda t, x, **cond: self.model(t, x, **cond)[0]))
        if diffusion == self.sigma:
            end = guided(self._data if towards else self._start_of)
            return self.one_sided.sde(end, "data", diffusion=self._noise)
        sign, path = (1, self.path) if towards else (-1, self.path.reverse())
        both = self.model

        def turned(which: int) -> Callable[..., Any]:
            def one(t: Tensor, x: Tensor, **cond: Tensor) -> Tensor:
                found: Tensor = both(t if towards else 1 - t, x, **cond)[which]
                return found if which else sign * found

            return guided(one)

        return path.sde(turned(0), "velocity", diffusion=diffusion, score=turned(1))

    def start(self, n: int, seed: int | None = None, first_row: int = 0) -> Tensor:
        """Points of N(0, 1), or of the base that training saw, drawn with replacement."""
        if self.seen is None:
            return super().start(n, seed, first_row)
        return self.seen.draw(n, seed, first_row)

    def carried(
        self, x0: Tensor, label: Label, guidance: Guidance, diffusion: Diffusion,
        options: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """By the bridge's SDE or its flow; ``diffusion`` is sigma where it is None."""
        return self._travel(True, x0, label, guidance, diffusion, options)

    def forward(self, x: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The base end of each ``x``: by the flow, dopri5 unless told, or by an SDE method's run."""
        if not self.supports("forward"):
            raise self._unsupported("forward")
        diffusion = options.pop("diffusion", None)
        return self._travel(False, x, label, 1.0, diffusion, {"method": "dopri5", **options})

    def reverse(self, z: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The data end of each ``z``: by the flow, dopri5 unless told, or by an SDE method's run."""
        diffusion = options.pop("diffusion", None)
        usual = self.sampler if self.method == "i2sb" else {"method": "dopri5"}
        return self._travel(True, z, label, 1.0, diffusion, {**usual, **options})

    def _travel(
        self, towards: bool, x: Tensor, label: Label, guidance: Guidance, diffusion: Diffusion,
        options: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """A run towards the data, or towards the base."""
        if find(options["method"]).kind == "sde":
            term = self.term(guidance, self.sigma if diffusion is None else diffusion, towards)
            return self._solve(term, x, label, **options)
        ends = {} if towards else {"t": (1.0, 0.0)}
        return self._solve(self.term(guidance), x, label, **{**ends, **options})

    # The drifts

    def _net(self, way: str) -> nn.Module:
        return self.network if way == "forward" or self.back is None else self.back

    def _drifts(self, t: Tensor, x: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """f and b."""
        if self.back is not None:
            return self.network(t, x, **cond), self.back(t, x, **cond)
        v, n = self.network(t, x, **cond).chunk(2, dim=1)
        return v + n, n - v

    def _data(self, t: Tensor, x: Tensor, **cond: Tensor) -> Tensor:
        """E[x1 | x] = x + (1 - t) f."""
        left = spread(self.path.alpha(t.double()), x)
        if self.method == "i2sb":
            noisy: Tensor = x - self.sigma * left.sqrt() * self.network(t, x, **cond)
            return noisy
        f = self.network(t, x, **cond) if self.back is not None else self._drifts(t, x, cond)[0]
        data: Tensor = x + left * f
        return data

    def _start_of(self, s: Tensor, x: Tensor, **cond: Tensor) -> Tensor:
        """E[x0 | x] = x + t b at t = 1 - s."""
        self._require_both("the way to the base")
        t = 1 - s
        b = self.back(t, x, **cond) if self.back is not None else self._drifts(t, x, cond)[1]
        base: Tensor = x + spread(t, x) * b
        return base

    def _noise(self, t: Tensor) -> Tensor:
        """The size of the Brownian motion in the path's clock, sigma sqrt(tau')."""
        return self.sigma * torch.as_tensor(self.path.coefficients(t).dbeta).expand(t.shape).sqrt()

    def _require_both(self, what: str) -> None:
        if self.method == "i2sb":
            raise Unsupported(
                f"{what} takes both drifts, and i2sb learns the one towards the data. Sample by an SDE "
                'method such as euler_maruyama, or take method="sf2m" or "dsbm" with base="pairs".'
            )


def _plan(sigma: float) -> dict[str, Any]:
    """The config of the plan that a bridge has between its ends."""
    return {"name": "schroedinger_bridge", "sigma": sigma}
