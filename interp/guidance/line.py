"""Guidance along the line from what a model, or a worse one, says without the condition to what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .wrapper import Interval, Wrapper, check_interval, inside

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Guided(Wrapper):
    """A model of the same signature and view; see `guide`."""

    model: Model
    uncond: Mapping[str, Any] | Model
    scale: float
    interval: Interval | None
    rescale: float

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """u + scale (c - u) at (t, x), of x's shape."""
        c = self.model(t, x, **cond)
        within = inside(self.interval, t)
        if self.scale == 1 or within is False:
            return c
        if callable(self.uncond):
            u = self.uncond(t, x, **cond)
        else:
            u = self.model(t, x, **{**cond, **self.uncond})
        guided = torch.lerp(u, c, self.scale)
        if self.rescale:
            guided = guided * (1 - self.rescale + self.rescale * _std(c) / _std(guided))
        if within is True:
            return guided
        return torch.where(within.reshape(-1, *(1,) * (x.ndim - 1)), guided, c)


def guide(
    model: Model,
    uncond: Mapping[str, Any] | Model,
    scale: float,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> Guided:
    """The model u + scale (c - u), with c under the condition and u without it.

    Holds in every view alike, since the views are affine in one another. Scale 1 is the conditional
    model itself, and costs one call of it; 0 is the model without. Ho and Salimans (2207.12598)
    call scale - 1 their w. What is sampled is the law of no density when scale is not 1.

    Args:
        model: model(t, x, **cond).
        uncond: what of ``cond`` to replace for u, such as {"label": None}; or another model, such
            as a smaller or less trained one (autoguidance: Karras, Aittala, Kynkäänniemi,
            Lehtinen, Aila, Laine, 2406.02507), called with the same ``cond``.
        scale: any finite number.
        interval: guide only at the times, as the model is told them, from the first to the
            second (Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen, 2404.07724).
        rescale: phi in [0, 1]: the result is multiplied by 1 - phi + phi std(c) / std(result), the
            standard deviations being each row's (Lin, Liu, Li, Yang, 2305.08891).

    Raises:
        OptionError: an argument out of range, or of a kind that cannot be used.
    """
    if not callable(model):
        raise OptionError(
            f"model is a {type(model).__name__}. Give a function model(t, x, **cond)."
        )
    check(uncond, scale)
    if not 0 <= rescale <= 1:
        raise OptionError(f"rescale is {rescale}. Give a share in [0, 1].")
    check_interval(interval)
    return Guided(model, uncond, float(scale), interval, float(rescale))


def check(uncond: object, scale: float) -> None:
    """Refuse what cannot stand for the model without its condition, and a scale that is no number.

    Raises:
        OptionError: says which.
    """
    if not (isinstance(uncond, Mapping) or callable(uncond)):
        raise OptionError(
            f"uncond is a {type(uncond).__name__}. Give the conditions to replace, such as "
            '{"label": None}, or another model.'
        )
    if not math.isfinite(scale):
        raise OptionError(f"the guidance scale is {scale}. Give a finite number; 1 guides nothing.")


def _std(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
