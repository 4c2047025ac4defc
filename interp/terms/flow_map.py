"""The flow of a path as a map between two times, from a model that was trained to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import maps, views
from ..arguments import host, like
from ..errors import OptionError, UndeterminedView, Unsupported
from .model import (
    Cond,
    Model,
    PathTerm,
    check_callable,
    check_own_path,
    check_time_name,
    needs_exact_time,
    own_time,
    told,
)
from .ode import PathODE

if TYPE_CHECKING:
    from ..interpolant import Interpolant


class PathMap(PathTerm):
    """X(t, r, x), the point to which the flow of a path carries x from t to r, by one call of a model.

    Forwards (t < r) or backwards; where r = t it is x. Exact where the model is, whatever the steps.

    Args:
        path: the path.
        model: model(t, r, x, **cond) -> tensor like x; t and r are 0-d or (rows,).
        view: what it returns, one of `interp.views.MAP_VIEWS`; see `interp.maps`. None is the model's
            own ``view``, "point" where it has none.
        time: what the model is told of t and of r; see `told`. None is the model's own ``time``, or "t".

    Raises:
        UnknownName: a view or time convention that does not exist.
        UndeterminedView: a view that does not tell the point of this path; and, when called, where it
            does not: data at sigma(t) = 0, noise at beta(t) = 0.
    """

    kind = "map"
    exact_time = True

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
    ) -> None:
        check_callable("model", model)
        own = getattr(model, "view", None)
        own = own if isinstance(own, str) and own in views.MAP_VIEWS else None
        view, time = view or own or "point", own_time(model, time)
        maps.check(view)
        if own not in (None, view):
            raise OptionError(f'the model returns the {own}, not the {view}. Give view="{own}".')
        if view == "velocity":
            raise UndeterminedView(
                "a velocity is of one time, and does not tell where x is at another. Give a model of "
                'the mean velocity (view="mean_velocity"), or path.ode(model).'
            )
        if not path.gaussian_base and view not in ("point", "mean_velocity"):
            raise UndeterminedView(
                f"the {view} of a map does not determine its point on this path, whose base is not "
                'Gaussian. Give a model of the point, or view="mean_velocity".'
            )
        check_own_path(model, path)
        check_time_name(time)
        self.path, self.model, self.view, self.time = path, model, view, time

    def check(self, t0: float, t1: float) -> None:
        """Refuse times outside [0, 1].

        Raises:
            TimeError: names the time.
        """
        self.check_interval(t0, t1)

    def told(self, t: Tensor, r: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The model at t, r (float64) and x, in its own view."""
        stamps = (told(self.path, self.time, s) for s in (t, r))
        if not needs_exact_time(self.model):
            stamps = (stamp.to(x.dtype) for stamp in stamps)
        return like(self.model(*stamps, x, **cond), x, "the model")

    def between(
        self, t: float | Tensor, r: float | Tensor, x: Tensor, cond: Cond | None = None,
        view: str = "point",
    ) -> Tensor:  # fmt: skip
        """The map from ``t`` to ``r`` at ``x``, as any view: its point by default.

        Args:
            t: a float, a 0-d tensor, or (rows,).
            r: the same.
            x: the state at t.
            cond: what the model is conditioned on.
            view: one of `interp.views.MAP_VIEWS`.

        Raises:
            UndeterminedView: where the model's view does not tell it.
            TimeError: times outside [0, 1].
        """
        first, second = (self.path._time_of(s, x) for s in (t, r))
        value = self.told(first, second, x, cond or {})
        return self.path.convert(value, self.view, view, x, first, second)

    __call__ = between

    def data(self, t: float | Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The data estimate E[x1 | x] at t: the map's on the diagonal r = t."""
        return self.between(t, t, x, cond, view="data")

    def ode(self) -> PathODE:
        """The probability flow by the map's limit at r = t, where its view has one.

        Raises:
            Unsupported: a map of points, which at r = t are x itself.
        """
        if self.view == "point":
            raise Unsupported(
                "a map that gives points says nothing at r = t, where the point is x. Solve it by "
                'method="map", or have a model of the mean_velocity or the data.'
            )
        model = self.model
        view = "velocity" if self.view == "mean_velocity" else self.view

        def diagonal(t: Tensor, x: Tensor, **cond: object) -> Tensor:
            value: Tensor = model(t, t, x, **cond)
            return value

        diagonal.exact_time = needs_exact_time(model)  # type: ignore[attr-defined]
        return PathODE(self.path, diagonal, view, self.time)

    def renoised(self, times: list[float]) -> list[tuple[float, float]]:
        """(share, noise) of each step to ``times[1:]``: share X(t, 1, x) + noise z has their law.

        X has the law of t = 1, noise of scale sigma(1) included where the path keeps some:
        share = beta_r / beta_1 and noise^2 = sigma_r^2 - (share sigma_1)^2.

        Raises:
            Unsupported: a path on which there is no such step.
            OptionError: a run that does not go towards the data.
        """
        path = self.path
        if path.element or not (path.gaussian_base and path.monotone and not path.reversed):
            raise Unsupported(
                "renoise=True goes to clean data and back, which needs a path with a Gaussian base at "
                "t = 0, log-SNR that increases and one schedule for all elements. Leave it out, for a "
                "map between the times of the grid."
            )
        if times[0] > times[-1]:
            raise OptionError(
                f"renoise=True maps to the data, and this run goes from t = {times[0]:g} to "
                f"{times[-1]:g}. Leave it out to map backwards."
            )
        k, end = path.coefficients(host(times[1:])), path.coefficients(host(1.0))
        share = k.beta / end.beta
        left = (k.sigma**2 - (share * end.sigma) ** 2).clamp(min=0)
        noise = torch.where(k.t == 1.0, 0.0, left.sqrt())
        return list(zip(share.tolist(), noise.tolist(), strict=True))
