"""Paths composed of paths, stored by the configs of their parts.

Where log-SNR is meant, sigma and beta are: with them multiplied or averaged geometrically, what
happens to log-SNR = 2 log(beta / sigma) is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .. import algebra
from ..algebra import GeometricMean, Hypot, Piecewise, Reciprocal, Sum, constant
from ..arguments import positive
from ..errors import OptionError, ScheduleError
from ..interpolant import Interpolant
from ..scalar import GRID, Scalar, Schedule
from ..transforms import After, as_warp, composed, rescale, reverse
from ..transforms import warp as _warped
from . import warps

__all__ = [
    "clocked", "ensemble", "piecewise", "product", "rescale", "reverse", "shifted", "warp",
    "weighted_sum",
]  # fmt: skip

_JOINED = 1e-9  # how far apart two pieces may be at a knot, relative to their size


def warp(path: Interpolant, tau: Scalar | Schedule | Mapping[str, object]) -> Interpolant:
    """`Interpolant.warp` as a function; ``tau`` may be the config of one of `schedules.warps`."""
    return _warped(path, warps.from_config(tau) if isinstance(tau, Mapping) else tau)


Clock = Scalar | Schedule | Mapping[str, object]


def clocked(
    path: Interpolant, alpha: Clock, beta: Clock, gamma: Clock | None = None
) -> Interpolant:
    """Each function of a path by a clock of its own: alpha(tau_a(t)), beta(tau_b(t)), gamma(tau_g(t)).

    Where the clocks differ the curve of ratios changes; the end points stay where each runs from 0
    to 1. `learned(path, separate=True)` is the same with clocks that are trained.

    Args:
        path: the path.
        alpha: the clock of alpha: a time change as in `Interpolant.warp`, or the config of one of
            `schedules.warps`.
        beta: that of beta.
        gamma: that of gamma, for a path that has one.

    Raises:
        OptionError: a gamma's clock that is missing, or has no gamma.
        ScheduleError: a clock that falls, or leaves [0, 1].
    """
    if (path.gamma is None) != (gamma is None):
        has = "no gamma" if path.gamma is None else "a gamma"
        raise OptionError(f"this path has {has}. Give a clock for each function that it has.")
    given = {"alpha": alpha, "beta": beta} | ({} if gamma is None else {"gamma": gamma})
    clocks = {name: _clock(clock) for name, clock in given.items()}
    config: dict[str, object] | None = None
    if path.config is not None and all(clock.config is not None for clock in clocks.values()):
        configs = {name: clock.config for name, clock in clocks.items()}
        config = {"name": "clocked", "path": path.config, **configs}
    return composed(
        [path],
        alpha=algebra.Chain(path.alpha, clocks["alpha"]),
        beta=algebra.Chain(path.beta, clocks["beta"]),
        gamma=None if path.gamma is None else algebra.Chain(path.gamma, clocks["gamma"]),
        config=config,
    )


def _clock(tau: Clock) -> algebra.Warp:
    return as_warp(warps.from_config(tau) if isinstance(tau, Mapping) else tau)


def ensemble(paths: Sequence[Interpolant], weights: Sequence[float] | None = None) -> Interpolant:
    """The weighted geometric mean of paths, so that log-SNR is the weighted mean of theirs.

        beta = prod_i beta_i^w_i,    sigma = prod_i sigma_i^w_i

    An ensemble of one path is itself. With a Gaussian base latents go into sigma; where it is not
    Gaussian, alpha and gamma are averaged in the same way, each for itself.

    Args:
        paths: at least one, all with a Gaussian base or none; positive inside (0, 1).
        weights: not negative, of sum 1; None weighs all alike.

    Raises:
        OptionError: weights that do not fit, or paths that do not go together.
    """
    w = _weights(paths, weights, latents=True)
    several = sum(v > 0 for v in w) > 1
    return _combined("ensemble", paths, w, lambda parts: GeometricMean(parts, w), merge=several)


def weighted_sum(
    paths: Sequence[Interpolant], weights: Sequence[float] | None = None
) -> Interpolant:
    """The weighted mean of paths: alpha = sum_i w_i alpha_i, and so beta and gamma.

    Args:
        paths: as in `ensemble`.
        weights: the same.

    Raises:
        OptionError: weights that do not fit, or paths that do not go together.
    """
    w = _weights(paths, weights)
    return _combined("weighted_sum", paths, w, lambda parts: Sum(parts, w))


def product(paths: Sequence[Interpolant]) -> Interpolant:
    """The product of paths: alpha = prod_i alpha_i, and so beta and gamma; log-SNRs add up.

    Args:
        paths: as in `ensemble`.

    Raises:
        OptionError: paths that do not go together.
    """
    _weights(paths, None)

    def multiplied(parts: Sequence[Schedule]) -> Schedule:
        result = parts[0]
        for part in parts[1:]:
            result = algebra.Product(result, part)
        return result

    return _combined("product", paths, None, multiplied)


def piecewise(paths: Sequence[Interpolant], knots: Sequence[float]) -> Interpolant:
    """One path after the other, each over its own stretch of t: path i between knots i - 1 and i.

    Args:
        paths: two or more; neighbours meet at the knot between them. Slopes may jump there.
        knots: rising times inside (0, 1), one fewer than paths.

    Raises:
        OptionError: knots that do not fit, or paths that do not go together.
        ScheduleError: paths that do not meet at a knot; names it and the values.
    """
    _weights(paths, None)
    times = [float(knot) for knot in knots]
    rising = all(a < b for a, b in zip([0.0, *times], [*times, 1.0], strict=True))
    if len(times) != len(paths) - 1 or not rising:
        raise OptionError(
            f"knots={list(knots)!r} do not part {len(paths)} paths. Give {len(paths) - 1} rising times "
            "inside (0, 1)."
        )
    for i, knot in enumerate(times):
        _require_joined(paths[i], paths[i + 1], knot)
    return _combined("piecewise", paths, None, lambda parts: Piecewise(parts, times), knots=times)


def shifted(path: Interpolant, factor: float, keep: str | None = None) -> Interpolant:
    """The path with sigma / beta multiplied by c: log-SNR shifted by -2 log c.

    For images of another resolution c is the ratio of the sides, so that the noise in what both show
    is the same. On the linear path it is u -> c u / (1 + (c - 1) u), u = 1 - t.

    Args:
        path: a path with a Gaussian base.
        factor: c, positive; above 1 there is more noise at each t.
        keep: what stays as it is: "sum" (beta + sigma), "variance" (beta^2 + sigma^2) or "data"
            (beta). None is the first of these that is 1 all along ``path``, else "data".

    Raises:
        OptionError: a factor that is not positive, another ``keep``, or a base that is not Gaussian.

    Source: Hoogeboom, Heek, Salimans 2023 (2301.11093), log-SNR shift by 2 log(reference / side);
    Esser et al. 2024 (2403.03206) for the linear path.
    """
    positive("factor", factor)
    if not path.gaussian_base:
        raise OptionError(
            "the base of this path is not Gaussian, so that it has no one sigma to shift. Warp it."
        )
    if keep not in (None, *_KEPT):
        raise OptionError(f"keep={keep!r} does not exist. Give one of {', '.join(_KEPT)}, or None.")
    chosen = keep or _kept_by(path)
    scale = _scale(path, factor, chosen)
    back = path._time_at_log_snr
    config = {"path": path.config, "factor": float(factor), "keep": chosen}
    return composed(
        [path],
        alpha=algebra.Product(_times(path.alpha, factor), scale),
        beta=algebra.Product(path.beta, scale),
        gamma=None if path.gamma is None else algebra.Product(_times(path.gamma, factor), scale),
        config=None if path.config is None else {"name": "shifted", **config},
        time_at_log_snr=None if back is None else After(back, _Plus(2 * math.log(factor))),
    )


# Shifts

_KEPT: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda beta, sigma: beta + sigma,
    "variance": lambda beta, sigma: beta**2 + sigma**2,
    "data": lambda beta, sigma: beta,
}


class _Plus:
    """v + amount."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, v: Tensor) -> Tensor:
        return v + self.amount


