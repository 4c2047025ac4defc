"""What the terms of a path share: a path, a model of one view, and what the model is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import views
from ..arguments import host, like
from ..errors import OptionError, OutOfRange, TimeError, UndeterminedView, UnknownName

if TYPE_CHECKING:
    from ..interpolant import Interpolant

Field = Callable[[Tensor, Tensor], Tensor]
Model = Callable[..., Any]  # a tensor like x; (velocity, score) where a term asks for both
Cond = Mapping[str, Any]

#: What a model may want to be told instead of t.
TIMES = ("t", "noise", "sigma", "log_snr")

#: Sigma or alpha below this at an end is taken for the zero that it is meant to be.
NEGLIGIBLE = 1e-12


#: (t, c, a, b) at each reading of a run's clock.
Readings = list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Affine:
    """A slope that is one call of a model between numbers: a model(t, c y) + b y.

    What needs no Python in between can run without it.

    Attributes:
        model: the model.
        reads: from readings of the run's clock to (t, c, a, b); None where the slope is the model's.
    """

    model: Model
    reads: Callable[[list[float]], Readings] | None = None


def readings(t: Tensor, c: Tensor | float, a: Tensor | float, b: Tensor | float) -> Readings:
    """Rows of (t, c, a, b), any of the last three of which may be the same for all."""
    columns = [torch.broadcast_to(torch.as_tensor(v, dtype=t.dtype), t.shape) for v in (c, a, b)]
    return list(zip(*(v.tolist() for v in (t, *columns)), strict=True))


def bound(function: Model, cond: Cond) -> Field:
    """``function`` with its conditions; itself where it has none, so that no frame is added."""
    return (lambda t, x: function(t, x, **cond)) if cond else function


def check_callable(what: str, function: object) -> None:
    if not callable(function):
        kind = type(function).__name__
        raise OptionError(f"the {what} is a {kind}, not a function. Give {what}(t, x).")


def check_time_name(time: object) -> None:
    """Refuse a convention that does not exist.

    Raises:
        UnknownName: names the nearest.
    """
    indexed = isinstance(time, tuple) and len(time) == 2 and time[0] == "index"
    if indexed and isinstance(time[1], int) and time[1] > 0:  # type: ignore[index]
        return
    if time not in TIMES:
        raise UnknownName.of("time convention", time, [*TIMES, '("index", n)'])


def told(path: Interpolant, time: str | tuple[str, int], t: Tensor) -> Tensor:
    """What a model of the convention ``time`` is told at t, float64.

    "t": t; "noise": 1 - t; "sigma": sigma / beta; "log_snr": 2 log(beta / sigma);
    ("index", n): n (1 - t) - 1, an exact integer at the nodes t = 1 - (k + 1) / n of a table.
    """
    if time == "t":
        return t
    if time == "noise":
        return 1 - t
    if time == "sigma":
        return path.noise_scale(t)
    if time == "log_snr":
        return path.log_snr(t)
    n = int(time[1])
    index = n * (1 - t) - 1
    nearest = index.round()
    return torch.where((index - nearest).abs() < 1e-9 * n, nearest, index)


def needs_exact_time(model: Model) -> bool:
    """Whether a model wants its time in float64 whatever the dtype of x."""
    return bool(getattr(model, "exact_time", False))


def call(
    model: Model, path: Interpolant, time: str | tuple[str, int], t: Tensor, x: Tensor, cond: Cond
) -> object:
    """The model at t (float64) and x, told the time that it wants in x's dtype.

    A model with a true ``exact_time`` is told it in float64.
    """
    stamp = told(path, time, t)
    if not needs_exact_time(model):
        stamp = stamp.to(x.dtype)
    return model(stamp, x, **cond)


def check_own_view(model: Model, view: str) -> None:
    """Refuse to take a model that says what it returns for something else.

    Raises:
        OptionError: names both views.
    """
    own = getattr(model, "view", view)
    if isinstance(own, str) and own in views.VIEWS and own != view:
        raise OptionError(f'the model returns the {own}, not the {view}. Give view="{own}".')


def check_own_path(model: Model, path: Interpolant) -> None:
    """Refuse a model that says which path it is on, where it is on another.

    Raises:
        OptionError: names both paths.
    """
    from ..interpolant import Interpolant

    own = getattr(model, "path", None)
    if not isinstance(own, Interpolant) or own is path:
        return
    if own.config is None or own.config != path.config:
        raise OptionError(
            f"the model is one on {own}, not on {path}. Give path.adapt(model, trained_on=its path), or "
            "make it on this path."
        )


def own_view(model: Model, given: str | None) -> str:
    """The view that was ``given``, or else the model's own, or else the velocity."""
    if given is not None:
        return given
    own = getattr(model, "view", None)
    return own if isinstance(own, str) and own in views.VIEWS else "velocity"


