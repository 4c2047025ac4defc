"""A generative family in the latent space of another.

Rombach, Blattmann, Lorenz, Esser, Ommer, 2112.10752. An autoencoder E, R is trained first, then frozen, and
a prior, diffusion or flow matching or any family that samples, is trained on

    y = c z,   z ~ q(z|x) (a draw, not its mean),   c = 1 / std(z), over all elements of a batch.

Sampling draws y from the prior and decodes y / c. Both are families, found by their names. Latents have no
density that the data would inherit: there is no log_prob.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from interp import families, training
from interp.errors import OptionError, UnknownName, Unsupported
from interp.training import run

from .arguments import checked_shape
from .networks import evaluating
from .protocol import Batch, ExactModel, Family, Losses, Objective

Named = str | Mapping[str, Any]


class LatentDiffusion(Family):
    """``prior`` on the latents of ``autoencoder``, in two phases: "autoencoder ...", then "prior ...".

    Args:
        shape: of one data point.
        network: of the prior, as that family takes it.
        autoencoder: a family with forward and reverse: its name; a mapping of its name and options,
            {"name": "vae", "latent": [4, 4, 4]}; the folder of a run; or a family object. The last two
            count as trained.
        prior: a family that samples: its name, or such a mapping. It is told of ``classes``.
        trained: whether the autoencoder is left as it is, without a first phase; None as said there.
        share: of the steps, for the first phase.
        scale: c; None takes it from the prior's first batch and keeps it.
        classes: the number of labels, for a prior that has labels.
        levels: the number of grey levels, for an autoencoder that knows of them.
        lr: the largest learning rate of the prior; None is its own.

    Raises:
        UnknownName: a family, or an option of one, that does not exist.
        OptionError: an autoencoder without forward and reverse or for another shape, a prior that does
            not sample or cannot have the latents' shape, a number out of range.
        CheckpointError: a run that cannot be read.
    """

    name = "latent_diffusion"
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode",
        "reverse": "ode",
        "loss": "exact",
        "sample": "ode",
    }

    scale: Tensor
    scaled: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        autoencoder: Named | Family = "vae",
        prior: Named = "flow_matching",
        trained: bool | None = None,
        share: float = 0.5,
        scale: float | None = None,
        classes: int | None = None,
        levels: int | None = None,
        lr: float | None = None,
    ) -> None:
        shape = checked_shape(shape)
        if not 0 < share < 1:
            raise OptionError(
                f"share is {share}. Give the first phase's part of the steps, in (0, 1)."
            )
        if scale is not None and not (scale > 0 and math.isfinite(scale)):
            raise OptionError(f"scale is {scale}. Give a positive number, or None to estimate it.")
        first, ready = _autoencoder(autoencoder, shape, levels)
        latent = _latent_shape(first, shape)
        told = {"classes": classes, "lr": lr, "network": network}
        second = _made("prior", prior, latent, told)
        if classes is not None and getattr(second, "classes", None) != classes:
            known = getattr(second, "classes", None)
            raise OptionError(
                f"classes is {classes} and the prior {second.name} has {known or 'no'} labels. Leave classes "
                "out (classes=null), or take a prior with as many."
            )
        ready = ready if trained is None else bool(trained)
        if ready:
            self.refuse_idle(
                "the autoencoder is trained, and training has no first phase. Leave it out, or give "
                "trained=False.",
                share=share,
            )
        options = {"name": second.name, **second.config}
        config = {
            "network": options.pop("network", None), "prior": options,
            "autoencoder": {"name": first.name, **first.config}, "trained": ready, "share": share,
            "scale": scale,
        }  # fmt: skip
        super().__init__(shape, config, lr=second.lr)
        self.autoencoder, self.prior = first, second
        self.trained, self.share, self.fixed = ready, share, scale is not None
        self.latent = latent
        self.register_buffer("scale", torch.tensor(1.0 if scale is None else scale))
        self.register_buffer("scaled", torch.tensor(self.fixed))

    @property
    def classes(self) -> int | None:
        """The number of labels that the prior knows."""
        known: int | None = getattr(self.prior, "classes", None)
        return known

    def supports(self, verb: str) -> bool | str:
        """As the prior does, but for log_prob, which is not there."""
        declared = super().supports(verb)
        return declared and self.prior.supports(verb)

    def exact(self) -> ExactModel:
        """The prior's, in latents.

        Raises:
            Unsupported: a prior that is no interpolant.
        """
        options = {k: v for k, v in self.autoencoder.config.items() if k != "lr"}
        space = f"latents of {self.autoencoder.name} {json.dumps(options, sort_keys=True)}"
        return replace(self.prior.exact(), space=space)

    def _require(self, verb: str) -> None:
        if not self.prior.supports(verb):
            others = ", ".join(families.having(verb))
            raise Unsupported(
                f"latent_diffusion has the {verb} of its prior, and {self.prior.name} has none. Take a prior "
                f"that has it: {others}."
            )

    # The verbs

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """The prior's noise of c E(x)."""
        self._require("forward")
        with evaluating(self.autoencoder):
            return self.prior.forward(self.scale * self.autoencoder.forward(x), **options)

    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """R(y / c) of the prior's y at the noise ``z``."""
        self._require("reverse")
        return self._decoded(self.prior.reverse(z, **options))

    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """R(y / c) of ``n`` samples y of the prior; options as its ``sample``."""
        return self._decoded(self.prior.sample(n, seed=seed, first_row=first_row, **options))

    def _decoded(self, y: Tensor) -> Tensor:
        with evaluating(self.autoencoder):
            return self.autoencoder.reverse(y / self.scale)

    # Training

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The autoencoder's loss (unless it is trained) and the prior's on its present latents.

        The prior's has no slope in the autoencoder, so that their sum trains both. In training by phases
        see `objectives`.
        """
        terms: dict[str, Tensor] = {}
        if not self.trained:
            terms |= _terms("autoencoder", self.autoencoder.loss(batch, generator))
            self.scaled.fill_(self.fixed)  # it follows the latents while they move
        latents = self._latents(batch, generator)
        return terms | _terms("prior", self.prior.loss(latents, generator))

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """The autoencoder's, then the prior's on latents, each as of a run of its own."""
        begun = self._first(total)
        if step < begun:
            self.scaled.fill_(self.fixed)
            for one in self.autoencoder.objectives(step, begun):
                yield replace(one, name=f"autoencoder.{one.name}")
            return
        for one in self.prior.objectives(step - begun, total - begun):

            def loss(batch: Batch, generator: Generator, one: Objective = one) -> Losses:
                return one.evaluate(self._latents(batch, generator), generator)

            yield replace(one, name=f"prior.{one.name}", loss=loss)

    @torch.no_grad()
    def _latents(self, batch: Batch, generator: Generator | None) -> Batch:
        """The batch with c z in place of x, prepared as the prior wants it."""
        x, label = self.split(batch)
        with evaluating(self.autoencoder):
            z = self.autoencoder.encode(x, generator)
        if not self.scaled:
            self._estimate(z)
        latents = {"x": self.scale * z, **({} if label is None else {"label": label})}
        return (
            self.prior.prepare(latents, generator or _fresh(x)) if self.prior.prepares else latents
        )

    def _estimate(self, z: Tensor) -> None:
        """c of these latents; where they are all one number it is left to the next batch."""
        if z.numel() > 1 and (std := z.std()) > 0:
            self.scale.copy_(1 / std)
            self.scaled.fill_(True)

    def after_step(self, step: int, total: int) -> None:
        """What the part in training does after its step."""
        part, step, total = self._part(step, total)
        part.after_step(step, total)

    def after_stage(self, step: int, total: int) -> None:
        """What the part in training does after a phase of its own."""
        if step + 1 != self._first(total):
            part, step, total = self._part(step, total)
            part.after_stage(step, total)

    def stages(self) -> Sequence[str]:
        """The phases of the autoencoder, unless it is trained, and of the prior."""
        first = () if self.trained else self.autoencoder.stages()
        return tuple(
            f"{name} {stage}"
            for name, stages in (("autoencoder", first), ("prior", self.prior.stages()))
            for stage in stages
        )

    def stage(self, step: int, total: int) -> str:
        """The phase that ``step`` belongs to."""
        part, step, total = self._part(step, total)
        name = "autoencoder" if part is self.autoencoder else "prior"
        return f"{name} {part.stage(step, total)}"

    def _first(self, total: int) -> int:
        """How many of ``total`` steps are the autoencoder's."""
        return 0 if self.trained else math.ceil(self.share * total)

    def _part(self, step: int, total: int) -> tuple[Family, int, int]:
        """What is trained at ``step``, and where that is in its own run."""
        begun = self._first(total)
        if step < begun:
            return self.autoencoder, step, begun
        return self.prior, step - begun, total - begun


