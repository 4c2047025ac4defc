"""Neural networks that the families share.

Those of a path are called ``network(t, x, label=None)`` and give x's shape; those of `between` lead
from points of one shape to points of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from interp.arguments import whole
from interp.errors import OptionError, UnknownName

from ..arguments import checked_shape
from .between import Dense, Level, between, chosen, own_width, several
from .dit import DiT
from .mlp import MLP
from .two_times import TwoTimes
from .unet import UNet

__all__ = [
    "MLP",
    "Dense",
    "DiT",
    "Level",
    "TwoTimes",
    "UNet",
    "between",
    "chosen",
    "default",
    "evaluating",
    "resolve",
    "several",
    "widths",
]

_KINDS: dict[str, type[MLP] | type[UNet] | type[DiT]] = {"mlp": MLP, "unet": UNet, "dit": DiT}
_OWN = "own:"


def default(shape: Sequence[int]) -> str:
    """The kind of network for points of ``shape``: a U-Net for images, else an MLP."""
    return "unet" if len(shape) == 3 and min(shape[1:]) >= 4 else "mlp"


def resolve(
    network: nn.Module | str | None,
    shape: Sequence[int],
    classes: int | None = None,
    width: int | None = None,
    outputs: int = 1,
    times: int = 1,
    fastest: float = 1000.0,
    more: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> tuple[nn.Module, str]:
    """The network that a family was given or is to make, and the name it has in a config.

    Args:
        network: the user's own, "unet", "dit", "mlp", or None to choose by ``shape``.
        shape: of one data point.
        classes: the number of labels, or None.
        width: of a network made here; None is the kind's own default.
        outputs: how many tensors of x's shape a network made here gives, along its first axis.
        times: 2 for a network of a map, ``network(t, r, x, label=None)``.
        fastest: the largest frequency at which a network made here is told its times.
        more: kinds of the family's own, made from the shape and a width.

    Raises:
        UnknownName: a kind that does not exist.
        OptionError: a shape, width or number of classes that the kind cannot have, or the config
            of a family whose network was the user's own.
    """
    shape = checked_shape(shape)
    for name, size in (("width", width), ("classes", classes)):
        if size is not None:
            whole(name, size, 1)
    if isinstance(network, nn.Module):
        own_width(width)
        return network, f"{_OWN}{type(network).__module__}.{type(network).__qualname__}"
    kind = default(shape) if network is None else network
    if isinstance(kind, str) and kind.startswith(_OWN):
        raise OptionError(
            f"this family was made with a network of the user's own, {kind.removeprefix(_OWN)}. "
            "Make the family in Python with network=..., and load its weights into that."
        )
    more = more or {}
    if kind not in _KINDS and kind not in more:
        raise UnknownName.of("network", kind, (*_KINDS, *more))
    options: dict[str, Any] = {} if width is None else {"width": width}
    if kind in more:
        return more[kind](shape, **options), kind
    made = _KINDS[kind](
        shape, classes=classes, outputs=outputs, times=times, fastest=fastest, **options
    )
    return (TwoTimes(made) if times == 2 else made), kind


def widths(width: int | None, *asked: object) -> list[int | None]:
    """The width for each of several networks ``asked`` for: None for those that are the user's own.

    Raises:
        OptionError: a width where all are.
    """
    own = [isinstance(one, nn.Module) for one in asked]
    if all(own):
        own_width(width)
    return [None if is_own else width for is_own in own]


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """``network`` in evaluation mode, afterwards as it was."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
