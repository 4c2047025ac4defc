"""What can be integrated: an ODE or an SDE, made by hand or from a path and a model.

A term made from a path is integrated in the coordinates in which its view is regular:

    view                  state      clock         equation          sampling ends at
    velocity              x          t             dx/dt = v         t = 1
    noise, score, base    x / beta   sigma / beta  dy/dtau = n       0
    data                  x / sigma  beta / sigma  dy/dtau = D       infinity, by a first-order step

(Karras, Aittala, Aila, Laine, arXiv 2206.00364, eq. 4, is the second row; both follow from
x = beta D + sigma n along the probability flow.) Steps, stages and tolerances are taken there, and
no conversion divides by zero.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from . import views
from .arguments import host, like, real, spread
from .errors import FieldError, OptionError, TimeError, UndeterminedView, UnknownName, Unsupported
from .scalar import Schedule

if TYPE_CHECKING:
    from .interpolant import Interpolant

Field = Callable[[Tensor, Tensor], Tensor]
Model = Callable[..., Tensor]
Cond = Mapping[str, Any]

#: What a model may want to be told instead of t.
TIMES = ("t", "noise", "sigma", "log_snr")
_NEGLIGIBLE = (
    1e-12  # sigma or beta below this at an end is taken for the zero that it is meant to be
)


def _bound(function: Model, cond: Cond) -> Field:
    """``function`` with its conditions; itself where it has none, so that no frame is added."""
    return (lambda t, x: function(t, x, **cond)) if cond else function


# Terms made by hand


@dataclass(frozen=True)
class ODE:
    """dx/dt = field(t, x), over any finite interval.

    Args:
        field: called with t, a 0-d tensor of x's dtype, and x; returns a tensor like x.
    """

    field: Model

    def __post_init__(self) -> None:
        _check_callable("field", self.field)

    kind = "ode"
    path = None
    exact_time = False
    coordinates = None

    def check(self, t0: float, t1: float) -> None:
        """Any finite interval will do."""

    def bind(self, cond: Cond) -> Field:
        """The field, with ``cond`` as keyword arguments."""
        return _bound(self.field, cond)

    slope = bind


@dataclass(frozen=True)
class SDE:
    """dX = drift(t, X) dt + diffusion(t, X) dW, over any finite interval.

    Args:
        drift: called with t and x as an ODE's field.
        diffusion: a number, a tensor of x's shape, diffusion(t) or diffusion(t, x), which give one
            or the other.
        calculus: "ito" or "stratonovich".

    Raises:
        UnknownName: another calculus.
    """

    drift: Model
    diffusion: float | Tensor | Model
    calculus: str = "ito"

    kind = "sde"
    path = None
    exact_time = False

    def __post_init__(self) -> None:
        _check_callable("drift", self.drift)
        if not callable(self.diffusion) and not isinstance(self.diffusion, Tensor):
            real("diffusion", self.diffusion)
        if self.calculus not in ("ito", "stratonovich"):
            raise UnknownName.of("calculus", self.calculus, ("ito", "stratonovich"))

    def check(self, t0: float, t1: float) -> None:
        """Any finite interval will do."""

    def drift_field(self, cond: Cond) -> Field:
        """The drift, with ``cond`` as keyword arguments."""
        return _bound(self.drift, cond)

    def diffusion_field(self, cond: Cond) -> float | Field:
        """The diffusion as a number, or as a function of (t, x) that gives a tensor like x."""
        g = self.diffusion
        if isinstance(g, Tensor):
            return lambda t, x: _spread_diffusion(g, x)
        if not callable(g):
            return float(g)
        if _takes_state(g):
            return lambda t, x: _spread_diffusion(g(t, x, **cond), x)
        return lambda t, x: _spread_diffusion(g(t), x)


def _spread_diffusion(value: object, x: Tensor) -> Tensor:
    """A diffusion's value as a tensor like x."""
    if not isinstance(value, (Tensor, int, float)):
        kind = type(value).__name__
        raise FieldError(f"the diffusion returned a {kind}. Return a number or a tensor like x.")
    tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if tensor.ndim and tensor.shape != x.shape:
        raise FieldError(
            f"the diffusion has shape {tuple(tensor.shape)} where the state has {tuple(x.shape)}. "
            "Return a scalar or a tensor of the state's shape."
        )
    return tensor.expand_as(x)


