"""A network made elsewhere as a model(t, x, **cond) of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FieldError, OptionError, TimeError
from .reading import Reading, Told

#: diffusers' networks whose pipelines tell them the scheduler's timestep as it is.
_NAMES = (
    "UNet1DModel UNet2DModel UNet2DConditionModel UNet3DConditionModel UNetMotionModel "
    "UNetSpatioTemporalConditionModel Kandinsky3UNet DiTTransformer2DModel Transformer2DModel "
    "PixArtTransformer2DModel SD3Transformer2DModel HunyuanDiT2DModel LatteTransformer3DModel "
    "CogVideoXTransformer3DModel CogView3PlusTransformer2DModel AllegroTransformer3DModel "
    "MochiTransformer3DModel LTXVideoTransformer3DModel"
)
_PLAIN = frozenset(_NAMES.split())


class Network(nn.Module):
    """A network made for a diffusers scheduler, as a model of `view`, told `time`.

    It is called as net(x, timestep, **cond), with one timestep a row: whole numbers (int64) at the
    nodes of a table, floating ones between. On a table's last cell, between index 0 and clean data,
    where no network was trained, it is told 0 and its estimate of the noise there is held. Where it
    returns twice the channels of x the second half are variances (Nichol, Dhariwal 2021, 2102.09672),
    which no solver here asks for; they are dropped.

    Args:
        net: a diffusers network, or a function net(x, timestep, **cond) -> tensor.
        reading: what its scheduler says.

    Raises:
        OptionError: something that cannot be called, or a diffusers network whose pipeline may tell it
            something else than the scheduler's timestep.
    """

    exact_time = True  # the index of a table, and what becomes of it, in float64

    def __init__(self, net: Callable[..., Any], reading: Reading) -> None:
        super().__init__()
        check_network(net)
        self.net = net
        self.view: str = reading.view
        self.time: Told = reading.time
        self.reading, self.path = reading, reading.path
        self._options = _options(net)

    def forward(self, told: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The network's prediction at x, of x's shape.

        Raises:
            FieldError: a network that returns another shape; names both.
            TimeError: a time between two indices, for a network that embeds whole ones alone.
        """
        timestep = self.timestep(told, x)
        try:
            found = self.net(x, timestep, **self._options, **cond)
        except (IndexError, RuntimeError) as error:
            if timestep.is_floating_point() and _learned_times(self.net):
                raise TimeError(
                    f"the network embeds whole timesteps alone, and was told {timestep[0].item():g}. "
                    "Solve on nodes of its table."
                ) from error
            raise
        found = predicted(found, x, self.reading.learned_variance)
        found = -found if self.reading.flipped else found
        return held(self.reading, found, told, x)

    def timestep(self, told: Tensor, x: Tensor) -> Tensor:
        """The network's timestep for each row: int64 where it is an index of a table, else floating."""
        stamp = self.reading.timestep(told).to(x.device)
        indexed = isinstance(self.time, tuple)
        if indexed and bool((stamp == stamp.round()).all()):
            stamp = stamp.long()
        else:
            stamp = stamp.to(x.dtype if x.dtype is torch.float64 else torch.float32)
        return stamp.expand(len(x)) if stamp.ndim == 0 else stamp


def check_network(net: object) -> None:
    """Refuse what cannot be called, and a diffusers network that we do not know how to tell the time."""
    if not callable(net):
        raise OptionError(
            f"the model is a {type(net).__name__}. Give a diffusers network, its folder, or a function "
            "net(x, timestep, **cond)."
        )
    kind = type(net)
    theirs = kind.__module__.split(".")[0] == "diffusers"
    if theirs and isinstance(net, nn.Module) and kind.__name__ not in _PLAIN:
        raise OptionError(
            f"what a {kind.__name__} is told of the time is its pipeline's affair (Flux: the timestep / "
            "1000), and it is not guessed. Give a function net(x, timestep, **cond) that calls it as its "
            "pipeline does."
        )


def held(reading: Reading, found: Tensor, told: Tensor, x: Tensor) -> Tensor:
    """The view at ``told``; below index 0 of a table that of the noise that the network tells at 0."""
    indexed = isinstance(reading.time, tuple)
    if not indexed or reading.view == "noise" or not bool((told < 0).any()):
        return found
    path, when, view = reading.path, reading.when, reading.view
    noise = path.convert(found, view, "noise", x, when(told.clamp(min=0)))
    return path.convert(noise, "noise", view, x, when(told))


def predicted(found: object, x: Tensor, split: bool = False) -> Tensor:
    """The prediction in a network's answer: a tensor, a tuple's first, or an output's ``sample``.

    Raises:
        FieldError: no tensor of x's shape, nor of twice its channels.
    """
    if isinstance(found, tuple) and found:
        found = found[0]
    found = getattr(found, "sample", found) if not isinstance(found, Tensor) else found
    if not isinstance(found, Tensor):
        raise FieldError(
            f"the network returned a {type(found).__name__}. Return a tensor of x's shape, or an output "
            "with one as its .sample."
        )
    doubled = x.ndim > 1 and found.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if doubled:
        return found[:, : x.shape[1]].contiguous()
    if found.shape != x.shape or split:
        wanted = "with variances beside it " if split else ""
        raise FieldError(
            f"the network returned {tuple(found.shape)} for points of shape {tuple(x.shape)}. Return a "
            f"prediction {wanted}of that shape{', twice the channels' if split else ''}."
        )
    return found


def _options(net: object) -> dict[str, Any]:
    """return_dict=False for a diffusers network, whose output is a class of its own otherwise."""
    forward = getattr(net, "forward", None)
    if forward is None:
        return {}
    return {"return_dict": False} if "return_dict" in inspect.signature(forward).parameters else {}


def _learned_times(net: object) -> bool:
    return getattr(getattr(net, "config", None), "time_embedding_type", None) == "learned"
