"""Flow matching under a plan that may leave mass behind: outliers are not worth the way.

Chizat, Peyre, Schmitzer, Vialard, 1607.05816; Eyring, Klein, Uscidda, Palla, Kilbertus, Akata, Theis,
2311.15100. With c = |x - y|^2, mu the base N(0, 1) and nu the data, the plan minimises

    <c, pi> + tau0 KL(pi_0 | mu) + tau1 KL(pi_1 | nu)

over all positive pi, and I_t = (1 - t) x0 + t x1 is learned on pairs of pi / |pi|. Its flow carries pi_0 to
pi_1: the data without what costs much more than tau, and, where the base is relaxed too, not from
N(0, 1) but from pi_0, the base without what has nowhere near to go. Two ways out:

    relax="data"  tau0 = inf: pi_0 is N(0, 1), and sampling from it is sampling from the model
    relax="both"  a second network learns r = log d pi_0 / d mu, by telling pairs' x0 from fresh normals
                  (logistic regression, Sugiyama et al. 2012); sampling draws from N(0, 1) and keeps a point
                  with a probability proportional to exp(r)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import noise, schedules
from interp.errors import OptionError, UnknownName
from interp.noise import fresh_seed, normal_like
from interp.seeds import derive

from .arguments import checked_shape, within_labels
from .path_family import Common, PathFamily
from .protocol import Batch, Losses

RELAXED = ("data", "both")
_TRIES = 256  # then a point is kept as it is: one in exp(r) of 256 is as good as never reached


class UnbalancedOT(PathFamily):
    """Minimise E |network(t, I_t) - (x1 - x0)|^2 over pairs of the unbalanced plan of each batch.

    Args:
        shape, network: as for every `PathFamily`.
        tau: the price of leaving mass behind, in the unit of |x0 - x1|^2; None is d, the number of
            elements. A point of the data whose way costs c counts about exp(-c / tau).
        relax: "data" or "both", the table's.
        reg: of the entropy of the plan; None is a twentieth of the mean cost.
        common: see `adapters.path_family.Common`; the coupling is the family's own.

    Raises:
        OptionError: a tau or reg that is not positive, a coupling, or labels where both ends give way.
        UnknownName: another ``relax``.
    """

    name = "unbalanced_ot"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        tau: float | None = None,
        relax: str = "data",
        reg: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        if relax not in RELAXED:
            raise UnknownName.of("relax", relax, RELAXED)
        if common.get("coupling") is not None:
            raise OptionError("unbalanced_ot has a coupling of its own. Leave coupling= out.")
        classes = common.get("classes")
        if relax == "both" and classes is not None:
            raise OptionError(
                'with relax="both" each label would start from a base of its own. Take relax="data", whose '
                "base is N(0, 1) for every label, or leave the labels out (classes=null)."
            )
        price = float(math.prod(checked_shape(shape))) if tau is None else tau
        ends = (None if relax == "data" else price, price)
        plan = {"name": "unbalanced", "reg": reg, "tau": ends}
        own = {"tau": tau, "relax": relax, "reg": reg}
        options: dict[str, Any] = {**common, "coupling": within_labels(plan, classes)}
        super().__init__(shape, network, schedules.linear(), own, **options)
        self.config = {**self.config, "coupling": None}
        self.relax = relax
        self.ratio: nn.Module | None = None
        if relax == "both":
            d, width = math.prod(self.shape), 128
            self.ratio = nn.Sequential(
                nn.Flatten(), nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, 1), nn.Flatten(0),
            )  # fmt: skip

    def supports(self, verb: str) -> bool | str:
        """As the class says; the density of a learned base is not normalised."""
        return False if verb == "log_prob" and self.ratio is not None else super().supports(verb)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The flow's regression; with a learned base by name, "flow" and "ratio"."""
        if self.ratio is None:
            return super().loss(batch, generator)
        self.split(batch)  # before a plan is made of it
        if not (isinstance(batch, Mapping) and "x0" in batch):
            batch = self.prepare(batch, generator or torch.default_generator)
        x0 = self.points(batch["x0"])
        kept, fresh = self.ratio(x0), self.ratio(normal_like(x0, generator))
        softplus = nn.functional.softplus
        ratio = softplus(-kept).mean() + softplus(fresh).mean()
        return {"flow": super().loss(batch, generator), "ratio": ratio}

    @torch.no_grad()
    def start(self, n: int, seed: int | None = None, first_row: int = 0) -> Tensor:
        """Points of N(0, 1); with a learned base of pi_0, row by row by rejection."""
        if self.ratio is None:
            return super().start(n, seed, first_row)
        seed = fresh_seed() if seed is None else seed
        most = self.ratio(super().start(4096, 0)).max()
        x = super().start(n, seed, first_row)
        left = torch.arange(n, device=x.device)
        for k in range(_TRIES):
            u = noise.normal((n, 1), seed=derive(seed, "keep", k), first_row=first_row)[:, 0]
            log_u = torch.special.log_ndtr(u.to(x.device))[left]
            left = left[log_u > (self.ratio(x[left]) - most).to(log_u.dtype)]
            if not len(left):
                break
            x[left] = super().start(n, derive(seed, "again", k), first_row)[left]
        return x
