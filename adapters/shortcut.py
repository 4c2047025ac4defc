"""Shortcut models: a network told its step size, two steps of which it learns to take as one.

Frans, Hafner, Levine, Abbeel, 2410.12557. Their time runs as ours, on the linear path; s(t, d, x) is the
mean velocity of a step from t to t + d.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import Interpolant
from interp.arguments import real, whole
from interp.errors import OptionError

from .arguments import as_path
from .few_step import FewStep, follow, rowwise
from .path_family import Common
from .protocol import Batch, Optimizer


class Shortcut(FewStep):
    """A share of rows learns s(t, 2d, x) = sg[(s(t, d, x) + s(t + d, d, x')) / 2], the rest dI/dt.

    x' = x + d s(t, d, x) is where the first step ends,
    d = 1/128, 1/64, ..., 1/2 and t is on d's grid of 2d; the steps of the target are those of an average
    of the network, and x and the target are cut to +-4. A step of 1/128 counts as none: the network is told
    d = 0, and Euler's method is its finest sampler. In 1, 2, 4, ... steps every step size was trained.

    The defaults are the paper's (table 3 and its code): an eighth of the rows, AdamW with weight decay 0.1.
    Theirs told log2(1/d); ours is told d, by sines and cosines. Theirs guided the targets with labels; here
    guidance is at sampling alone. Ours, for short runs: the average has a decay of 0.95, not 0.999. What one
    step does is learned from two, these from four, down to 128, and each of these targets lags as long as the
    average remembers: with theirs and lr 1e-3, half of the present one, samples of digits by one step after
    1500 steps were recognised in 18 of 100 cases, not in 28.

    Args:
        shape, network: as for every `PathFamily`; the network is ``network(t, r, x[, label])``, r = t + d.
        path: the name of a path, its config, or an Interpolant; the paper's is "linear".
        sections: how many finest steps there are, a power of 2.
        share: of rows that learn from two steps.
        decay: of the average.
        clip: where x and targets of two steps are cut.
        common: see `adapters.path_family.Common`; ``times`` is of the rows of flow matching.

    Raises:
        OptionError: sections that are no power of 2, a share or decay out of range; and as `PathFamily`.
    """

    name = "shortcut"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        path: Interpolant | str | Mapping[str, object] = "linear",
        sections: int = 128,
        share: float = 0.125,
        decay: float = 0.95,
        clip: float = 4.0,
        **common: Unpack[Common],
    ) -> None:
        path = as_path(path)
        whole("sections", sections, 2)
        if sections & (sections - 1):
            raise OptionError(
                f"sections={sections} cannot be halved to 1. Give a power of 2, such as 128."
            )
        if not (0 <= share <= 1 and 0 <= decay < 1) or real("clip", clip) == 0:
            raise OptionError(
                f"share={share}, decay={decay} and clip={clip} do not fit. Give a share in [0, 1], a decay "
                "in [0, 1) and a positive clip."
            )
        if share == 0:
            self.refuse_idle(
                "share=0 has no rows of two steps. Leave it out, or give a share.", decay=decay, clip=clip
            )  # fmt: skip
        own = {"sections": sections, "share": share, "decay": decay, "clip": clip}
        super().__init__(
            shape, network, path, {"path": path.config, **own}, embedding={"times": 2}, **common
        )
        self.view = "mean_velocity"
        self.sections, self.share, self.decay, self.clip = sections, share, decay, clip
        self.average = copy.deepcopy(self.network).requires_grad_(False)

    def mapping(self, t: Tensor, r: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The mean velocity; a step of the finest size, or less, is told as none."""
        return self._told(self.network, t, r, x, cond)

    def _told(
        self, network: nn.Module, t: Tensor, r: Tensor, x: Tensor, cond: Mapping[str, Any]
    ) -> Tensor:
        fine = (r - t).abs() <= 1.001 / self.sections
        found: Tensor = network(t, torch.where(fine, t, r), x, **cond)
        return found

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The mean squared error of both kinds of rows."""
        x0, x1, cond = self.ends(batch, generator)
        rows, device = len(x1), x1.device
        t = self.regression.times.draw(rows, generator=generator, device=device)
        u = torch.rand(3, rows, generator=generator, device=device, dtype=torch.float64)
        doubled = u[0] < self.share
        coarse = (u[1] * math.log2(self.sections)).floor()  # 2d = 2^-coarse
        d = torch.where(doubled, 0.5 ** (coarse + 1), 0.0)
        t = torch.where(doubled, (u[2] * 2**coarse).floor() * 2 * d, t)
        z = self.latent(x1, generator)
        x = self.path.at(t, x0, x1, z)
        target = torch.empty_like(x)
        if not bool(doubled.all()):
            some = [None if s is None else s[~doubled] for s in (t, x0, x1, z)]
            target[~doubled] = self.path.rate(*some)  # type: ignore[arg-type]
        if bool(doubled.any()):
            told = {name: value[doubled] for name, value in cond.items()}
            target[doubled] = self.target(t[doubled], d[doubled], x[doubled], told)
        found = self.mapping(t.to(x.dtype), (t + 2 * d).to(x.dtype), x, **cond)
        return self.weighed((found - target).square().flatten(1).mean(1), t)

    @torch.no_grad()
    def target(self, t: Tensor, d: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The mean velocity of two steps of d from t, by the average."""
        t, half, end = (s.to(x.dtype) for s in (t, t + d, t + 2 * d))
        first = self._told(self.average, t, half, x, cond)
        there = (x + rowwise(d, x) * first).clamp(-self.clip, self.clip)
        second = self._told(self.average, half, end, there, cond)
        return ((first + second) / 2).clamp(-self.clip, self.clip)

    def after_step(self, step: int, total: int) -> None:
        """The average follows; while the run is young it forgets faster, as that of training."""
        follow(self.average, self.network, min(self.decay, (1 + step) / (10 + step)))

    def optimizer(self, step: int, total: int) -> Optimizer:
        """As every family's, with the paper's weight decay."""
        usual = super().optimizer(step, total)
        return Optimizer(usual.lr, options={**usual.options, "weight_decay": 0.1})
