"""The three functions of a path together: what is told by t alone.

sigma = sqrt(alpha^2 + gamma^2),    log-SNR = 2 log(beta / sigma)
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .arguments import Time, as_time, holds
from .coefficients import Boundary, Coefficients, Secant
from .errors import OptionError, ScheduleError, Unsupported
from .inverse import bisected, followed
from .scalar import EDGES, GRID, Scalar, Schedule, checked, widened

if TYPE_CHECKING:
    from .noising import Noising


class Curve:
    """alpha, beta and gamma as functions of t; see `interp.Interpolant`."""

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
        self.element = self._share_element()
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
        self._monotone = rises(log_snr)
        self.reversed = gaussian_base and bool((log_snr[0] > log_snr[-1]).any())

    def _share_element(self) -> tuple[int, ...]:
        """The element shape of the three functions together, which each has from here on."""
        functions = [f for f in (self.alpha, self.beta, self.gamma) if f is not None]
        if not any(f.element for f in functions):
            return ()
        from .algebra import broadcast, expanded

        element = broadcast(*(f.element for f in functions))
        self.alpha, self.beta = expanded(self.alpha, element), expanded(self.beta, element)
        self.gamma = None if self.gamma is None else expanded(self.gamma, element)
        return element

    def __repr__(self) -> str:
        if self.config is None:
            # In angle brackets, since it is no call: Hypothesis then shows the one that made it.
            named = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
            shown = ", ".join(f"{k} {f.described}" for k, f in named.items() if f is not None)
            return f"<Interpolant of {shown}, {'Gaussian' if self.gaussian_base else 'any'} base>"
        options = ", ".join(f"{k}={reprlib.repr(v)}" for k, v in self.config.items() if k != "name")
        return f"{self.config.get('name')}({options})"

    def coefficients(self, t: Time) -> Coefficients:
        """alpha, beta, gamma, sigma and their derivatives at ``t``, in float64, of t's shape.

        Raises:
            TimeError: t outside [0, 1] or NaN.
        """
        t = as_time(t)
        a, da, a_da = self.alpha.jet(t)
        b, db, b_db = self.beta.jet(t)
        if self.gamma is None:
            g = dg = g_dg = torch.zeros_like(a)
        else:
            g, dg, g_dg = self.gamma.jet(t)
        if self.gamma is None and self.gaussian_base:  # alpha > 0 was checked: it is sigma
            return Coefficients(t, a, b, g, da, db, dg, a, da, a_da, b_db, g_dg, a_da, self)
        sigma, s_ds = torch.hypot(a, g), a_da + g_dg
        # Where sigma reaches 0 it does so at an end, falling to t = 1 or rising from t = 0.
        slope = torch.hypot(da, dg) * torch.where(widened(t, a) < 0.5, 1.0, -1.0)
        dsigma = torch.where(sigma > 0, s_ds / sigma, slope)
        return Coefficients(t, a, b, g, da, db, dg, sigma, dsigma, a_da, b_db, g_dg, s_ds, self)

    def secant(self, t: Time, r: Time) -> Secant:
        """The coefficients at ``t``, their slopes being divided differences up to ``r``.

        Raises:
            TimeError: as `coefficients`.
        """
        t, r = as_time(t), as_time(r)
        if t.device != r.device:
            t, r = (v.to(max(t, r, key=lambda v: v.ndim).device) for v in (t, r))
        shape = (t + r).shape
        return Secant.between(*(self.coefficients(v.expand(shape)) for v in (t, r)))

    @property
    def constant(self) -> bool:
        """Whether it is known that its functions are the same at every call.

        So it is where a path is built by name and out of numbers, and not for a caller's functions,
        which may look at what changes, nor for a path with weights.
        """
        return self.config is not None

    @property
    def monotone(self) -> bool:
        """Whether log-SNR increases strictly from t = 0 to t = 1."""
        return self._monotone

    @property
    def invertible(self) -> bool:
        """Whether one time belongs to each log-SNR, so that `time_at_log_snr` is there."""
        return self.monotone and not self.element

    def _beta_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        if self.gamma is not None:
            return self.beta(t), torch.hypot(alpha, self.gamma(t))
        return self.beta(t), alpha if self.gaussian_base else alpha.abs()

    def sigma(self, t: Time) -> Tensor:
        """sqrt(alpha^2 + gamma^2), float64."""
        return self._beta_sigma(as_time(t))[1]

    def noising(self, t: Time) -> Noising:
        """f and G of the noising SDE dX = f X du + G dW in u = 1 - t, at t; see `interp.noising`.

        f = -beta' / beta and G^2 = 2 (sigma^2 beta' / beta - sigma sigma'), float64; both infinite
        where beta is 0.

        Raises:
            Unsupported: a path whose base is not Gaussian.
            ScheduleError: a time at which log-SNR falls, so that noising would take noise away.
        """
        from .noising import Noising

        if not self.gaussian_base:
            raise Unsupported(
                "no SDE of x alone noises the data of this path, whose base is not Gaussian. Build it "
                "with gaussian_base=True."
            )
        k = self.coefficients(t)
        rate = k.dbeta / k.beta
        squared = 2 * (k.sigma**2 * rate - k.sigma_dsigma)
        # Rounding of the difference; where beta is 0, 0 times infinity is the square's own infinity.
        squared = torch.where(squared.isnan(), torch.inf, squared)
        room = 1e-12 * k.sigma_dsigma.abs()
        if not holds(squared >= -room):
            at = widened(k.t, squared).expand_as(squared)[squared < -room][0].item()
            raise ScheduleError(
                f"log-SNR falls at t = {at:.6g}, where noising would take noise away. Use a path with "
                "`path.monotone`."
            )
        return Noising(-rate, squared.clamp(min=0).sqrt())

    def levels(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """beta, sigma and log(beta / sigma) at t, float64, from one evaluation of each schedule."""
        beta, sigma = self._beta_sigma(time := as_time(t))
        lam = beta.log() - sigma.log()
        if self._vanishes:
            lam = torch.where(lam.isnan(), _log_snr_limit(self.coefficients(time)) / 2, lam)
        return beta, sigma, lam

    def log_snr(self, t: Time) -> Tensor:
        """2 (log beta - log sigma), float64; -inf where beta is 0 and +inf where sigma is."""
        return 2 * self.levels(t)[2]

    def noise_scale(self, t: Time) -> Tensor:
        """sigma / beta, float64: relative to it exact to rounding at both ends; inf at beta = 0."""
        beta, sigma = self._beta_sigma(time := as_time(t))
        ratio = sigma / beta
        if self._vanishes:
            limit = torch.exp(-0.5 * _log_snr_limit(self.coefficients(time)))
            ratio = torch.where(ratio.isnan(), limit, ratio)
        return ratio

    def time_at_log_snr(self, lam: float | Tensor) -> Tensor:
        """The t at which log-SNR is ``lam``: closed form where there is one, else bisection.

        Args:
            lam: log-SNR, of any shape; -inf and +inf are the ends where these are attained.

        Raises:
            ScheduleError: a path whose log-SNR does not increase.
            OptionError: NaN or a value outside the path's range.
        """
        if self.element:
            raise ScheduleError(
                f"log-SNR differs between the elements of this path, of shape {self.element}, so that "
                "no one time has it. Ask log_snr(t) for the log-SNR of each."
            )
        if not self.monotone:
            raise ScheduleError(
                "log-SNR does not increase on this path, so it has no inverse. "
                "Use a path with `path.monotone`."
            )
        lam = torch.as_tensor(lam, dtype=torch.float64)
        low, high = self.log_snr(0.0).to(lam.device), self.log_snr(1.0).to(lam.device)
        outside = ~((lam >= low) & (lam <= high))
        if not holds(~outside):
            raise OptionError(
                f"log-SNR {lam[outside][0].item() if lam.ndim else lam.item():g} is not on this "
                f"path, where it runs from {low.item():g} to {high.item():g}. Stay in that range."
            )
        return self._time_between(lam, low, high)

    def _time_between(self, lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The t at log-SNRs that lie in the path's range, from low to high."""
        if self._time_at_log_snr is not None:
            t = self._time_at_log_snr(lam)
        else:
            t = followed(self.log_snr, bisected(self.log_snr, lam), lam)
        # lam lies in the range: what is outside [0, 1] here is rounding.
        return torch.where(lam == low, 0.0, torch.where(lam == high, 1.0, t.clamp(0.0, 1.0)))


def _log_snr_limit(k: Coefficients) -> Tensor:
    """Log-SNR where beta and sigma are both 0: the ratio of how fast their squares grow."""
    return k.beta_dbeta.abs().log() - k.sigma_dsigma.abs().log()


def rises(values: Tensor) -> bool:
    """Whether ``values`` on the grid rise; by the ends they may stand still to rounding."""
    steps = values.diff(dim=0)
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