def _check_callable(what: str, function: object) -> None:
    if not callable(function):
        kind = type(function).__name__
        raise OptionError(f"the {what} is a {kind}, not a function. Give {what}(t, x).")


def _takes_state(function: Model) -> bool:
    """Whether a diffusion is a function of (t, x) rather than of t alone."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: the general form
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


# Coordinates


class Coordinates(Protocol):
    """A clock tau(t) and a scale c(t) in which x = c y, and y(tau) is integrated."""

    def tau(self, t: Tensor) -> Tensor:
        """The clock at t, float64."""
        ...

    def time(self, tau: Tensor) -> Tensor:
        """The t at which the clock shows tau."""
        ...

    def scale(self, t: Tensor) -> Tensor:
        """What y is multiplied by to give x."""
        ...


@dataclass(frozen=True)
class NoiseClock:
    """tau = sigma / beta and x = beta y."""

    path: Interpolant

    def tau(self, t: Tensor) -> Tensor:
        """Sigma / beta."""
        return self.path.noise_scale(t)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of sigma / beta."""
        return _time_at(self.path, -2 * tau.log())

    def scale(self, t: Tensor) -> Tensor:
        """Beta."""
        return self.path.beta(t)


@dataclass(frozen=True)
class DataClock:
    """tau = beta / sigma and x = sigma y."""

    path: Interpolant

    def tau(self, t: Tensor) -> Tensor:
        """Beta / sigma."""
        return 1 / self.path.noise_scale(t)

    def time(self, tau: Tensor) -> Tensor:
        """The inverse of beta / sigma."""
        return _time_at(self.path, 2 * tau.log())

    def scale(self, t: Tensor) -> Tensor:
        """Sigma."""
        return self.path.coefficients(t).sigma


def _time_at(path: Interpolant, log_snr: Tensor) -> Tensor:
    # A clock that has gone through a logarithm and back may miss an end by its last bit.
    low, high = path.log_snr(0.0), path.log_snr(1.0)
    return path.time_at_log_snr(torch.minimum(torch.maximum(log_snr, low), high))


# Terms made from a path


def _check_time_name(time: object) -> None:
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


def _check_view(path: Interpolant, view: object) -> None:
    if view not in views.VIEWS:
        raise UnknownName.of("view", view, views.VIEWS)
    if not path.gaussian_base and view != "velocity":
        raise UndeterminedView(
            f"a model of the {view} does not determine the velocity of this path, whose base is not "
            'Gaussian. Give a model of the velocity (view="velocity").'
        )


def _check_times(t0: float, t1: float) -> None:
    for t in (t0, t1):
        if not 0 <= t <= 1:
            raise TimeError(
                f"t = {t!r} is outside [0, 1], where this term's path lives. Give an interval inside "
                "[0, 1], e.g. t=(0.0, 1.0)."
            )


def _check_start(path: Interpolant, view: str, t: float) -> None:
    """Refuse noise-like views where beta vanishes."""
    if view in ("noise", "score", "base") and float(path.beta(host(t))) <= 0:
        raise TimeError(
            f"a model of the {view} says nothing of the data at t = {t:g}, where beta is 0. The first "
            "usable t is any above it: start from N(0, sigma(t)^2) there, e.g. t=(0.001, 1.0)."
        )