def own_time(model: Model, given: str | tuple[str, int] | None) -> str | tuple[str, int]:
    """The time convention that was ``given``, or else the model's own, or else t."""
    if given is not None:
        return given
    own = getattr(model, "time", None)
    return own if isinstance(own, (str, tuple)) else "t"


def _check_view(path: Interpolant, view: object) -> None:
    views.check(view)
    if not path.gaussian_base and view != "velocity":
        raise UndeterminedView(
            f"a model of the {view} does not determine the velocity of this path, whose base is not "
            'Gaussian. Give a model of the velocity (view="velocity").'
        )


def check_times(t0: float, t1: float) -> None:
    for t in (t0, t1):
        if not 0 <= t <= 1:
            raise TimeError(
                f"t = {t!r} is outside [0, 1], where this term's path lives. Give an interval inside "
                "[0, 1], e.g. t=(0.0, 1.0)."
            )


def check_start(path: Interpolant, view: str, t: float) -> None:
    """Refuse noise-like views where beta vanishes, which it may do at an end."""
    if view not in views.NOISE_LIKE or 0.0 < t < 1.0:
        return
    beta = path.boundary.beta0 if t == 0.0 else path.boundary.beta1
    if not beta > 0 and not bool((path.beta(host(t)) > 0).all()):
        raise TimeError(
            f"a model of the {view} says nothing of the data at t = {t:g}, where beta is 0. The first "
            "usable t is any above it: start from N(0, sigma(t)^2) there, e.g. t=(0.001, 1.0)."
        )


class PathTerm:
    """What the terms of a path share: the path, a model of one view, and what it is told."""

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        view: str | None,
        time: str | tuple[str, int] | None,
    ) -> None:
        check_callable("model", model)
        view, time = own_view(model, view), own_time(model, time)
        _check_view(path, view)
        check_own_view(model, view)
        check_own_path(model, path)
        check_time_name(time)
        if path.element and time in ("sigma", "log_snr"):
            raise OptionError(
                f"{time} differs between the elements of this path, so a model cannot be told one. "
                'Tell it "t" or "noise".'
            )
        self.path, self.model, self.view, self.time = path, model, view, time

    @property
    def interval(self) -> tuple[float, float]:
        """Where a run goes by default: [0, 1], or what an adapted model has of it."""
        from ..adapted import Adapted

        return self.model.interval if isinstance(self.model, Adapted) else (0.0, 1.0)

    def check_interval(self, t0: float, t1: float) -> None:
        """Refuse times outside [0, 1], or outside what an adapted model has of it.

        Raises:
            TimeError, OutOfRange: names the interval.
        """
        check_times(t0, t1)
        low, high = self.interval
        if not (low <= min(t0, t1) and max(t0, t1) <= high):
            raise OutOfRange(
                f"the run from t = {t0!r} to {t1!r} leaves the interval from {low!r} to {high!r}, where "
                "the model's own path has the log-SNR of this one. Stay inside; without t= the run goes "
                "over all of it, from N(0, sigma(t)^2) at its beginning.",
                interval=(low, high),
            )

    def call(self, t: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The model at t (float64) and x, told the time that it wants, in x's dtype."""
        return like(call(self.model, self.path, self.time, t, x, cond), x, "the model")

    def data(self, t: float | Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The data estimate E[x1 | x] at t."""
        return self.as_view("data", host(t), x, cond)

    def as_view(self, target: str, t: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The model's view converted to ``target``, at x and t."""
        return self.path.convert(self.call(t, x, cond), self.view, target, x, t)