def _kept_by(path: Interpolant) -> str:
    beta, sigma = path.beta(GRID), path.sigma(GRID)
    held = (name for name, f in _KEPT.items() if bool(((f(beta, sigma) - 1).abs() < 1e-9).all()))
    return next(held, "data")


def _times(f: Schedule, factor: float) -> Schedule:
    return algebra.Product(constant(factor), f)


def _scale(path: Interpolant, factor: float, keep: str) -> Schedule:
    """What both beta and c sigma are multiplied by."""
    if keep == "data":
        return constant(1.0)
    beta, sigma = path.beta, _sigma(path)
    before: Schedule
    now: Schedule
    if keep == "sum":
        before, now = Sum([beta, sigma], [1.0, 1.0]), Sum([beta, sigma], [1.0, factor])
    else:
        before, now = Hypot(beta, sigma), Hypot(beta, _times(sigma, factor))
    return algebra.Product(before, Reciprocal(now))


def _sigma(path: Interpolant) -> Schedule:
    return path.alpha if path.gamma is None else Hypot(path.alpha, path.gamma)


# Checks


def _weights(
    paths: Sequence[Interpolant], weights: Sequence[float] | None, latents: bool = False
) -> list[float]:
    """The weights of paths that go together; with ``latents`` a gamma may go into sigma."""
    if not paths or not all(isinstance(path, Interpolant) for path in paths):
        raise OptionError(f"paths={paths!r} are no paths. Give a list of at least one Interpolant.")
    kinds = {
        (path.gaussian_base, path.gamma is None or (latents and path.gaussian_base))
        for path in paths
    }
    if len(kinds) > 1 or len({path.basis for path in paths}) > 1:
        raise OptionError(
            "some of the paths have a Gaussian base, a gamma or a basis and others not. Compose paths "
            "of one kind."
        )
    if weights is None:
        return [1 / len(paths)] * len(paths)
    w = [float(weight) for weight in weights]
    if len(w) != len(paths) or not all(v >= 0 for v in w) or abs(math.fsum(w) - 1) > 1e-9:
        raise OptionError(
            f"weights={list(weights)!r} do not weigh {len(paths)} paths. Give one for each, not "
            "negative, of sum 1."
        )
    return w


