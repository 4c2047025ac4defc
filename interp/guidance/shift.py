"""A model whose score is shifted, in whatever view it speaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import views
from ..arguments import as_time, check_rows, holds, like
from ..errors import UndeterminedView, UnknownName
from ..interpolant import Interpolant
from ..terms.model import (
    call,
    check_callable,
    check_own_path,
    check_own_view,
    check_time_name,
    own_time,
    own_view,
)
from .wrapper import Interval, check_interval, inside

Model = Callable[..., Any]
TimeName = str | tuple[str, int]

_LEAST = 1e-3
"""Of beta / sigma, from which the score tells the data. A gradient there has lost three digits."""


class Shifted:
    """model(t, x) on ``path`` with the score moved by g(t, x): its own view moved by q g.

    q is what a unit of the score is in the view: sigma^2 / beta for the data, -sigma for the noise,
    sigma (beta' sigma - beta sigma') / beta for the velocity. Of the likelihood of some y,

        (sigma^2 / beta) g(t, x) = E[x1 | x, y] - E[x1 | x],

    which has the limit E[x1 | y] - E[x1] where beta falls to 0: it moves data and velocity there as anywhere,
    and noise and score by nothing. It is the quotient of two zeros, so below beta / sigma = 0.001 it is
    held at what it is for this x at 0.001, an error of that order.

    Args:
        path: with a Gaussian base.
        model: model(t, x, **cond), of one view.
        view: what it returns; None is its own, or else the velocity.
        time: what it is told; None is its own, or else t. The wrapper itself is told t.
        interval: of t, in which the model is guided; None is everywhere.

    Raises:
        UnknownName: no such view or convention of time.
        UndeterminedView: a path whose base is not Gaussian, where the view does not follow the score.
        OptionError: a model that cannot be called, one of another view or path than is said, or an
            interval that is empty.
    """

    exact_time = True
    time = "t"

    def __init__(
        self,
        model: Model,
        path: Interpolant,
        view: str | None,
        time: TimeName | None,
        interval: Interval | None = None,
    ) -> None:
        check_callable("model", model)
        check_interval(interval)
        if not isinstance(path, Interpolant):
            raise UnknownName.of("path", type(path).__name__, ["Interpolant"])
        self.model, self.path, self.interval = model, path, interval
        self.view, self.told = own_view(model, view), own_time(model, time)
        views.check(self.view)
        check_own_view(model, self.view)
        check_own_path(model, path)
        check_time_name(self.told)
        if not path.gaussian_base and self.view not in ("score", "energy_gradient"):
            raise UndeterminedView(
                f"the {self.view} does not follow the score on a path whose base is not Gaussian. Guide "
                "the model of the score."
            )

    def value(self, t: Tensor, x: Tensor, cond: dict[str, Any]) -> Tensor:
        """The model's own answer at t, told the time that it wants."""
        return like(call(self.model, self.path, self.told, t, x, cond), x, "the model")

    def times(self, t: float | Tensor, x: Tensor) -> Tensor:
        """``t`` in float64, checked."""
        time = as_time(t)
        check_rows(time, x)
        return time

    def unit(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The times at which g is asked for, and q at ``t``: 0 outside the interval."""
        within = inside(self.interval, t)
        if within is False:
            return t, torch.zeros_like(t)
        k = self.path.coefficients(t)
        early = (k.beta < _LEAST * k.sigma) & self.path.gaussian_base
        if not holds(~early):
            first = self.path.time_at_log_snr(2 * math.log(_LEAST)).to(t)
            held = torch.where(early, first, t)
            _, data = views.weights(self.path.coefficients(first), "score", "data")
            _, here = views.weights(
                self.path.coefficients(torch.where(early, t, first)), "data", self.view
            )
            _, later = views.weights(self.path.coefficients(held), "score", self.view)
            q = torch.where(early, data * here, later)
        else:
            held, (_, q) = t, views.weights(k, "score", self.view)
        return held, q if within is True else torch.where(within, q, 0.0)
