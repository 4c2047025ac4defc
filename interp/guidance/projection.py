"""Guidance with the part along the data estimate held back, which is what oversaturates images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import views
from ..arguments import like, positive, real, spread
from ..interpolant import Interpolant
from ..terms.model import call
from .line import check
from .shift import Model, Shifted, TimeName


class Projected(Shifted):
    """A model of the same view; see `projected`."""

    def __init__(
        self,
        model: Model,
        uncond: Mapping[str, Any] | Model,
        scale: float,
        path: Interpolant,
        parallel: float,
        radius: float | None,
        view: str | None,
        time: TimeName | None,
    ) -> None:
        super().__init__(model, path, view, time)
        check(uncond, scale)
        if radius is not None:
            radius = positive("radius", radius)
        self.uncond, self.scale = uncond, float(scale)
        self.parallel, self.radius = real("parallel", parallel), radius

    def __call__(self, t: float | Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The guided view at (t, x), of x's shape."""
        time = self.times(t, x)
        c = self.value(time, x, cond)
        if self.scale == 1:
            return c
        if callable(self.uncond):
            u = like(call(self.uncond, self.path, self.told, time, x, cond), x, "uncond")
        else:
            u = self.value(time, x, {**cond, **self.uncond})
        data = self.path.convert(c, self.view, "data", x, time)
        # Differences of two views are multiples of one another, so this one too is split along D.
        apart = c - u
        along = spread(_dot(apart, data) / _dot(data, data).clamp(min=_tiny(data)), x) * data
        pushed = apart + (self.parallel - 1) * along
        if self.radius is not None:
            _, unit = views.weights(self.path.coefficients(time), self.view, "data")
            size = _dot(apart, apart).sqrt() * unit.abs().to(x)
            pushed = spread((self.radius / size.clamp(min=_tiny(x))).clamp(max=1.0), x) * pushed
        return c + (self.scale - 1) * pushed


def projected(
    model: Model,
    uncond: Mapping[str, Any] | Model,
    scale: float,
    path: Interpolant,
    parallel: float = 0.0,
    radius: float | None = None,
    *,
    view: str | None = None,
    time: TimeName | None = None,
) -> Projected:
    """The model c + (scale - 1) (d - (1 - parallel) <d, D> D / |D|^2), d = c - u and D the data of c.

    Adaptive projected guidance: Sadat, Hilliges, Weber, 2410.02416, without their momentum, which is a
    state from step to step. ``parallel`` is their eta; 1 is `guide`. With a ``radius`` d is first shortened
    to a data difference of at most that norm.

    Args:
        model: model(t, x, **cond) on ``path``.
        uncond: as in `guide`; a model given here is of the same view, and told the same time.
        scale: any finite number; 1 is the conditional model.
        path: of the model, which tells D.
        parallel: what is kept of the part along D, 0 or more.
        radius: the largest norm of the difference, in data units; None for no bound.
        view: what the model returns; None is its own, or else the velocity.
        time: what the model is told; see `interp.Interpolant.ode`.

    Raises:
        OptionError: an argument out of range, or of a kind that cannot be used.
        UndeterminedView: when called, where the view does not tell the data; a path without a Gaussian base.
    """
    return Projected(model, uncond, scale, path, parallel, radius, view, time)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).reshape(len(a), -1).sum(1)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