def _autoencoder(
    given: Named | Family, shape: Sequence[int], levels: int | None
) -> tuple[Family, bool]:
    """The autoencoder, and whether it comes trained."""
    if isinstance(given, str) and given not in families.available() and run.exists(Path(given)):
        loaded, _ = training.load(given)
        made, ready = _checked("autoencoder", loaded, ("forward", "reverse")), True
    elif isinstance(given, nn.Module):
        made, ready = _checked("autoencoder", given, ("forward", "reverse")), True
    elif isinstance(given, str | Mapping):
        made, ready = _made("autoencoder", given, shape, {"levels": levels}), False
    else:
        raise OptionError(
            f"autoencoder is a {type(given).__name__}. Give the name of a family, a mapping with its "
            "name and options, the folder of a run, or a family."
        )
    if made.shape != tuple(shape):
        raise OptionError(
            f"the autoencoder was made for points of shape {made.shape}, not {tuple(shape)}. Give one "
            "of the data's own shape."
        )
    return made, ready


def _made(role: str, given: Named, shape: Sequence[int], told: Mapping[str, Any]) -> Family:
    """The family ``given`` by its name or by a mapping, told what it has an option for."""
    options: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in options:
        raise OptionError(
            f'{role} has the keys {sorted(options)} but no "name". Name a family, such as "vae".'
        )
    name = options.pop("name")
    try:
        factory = families.load(name)
    except UnknownName as error:
        run_too = " or the folder of a run" if role == "autoencoder" else ""
        raise UnknownName(f"The {role} is to be a family{run_too}. {error}") from None
    known = families.options(factory)
    told = {
        key: value
        for key, value in told.items()
        if value is not None and (known is None or key in ("network", *known))
    }
    for key in told.keys() & options.keys():
        if told[key] != options[key]:
            raise OptionError(
                f"{key}={told[key]!r} has no effect: the {role} was told {key}={options[key]!r}. Leave out "
                "one of the two."
            )
    options = {**told, **options}
    options["shape"] = tuple(options.get("shape", shape))
    if options["shape"] != tuple(shape):
        raise OptionError(
            f"the {role} is asked for at shape {options['shape']}, not {tuple(shape)}. Leave it out."
        )
    made = families.create(name, **options)
    wanted = ("forward", "reverse") if role == "autoencoder" else ("sample",)
    return _checked(role, made, wanted)


def _checked(role: str, made: object, wanted: Sequence[str]) -> Family:
    """``made`` if it is a family of ours or like one, with the verbs ``wanted``."""
    if not isinstance(made, Family):
        raise OptionError(
            f"the {role} is a {type(made).__name__}. Give a subclass of adapters.protocol.Family."
        )
    lacking = [verb for verb in wanted if not made.supports(verb)]
    if lacking:
        having = set.intersection(*(set(families.having(verb)) for verb in wanted))
        raise OptionError(
            f"{made.name} has no {' and no '.join(lacking)}, so it cannot be the {role}. Families that "
            f"can: {', '.join(sorted(having))}."
        )
    return made


@torch.no_grad()
def _latent_shape(autoencoder: Family, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a latent."""
    like = autoencoder.like
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    with evaluating(autoencoder):
        return tuple(autoencoder.forward(x).shape[1:])


def _terms(name: str, losses: Losses) -> dict[str, Tensor]:
    if isinstance(losses, Tensor):
        return {name: losses}
    return {f"{name}.{key}": value for key, value in losses.items()}


def _fresh(x: Tensor) -> Generator:
    """A generator from torch's global one."""
    return Generator(x.device).manual_seed(int(torch.randint(2**62, ())))
