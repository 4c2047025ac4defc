"""Which families there are, and what a trainer may ask of one.

Families register through the entry-point group ``interp.families``, ours and everybody else's
alike, or at run time by `register`. Nothing here knows any of them by name.

The trainer is told by the family: `Family.objectives` says at every step what is minimised over
which parameters by which optimizer, so that one objective, a generator against a critic, or a
tokeniser and then its prior are all the same loop.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    Self,
    get_args,
    get_type_hints,
    is_typeddict,
    runtime_checkable,
)

from .errors import InterpError, OptionError, UnknownName

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    from .interpolant import Interpolant

GROUP = "interp.families"
VERBS = ("forward", "reverse", "loss", "sample", "log_prob")

Batch = Any
"""A tensor, or a mapping with "x" and, where there are labels, "label"."""
Losses = Any
"""A scalar tensor, or a mapping of named scalar tensors whose sum is minimised."""


@dataclass(frozen=True)
class Optimizer:
    """How an objective is minimised at this step.

    The optimizer itself is made once for each objective's name, from ``kind`` and the first
    step's values; ``lr`` and ``options`` are then set anew at each step. A schedule is thus a
    function of (step, total) inside the family, and there is no scheduler whose state could be
    lost.

    Args:
        lr: the learning rate of this step.
        kind: the name of a class in ``torch.optim``.
        options: its other arguments, such as ``betas`` and ``weight_decay``.
        clip: the largest norm of the gradient over all parameters; None leaves it alone.
    """

    lr: float
    kind: str = "AdamW"
    options: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = 1.0


@dataclass(frozen=True)
class Objective:
    """One thing to minimise: ``loss(batch)`` over ``parameters`` by ``optimizer``."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    loss: Callable[..., Losses]
    optimizer: Optimizer

    def evaluate(self, batch: Batch, generator: Generator) -> Losses:
        """The loss on ``batch``, drawn from ``generator`` if it can be told, else torch's own."""
        parameters = inspect.signature(self.loss).parameters
        if "generator" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return self.loss(batch, generator=generator)
        return self.loss(batch)


@dataclass(frozen=True)
class ExactModel:
    """What a family is when nothing is left to learn: enough to put an exact law in place of its networks.

    Attributes:
        path: of the points between noise and data.
        view: what its model is there, one of `interp.views.MAP_VIEWS`: a field's, or of a map between two
            times "mean_velocity", or "point" where it knows the end t = 1 alone.
        pairs: how noise and data are paired: "independent", or in words by what.
        coupling: what pairs them, where it is told; None also where they are independent.
        regression: its loss, where that is the regression of a view, an `interp.losses.Regression`.
        sampler: the options of `interp.solve` by which it samples where nothing is asked.
        diffusion: of the SDE that it samples by, for a method of that kind.
        space: where the points lie, "data" or in words whose latents.
    """

    path: Interpolant
    view: str
    pairs: str = "independent"
    coupling: Any = None
    regression: Any = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Any = None
    space: str = "data"


