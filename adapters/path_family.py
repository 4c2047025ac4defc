"""One network of one view on a path with a Gaussian base: what every such family shares.

A family of this kind is a page: it names its path, what its network is regressed on under which
weight and law of time, and how it samples. The verbs are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Generator, Tensor, nn

import interp
from interp.arguments import real
from interp.base import IsotropicNormal
from interp.couplings import couple
from interp.errors import DataError, OptionError
from interp.likelihood import dequantise, level_width
from interp.losses import Regression
from interp.noise import normal_like
from interp.solvers import solve
from interp.solvers.catalogue import find
from interp.terms import PathMap, PathODE, PathSDE

from . import networks
from .arguments import check_label, filled, given, recorded
from .protocol import Batch, ExactModel, Family

Label = Tensor | Sequence[int] | int | None
Guidance = float | Callable[[Callable[..., Any]], Callable[..., Any]]
"""A scale, or what `interp.guidance` makes of the family's model."""


Diffusion = float | str | Callable[[Tensor], Tensor] | None
"""The size of an SDE's noise, None where it is the family's own."""


class Common(TypedDict, total=False):
    """The options that every family of a path takes beside its own.

    Attributes:
        classes: the number of labels; None for a model without them.
        label_dropout: how often training hides a label, so that the network also learns to do
            without one (Ho, Salimans, 2207.12598).
        levels: the number of grey levels of data on a grid over [-1, 1]: training then spreads
            each level evenly over its width, and `bits_per_dim` is defined.
        width: of a network made here; None for its own default.
        lr: the largest learning rate.
        weight: of the loss, a name of `interp.losses.weights` or a mapping with it and its options.
        times: the law of t, a name of `interp.times.names` or such a mapping.
        coupling: pairs noise and data, a name of `interp.couplings.names` or such a mapping; None
            leaves them independent. A batch with an "x0" is paired already.
    """

    classes: int | None
    label_dropout: float
    levels: int | None
    width: int | None
    lr: float
    weight: Any
    times: Any
    coupling: Any


