"""The path between base and data: alpha, beta and gamma together.

I_t = alpha(t) x0 + beta(t) x1 + gamma(t) z,   z ~ N(0, 1),   sigma = sqrt(alpha^2 + gamma^2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import views
from .arguments import Time, as_time, check_element, check_rows, holds, require_same, spread
from .base import IsotropicNormal
from .coefficients import Coefficients
from .curve import Curve
from .errors import OptionError, TimeError, UndeterminedView, Unsupported
from .scalar import Scalar, Schedule, widened

if TYPE_CHECKING:
    from .adapted import Adapted
    from .between import Between
    from .terms import PathMap, PathODE, PathSDE

Model = Callable[..., Tensor]
"""model(t, x, **cond) -> tensor of x's shape."""
Share = Tensor | float
Transform = Callable[[Tensor], Tensor]
Basis = tuple[Transform, Transform]


def _same(x: Tensor) -> Tensor:
    return x


def _is(share: Share, number: float) -> bool:
    return isinstance(share, float) and share == number


class Interpolant(Curve):
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
        element: E where a function differs between the elements of a state, and so returns
            t.shape + E; () where all are functions of t alone. E broadcasts with x's last axes.
        basis: the pair of transforms between which coefficients multiply states; see `in_basis`.

    Raises:
        ScheduleError: where a function is not elementwise, not float64 or not finite on [0, 1],
            where its derivative is not finite inside, or where, with a Gaussian base, beta or
            sigma is not positive inside; names the function, t and the value.
    """

    basis: Basis | None = None

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
        gamma = 0.0 if self.gamma is None else self.gamma(time)
        return self.combine((self.alpha(time), self.beta(time), gamma), (x0, x1, z))

    def rate(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """dI_t/dt = alpha' x0 + beta' x1 + gamma' z; arguments and errors as in `at`.

        Raises:
            TimeError: also at an end where a derivative is infinite.
        """
        time = self._prepare(t, x0, x1, z)
        if not self.boundary.finite_rate:
            self._require_finite_rate(time)
        gamma = 0.0 if self.gamma is None else self.gamma.derivative(time)
        slopes = self.alpha.derivative(time), self.beta.derivative(time), gamma
        return self.combine(slopes, (x0, x1, z))

    def second_rate(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None = None) -> Tensor:
        """d^2 I_t / dt^2 = alpha'' x0 + beta'' x1 + gamma'' z; arguments and errors as in `at`.

        Raises:
            TimeError: also at an end where a second derivative is infinite.
        """
        time = self._prepare(t, x0, x1, z)
        shares = [
            None if f is None else f.second_derivative(time)
            for f in (self.alpha, self.beta, self.gamma)
        ]
        for share in shares:
            if share is not None and not holds(share.isfinite()):
                where = widened(time, share).expand_as(share)[~share.isfinite()]
                raise TimeError(
                    f"the second derivative of the path is infinite at t = {where[0].item():g}, where "
                    "a schedule has a vertical tangent. Draw t strictly inside (0, 1)."
                )
        return self.combine([0.0 if s is None else s for s in shares], (x0, x1, z))

    @classmethod
    def from_sde(cls, f: Scalar | Schedule, g: Scalar | Schedule) -> Interpolant:
        """The path of the noising SDE dX = f X du + g dW, in u = 1 - t from clean data at t = 1.

        The inverse of `noising`. beta and sigma come from integrals of f and g, worked out once by
        Chebyshev series, to about 1e-12.

        Args:
            f: a function of t, elementwise, float64; finite and smooth inside (0, 1). -1 / t at t = 0
                takes the data out of the base.
            g: the same; not negative.

        Raises:
            ScheduleError: functions that are not; with t.
        """
        from .noising import from_sde

        return cls(*from_sde(f, g))

    def combine(
        self,
        shares: Sequence[Share],
        states: Sequence[Tensor | None],
        spare: Tensor | None = None,
    ) -> Tensor:
        """sum_i c_i x_i: the one place where coefficients meet states.

        Args:
            shares: coefficients of this path or functions of them, float64, of shape
                t.shape + `element`; or plain numbers.
            states: tensors like x; None where there is none.
            spare: one of the states, whose memory may take the result.
        """
        into, out = self.basis or (_same, _same)
        if any(isinstance(c, Tensor) and c.requires_grad for c in shares):
            spare = None  # a learned path needs the states again for its gradient
        pairs = zip(shares, states, strict=True)
        parts = [(c, x) for c, x in pairs if x is not None and not _is(c, 0.0)]
        parts.sort(key=lambda part: not (part[1] is spare or _is(part[0], 1.0)))
        total: Tensor | None = None
        for share, x in parts:
            x = into(x)
            factor = share if isinstance(share, float) else spread(share, x, self.element)
            if total is None and x is spare:
                total = x.mul_(factor)
            elif total is None:
                total = x if _is(factor, 1.0) else factor * x
            elif isinstance(factor, float):
                total = torch.add(total, x, alpha=factor)
            elif factor.ndim == 0:
                total = total + factor * x
            elif total is spare:
                total = total.addcmul_(factor, x)
            else:
                total = torch.addcmul(total, factor, x)
        if total is None:
            raise OptionError("every share is 0 or without a state. Give one that is not.")
        return out(total)

    def _prepare(self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None) -> Tensor:
        if self.gamma is not None and z is None:
            raise OptionError(
                "this path has a gamma, so a point needs its latent z, and z is None. "
                "Draw z = torch.randn_like(x0) and give it to at and rate alike."
            )
        require_same(x0=x0, x1=x1, **({} if z is None else {"z": z}))
        return self._time_of(t, x0)

    def _time_of(self, t: Time, x: Tensor) -> Tensor:
        """``t`` as a time of the rows of ``x``."""
        time = as_time(t)
        check_rows(time, x)
        if self.element:
            check_element(time, x, self.element)
        return time

    def _require_finite_rate(self, time: Tensor) -> None:
        ends = ((0.0, self.boundary.finite_rate0), (1.0, self.boundary.finite_rate1))
        for end, finite in ends:
            if not finite and not holds(time != end):
                raise TimeError(
                    f"dI/dt is infinite at t = {end:g}, where a schedule of this path has a "
                    "vertical tangent. Draw t strictly inside (0, 1)."
                )

    # Views

    def convert(
        self, value: Tensor, source: str, target: str, x: Tensor, t: Time, r: Time | None = None
    ) -> Tensor:
        """One view of the posterior mean as another, at the point ``x`` and time ``t``.

        The views: velocity E[dI/dt | x], score grad log rho_t(x), energy_gradient -score, noise
        E[(alpha x0 + gamma z) / sigma | x], data E[x1 | x], base E[x0 | x], v_prediction
        beta noise - sigma data, flow_prediction noise - data; see `interp.views` for the formula.
        Where the base is not Gaussian the noise is E[z | x], and one view tells only its own kind.

        With ``r``, one view of the map that carries ``x`` from ``t`` to ``r`` as another, forwards or
        backwards: beside these there are its point X and its mean_velocity (X - x) / (r - t), whose
        limit at r = t is the velocity; see `interp.maps`.

        Args:
            value: the source view, of x's shape, dtype and device.
            source: one of `interp.views.VIEWS`; with ``r`` of `interp.views.MAP_VIEWS`.
            target: the same.
            x: the point, floating.
            t: a float, a 0-d tensor, or a tensor of x's leading axes.
            r: the same, for a map.

        Raises:
            UnknownName: a view that does not exist.
            UndeterminedView: where the source does not tell the target: at an end, or on a path
                whose base is not Gaussian.
            TimeError, OptionError: as in `at`.
        """
        if r is not None:
            from .maps import converted

            return converted(self, value, source, target, x, t, r)
        require_same(x=x, value=value)
        time = self._time_of(t, x)
        views.check(source)
        views.check(target)
        if source == target:
            return value
        p, q = self._shares(self.coefficients(time), source, target)
        if p is None:
            return self.combine((q,), (value,))
        return self.combine((q, p), (value, x)) if self.element else _balanced(p, x, q, value)

    def determined_by(self, view: str, t: Time = 0.5) -> tuple[str, ...]:
        """The views that a model of ``view`` tells at ``t``, itself among them: where `convert` leads.

        Raises:
            UnknownName: a view that does not exist.
            TimeError: t outside [0, 1] or NaN.
        """
        views.check(view)
        k, told = self.coefficients(t), []
        for target in views.VIEWS:
            try:
                self._shares(k, view, target)
            except UndeterminedView:
                continue
            told.append(target)
        return tuple(told)

    def _shares(self, k: Coefficients, source: str, target: str) -> tuple[Tensor | None, Tensor]:
        """(p, q) with target = p x + q source."""
        if self.gaussian_base:
            return views.weights(k, source, target)
        return views.two_sided(k, source, target, latent=self.gamma is not None)

    # The base

    @property
    def base(self) -> IsotropicNormal:
        """The law that sampling starts from, N(0, sigma(0)^2).

        Raises:
            Unsupported: a path whose base is not Gaussian, or sits at t = 1.
        """
        self._require_base()
        sigma = self.sigma(0.0)
        if self.element and not bool((sigma == sigma.flatten()[0]).all()):
            raise Unsupported(
                f"sigma(0) differs between the elements of this path, from {sigma.min().item():g} to "
                f"{sigma.max().item():g}, so that its base is not one N(0, sigma^2). Draw N(0, 1) and "
                "multiply by path.sigma(0)."
            )
        return IsotropicNormal(sigma.flatten()[0].item())

    def _require_base(self) -> None:
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
        self._require_base()
        leak = self.noise_scale(0.0) ** -2
        gap = 0.5 * (leak * (m * m + s * s) - torch.log1p(leak * s * s))
        return (
            gap
            if isinstance(mean, Tensor) or isinstance(std, Tensor) or self.element
            else gap.item()
        )

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

    def in_basis(self, forward: Transform, inverse: Transform) -> Interpolant:
        """The path whose coefficients multiply the states in another orthonormal basis.

        I_t = V^T (alpha V x0 + beta V x1 + gamma V z), one schedule a basis vector: with V a cosine
        transform, one a frequency (blurring diffusion: Hoogeboom, Salimans 2022, 2209.05557).
        Schedules that are the same for all elements are the same in every basis.

        Args:
            forward: V, linear and orthonormal, on the last axes of a tensor of any leading axes, in
                the dtype that comes.
            inverse: V^T.

        Raises:
            OptionError: a pair that does not invert, or does not keep lengths.
        """
        from .transforms import in_basis

        return in_basis(self, forward, inverse)

    def between(self, other: Interpolant) -> Between:
        """The change of time and scale from this path to ``other``, exact for every law of the ends.

        x on ``other`` at ``.time(t)`` is ``.scale(t)`` times x on this path at t, in law, for t in
        ``.interval``. With Gaussian bases log-SNR is matched; otherwise the ratios alpha : beta :
        gamma have to pass through the same curve.

        Raises:
            ScheduleError: paths that no such change carries onto one another, or whose log-SNR falls.
            OutOfRange: paths without a common range of log-SNR.
        """
        from .between import between

        return between(self, other)

    def adapt(
        self,
        model: Model,
        trained_on: Interpolant,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
        to: str | None = None,
    ) -> Adapted:
        """A model trained on another path as a model on this one: exact, without training.

        ``path.ode(path.adapt(model, trained_on=other))`` runs by default over ``.interval``, the
        times whose log-SNR ``other`` has too, from N(0, sigma^2) at its beginning (``.base``).

        Args:
            model: model(t, x, **cond) on ``trained_on``.
            trained_on: the path that it was trained on.
            view: what it returns; None is its own ``view``, or the velocity.
            time: what it is told; see `interp.terms.told`. None is its own ``time``, or t.
            to: what the adapted model returns; None is ``view``.

        Raises:
            ScheduleError, OutOfRange: as `between`; OutOfRange also when called outside the interval.
            UnknownName: a view or time convention that does not exist.
        """
        from .adapted import Adapted

        return Adapted(self, model, trained_on, view, time, to)

    # Terms

    def ode(
        self,
        model: Model,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
    ) -> PathODE:
        """The probability flow dx/dt = velocity, from a ``model`` of ``view`` told ``time``.

        What is left out is the model's own ``view`` and ``time``, where it says them, or else
        "velocity" and "t". A model from `adapt` whose velocity is infinite at an end is integrated as
        one of the data.
        """
        from .adapted import Adapted
        from .terms import PathODE

        if isinstance(model, Adapted) and view in (None, model.view):
            model = model.regular()
            view = model.view
        return PathODE(self, model, view=view, time=time)

    def sde(
        self,
        model: Model,
        view: str | tuple[str, ...] | None = None,
        *,
        diffusion: float | str | Callable[[Tensor], Tensor | float],
        score: Model | None = None,
        time: str | tuple[str, int] | None = None,
    ) -> PathSDE:
        """The SDE of drift velocity + (eps^2 / 2) score and diffusion eps(t), forward in t."""
        from .terms import PathSDE

        return PathSDE(self, model, view=view, time=time, diffusion=diffusion, score=score)

    def flow_map(
        self,
        model: Model,
        view: str | None = None,
        time: str | tuple[str, int] | None = None,
    ) -> PathMap:
        """The map X(t, r, x), x carried from t to r, from a ``model(t, r, x)`` of ``view``.

        The view is one of `interp.views.MAP_VIEWS`: "point" (the default, where the model has no
        ``view`` of its own), "mean_velocity", "data", ... `interp.solve` steps it by method="map".
        """
        from .terms import PathMap

        return PathMap(self, model, view=view, time=time)


def _balanced(p: Tensor, x: Tensor, q: Tensor, value: Tensor) -> Tensor:
    """P x + q value with the larger share outside: one rounded ratio, at most 1, meets the state.

    Where the two terms cancel, a rounded share of each would be amplified with them.
    """
    larger = q.abs() >= p.abs()
    if not holds(larger):
        if not holds(~larger):
            most = torch.where(larger, q, p)
            most = torch.where(most == 0, 1.0, most)  # the target is 0
            total = _plus(_plus(torch.zeros_like(x), q / most, value), p / most, x)
            return spread(most, x) * total
        p, x, q, value = q, value, p, x
    ratio = torch.where(q == 0, 0.0, p / q)  # the target is 0
    return spread(q, x) * _plus(value, ratio, x)


def _plus(first: Tensor, share: Tensor, second: Tensor) -> Tensor:
    """First + share second, for a share of at most 1, in two parts where it is near 1 or -1.

    The whole number nearest to it multiplies without rounding, so that the difference of two states
    that are nearly one (x and the data estimate near data) is exact; what is left of it is small.
    """
    whole = share.round()
    if holds(whole == 0):
        return _plain_plus(first, share, second)
    return _plain_plus(_plain_plus(first, whole, second), share - whole, second)


def _plain_plus(first: Tensor, share: Tensor, second: Tensor) -> Tensor:
    factor = spread(share, second)
    if factor.ndim == 0:
        return first + factor * second
    return torch.addcmul(first, factor, second)
