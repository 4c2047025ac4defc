"""The probability flow of a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import views
from ..arguments import host, spread
from ..errors import TimeError
from ..inverse import bisected
from .coordinates import AngleClock, Coordinates, DataClock, LineClock, NoiseClock
from .model import (
    NEGLIGIBLE,
    Affine,
    Cond,
    Field,
    Model,
    PathTerm,
    Readings,
    bound,
    check_start,
    needs_exact_time,
    readings,
    told,
)

if TYPE_CHECKING:
    from ..interpolant import Interpolant


class PathODE(PathTerm):
    """The probability flow of a path, dx/dt = E[dI/dt | I_t = x], from a model of any view.

    Args:
        path: the path.
        model: model(t, x, **cond) -> tensor like x.
        view: what the model returns, one of `interp.views.VIEWS`; None is the model's own ``view``,
            "velocity" where it has none.
        time: what the model is told; see `told`. None is the model's own ``time``, or "t".

    Raises:
        UnknownName: a view or time convention that does not exist.
        UndeterminedView: a view that does not tell the velocity of this path.
    """

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
    ) -> None:
        super().__init__(path, model, view, time)

    kind = "ode"

    @property
    def exact_time(self) -> bool:
        """Whether the field needs t in float64 rather than in x's dtype."""
        return self.view != "velocity" or self.time != "t" or needs_exact_time(self.model)

    @property
    def coordinates(self) -> Coordinates | None:
        """Where the view is regular; None for (x, t) itself."""
        if self.view == "velocity" or not self.path.invertible:
            return None
        if self.view == "v_prediction":
            return AngleClock(self.path)
        if self.view == "flow_prediction":
            return LineClock(self.path)
        return DataClock(self.path) if self.view == "data" else NoiseClock(self.path)

    def _base_lost(self, t: float) -> bool:
        """Whether x0 has left x at t, and there is noise beside it."""
        lost = self.path.coefficients(host(t)).alpha.min() <= NEGLIGIBLE
        return self.path.gamma is not None and bool(lost)

    def check(self, t0: float, t1: float) -> None:
        """Refuse an interval on which the view does not tell the flow.

        Raises:
            TimeError: outside [0, 1], or a start where the view is silent.
        """
        self.check_interval(t0, t1)
        check_start(self.path, self.view, (max if self.path.reversed else min)(t0, t1))
        if self.view == "base" and self._base_lost(max(t0, t1)):
            raise TimeError(
                f"a model of the base says nothing of the noise at t = {max(t0, t1):g}, where alpha is "
                "0 and x0 has left x. Stay below it, e.g. t=(0.001, 0.999)."
            )
        if self.view == "data" and self.clean(t0):
            inside = 0.999 if t0 > t1 else 0.001
            raise TimeError(
                f"a model of the data says nothing of the noise at t = {t0:g}, where sigma is 0. "
                f"Start a little away from it, e.g. t=({inside}, {t1})."
            )

    def clean(self, t: float) -> bool:
        """Whether sigma vanishes at t."""
        return float(self.path.sigma(t).min()) <= NEGLIGIBLE

    def almost_clean(self, noise: float) -> float:
        """The last t of a run to clean data at which some element still has sigma / beta = noise."""
        path = self.path.reverse() if self.path.reversed else self.path
        lam = -2 * host(noise).log()
        if path.element:
            axes = tuple(range(-len(path.element), 0))
            t = bisected(lambda t: path.log_snr(t).amin(axes), lam)
        else:
            t = path.time_at_log_snr(lam)
        return 1 - float(t) if self.path.reversed else float(t)

    def bind(self, cond: Cond) -> Field:
        """The velocity as a function of (t, x)."""
        if self.view == "velocity" and self.time == "t":
            return bound(self.model, cond)
        return lambda t, x: self.as_view("velocity", t.double(), x, cond)

    def slope(self, cond: Cond) -> Field:
        """dy/dtau as a function of (t, y): y in the term's coordinates, t the caller's time."""
        at = self.coordinates
        if at is None:
            return self.bind(cond)

        def field(t: Tensor, y: Tensor) -> Tensor:
            x = spread(at.scale(t), y) * y
            value, factor = self.call(t, x, cond), self._factor(at, t)
            return value if factor is None else spread(factor, value) * value

        return field

    def _factor(self, at: Coordinates, t: Tensor) -> Tensor | None:
        """What the model is multiplied by to give dy/dtau; None for 1."""
        if self.view in ("noise", "data", "flow_prediction"):
            return None
        if self.view == "v_prediction":
            return 1 / at.scale(t)
        return views.weights(self.path.coefficients(t), self.view, "noise")[1]

    def affine(self) -> Affine | None:
        """The slope as one call of the model between numbers; None where they differ by element."""
        at = self.coordinates
        if self.path.element:
            return None
        if at is None and self.view == "velocity" and self.time == "t":
            return Affine(self.model)

        def reads(taus: list[float]) -> Readings:
            if at is None:
                t = host(taus)
                p, q = views.weights(self.path.coefficients(t), self.view, "velocity")
                return readings(told(self.path, self.time, t), 1.0, q, 0.0 if p is None else p)
            t = at.time(host(taus))
            factor = self._factor(at, t)
            stamp = told(self.path, self.time, t)
            return readings(stamp, at.scale(t), 1.0 if factor is None else factor, 0.0)

        return Affine(self.model, reads)

    def first_order(self, t: Tensor, r: Tensor, x: Tensor, data: Tensor) -> Tensor:
        """x carried from t to r as if the data estimate did not change: exact where it does not.

        x_r = (sigma_r / sigma_t) x + (beta_r - beta_t sigma_r / sigma_t) D: DDIM (Song, Meng,
        Ermon, arXiv 2010.02502).
        """
        k, k_r = self.path.coefficients(t), self.path.coefficients(r)
        kept = k_r.sigma / k.sigma
        return self.path.combine((kept, k_r.beta - k.beta * kept), (x, data))
