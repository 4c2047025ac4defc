"""Neural networks that the families share: called ``network(t, x, label=None)``, x's shape out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from interp.errors import UnknownName

from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "UNet", "create", "default"]

_KINDS: dict[str, type[MLP] | type[UNet]] = {"mlp": MLP, "unet": UNet}


def default(shape: Sequence[int]) -> str:
    """The kind of network for points of ``shape``: a U-Net for images, else an MLP."""
    return "unet" if len(shape) == 3 and min(shape[1:]) >= 4 else "mlp"


def create(
    kind: str, shape: Sequence[int], classes: int | None = None, width: int | None = None
) -> nn.Module:
    """A network of ``kind`` for points of ``shape``; ``width`` None is the kind's own default.

    Raises:
        UnknownName: a kind that does not exist.
        OptionError: a shape, width or number of classes that the kind cannot have.
    """
    if kind not in _KINDS:
        raise UnknownName.of("network", kind, _KINDS)
    options = {} if width is None else {"width": width}
    return _KINDS[kind](shape, classes=classes, **options)