class _PathTerm:
    """What the terms of a path share: the path, a model of one view, and what it is told."""

    def __init__(
        self, path: Interpolant, model: Model, view: str, time: str | tuple[str, int]
    ) -> None:
        _check_callable("model", model)
        _check_view(path, view)
        _check_time_name(time)
        self.path, self.model, self.view, self.time = path, model, view, time

    def call(self, t: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The model at t (float64) and x, told the time that it wants, in x's dtype."""
        time = told(self.path, self.time, t).to(x.dtype)
        return like(self.model(time, x, **cond), x, "the model")

    def data(self, t: float, x: Tensor, cond: Cond) -> Tensor:
        """The data estimate E[x1 | x] at t."""
        return self.as_view("data", host(t), x, cond)

    def as_view(self, target: str, t: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The model's view converted to ``target``, at x and t."""
        return self.path.convert(self.call(t, x, cond), self.view, target, x, t)


class PathODE(_PathTerm):
    """The probability flow of a path, dx/dt = E[dI/dt | I_t = x], from a model of any view.

    Args:
        path: the path.
        model: model(t, x, **cond) -> tensor like x.
        view: what the model returns: "velocity", "score", "noise", "data" or "base".
        time: what the model is told; see `told`.

    Raises:
        UnknownName: a view or time convention that does not exist.
        UndeterminedView: a view that does not tell the velocity of this path.
    """

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        view: str = "velocity",
        time: str | tuple[str, int] = "t",
    ) -> None:
        super().__init__(path, model, view, time)

    kind = "ode"

    @property
    def exact_time(self) -> bool:
        """Whether the field needs t in float64 rather than in x's dtype."""
        return self.view != "velocity" or self.time != "t"

    @property
    def coordinates(self) -> Coordinates | None:
        """Where the view is regular; None for (x, t) itself."""
        if self.view == "velocity":
            return None
        return DataClock(self.path) if self.view == "data" else NoiseClock(self.path)

    def check(self, t0: float, t1: float) -> None:
        """Refuse an interval on which the view does not tell the flow.

        Raises:
            TimeError: outside [0, 1], or a start where the view is silent.
        """
        _check_times(t0, t1)
        _check_start(self.path, self.view, min(t0, t1))
        late = self.path.coefficients(host(max(t0, t1)))
        if self.view == "base" and self.path.gamma is not None and late.alpha <= _NEGLIGIBLE:
            raise TimeError(
                f"a model of the base says nothing of the noise at t = {max(t0, t1):g}, where alpha is "
                "0 and x0 has left x. Stay below it, e.g. t=(0.001, 0.999)."
            )
        if self.view == "data" and t1 < t0 and self.clean(t0):
            raise TimeError(
                f"a model of the data says nothing of the noise at t = {t0:g}, where sigma is 0. "
                "Start a little below it, e.g. t=(0.999, 0.0)."
            )

    def clean(self, t: float) -> bool:
        """Whether sigma vanishes at t."""
        sigma = self.path.coefficients(host(t)).sigma
        return float(sigma) <= _NEGLIGIBLE

    def bind(self, cond: Cond) -> Field:
        """The velocity as a function of (t, x)."""
        if self.view == "velocity" and self.time == "t":
            return _bound(self.model, cond)
        return lambda t, x: self.as_view("velocity", t.double(), x, cond)

    def slope(self, cond: Cond) -> Field:
        """dy/dtau as a function of (t, y): y in the term's coordinates, t the caller's time."""
        at = self.coordinates
        if at is None:
            return self.bind(cond)

        def field(t: Tensor, y: Tensor) -> Tensor:
            x = spread(at.scale(t), y) * y
            value = self.call(t, x, cond)
            if self.view in ("noise", "data"):
                return value
            _, q = views.weights(self.path.coefficients(t), self.view, "noise")
            return spread(q, value) * value

        return field

    def first_order(self, t: Tensor, r: Tensor, x: Tensor, data: Tensor) -> Tensor:
        """x carried from t to r as if the data estimate did not change: exact where it does not.

        x_r = (sigma_r / sigma_t) x + (beta_r - beta_t sigma_r / sigma_t) D: DDIM (Song, Meng,
        Ermon, arXiv 2010.02502).
        """
        k, k_r = self.path.coefficients(t), self.path.coefficients(r)
        kept = k_r.sigma / k.sigma
        return spread(kept, x) * x + spread(k_r.beta - k.beta * kept, x) * data


@dataclass(frozen=True)
class Steps:
    """A recurrence x_new = a x + b f(t, x) + s dW: one number of each a step."""

    a: list[float]
    b: list[float]
    s: list[float]


class PathSDE(_PathTerm):
    """The SDE dX = (v + (eps^2 / 2) s) dt + eps dW, with the marginals of the path for every eps.

    Where one view tells data and noise (a Gaussian base, no score of its own) a step is exact for a
    data estimate that does not change over it, with zeta a normal:

        x_r = A x + (beta_r - A beta_t) D + sigma_r sqrt(1 - exp(-2 K)) zeta,
        A = (sigma_r / sigma_t) exp(-K),   K = int_t^r eps^2 / (2 sigma^2) dt.

    So it is stable where sigma vanishes and regular where G is infinite; eps = 0 is DDIM, and
    "reverse" the ancestral step of DDPM (Ho, Jain, Abbeel, arXiv 2006.11239). Otherwise the step is
    Euler-Maruyama on velocity and score as they are given.

    Args:
        path, model, time: as for an ODE.
        view: one view, or ("velocity", "score") with a model that returns both.
        diffusion: eps: a number, a function of t (elementwise, float64), or "reverse": the G of the
            noising SDE, G^2 = sigma^2 dlambda/dt, lambda the log-SNR.
        score: a model of the score, where the first one does not tell it.

    Raises:
        UnknownName, OptionError: a view, time or diffusion that does not exist.
        UndeterminedView: where nothing tells the score.
    """

    def __init__(
        self,
        path: Interpolant,
        model: Model,
        view: str | tuple[str, ...] = "velocity",
        time: str | tuple[str, int] = "t",
        *,
        diffusion: float | str | Callable[[Tensor], Tensor | float],
        score: Model | None = None,
    ) -> None:
        self.pair = not isinstance(view, str) and tuple(view) == ("velocity", "score")
        super().__init__(path, model, "velocity" if self.pair else view, time)  # type: ignore[arg-type]
        if not self.pair and score is None and not path.gaussian_base:
            raise UndeterminedView(
                "the velocity alone does not determine the score of a path whose base is not Gaussian."
                ' Give score=a model of it, or view=("velocity", "score") with a model of both.'
            )
        if score is not None and (self.pair or view != "velocity"):
            raise OptionError(
                f"view={view!r} and a score of its own contradict each other. With score=, the model "
                'is one of the velocity: view="velocity".'
            )
        self.score = score
        self.diffusion = diffusion
        self._eps = self._schedule(diffusion)

    @staticmethod
    def _schedule(diffusion: object) -> Schedule | None:
        """Eps as a schedule, None for "reverse"."""
        if diffusion == "reverse":
            return None
        if isinstance(diffusion, str):
            raise UnknownName.of("diffusion", diffusion, ("reverse",))
        if callable(diffusion):
            return Schedule(diffusion)
        number = isinstance(diffusion, (int, float)) and not isinstance(diffusion, bool)
        if not number or not math.isfinite(diffusion) or diffusion < 0:  # type: ignore[arg-type, operator]
            raise OptionError(
                f"diffusion={diffusion!r} is not a size. Give a finite number, zero or more, a "
                'function of t, or "reverse".'
            )
        return Schedule(lambda t: float(diffusion))  # type: ignore[arg-type]

    kind = "sde"

    @property
    def exact_time(self) -> bool:
        """Whether the drift needs t in float64 rather than in x's dtype."""
        return not self.exponential or self.time != "t"

    @property
    def exponential(self) -> bool:
        """Whether steps are exact for a constant data estimate."""
        return self.score is None and not self.pair

    def check(self, t0: float, t1: float) -> None:
        """Refuse an interval on which the view does not tell the drift.

        Raises:
            TimeError: outside [0, 1], or a start where the view is silent.
        """
        _check_times(t0, t1)
        if self.exponential:
            _check_start(self.path, self.view, min(t0, t1))
            at = host(t0)
            if float(self.path.coefficients(at).sigma) <= _NEGLIGIBLE:
                raise TimeError(
                    f"the SDE cannot start at t = {t0:g}, where sigma is 0 and x says nothing of the "
                    "noise. Start a little below it, e.g. t=(0.999, 0.0)."
                )

    def eps(self, t: Tensor) -> Tensor:
        """eps(t), float64.

        Raises:
            OptionError: where it is negative or not finite.
        """
        if self._eps is None:
            k = self.path.coefficients(t)
            squared = 2 * (k.sigma**2 * k.dbeta / k.beta - k.sigma_dsigma)
            return squared.clamp(min=0).sqrt()
        eps = self._eps(t)
        bad = ~((eps >= 0) & eps.isfinite())
        if bad.any():
            raise OptionError(
                f"diffusion({t[bad][0].item():g}) is {eps[bad][0].item()!r}. Give a function that is "
                "finite and not negative on [0, 1]."
            )
        return eps

    def drift_field(self, cond: Cond) -> Field:
        """What the steps call: the model itself, or velocity + (eps^2 / 2) score."""
        if self.exponential:
            if self.time == "t":
                return _bound(self.model, cond)
            return lambda t, x: self.call(t.double(), x, cond)

        def drift(t: Tensor, x: Tensor) -> Tensor:
            t = t.double()
            if self.score is None:
                v, s = self.model(told(self.path, self.time, t).to(x.dtype), x, **cond)
                v, s = like(v, x, "the velocity"), like(s, x, "the score")
            else:
                v, s = self.call(t, x, cond), self.score(t.to(x.dtype), x, **cond)
            weighted: Tensor = spread(self.eps(t) ** 2 / 2, x) * s
            return v + weighted

        return drift

    def steps(self, grid: list[float]) -> Steps:
        """The recurrence on a grid of times.

        Raises:
            Unsupported: a time at which "reverse" is infinite, where steps are not exponential.
        """
        times = host(grid)
        t, r = times[:-1], times[1:]
        if not self.exponential:
            eps = self.eps(t)
            if not eps.isfinite().all():
                raise Unsupported(
                    'diffusion="reverse" is infinite at the start of this path. Give a bounded eps.'
                )
            if (r < t).any():
                raise Unsupported("with a score of its own the SDE runs forward in t. Reverse t.")
            return Steps([1.0] * len(t), (r - t).tolist(), eps.tolist())
        k, k_r = self.path.coefficients(t), self.path.coefficients(r)
        damping = self._damping(t, r)
        kept = (k_r.sigma / k.sigma) * torch.exp(-damping)
        noise = k_r.sigma * torch.sqrt(-torch.expm1(-2 * damping))
        clean = k_r.sigma <= _NEGLIGIBLE  # nothing of x or the noise is left there
        kept, noise = (torch.where(clean, 0.0, v) for v in (kept, noise))
        to_data = k_r.beta - kept * k.beta
        a, b = kept, to_data
        if self.view != "data":
            p, q = views.weights(k, self.view, "data")
            a, b = kept + to_data * (0.0 if p is None else p), to_data * q
        return Steps(a.tolist(), b.tolist(), (noise / (r - t).abs().sqrt()).tolist())

    def _damping(self, t: Tensor, r: Tensor) -> Tensor:
        """K = |int_t^r eps^2 / (2 sigma^2) dt|, by Gauss-Legendre where it is no closed form."""
        if self._eps is None:
            return (self.path.log_snr(r) - self.path.log_snr(t)).abs() / 2
        nodes, weights = _gauss_legendre(16)
        at = t[:, None] + (r - t)[:, None] * nodes
        rate = self.eps(at) ** 2 / (2 * self.path.coefficients(at).sigma ** 2)
        return ((r - t).abs()[:, None] * weights * rate).sum(1)


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


Term = ODE | SDE | PathODE | PathSDE