@runtime_checkable
class Family(Protocol):
    """What the trainer and the command line need of a family, which is also an ``nn.Module``.

    Attributes:
        name: the name under which `create` makes it.
        shape: of one data point, without the batch.
        config: a JSON-able mapping with ``create(name, **config)`` giving this family again.
    """

    name: str
    shape: tuple[int, ...]
    config: Mapping[str, Any]

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """A scalar, or named terms whose sum is minimised."""

    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """``n`` samples; rows are numbered from ``first_row``, so that chunks equal the whole."""

    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """The log density of each row, nats."""

    def supports(self, verb: str) -> bool | str:
        """False, or how the verb is done: "exact", "ode", "bound"."""

    def exact(self) -> ExactModel:
        """What it is when nothing is left to learn; `Unsupported` says why it is no interpolant."""

    def objectives(self, step: int, total: int) -> Iterable[Objective]:
        """What to minimise at ``step`` of ``total``, each evaluated after the step before it."""

    def prepare(self, batch: Batch, generator: Generator) -> Batch:
        """What of a step needs no weights, such as pairing the batch with noise.

        Called in a thread of its own, up to ``prepares`` batches ahead (an attribute; 0, or none,
        leaves it out), before the batch goes to the family's device. It draws from ``generator``
        alone.
        """

    def after_step(self, step: int, total: int) -> None:
        """Move what no optimizer moves: averages, codebooks."""

    def after_stage(self, step: int, total: int) -> None:
        """``step`` was the last of a phase, other than the last: the weights are now their average."""

    def stages(self) -> Sequence[str]:
        """The names of the phases of training."""

    def stage(self, step: int, total: int) -> str:
        """The phase that ``step`` of ``total`` belongs to."""

    # Of an nn.Module

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All weights."""

    def to(self, device: Any) -> Self:
        """The same family on ``device``."""


Factory = Callable[..., Family]

_registered: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Make ``create(name, ...)`` call ``factory`` for the rest of this process.

    A name that is registered here goes before an entry point of the same name.

    Raises:
        OptionError: a name that is not an identifier, or a factory that cannot be called.
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise OptionError(f"{name!r} cannot name a family. Use letters, digits and underscores.")
    if not callable(factory):
        raise OptionError(
            f"the factory of {name!r} is a {type(factory).__name__}, which cannot be called. "
            "Register the family's class, or a function that returns a family."
        )
    _registered[name] = factory


def available() -> tuple[str, ...]:
    """The names of all families that are installed or registered, sorted."""
    return tuple(sorted({*_registered, *(point.name for point in _points())}))


def load(name: str) -> Factory:
    """The class or function that makes the family ``name``.

    Raises:
        UnknownName: no such family; names the nearest ones.
        InterpError: its distribution is installed but cannot be imported; names it and why.
    """
    if name in _registered:
        return _registered[name]
    points = [point for point in _points() if point.name == name]
    if not points:
        raise UnknownName.of("family", name, available())
    if len({point.value for point in points}) > 1:
        owners = " and ".join(sorted(f"{_owner(p)} ({p.value})" for p in points))
        warnings.warn(f"the family {name!r} comes from {owners}; the first is used", stacklevel=2)
    point = points[0]
    try:
        factory: Factory = point.load()
    except Exception as error:  # whatever a third party's module may raise
        raise InterpError(
            f"the family {name!r} of the distribution {_owner(point)} cannot be imported from "
            f"{point.value}: {type(error).__name__}: {error}. Repair or uninstall {_owner(point)}."
        ) from error
    return factory


def create(name: str, shape: Sequence[int], network: object | None = None, **config: Any) -> Family:
    """Make the family ``name`` for data points of ``shape``.

    Args:
        name: one of `available`.
        shape: of one data point, such as (1, 28, 28).
        network: the user's own network, or None for the family's default.
        config: the family's own options.

    Raises:
        UnknownName: no such family, or no such option of it; names the nearest ones.
        OptionError: an option whose value makes no sense.
        InterpError: the family cannot be imported.
    """
    factory = load(name)
    known = options(factory)
    for key in config:
        if known is not None and key not in known:
            raise UnknownName.of(f"option of {name}", key, known)
    try:
        family = factory(shape=tuple(shape), network=network, **config)
    except TypeError as error:
        raise OptionError(
            f"{name} cannot be made for shape={shape!r} with {config}: {error}. Give values of the "
            "kind that its options take."
        ) from error
    if getattr(family, "name", None) != name:
        family.name = name  # the same class may be registered under several names
    return family


def options(factory: Factory) -> tuple[str, ...] | None:
    """The names of a factory's options beside shape and network; None if it takes any.

    ``**common: Unpack[Options]``, with a TypedDict, names its keys.
    """
    names: list[str] = []
    for p in inspect.signature(factory).parameters.values():
        if p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
            continue
        made = factory.__init__ if inspect.isclass(factory) else factory
        unpacked = get_args(get_type_hints(made).get(p.name))
        if not unpacked or not is_typeddict(unpacked[0]):
            return None
        names += unpacked[0].__annotations__
    return tuple(name for name in names if name not in ("shape", "network"))


def verbs(factory: Factory) -> Mapping[str, bool | str]:
    """What each verb of a family can do, as its class says without being made."""
    declared: Mapping[str, bool | str] = getattr(factory, "verbs", {})
    return {verb: declared.get(verb, False) for verb in VERBS}


def having(verb: str) -> tuple[str, ...]:
    """The names of the families that have ``verb``; what cannot be imported is left out."""
    names = []
    for name in available():
        try:
            factory = load(name)
        except InterpError:
            continue
        if verbs(factory)[verb]:
            names.append(name)
    return tuple(names)


def _points() -> Sequence[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (_owner(point), point.value))


def _owner(point: EntryPoint) -> str:
    name = (
        None if point.dist is None else point.dist.name
    )  # None too where its metadata are damaged
    return name or "an unknown distribution"
