"""A model trained on one path as a model on another: a schedule changed after training."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from . import views
from .arguments import Time, like, spread
from .base import IsotropicNormal
from .between import Between
from .coefficients import Coefficients
from .errors import UndeterminedView, Unsupported
from .interpolant import Interpolant, Model
from .terms.model import (
    call,
    check_callable,
    check_own_path,
    check_own_view,
    check_time_name,
    own_time,
    own_view,
)


class Adapted:
    """model(t, x) on ``path``, by a model that was trained on another: see `Interpolant.adapt`.

    At (t, x) the model is asked at (time(t), scale(t) x) on its own path. Data and noise estimates
    are the same there; the score is multiplied by scale, and a velocity is

        v = beta' D + sigma' n

    with the slopes of ``path``, and D and n as the model tells them.

    Attributes:
        interval: the times of ``path`` at which there is an answer.
        view: what is returned.
        base: N(0, sigma^2) at the beginning of ``interval``.
    """

    exact_time = True  # the clocks of two paths are matched in float64

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        trained_on: Interpolant,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
        to: str | None = None,
    ) -> None:
        check_callable("model", model)
        view, time = own_view(model, view), own_time(model, time)
        check_time_name(time)
        views.check(view)
        check_own_view(model, view)
        check_own_path(model, trained_on)
        self.path, self.model, self.trained_on = path, model, trained_on
        self.source, self.told = view, time
        self.between: Between = path.between(trained_on)
        self.interval = self.between.interval
        self.view = view
        if to is not None:
            self.view = self.returning(to).view

    @property
    def base(self) -> IsotropicNormal:
        """What a run over `interval` starts from."""
        return IsotropicNormal(self.path.sigma(self.interval[0]).item())

    def returning(self, view: str) -> Adapted:
        """The same, with its answer converted to another view."""
        views.check(view)
        if view != self.source and not self.path.gaussian_base:
            raise UndeterminedView(
                f"the {self.source} does not determine the {view} on a path whose base is not "
                f'Gaussian. Ask for view="{self.source}".'
            )
        other = copy.copy(self)
        other.view = view
        return other

    def regular(self) -> Adapted:
        """The same in a view that is finite all along the path: data where the velocity is not."""
        if self.view == "velocity" and self.path.gaussian_base and self.source != "data":
            ends = self.path.boundary.finite_rate0, self.path.boundary.finite_rate1
            if not all(
                fine for fine, end in zip(ends, (0.0, 1.0), strict=True) if end in self.interval
            ):
                return self.returning("data")
        return self

    def __call__(self, t: Time, x: Tensor, **cond: object) -> Tensor:
        """The answer at (t, x), like x.

        Raises:
            OutOfRange: a t outside `interval`.
            UndeterminedView: an end at which the model does not tell the view.
        """
        time = self.path._time_of(t, x)
        there, scale = self.between.both(time)
        y = spread(scale, x) * x
        value = like(call(self.model, self.trained_on, self.told, there, y, cond), x, "the model")
        p, q = self._weights(time, there, scale)
        if q is None:
            return value
        return self.trained_on.combine((q, 0.0 if p is None else p), (value, y))

    def _weights(
        self, t: Tensor, there: Tensor, scale: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(p, q) with the answer = p y + q value, where value is the model's at (there, y)."""
        if self.view == "velocity":
            return self._velocity(t, there, scale)
        p = q = None
        if self.view != self.source:
            p, q = views.weights(self.trained_on.coefficients(there), self.source, self.view)
        if self.view == "base" and self.path.gaussian_base:
            return self._base(t, there)
        if self.view in ("score", "energy_gradient"):
            p, q = None if p is None else scale * p, scale if q is None else scale * q
        if self.view == "v_prediction":
            p, q = None if p is None else p / scale, 1 / scale if q is None else q / scale
        return p, q

    def _base(self, t: Tensor, there: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """E[x0 | x] is alpha / sigma of the noise, and the paths may share sigma out differently."""
        if self.source == "base" and self.path.gamma is None and self.trained_on.gamma is None:
            return None, None
        p, q = views.weights(self.trained_on.coefficients(there), self.source, "noise")
        _, share = views.weights(self.path.coefficients(t), "noise", "base")
        return None if p is None else share * p, share * q

    def _velocity(self, t: Tensor, there: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        here, k = self.path.coefficients(t), self.trained_on.coefficients(there)
        if not self.path.gaussian_base:
            if self.source != "velocity":
                raise Unsupported(
                    f"the {self.source} does not determine the velocity of a path whose base is not "
                    "Gaussian. Adapt a model of the velocity."
                )
            speed, growth = _speed_and_growth(here, k, scale)
            return -growth / scale**2, speed / scale
        # y = scale x has beta and sigma of the model's path; noise is counted in units of its sigma
        # where a slope is infinite.
        onto = dataclasses.replace(here, sigma_dsigma=scale * here.sigma_dsigma)
        try:
            p, q = views.weights(k, self.source, "velocity", onto=onto)
        except UndeterminedView as error:
            raise UndeterminedView(
                f"the model does not tell the velocity of this path where t = {t.flatten()[0].item():g}"
                f" or at another time of the batch: {error} Or take the data, "
                'adapt(..., to="data"), as path.ode(adapted) does.'
            ) from error
        return torch.zeros_like(q) if p is None else p, q


def _speed_and_growth(
    here: Coefficients, there: Coefficients, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """d time / dt and d scale / dt from w_other(time) = scale w_path, w = (alpha, beta, gamma).

    w_other' time' - scale' w_path = scale w_path', by least squares over the components whose slopes
    are finite.
    """
    a = torch.stack([there.dalpha, there.dbeta, there.dgamma], -1)
    b = torch.stack([here.alpha, here.beta, here.gamma], -1)
    c = scale[..., None] * torch.stack([here.dalpha, here.dbeta, here.dgamma], -1)
    known = a.isfinite() & c.isfinite()
    a, b, c = (torch.where(known, v, 0.0) for v in (a, b, c))
    aa, ab, bb, ac, bc = ((u * v).sum(-1) for u, v in ((a, a), (a, b), (b, b), (a, c), (b, c)))
    determinant = aa * bb - ab * ab
    return (ac * bb - ab * bc) / determinant, (ab * ac - aa * bc) / determinant
