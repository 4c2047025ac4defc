"""Rectified flow: flow matching, then again on the pairs that its own flow makes.

Liu, Gong, Liu, 2209.03003. Their time runs as ours, and the path is the straight one. With v the
velocity so far, reflow draws x0 ~ N(0, 1), carries it to x1 by the flow of v, and regresses x1 - x0 on
these pairs as they stand: convex transport costs do not rise, and paths straighten. Distillation then
regresses x1 on x0 + v(0, x0), so that one Euler step is the whole flow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import schedules
from interp.arguments import whole
from interp.solvers import solve

from .path_family import Common, PathFamily
from .protocol import Batch, ExactModel, Optimizer


class RectifiedFlow(PathFamily):
    """Minimise E |network(t, (1 - t) x0 + t x1) - (x1 - x0)|^2 over independent, then over flown pairs.

    Args:
        shape, network: as for every `PathFamily`.
        reflows: how often the pairs are made anew.
        distil: whether a last phase trains the one Euler step from t = 0.
        pairs: how many each phase has: row i of a phase is a function of (phase, i) and the weights
            that the phase began with.
        pair_steps: Heun steps of the flow that makes them.
        common: see `adapters.path_family.Common`. Training has an equal share of steps a phase.
    """

    name = "rectified_flow"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        reflows: int = 1,
        distil: bool = False,
        pairs: int = 10_000,
        pair_steps: int = 16,
        **common: Unpack[Common],
    ) -> None:
        self.reflows, self.distil = whole("reflows", reflows, 0), bool(distil)
        self.pairs = whole("pairs", pairs, 1)
        self.pair_steps = whole("pair_steps", pair_steps, 1)
        if not (self.reflows or self.distil):
            self.refuse_idle(
                "reflows=0 without distil makes no pairs. Leave it out, or give reflows=1.",
                pairs=pairs, pair_steps=pair_steps,
            )  # fmt: skip
        own = {"reflows": reflows, "distil": distil, "pairs": pairs, "pair_steps": pair_steps}
        super().__init__(shape, network, schedules.linear(), own, **common)
        # The flow that made the pairs of the phase; part of the state, so that a run resumes.
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))
        self._made: tuple[int, Tensor, Tensor, Tensor | None] | None = None

    phase: Tensor

    def exact(self) -> ExactModel:
        """As every `PathFamily` in the first phase; then on pairs that the flow of the one before made."""
        phase, exact = int(self.phase), super().exact()
        if not phase:
            return exact
        pairs = f"{self.stages()[phase]} of {exact.pairs} pairs"
        return replace(exact, pairs=pairs, coupling=None)

    def stages(self) -> Sequence[str]:
        """The phases: "flow", then "reflow 1" ..., then "distil"."""
        again = tuple(f"reflow {k + 1}" for k in range(self.reflows))
        return ("flow", *again, *(("distil",) if self.distil else ()))

    def optimizer(self, step: int, total: int) -> Optimizer:
        """As for every family, over each phase anew."""
        return super().optimizer(*self.in_stage(step, total))

    def after_stage(self, step: int, total: int) -> None:
        """The flow of the phase that ended becomes the one that makes the next one's pairs."""
        self.teacher.load_state_dict(self.network.state_dict())
        self.phase += 1

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The loss of the phase; after the first the batch says only how many rows."""
        if not int(self.phase):
            return super().loss(batch, generator)
        x0, x1, label = self._own_pairs(len(self.split(batch)[0]), generator)
        if self.distil and int(self.phase) == len(self.stages()) - 1:
            t = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
            found: Tensor = self.network(t, x0, **({} if label is None else {"label": label}))
            return nn.functional.mse_loss(x0 + found, x1)
        return super().loss(
            {"x": x1, "x0": x0, **({} if label is None else {"label": label})}, generator
        )

    def spread_levels(self, x1: Tensor, generator: Generator | None) -> Tensor:
        """As for every family in the first phase; what a flow has made lies on no grid."""
        return x1 if int(self.phase) else super().spread_levels(x1, generator)

    def _own_pairs(
        self, rows: int, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Some of the phase's pairs."""
        _, x0, x1, label = self._flown()
        at = torch.randint(self.pairs, (rows,), generator=generator, device=x0.device)
        return x0[at], x1[at], None if label is None else label[at]

    @torch.no_grad()
    def _flown(self) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """The pairs of the phase, made when they are first asked for."""
        phase, like = int(self.phase), self.like
        if self._made is None or self._made[0] != phase or self._made[1].device != like.device:
            x0 = self.normals(self.pairs, phase)
            label = None
            if self.classes is not None:
                label = torch.arange(self.pairs, device=like.device) % self.classes
            x1 = torch.empty_like(x0)
            for at in torch.split(torch.arange(self.pairs, device=like.device), 500):
                cond = {} if label is None else {"label": label[at]}
                term = self.path.ode(self.teacher)
                x1[at] = solve(term, x0[at], method="heun", steps=self.pair_steps, cond=cond).x
            self._made = phase, x0, x1, label
        return self._made

    @torch.no_grad()
    def straightness(
        self, n: int = 512, *, seed: int = 0, steps: int = 32, **options: Any
    ) -> float:
        """S = E int_0^1 |x1 - x0 - v(t, x_t)|^2 dt a dimension, along the flow; 0 where it is straight.

        Eq. (4) of the paper, by the midpoint rule on ``steps`` cells.
        """
        x0 = self.start(n, seed)
        t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        options = {"method": "rk4", "steps": 2 * steps, **options}
        flow = solve(self.term(), x0, save_at=[*t.tolist(), 1.0], **options)
        moved, total = flow.x - x0, 0.0
        for time, x in zip(t, flow.xs, strict=False):
            v: Tensor = self.network(time, x)
            total += float((moved - v).square().mean()) / steps
        return total