def _require_joined(before: Interpolant, after: Interpolant, knot: float) -> None:
    a, b = (path.coefficients(knot) for path in (before, after))
    for name in ("alpha", "beta", "gamma"):
        left, right = getattr(a, name), getattr(b, name)
        if bool(((left - right).abs() > _JOINED * (1 + left.abs())).any()):
            raise ScheduleError(
                f"{name}({knot:g}) is {left.flatten()[0].item():.9g} before the knot and "
                f"{right.flatten()[0].item():.9g} after it. Join paths that meet, e.g. by rescale and "
                "warp."
            )


def _combined(
    name: str,
    paths: Sequence[Interpolant],
    weights: Sequence[float] | None,
    join: Callable[[Sequence[Schedule]], Schedule],
    merge: bool = False,
    **options: object,
) -> Interpolant:
    """The path whose three functions are those of ``paths``, joined.

    With ``merge`` and a Gaussian base alpha and gamma go together as sigma.
    """
    config: dict[str, object] | None = None
    if all(path.config is not None for path in paths):
        config = {"name": name, "paths": [path.config for path in paths], **options}
        if weights is not None:
            config["weights"] = list(weights)
    merge = merge and paths[0].gaussian_base
    gammas = [path.gamma for path in paths if path.gamma is not None and not merge]
    only = paths[0]._time_at_log_snr if len(paths) == 1 else None
    return composed(
        paths,
        alpha=join([_sigma(path) if merge else path.alpha for path in paths]),
        beta=join([path.beta for path in paths]),
        gamma=join(gammas) if gammas else None,
        config=config,
        time_at_log_snr=only,
    )
