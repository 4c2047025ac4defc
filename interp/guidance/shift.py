"""A model whose score is shifted, in whatever view it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import views
from ..arguments import as_time, check_rows, like, spread
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

Model = Callable[..., Any]
TimeName = str | tuple[str, int]


class Shifted:
    """model(t, x) on ``path`` with the score moved by g(t, x): its own view moved by q g.

    q is what a unit of the score is in the view: sigma^2 / beta for the data, -sigma for the noise,
    sigma (beta' sigma - beta sigma') / beta for the velocity.

    Args:
        path: with a Gaussian base.
        model: model(t, x, **cond), of one view.
        view: what it returns; None is its own, or else the velocity.
        time: what it is told; None is its own, or else t. The wrapper itself is told t.

    Raises:
        UnknownName: no such view or convention of time.
        UndeterminedView: a path whose base is not Gaussian, where the view does not follow the score.
        OptionError: a model that cannot be called, or one of another view or path than is said.
    """

    exact_time = True
    time = "t"

    def __init__(
        self, model: Model, path: Interpolant, view: str | None, time: TimeName | None
    ) -> None:
        check_callable("model", model)
        if not isinstance(path, Interpolant):
            raise UnknownName.of("path", type(path).__name__, ["Interpolant"])
        self.model, self.path = model, path
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

    def moved(self, value: Tensor, g: Tensor, t: Tensor) -> Tensor:
        """``value`` with the score moved by ``g``.

        Raises:
            UndeterminedView: where beta is 0, and the score tells nothing of the data.
        """
        _, q = views.weights(self.path.coefficients(t), "score", self.view)
        return value + spread(q, value) * g
