"""The path between base and data: alpha, beta and gamma together.

I_t = alpha(t) x0 + beta(t) x1 + gamma(t) z,   z ~ N(0, 1),   sigma = sqrt(alpha^2 + gamma^2)
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import views
from .arguments import Time, as_time, check_rows, require_same, spread
from .base import IsotropicNormal
from .coefficients import Boundary, Coefficients
from .errors import (
    OptionError,
    ScheduleError,
    TimeError,
    Unsupported,
)
from .inverse import bisected
from .scalar import EDGES, GRID, Scalar, Schedule, checked

if TYPE_CHECKING:
    from .terms import PathODE, PathSDE

Model = Callable[..., Tensor]
"""model(t, x, **cond) -> tensor of x's shape."""


class Interpolant:
    """A path I_t = alpha x0 + beta x1 + gamma z from three functions of t.

    Args:
        alpha: the share of the base; an elementwise callable of t (float64 tensor in and out) or
            a `Schedule`. Differentiated automatically.
        beta: the share of the data.
        gamma: the share of the latent z ~ N(0, 1), or None for no latent.
        gaussian_base: whether x0 ~ N(0, 1) independent of x1, so that the views convert.
        config: what rebuilds this path by ``schedules.from_config``; None for a custom path.
        time_at_log_snr: the closed-form inverse of `log_snr`, where there is one.
        table: the size n of the table that the path goes through, whose index k is at
            t = 1 - (k + 1) / n; None where there is none.

    Attributes:
        boundary: the `Boundary`, what holds at the ends.
        monotone: whether log-SNR increases strictly from t = 0 to t = 1 (on a grid; within 1e-3 of
            an end it may stand still to rounding).
        reversed: whether the Gaussian base sits at t = 1.

    Raises:
        ScheduleError: where a function is not elementwise, not float64 or not finite on [0, 1],
            where its derivative is not finite inside, or where, with a Gaussian base, beta or
            sigma is not positive inside; names the function, t and the value.
    """

    def __init__(
        self,
        alpha: Scalar | Schedule,
        beta: Scalar | Schedule,
        gamma: Scalar | Schedule | None = None,
        gaussian_base: bool = True,
        *,
        config: Mapping[str, object] | None = None,
        time_at_log_snr: Callable[[Tensor], Tensor] | None = None,
        table: int | None = None,
    ) -> None:
        self.alpha = checked("alpha", alpha)
        self.beta = checked("beta", beta)
        self.gamma = None if gamma is None else checked("gamma", gamma)
        self.gaussian_base = gaussian_base
        self.config: dict[str, object] | None = None if config is None else dict(config)
        self.table = table
        self._time_at_log_snr = time_at_log_snr
        with torch.no_grad():
            k = self.coefficients(GRID)
        if gaussian_base:
            _check_positive("beta", k.beta)
            _check_positive("alpha" if gamma is None else "sigma", k.sigma)
        self.boundary = Boundary.of(k)
        log_snr = 2 * (k.beta.log() - k.sigma.log())
        self._vanishes = bool(log_snr.isnan().any())  # all of it, at an end: Foellmer's at t = 0
        if self._vanishes:
            log_snr = torch.where(log_snr.isnan(), _log_snr_limit(k), log_snr)
        self.monotone = _rises(log_snr)
        self.reversed = gaussian_base and bool((log_snr[0] > log_snr[-1]).any())

    def __repr__(self) -> str:
        if self.config is None:
            return f"Interpolant(custom, gaussian_base={self.gaussian_base})"
        options = ", ".join(f"{k}={reprlib.repr(v)}" for k, v in self.config.items() if k != "name")
        return f"{self.config.get('name')}({options})"

    # Points and rates

    def at(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """I_t = alpha x0 + beta x1 + gamma z.

        Args:
            t: a float, a 0-d tensor, or a tensor of x's leading axes.
            x0: base points, floating.
            x1: data points, of the shape, dtype and device of ``x0``.
            z: the latent, the same; required where the path has a gamma.

        Raises:
            TimeError: t outside [0, 1], NaN, or of another shape.
            OptionError: points that do not match, or a missing ``z``.
        """
        time = self._prepare(t, x0, x1, z)
        point = spread(self.alpha(time), x0) * x0 + spread(self.beta(time), x1) * x1
        if self.gamma is None or z is None:
            return point
        return point + spread(self.gamma(time), z) * z

    def rate(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """dI_t/dt = alpha' x0 + beta' x1 + gamma' z; arguments and errors as in `at`.

        Raises:
            TimeError: also at an end where a derivative is infinite.
        """
        time = self._prepare(t, x0, x1, z)
        if not self.boundary.finite_rate:
            self._require_finite_rate(time)
        rate = spread(self.alpha.derivative(time), x0) * x0
        rate = rate + spread(self.beta.derivative(time), x1) * x1
        if self.gamma is None or z is None:
            return rate
        return rate + spread(self.gamma.derivative(time), z) * z

    def _prepare(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        if self.gamma is not None and z is None:
            raise OptionError(
                "this path has a gamma, so a point needs its latent z, and z is None. "
                "Draw z = torch.randn_like(x0) and give it to at and rate alike."
            )
        require_same(x0=x0, x1=x1, **({} if z is None else {"z": z}))
        time = as_time(t)
        check_rows(time, x0)
        return time

    def _require_finite_rate(self, time: Tensor) -> None:
        ends = ((0.0, self.boundary.finite_rate0), (1.0, self.boundary.finite_rate1))
        for end, finite in ends:
            if not finite and bool((time == end).any()):
                raise TimeError(
                    f"dI/dt is infinite at t = {end:g}, where a schedule of this path has a "
                    "vertical tangent. Draw t strictly inside (0, 1)."
                )

    # Functions of time

    def coefficients(self, t: Time) -> Coefficients:
        """alpha, beta, gamma, sigma and their derivatives at ``t``, in float64, of t's shape.

        Raises:
            TimeError: t outside [0, 1] or NaN.
        """
        t = as_time(t)
        a, da, a_da = self.alpha.jet(t)
        b, db, b_db = self.beta.jet(t)
        if self.gamma is None:
            g = dg = g_dg = torch.zeros_like(t)
        else:
            g, dg, g_dg = self.gamma.jet(t)
        if self.gamma is None and self.gaussian_base:  # alpha > 0 was checked: it is sigma
            return Coefficients(t, a, b, g, da, db, dg, a, da, a_da, b_db, g_dg, a_da)
        sigma, s_ds = torch.hypot(a, g), a_da + g_dg
        # Where sigma reaches 0 it does so at an end, falling to t = 1 or rising from t = 0.
        slope = torch.hypot(da, dg) * torch.where(t < 0.5, 1.0, -1.0)
        dsigma = torch.where(sigma > 0, s_ds / sigma, slope)
        return Coefficients(t, a, b, g, da, db, dg, sigma, dsigma, a_da, b_db, g_dg, s_ds)

    def _beta_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        if self.gamma is not None:
            return self.beta(t), torch.hypot(alpha, self.gamma(t))
        return self.beta(t), alpha if self.gaussian_base else alpha.abs()

    def log_snr(self, t: Time) -> Tensor:
        """2 (log beta - log sigma), float64; -inf where beta is 0 and +inf where sigma is."""
        beta, sigma = self._beta_sigma(time := as_time(t))
        lam = 2 * (beta.log() - sigma.log())
        if self._vanishes:
            lam = torch.where(lam.isnan(), _log_snr_limit(self.coefficients(time)), lam)
        return lam

    def noise_scale(self, t: Time) -> Tensor:
        """sigma / beta, float64: relative to it exact to rounding at both ends; inf at beta = 0."""
        beta, sigma = self._beta_sigma(time := as_time(t))
        ratio = sigma / beta
        if self._vanishes:
            limit = torch.exp(-0.5 * _log_snr_limit(self.coefficients(time)))
            ratio = torch.where(ratio.isnan(), limit, ratio)
        return ratio

    @torch.no_grad()
    def time_at_log_snr(self, lam: float | Tensor) -> Tensor:
        """The t at which log-SNR is ``lam``: closed form where there is one, else bisection.

        Args:
            lam: log-SNR, of any shape; -inf and +inf are the ends where these are attained.

        Raises:
            ScheduleError: a path whose log-SNR does not increase.
            OptionError: NaN or a value outside the path's range.
        """
        if not self.monotone:
            raise ScheduleError(
                "log-SNR does not increase on this path, so it has no inverse. "
                "Use a path with `path.monotone`."
            )
        lam = torch.as_tensor(lam, dtype=torch.float64)
        low, high = self.log_snr(0.0).to(lam.device), self.log_snr(1.0).to(lam.device)
        outside = ~((lam >= low) & (lam <= high))
        if outside.any():
            raise OptionError(
                f"log-SNR {lam[outside][0].item() if lam.ndim else lam.item():g} is not on this "
                f"path, where it runs from {low.item():g} to {high.item():g}. Stay in that range."
            )
        t = (
            bisected(self.log_snr, lam)
            if self._time_at_log_snr is None
            else self._time_at_log_snr(lam)
        )
        # lam lies in the range: what is outside [0, 1] here is rounding.
        return torch.where(lam == low, 0.0, torch.where(lam == high, 1.0, t.clamp(0.0, 1.0)))

    # Views

    def convert(self, value: Tensor, source: str, target: str, x: Tensor, t: Time) -> Tensor:
        """One view of the posterior mean as another, at the point ``x`` and time ``t``.

        The views: velocity E[dI/dt | x], score grad log rho_t(x), energy_gradient -score, noise
        E[(alpha x0 + gamma z) / sigma | x], data E[x1 | x], base E[x0 | x], v_prediction
        beta noise - sigma data; see `interp.views` for the formula. Where the base is not Gaussian
        the noise is E[z | x], and one view tells only those of its own kind.

        Args:
            value: the source view, of x's shape, dtype and device.
            source: one of `interp.views.VIEWS`.
            target: the same.
            x: the point, floating.
            t: a float, a 0-d tensor, or a tensor of x's leading axes.

        Raises:
            UnknownName: a view that does not exist.
            UndeterminedView: where the source does not tell the target: at an end, or on a path
                whose base is not Gaussian.
            TimeError, OptionError: as in `at`.
        """
        require_same(x=x, value=value)
        time = as_time(t)
        check_rows(time, x)
        views.check(source)
        views.check(target)
        if source == target:
            return value
        k = self.coefficients(time)
        if self.gaussian_base:
            p, q = views.weights(k, source, target)
        else:
            p, q = views.two_sided(k, source, target, latent=self.gamma is not None)
        converted = spread(q, value) * value
        return converted if p is None else converted + spread(p, x) * x

    # The base

    @property
    def base(self) -> IsotropicNormal:
        """The law that sampling starts from, N(0, sigma(0)^2).

        Raises:
            Unsupported: a path whose base is not Gaussian, or sits at t = 1.
        """
        if self.reversed:
            raise Unsupported(
                "the Gaussian base of this path sits at t = 1, and at t = 0 there are the data. Start "
                "from data, or take path.reverse(), whose base is at t = 0."
            )
        if not self.gaussian_base:
            raise Unsupported(
                "this path was built with gaussian_base=False, so its base is whatever x0 is drawn "
                "from. Give that law, or samples of it, where a base is asked for."
            )
        return IsotropicNormal(self._beta_sigma(as_time(0.0))[1].item())

    def prior_gap(self, mean: float | Tensor, std: float | Tensor) -> float | Tensor:
        """KL(N(beta m, beta^2 s^2 + sigma^2) || N(0, sigma^2)) at t = 0, in nats per dimension.

        What is lost by starting from `base` when the data are N(mean, std^2) in each dimension.
        A float for floats; for tensors the gap of each dimension, float64.

        Raises:
            OptionError: a std that is negative or not a number.
        """
        m, s = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
        if not (s >= 0).all():
            raise OptionError(f"std is {std}. Give a standard deviation, zero or more.")
        leak = (self.boundary.beta0 / self.base.scale) ** 2
        gap = 0.5 * (leak * (m * m + s * s) - torch.log1p(leak * s * s))
        return gap if isinstance(mean, Tensor) or isinstance(std, Tensor) else gap.item()

    # Other paths

    def warp(
        self,
        tau: Scalar | Schedule,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ) -> Interpolant:
        """The same curve at another speed, I_tau(t).

        Args:
            tau: a time change of [0, 1] into itself that does not fall: an elementwise callable, a
                `Schedule`, or one of `interp.schedules.warps`.
            inverse: its inverse, where there is a closed form: `time_at_log_snr` stays one then.

        Raises:
            ScheduleError: a ``tau`` that falls, or leaves [0, 1]; shows t and the value.
        """
        from .transforms import warp

        return warp(self, tau, inverse)

    def rescale(self, c: float | Scalar | Schedule) -> Interpolant:
        """The path c(t) I_t: log-SNR and so the model are the same, log densities shift by -log c.

        Args:
            c: a positive number, or a function of t, positive on [0, 1].

        Raises:
            ScheduleError: a ``c`` that is not positive; shows t and the value.
        """
        from .transforms import rescale

        return rescale(self, c)

    def reverse(self) -> Interpolant:
        """The path I_(1 - t): data at t = 0 and base at t = 1.

        x0 is still the base and x1 the data: ``reverse().at(t, x0, x1)`` is ``at(1 - t, x0, x1)``,
        noise and data are the same functions, and the velocity changes its sign. What needs the
        Gaussian base at t = 0, such as `base` and `prior_gap`, raises.
        """
        from .transforms import reverse

        return reverse(self)

    # Terms

    def ode(
        self, model: Model, view: str = "velocity", time: str | tuple[str, int] = "t"
    ) -> PathODE:
        """The probability flow dx/dt = velocity, from a ``model`` of ``view`` told ``time``."""
        from .terms import PathODE

        return PathODE(self, model, view=view, time=time)

    def sde(
        self,
        model: Model,
        view: str | tuple[str, ...] = "velocity",
        *,
        diffusion: float | str | Callable[[Tensor], Tensor | float],
        score: Model | None = None,
        time: str | tuple[str, int] = "t",
    ) -> PathSDE:
        """The SDE of drift velocity + (eps^2 / 2) score and diffusion eps(t), forward in t."""
        from .terms import PathSDE

        return PathSDE(self, model, view=view, time=time, diffusion=diffusion, score=score)


def _log_snr_limit(k: Coefficients) -> Tensor:
    """Log-SNR where beta and sigma are both 0: the ratio of how fast their squares grow."""
    return k.beta_dbeta.abs().log() - k.sigma_dsigma.abs().log()


def _rises(log_snr: Tensor) -> bool:
    """Whether log-SNR on the grid rises; by the ends it may stand still to rounding."""
    steps = log_snr.diff(dim=0)
    stands = (steps == 0) | steps.isnan()  # two infinities of one sign
    stands[EDGES:-EDGES] = False
    return bool(((steps > 0) | stands).all())


def _check_positive(name: str, values: Tensor) -> None:
    """Refuse what is not positive inside; by the ends it may round to 0."""
    inside = values[1:-1]
    good = inside > 0
    for edge in (slice(EDGES), slice(-EDGES, None)):
        good[edge] |= inside[edge] == 0
    bad = (~good).nonzero()
    if len(bad):
        worst = tuple(bad[0])
        raise ScheduleError(
            f"{name}({GRID[1 + bad[0, 0]].item():.9g}) is {inside[worst].item():g}, and with a "
            "Gaussian base it must be positive inside (0, 1). Change its sign (x0 is symmetric), "
            "or build the path with gaussian_base=False."
        )
