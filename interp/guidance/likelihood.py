"""Classifier guidance: the score of x given y is that of x plus the gradient of log p(y | x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..arguments import holds, real, spread
from ..errors import FieldError
from ..interpolant import Interpolant
from ..terms.model import check_callable
from .shift import Model, Shifted, TimeName
from .wrapper import Interval


class Classified(Shifted):
    """A model of the same view; see `classifier`."""

    def __init__(
        self,
        model: Model,
        log_prob: Callable[..., Tensor],
        scale: float,
        path: Interpolant,
        view: str | None,
        time: TimeName | None,
        takes: tuple[str, ...],
        interval: Interval | None,
    ) -> None:
        super().__init__(model, path, view, time, interval)
        check_callable("log_prob", log_prob)
        self.log_prob, self.scale, self.takes = log_prob, real("scale", scale, -math.inf), takes

    def __call__(self, t: float | Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The guided view at (t, x), of x's shape."""
        theirs = {name: cond.pop(name) for name in self.takes if name in cond}
        time = self.times(t, x)
        value = self.value(time, x, cond)
        held, q = self.unit(time)
        if self.scale == 0 or holds(q == 0):
            return value
        return value + spread(q, value) * self._gradient(held, x, theirs)

    def _gradient(self, t: Tensor, x: Tensor, cond: dict[str, Any]) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            logs = self.log_prob(t, at, **cond)
            if not isinstance(logs, Tensor) or logs.shape != x.shape[:1]:
                got = tuple(logs.shape) if isinstance(logs, Tensor) else type(logs).__name__
                raise FieldError(
                    f"log_prob gave {got} for {len(x)} rows. Return one log probability a row, of shape "
                    f"{tuple(x.shape[:1])}."
                )
            (gradient,) = torch.autograd.grad(logs.sum(), at)
        return self.scale * gradient


def classifier(
    model: Model,
    log_prob: Callable[..., Tensor],
    path: Interpolant,
    scale: float = 1.0,
    *,
    view: str | None = None,
    time: TimeName | None = None,
    takes: tuple[str, ...] = ("label",),
    interval: Interval | None = None,
) -> Classified:
    """The model with scale grad log p(y | x_t) added to its score.

    With scale 1 and the exact log p(y | x_t) of noisy x it is the exact conditional model. Dhariwal, Nichol,
    2105.05233, section 4; any other differentiable log h(t, x) tilts the law by h in the same way.

    Args:
        model: model(t, x, **cond) on ``path``, without the condition.
        log_prob: log_prob(t, x, **cond) -> (rows,), differentiable in x; t is float64, on [0, 1].
        path: of both, with a Gaussian base.
        scale: of the gradient.
        view: what the model returns; None is its own, or else the velocity.
        time: what the model is told; see `interp.Interpolant.ode`.
        takes: which of the conditions are the classifier's alone.
        interval: guide only at the times t from the first to the second, as `interp.guide` does. Where beta
            is small a unit of the score is sigma^2 / beta of the data, and a learned classifier's gradient
            does not fall with it as the exact one does: begin where it does.

    Raises:
        UndeterminedView: a path without a Gaussian base.
        FieldError: a log_prob of another shape, when called.
        OptionError: a scale that is not finite, an interval that is empty, or what cannot be called.
    """
    return Classified(model, log_prob, scale, path, view, time, takes, interval)