class PathFamily(Family):
    """Minimise E w(t) |model(t, I_t, label) - target|^2 on a path; sample by its flow or its SDE.

    Args:
        shape: of one data point.
        network: ``network(t, x)``, or with ``classes`` ``network(t, x, label)`` where a label of
            ``classes``, or None, stands for none; or "unet", "mlp"; None chooses by shape.
        path: with a Gaussian base, unless ``own_base``.
        own: the family's own options, for the config.
        view: what the network, or what `precondition` makes of it, returns.
        time: what the network is told; see `interp.Interpolant.ode`.
        precondition: options of `interp.precondition`; None leaves the network alone.
        outputs: how many tensors of x's shape the network gives, along the first axis of a point.
        own_base: whether the family itself says what x0 is, as under a coupling beside a latent, where
            the path cannot: x0 ~ N(0, 1) is not independent of x1.
        embedding: how a network made here is told its time, or its two; see `networks.resolve`.
        common: see `Common`; what is missing is the family's ``defaults``, then that of
            `interp.losses.Regression`.

    Attributes:
        defaults: of the options in `Common`, by family.
        sampler: the options of `interp.solve` by which the family samples where nothing is asked.
        diffusion: the noise of its SDE, for methods that integrate SDEs; None where it must be told.
        data_time: where runs that begin at data begin, 1 but for a network that knows no clean data.
        dequantises: whether training spreads grey levels over their width.

    Raises:
        UnknownName: a kind of network, a weight, law or coupling that does not exist.
        OptionError: an option out of range, or a path without a Gaussian base.
    """

    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode",
        "reverse": "ode",
        "loss": "exact",
        "sample": "ode",
        "log_prob": "ode",
    }
    defaults: ClassVar[Common] = {}
    sampler: ClassVar[Mapping[str, Any]] = {"method": "heun", "steps": 32}
    diffusion: ClassVar[float | str | None] = None
    data_time: float = 1.0
    dequantises: ClassVar[bool] = True

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None,
        path: interp.Interpolant,
        own: Mapping[str, Any],
        *,
        view: str = "velocity",
        time: str | tuple[str, int] = "t",
        precondition: Mapping[str, Any] | None = None,
        outputs: int = 1,
        own_base: bool = False,
        embedding: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        options = filled(self.name, Common, _COMMON, self.defaults, common)
        classes, levels, width = options["classes"], options["levels"], options["width"]
        loss = {name: options[name] for name in ("weight", "times", "coupling")}
        for option, value in loss.items():
            given(option, value)
        if not real("label_dropout", options["label_dropout"]) < 1:
            raise OptionError(
                f"label_dropout is {options['label_dropout']}. Give a share in [0, 1)."
            )
        if classes is None:
            self.refuse_idle(
                "the model has no labels to hide. Give classes=..., or leave it out.",
                label_dropout=options["label_dropout"],
            )
        if levels is not None:
            level_width(levels)
        if not (path.gaussian_base or own_base):
            raise OptionError(
                f"this path was built with gaussian_base=False, and {self.name} draws x0 ~ N(0, 1). "
                "Build it with gaussian_base=True."
            )
        made, kind = networks.resolve(network, shape, classes, width, outputs, **(embedding or {}))
        if precondition is not None:
            interp.precondition(made, path, **precondition)  # what makes no sense is refused now
        config = {
            "network": kind, **own, "classes": classes, "width": width,
            "label_dropout": options["label_dropout"], "levels": levels,
            **{option: recorded(value) for option, value in loss.items()},
        }  # fmt: skip
        super().__init__(shape, config, lr=options["lr"])
        self.network, self.path, self.classes = made, path, classes
        self.precondition = precondition
        self.view, self.time = view, time
        self.regression = Regression(path, view, time=time, **loss)
        self.prepares = 0 if options["coupling"] is None else 2
        self.label_dropout, self.levels = options["label_dropout"], levels

    @classmethod
    def usual(cls) -> dict[str, Any]:
        """The options' defaults, by name: the family's own and those in `Common`."""
        return {**super().usual(), **_COMMON, **cls.defaults}

    def exact(self) -> ExactModel:
        """The view of the path under the coupling that its network is regressed on."""
        coupling = self.regression.coupling
        if getattr(coupling, "name", "") == "independent":
            coupling = None
        return ExactModel(
            self.path, self.view, "independent" if coupling is None else repr(coupling), coupling,
            self.regression, self.sampler, self.diffusion,
        )  # fmt: skip

    @property
    def model(self) -> Callable[..., Any]:
        """What terms and losses call: the network, or what `precondition` makes of it."""
        if self.precondition is None:
            return self.network
        return interp.precondition(self.network, self.path, **self.precondition)

    def prepare(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with its noise, paired by the coupling: ahead of the step that takes it."""
        coupling = self.regression.coupling
        paired = isinstance(batch, Mapping) and "x0" in batch
        return batch if coupling is None or paired else couple(coupling, batch, generator)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The mean of w(t) |model(t, I_t, label) - target|^2 over rows and elements."""
        x0, x1, cond = self.drawn(batch, generator)
        paired = x0 is not None
        if x0 is None and not self.path.gaussian_base:
            x0 = normal_like(x1, generator)
        model = self.hiding(self.model, generator)
        loss: Tensor = self.regression(model, x1, x0, cond=cond, generator=generator, paired=paired)
        return loss

    def drawn(
        self, batch: Batch, generator: Generator | None
    ) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
        """The base's points where the batch brings some, the data, and what the model is told of them.

        Where there are ``levels`` the data's are spread over their width.
        """
        x1, label = self.split(batch)
        x0 = batch.get("x0") if isinstance(batch, Mapping) else None
        if x0 is not None and len(x0 := self.points(x0)) != len(x1):
            raise DataError(f"x0 has {len(x0)} rows and x has {len(x1)}. Give as many of both.")
        x1 = self.spread_levels(x1, generator)
        return x0, x1, {} if self.classes is None else self._cond(label, x1)

    def spread_levels(self, x1: Tensor, generator: Generator | None) -> Tensor:
        """``x1`` as training sees it: grey levels, where there are any, spread over their width."""
        if self.levels is None or not self.dequantises:
            return x1
        return dequantise(x1, self.levels, generator)

    def hiding(self, model: Callable[..., Any], generator: Generator | None) -> Callable[..., Any]:
        """``model`` as training calls it: some of the labels hidden."""

        def hidden(t: Tensor, x: Tensor, label: Tensor | None = None) -> Any:
            if label is None or self.classes is None:
                return model(t, x)
            return model(t, x, label=self.some_hidden(label, generator))

        return hidden

    def some_hidden(self, label: Tensor, generator: Generator | None) -> Tensor:
        """``label`` with ``classes``, which stands for none, in place of some."""
        some = torch.rand(len(label), generator=generator, device=label.device) < self.label_dropout
        return label.masked_fill(some, self.classes or 0)

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        label: Label = None,
        guidance: Guidance = 1.0,
        diffusion: Diffusion = None,
        x0: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """``n`` samples from `start` or from ``x0``, by the flow or, where the method is one, by an SDE.

        Args:
            n: how many rows.
            seed: of the base and of the SDE's noise; None draws one.
            first_row: the number of the first row.
            label: one for all rows or one a row; None for no label.
            guidance: u + guidance (c - u) with c the velocity under the label and u without; or a function
                of the model, such as ``lambda model: interp.guidance.posterior(model, family.path, ...)``.
            diffusion: of the SDE, where the method is for SDEs; None is the family's own.
            x0: points at t = 0, as many as samples; None draws them.
            options: of `interp.solve`; those of ``sampler`` where no method is given, and as many
                steps where a method that does not adapt is given without.

        Raises:
            OptionError: labels or guidance for a model without labels, guidance without a label,
                or no label for a model that never saw a hidden one.
        """
        x0 = self._begun(n, seed, first_row, x0)
        self._check_conditions(label, guidance)
        told = {**self._sampler(options), "seed": seed, "first_row": first_row}
        return self.carried(x0, label, guidance, diffusion, told)

    def carried(
        self, x0: Tensor, label: Label, guidance: Guidance, diffusion: Diffusion,
        options: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """Where `sample` carries ``x0``; ``options`` are all of `interp.solve`."""
        kind = find(options["method"]).kind
        if kind == "sde":
            diffusion = self.diffusion if diffusion is None else diffusion
            if diffusion is None:
                raise OptionError(
                    f"{options['method']} integrates SDEs. Give diffusion=, the size of its noise."
                )
        term = self.flow_map(guidance) if kind == "map" else self.term(guidance, diffusion)
        return self._solve(term, x0, label, **options)

    @property
    def base(self) -> IsotropicNormal:
        """The law of x at t = 0, where log_prob ends: N(0, alpha(0)^2 + gamma(0)^2)."""
        path = self.path
        return path.base if path.gaussian_base else IsotropicNormal(float(path.sigma(0.0)))

    def start(self, n: int, seed: int | None = None, first_row: int = 0) -> Tensor:
        """Rows ``first_row ...`` of the numbered points that sampling starts from."""
        like = self.like
        shape = (n, *self.shape)
        return self.base.sample(shape, seed, first_row, dtype=like.dtype, device=like.device)

    def _begun(self, n: int, seed: int | None, first_row: int, x0: Tensor | None) -> Tensor:
        """Where ``n`` samples begin."""
        if x0 is None:
            return self.start(n, seed, first_row)
        if len(x0 := self.points(x0)) != n:
            raise OptionError(f"x0 has {len(x0)} rows and n is {n}. Give as many rows as samples.")
        return x0

    def forward(self, x: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The noise that the flow carries to ``x``: from the data's time to 0, by dopri5 unless told."""
        return self._solve(self.term(), x, label, **{"t": (self.data_time, 0.0), **options})

    def reverse(self, z: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The data that the flow carries ``z`` to: from t = 0 to 1, by dopri5 unless told."""
        return self._solve(self.term(), z, label, **options)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The log density of each row of ``x`` by the flow, nats: see `interp.log_prob`."""
        if not self.supports("log_prob"):
            raise self._unsupported("log_prob")
        x = self.points(x)
        term = self.term()
        options = {"base": self.base, "t": (self.data_time, 0.0), **options}
        return interp.log_prob(term, x, cond=self._cond(label, x), **options)

    def term(
        self,
        guidance: Guidance = 1.0,
        diffusion: Diffusion = None,
    ) -> PathODE | PathSDE:
        """What the family integrates: the flow of its path, or with ``diffusion`` its SDE."""
        model: Callable[..., Any] = Told(self.model, self.view, self.time, self.path)
        if callable(guidance):
            model = guidance(model)
        elif guidance != 1:
            model = interp.guide(model, {"label": None}, guidance)
        if diffusion is None:
            return self.path.ode(model)
        return self.path.sde(model, diffusion=diffusion)

    def flow_map(self, guidance: Guidance = 1.0) -> PathMap:
        """What method="map" steps, where the family is a map between two times."""
        raise OptionError(
            f'{self.name} is no map between two times, which method="map" steps. Use '
            f"method={self.sampler['method']!r}, or a family such as meanflow."
        )

    def _sampler(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What `solve` is asked for: the caller's options, filled up with the family's."""
        if "method" not in options and not {"steps", "grid"} & options.keys():
            return {**self.sampler, **options}
        filled = {"method": self.sampler["method"], **options}
        if not find(filled["method"]).adaptive and not {"steps", "grid"} & filled.keys():
            filled["steps"] = self.sampler.get("steps", 50)
        return filled

    def _check_conditions(self, label: Label, guidance: Guidance) -> None:
        if not callable(guidance):
            real("guidance", guidance, -math.inf)
        if not callable(guidance) and guidance != 1 and label is None:
            raise OptionError(
                f"guidance is {guidance} but no label is given. Give one; a model has labels if "
                "it was made with classes=..."
            )
        if self.classes is None or (label is not None and guidance == 1):
            return
        if self.label_dropout == 0:
            raise OptionError(
                "this model was made with label_dropout=0, so it knows no velocity without a label. "
                "Give a label and no guidance, or train with label_dropout=0.1."
            )

    @torch.no_grad()
    def _solve(self, term: Any, x: Tensor, label: Label, **options: Any) -> Tensor:
        x = self.points(x)
        return solve(term, x, cond=self._cond(label, x), **options).x

    def _cond(self, label: Label, x: Tensor) -> dict[str, Tensor]:
        return (
            {} if label is None else {"label": check_label(label, len(x), self.classes, x.device)}
        )


@dataclass(frozen=True)
class Told:
    """A model that says what it returns, what it is told, and on which path."""

    model: Callable[..., Any]
    view: str
    time: str | tuple[str, int]
    path: interp.Interpolant

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Any:
        return self.model(t, x, **cond)

    @property
    def exact_time(self) -> bool:
        return bool(getattr(self.model, "exact_time", False))


_COMMON: Common = {
    "classes": None, "label_dropout": 0.1, "levels": None, "width": None, "lr": 2e-3,
    "weight": "simple", "times": None, "coupling": None,
}  # fmt: skip
