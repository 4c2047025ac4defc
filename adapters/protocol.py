"""What a family is: five verbs, what it can do of them, and how it wants to be trained."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from interp import families, noise
from interp.arguments import positive
from interp.errors import OptionError, UnknownName, Unsupported
from interp.families import VERBS, Batch, ExactModel, Losses, Objective, Optimizer
from interp.likelihood import bits_per_dim, dequantise

from .arguments import as_points, checked_shape, split

__all__ = ["Batch", "ExactModel", "Family", "Losses", "Objective", "Optimizer"]


class Family(nn.Module):
    """A generative model with some of the five verbs.

        forward(x)     data -> latent or noise
        reverse(z)     latent or noise -> data
        loss(batch)    a scalar, or a mapping of named terms whose sum is minimised
        sample(n)      n new data points
        log_prob(x)    log density of each row, nats

    A family overrides the verbs that it has and says so in ``verbs``: "exact"; "ode" for exact up
    to a solver's tolerance; "bound" for a bound. The others raise `Unsupported` and name who has
    them. A batch is a tensor, or a mapping with "x" and perhaps "label".

    Args:
        shape: of one data point, without the batch.
        config: all other options, JSON-able, such that ``create(name, shape, **config)`` gives
            this family again. What JSON cannot hold (the user's own network) is left out.

    Raises:
        OptionError: a shape that is not positive integers, or a config that JSON cannot hold.
    """

    name: str = ""
    verbs: ClassVar[Mapping[str, bool | str]] = {}
    solver_options: ClassVar[tuple[str, ...]] = ("method", "steps")
    """What of a solver `sample` can be told; the command line leaves out what it cannot, and says so."""
    no_path: ClassVar[str] = "it has no path of points between noise and data."
    """Why a family that has no `exact` model of a path is none."""

    def __init__(
        self, shape: Sequence[int], config: Mapping[str, Any] | None = None, *, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        self.lr = positive("lr", lr)
        self.config: Mapping[str, Any] = {"shape": list(self.shape), **(config or {}), "lr": lr}
        try:
            json.dumps(self.config)
        except TypeError as error:
            raise OptionError(
                f"the config of {type(self).__name__} cannot be written as JSON: {error}. "
                "Keep numbers, strings, lists and mappings in it."
            ) from error

    @classmethod
    def usual(cls) -> dict[str, Any]:
        """The options' defaults, by name."""
        given = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty}

    @classmethod
    def refuse_idle(cls, why: str, **given: object) -> None:
        """Refuse options that the others leave without effect.

        One at its usual value counts as not given, so that a config makes its family again.

        Raises:
            OptionError: names the first, and ``why``, which is to say what to do.
        """
        usual = cls.usual()
        for option, value in given.items():
            if value != usual[option]:
                raise OptionError(f"{option}={value!r} has no effect: {why}")

    # The five verbs

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """The latent of each data point ``x``."""
        raise self._unsupported("forward")

    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """The data point of each latent ``z``."""
        raise self._unsupported("reverse")

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """What is minimised; all randomness is drawn from ``generator``."""
        raise self._unsupported("loss")

    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """``n`` samples, rows ``first_row ...`` of the numbered sample of ``seed``.

        Row i depends on (seed, first_row + i) alone: chunks with their offsets equal the whole.
        """
        raise self._unsupported("sample")

    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """The log density of each row of ``x``: (rows,), nats."""
        raise self._unsupported("log_prob")

    levels: int | None = None
    """The number of grey levels of data on a grid over [-1, 1], where there is one."""

    def bits_per_dim(self, x: Tensor, seed: int = 0, **options: Any) -> Tensor:
        """Bits per dimension of each image of ``x``, on a grid of ``levels``: (rows,).

        By one draw of uniform dequantisation, so an upper bound in the mean; see
        `interp.likelihood.bits_per_dim`. Options as in `log_prob`.

        Raises:
            OptionError: a family made without ``levels``.
        """
        if self.levels is None:
            raise OptionError(
                "this family was made without levels, so its data have no grid to count bits on. "
                "Make it with levels=..., the number of grey levels."
            )
        generator = Generator(x.device).manual_seed(seed)
        spread = dequantise(x, self.levels, generator)
        return bits_per_dim(self.log_prob(spread, **options), self.shape, self.levels)

    @property
    def like(self) -> Tensor:
        """A tensor of the weights' dtype and device, or the buffers'; torch's default without any."""
        known = itertools.chain(self.parameters(), self.buffers())
        return next((one for one in known if one.is_floating_point()), torch.empty(0))

    def points(self, x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """``x``, points of the family's shape or of ``shape``, in the dtype of the weights.

        Raises:
            DataError: what cannot be such points; see `adapters.arguments.as_points`.
        """
        return as_points(x, self.shape if shape is None else shape, self.like)

    def split(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The points of a ``batch``, at least one, as `points`, and its labels, None without.

        Raises:
            DataError: what cannot be a batch; see `adapters.arguments.split`.
        """
        return split(batch, self.shape, self.like)

    def normals(
        self, n: int, seed: int | None, first_row: int = 0, shape: Sequence[int] | None = None
    ) -> Tensor:
        """Rows ``first_row ...`` of the numbered normals of ``seed``, like the weights.

        Of a point's shape, or of ``shape``.
        """
        like = self.like
        return noise.normal(
            (n, *(self.shape if shape is None else shape)), seed=seed, first_row=first_row,
            dtype=like.dtype, device=like.device,
        )  # fmt: skip

    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """A latent of each ``x`` for another model to learn: `forward`, or a draw where it has many."""
        return self.forward(x)

    def supports(self, verb: str) -> bool | str:
        """False, or how ``verb`` is done: "exact", "ode" or "bound".

        Raises:
            UnknownName: a verb that is none of the five.
        """
        if verb not in VERBS:
            raise UnknownName.of("verb", verb, VERBS)
        return self.verbs.get(verb, False)

    def exact(self) -> ExactModel:
        """The path, the view and the pairs that make its exact model, for `interp.equivalence`.

        Raises:
            Unsupported: the family is no interpolant; says why.
        """
        raise Unsupported(f"{self.name or type(self).__name__} is no interpolant: {self.no_path}")

    def _unsupported(self, verb: str) -> Unsupported:
        others = ", ".join(name for name in families.having(verb) if name != self.name)
        remedy = f"Families that have it: {others}." if others else "No installed family has it."
        return Unsupported(f"{self.name or type(self).__name__} has no {verb}. {remedy}")

    # How it is trained

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """What to minimise at ``step`` of ``total``, in order; by default `loss` over everything.

        Each is evaluated after the step of the one before it. An optimizer belongs to its
        objective's name and is kept from step to step.
        """
        free = tuple(p for p in self.parameters() if p.requires_grad)
        yield Objective("loss", free, self.loss, self.optimizer(step, total))

    def optimizer(self, step: int, total: int) -> Optimizer:
        """AdamW (Loshchilov, Hutter, 1711.05101), warmed up, its rate falling as a cosine.

        lr (1 + cos(pi step / total)) / 2, times (step + 1) / warm while that is below 1, with warm
        a twentieth of the run, at most 500 steps. For a rate that begins anew in each phase give it
        what `in_stage` says.
        """
        warm = min(500, max(1, total // 20))
        rate = 0.5 * (1 + math.cos(math.pi * step / total)) * min(1.0, (step + 1) / warm)
        return Optimizer(self.lr * rate, options={"betas": (0.9, 0.99), "weight_decay": 0.01})

    prepares: int = 0
    """How many batches training may `prepare` ahead, in a thread; 0 leaves `prepare` out."""

    def prepare(self, batch: Batch, generator: Generator) -> Batch:
        """What of a step needs no weights, drawn from ``generator`` alone; by default the batch."""
        return batch

    def after_step(self, step: int, total: int) -> None:
        """Move what no optimizer moves: averages, codebooks. By default nothing."""

    def after_stage(self, step: int, total: int) -> None:
        """Prepare the next phase where ``step`` was the last of one. By default nothing.

        The averaged weights have been put into the family, as at the end of a run.
        """

    def stages(self) -> Sequence[str]:
        """The names of the phases of training, in order."""
        return ("train",)

    def stage(self, step: int, total: int) -> str:
        """The phase that ``step`` belongs to; by default each phase has an equal share."""
        names = self.stages()
        return names[min(step * len(names) // total, len(names) - 1)]

    def in_stage(self, step: int, total: int) -> tuple[int, int]:
        """Where ``step`` is in its phase, and how many steps that has, for phases of equal shares."""
        phases = len(self.stages())
        k = self.stages().index(self.stage(step, total))
        first, last = (-(-one * total // phases) for one in (k, k + 1))
        return step - first, max(1, last - first)
