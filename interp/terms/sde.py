"""The SDEs of a path: its marginals, and any amount of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import views
from ..arguments import host, like, spread
from ..errors import (
    FieldError,
    OptionError,
    ScheduleError,
    TimeError,
    UndeterminedView,
    UnknownName,
    Unsupported,
)
from ..scalar import Schedule
from .coordinates import Carried
from .model import (
    NEGLIGIBLE,
    Affine,
    Cond,
    Field,
    Model,
    PathTerm,
    Readings,
    bound,
    check_callable,
    check_start,
    needs_exact_time,
    readings,
    told,
)

if TYPE_CHECKING:
    from ..coefficients import Coefficients
    from ..interpolant import Interpolant


#: The standard deviation of the data whose SDE `PathSDE.carried` carries along.
REFERENCE = 0.25
#: How far it carries by the noise at most, in e-folds: single precision has 88 on either side.
_FARTHEST = 40.0


@dataclass(frozen=True)
class Steps:
    """A recurrence x_new = a x + b f(t, x) + s dW: one number of each a step."""

    a: list[float]
    b: list[float]
    s: list[float]


class PathSDE(PathTerm):
    """The SDE dX = (v + (eps^2 / 2) s) dt + eps dW, with the marginals of the path for every eps.

    Where one view tells data and noise (a Gaussian base, no score of its own) a step is exact for a
    data estimate that does not change over it, with zeta a normal:

        x_r = A x + (beta_r - A beta_t) D + sigma_r sqrt(1 - exp(-2 K)) zeta,
        A = (sigma_r / sigma_t) exp(-K),   K = int_t^r eps^2 / (2 sigma^2) dt.

    So it is stable where sigma vanishes and regular where G is infinite; eps = 0 is DDIM, and
    "reverse" the ancestral step of DDPM (Ho, Jain, Abbeel, arXiv 2006.11239). Otherwise the step is
    Euler-Maruyama on velocity and score as they are given.

    The step is of weak order 1 where eps vanishes with sigma, as "reverse" and eps = c sigma do. With an
    eps that stays positive at clean data the last steps forget all of x but its data estimate, and
    the error falls with the square root of the step.

    Args:
        path, model, time: as for an ODE.
        view: the same: one view, or ("velocity", "score") with a model that returns both.
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
        view: str | tuple[str, ...] | None = None,
        time: str | tuple[str, int] | None = None,
        *,
        diffusion: float | str | Callable[[Tensor], Tensor | float],
        score: Model | None = None,
    ) -> None:
        self.pair = isinstance(view, (tuple, list)) and tuple(view) == ("velocity", "score")
        super().__init__(path, model, "velocity" if self.pair else view, time)  # type: ignore[arg-type]
        if not self.pair and score is None and not path.gaussian_base:
            raise UndeterminedView(
                "the velocity alone does not determine the score of a path whose base is not Gaussian."
                ' Give score=a model of it, or view=("velocity", "score") with a model of both.'
            )
        if path.element and diffusion == "reverse":
            raise Unsupported(
                f"the G of this path differs between its elements, of shape {path.element}, and an SDE "
                "takes one eps. Give a number or a function of t."
            )
        if score is not None and (self.pair or self.view != "velocity"):
            raise OptionError(
                f"view={view!r} and a score of its own contradict each other. With score=, the model "
                'is one of the velocity: view="velocity".'
            )
        if score is not None:
            check_callable("score", score)
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
        return not self.exponential or self.time != "t" or needs_exact_time(self.model)

    @property
    def exponential(self) -> bool:
        """Whether steps are exact for a constant data estimate."""
        return self.score is None and not self.pair and not self.path.element

    def check(self, t0: float, t1: float) -> None:
        """Refuse an interval on which the view does not tell the drift.

        Raises:
            TimeError: outside [0, 1], or a start where the view is silent.
        """
        self.check_interval(t0, t1)
        if self.score is None and not self.pair:
            check_start(self.path, self.view, min(t0, t1))
        if self.exponential:
            at = host(t0)
            if float(self.path.coefficients(at).sigma) <= NEGLIGIBLE:
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
        try:
            eps = self._eps(t)
        except ScheduleError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise ScheduleError(
                f"diffusion(t) does not take a tensor of times ({error}). Write it elementwise, in "
                "operations of torch."
            ) from error
        bad = ~((eps >= 0) & eps.isfinite())
        if bad.any():
            raise OptionError(
                f"diffusion({t[bad][0].item():g}) is {eps[bad][0].item()!r}. Give a function that is "
                "finite and not negative on [0, 1]."
            )
        return eps

    def drift_field(self, cond: Cond, forward: bool = True) -> Field:
        """What the recurrence calls: the model itself, or the drift of a run that goes ``forward``."""
        if not self.exponential:
            return self.explicit_drift(cond, forward)
        if self.time == "t":
            return bound(self.model, cond)
        return lambda t, x: self.call(t.double(), x, cond)

    def affine(self) -> Affine | None:
        """What the steps call as one call of the model; None where it takes more."""
        if not self.exponential:
            return None
        if self.time == "t":
            return Affine(self.model)
        return Affine(
            self.model, lambda times: readings(told(self.path, self.time, host(times)), 1, 1, 0)
        )

    def explicit_drift(self, cond: Cond, forward: bool = True, at: Carried | None = None) -> Field:
        """Velocity + (eps^2 / 2) score as one function, of y = x / c in the coordinates ``at``.

        Backwards the noise that is added has to be taken away by -(eps^2 / 2) score.
        """

        def drift(t: Tensor, x: Tensor) -> Tensor:
            t = t.double()
            if self.pair:
                v, s = self._both(t, x, cond)
            elif self.score is None:
                value = self.call(t, x, cond)
                v, s = (self.path.convert(value, self.view, w, x, t) for w in ("velocity", "score"))
            else:
                v = self.call(t, x, cond)
                s = like(self.score(t.to(x.dtype), x, **cond), x, "the score")
            weighted: Tensor = spread(self._half(t, forward), x) * s
            return v + weighted

        if at is None:
            return drift

        def inside(t: Tensor, y: Tensor) -> Tensor:
            t = t.double()
            c = at.scale(t)
            moved: Tensor = spread(1 / c, y) * drift(t, spread(c, y) * y)
            return moved - spread(self.carrying(t, forward, at.share), y) * y

        return inside

    def explicit_affine(self, forward: bool = True, at: Carried | None = None) -> Affine | None:
        """The same as one call of the model between numbers; None where it takes more."""
        if not self.exponential or self.path.element:
            return None

        def reads(times: list[float]) -> Readings:
            t = host(times)
            k, half = self.path.coefficients(t), self._half(t, forward)
            (p, q), (r, s) = (views.weights(k, self.view, w) for w in ("velocity", "score"))
            own = torch.zeros_like(t) if p is None else p
            own = own if r is None else own + half * r
            c, weight = torch.ones_like(t), q + half * s
            if at is not None:
                c = at.scale(t)
                weight, own = weight / c, own - self.carrying(t, forward, at.share)
            return readings(told(self.path, self.time, t), c, weight, own)

        return Affine(self.model, reads)

    def _half(self, t: Tensor, forward: bool) -> Tensor:
        """What the score is multiplied by."""
        half = self.eps(t) ** 2 / 2
        return half if forward else -half

    def carrying(self, t: Tensor, forward: bool, share: float) -> Tensor:
        """c' / c of the coordinates of `carried`, in the direction of t."""
        variance, k = self._reference(t)
        grown = REFERENCE**2 * k.beta * k.dbeta + k.sigma_dsigma
        return ((grown - share * self._half(t, forward)) / variance).detach()

    def _reference(self, t: Tensor) -> tuple[Tensor, Coefficients]:
        """The variance of x for data N(0, s^2), s = 1/4, and the path's coefficients."""
        k = self.path.coefficients(t)
        return (REFERENCE * k.beta) ** 2 + k.sigma**2, k

    def near(self, grid: list[float]) -> bool:
        """Whether steps on ``grid`` can be taken in x: no step is long for the SDE of data N(0, 1/16),
        and its standard deviation changes by no more than a factor e^2, as on paths whose sigma(0) is 1.

        An explicit step is off by a share of that change, and all states by the product of these shares.
        """
        times = host(grid)
        rates = self.carrying(_inside(times[:-1], times[1:])[0], grid[-1] > grid[0], 1.0)
        moved = (times[1:] - times[:-1])[:, None] * rates
        spans = self._reference(times)[0].log()
        return bool((moved.abs() <= 1).all() and spans.max() - spans.min() <= 4)

    def carried(self, grid: list[float]) -> Carried:
        """Coordinates x = c y in which the SDE of data N(0, s^2) has no drift, on a rising or falling grid.

            c = sqrt(V) exp(-q),   V = s^2 beta^2 + sigma^2,   q = integral of eps^2 / (2 V), s = 1/4

        At much noise little else is left of the drift of any data. Of data that vary more than those,
        the rest drives states apart rather than together, as the stability of explicit steps wants.
        The variance of eps / c dW over a step is exp(2 q) (exp(2 dq) - 1). Where q would grow too large,
        of an eps for which steps have to be short anyhow, a share of it is carried.
        """
        times = host(grid)
        inside, long = _inside(times[:-1], times[1:])
        rates = self.eps(inside) ** 2 / (2 * self._reference(inside)[0])
        steps = (long * rates).sum(1).detach()
        share = _FARTHEST / max(float(steps.sum()), _FARTHEST)
        q = share * torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        squares = torch.exp(2 * q[:-1]) * torch.expm1(2 * share * steps) / (share * long.sum(1))
        kicks = torch.cat([squares, squares[-1:]]).sqrt()
        scales = self._reference(times)[0].detach().sqrt() * torch.exp(-q)
        if grid[-1] < grid[0]:
            times, scales, kicks = times.flip(0), scales.flip(0), kicks.flip(0)
        return Carried(times, scales, kicks, share)

    def _both(self, t: Tensor, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Velocity and score of a model that returns both."""
        both: Any = self.model(told(self.path, self.time, t).to(x.dtype), x, **cond)
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            raise FieldError(
                f"the model returned a {type(both).__name__} where view=('velocity', 'score') needs "
                "two tensors. Return (velocity, score)."
            )
        return like(both[0], x, "the velocity"), like(both[1], x, "the score")

    def data(self, t: float | Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The data estimate E[x1 | x] at t, from the score where the model gives one."""
        if self.exponential:
            return super().data(t, x, cond)
        time = host(t)
        if self.score is None:
            s = self._both(time, x, cond)[1]
        else:
            s = like(self.score(time.to(x.dtype), x, **cond), x, "the score")
        return self.path.convert(s, "score", "data", x, time)

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
            return Steps([1.0] * len(t), (r - t).tolist(), eps.tolist())
        k, k_r = self.path.coefficients(t), self.path.coefficients(r)
        damping = self._damping(t, r)
        kept = (k_r.sigma / k.sigma) * torch.exp(-damping)
        noise = k_r.sigma * torch.sqrt(-torch.expm1(-2 * damping))
        clean = k_r.sigma <= NEGLIGIBLE  # nothing of x or the noise is left there
        kept, noise = (torch.where(clean, 0.0, v) for v in (kept, noise))
        to_data = k_r.beta - kept * k.beta
        a, b = kept, to_data
        if self.view != "data":
            p, q = views.weights(k, self.view, "data")
            a, b = kept + to_data * (0.0 if p is None else p), to_data * q
        return Steps(a.tolist(), b.tolist(), (noise / (r - t).abs().sqrt()).tolist())

    def first_order(self, t: Tensor, r: Tensor, x: Tensor, value: Tensor) -> Tensor:
        """The step from t to clean data at r, where sigma(r) = 0 and no noise is left: beta_r D."""
        data = self.path.convert(value, self.view, "data", x, t)
        return spread(self.path.coefficients(r).beta, x) * data

    def _damping(self, t: Tensor, r: Tensor) -> Tensor:
        """K = |int_t^r eps^2 / (2 sigma^2) dt|, by Gauss-Legendre where it is no closed form."""
        if self._eps is None:
            return (self.path.log_snr(r) - self.path.log_snr(t)).abs() / 2
        at, long = _inside(t, r)
        return (long * self.eps(at) ** 2 / (2 * self.path.coefficients(at).sigma ** 2)).sum(1)


def _inside(t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's 16 times between each t and r, and how long a time each stands for."""
    import numpy as np

    x, w = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    h = (r - t)[:, None]
    return t[:, None] + h * ((x + 1) / 2), h.abs() * (w / 2)
