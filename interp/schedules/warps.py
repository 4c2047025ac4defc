"""Families of time changes tau: [0, 1] -> [0, 1] for `Interpolant.warp`, each with its inverse.

    path.warp(warps.shift(3.0))

Each has a ``config`` {"warp": its name, and its arguments}, so that a path warped by it is stored.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..algebra import Composite, Jet, Warp
from ..arguments import host, positive
from ..errors import OptionError, UnknownName
from ..scalar import Schedule, checked
from . import rational

__all__ = [
    "exponential", "from_config", "kumaraswamy", "power", "shift", "sine", "smoothstep", "spline",
]  # fmt: skip


def _warp(name: str, tau: Schedule, inverse: Callable[[Tensor], Tensor], **options: object) -> Warp:
    return Warp(checked("tau", tau), inverse, {"warp": name, **options})


def shift(factor: float) -> Warp:
    """1 - tau = c u / (1 + (c - 1) u), u = 1 - t: multiplies sigma / beta of the linear path by c.

    Args:
        factor: c, positive; above 1 more of the run is spent at high noise.

    Source: Esser et al. 2024 (2403.03206), c = 3 for images of 1024 pixels a side.
    """
    positive("factor", factor)
    c = factor
    return _warp(
        "shift",
        Schedule(
            lambda t: t / (t + c * (1 - t)),
            lambda t: c / (t + c * (1 - t)) ** 2,
            None,
            lambda t: 2 * c * (c - 1) / (t + c * (1 - t)) ** 3,
        ),
        lambda s: c * s / (c * s + (1 - s)),
        factor=c,
    )


def power(exponent: float) -> Warp:
    """tau = t^p.

    Args:
        exponent: p, positive; above 1 the run lingers at the base, below 1 tau' is infinite there.
    """
    positive("exponent", exponent)
    p = exponent
    return _warp(
        "power",
        Schedule(
            lambda t: t**p,
            lambda t: p * t ** (p - 1),
            None,
            lambda t: p * (p - 1) * t ** (p - 2),
        ),
        lambda s: s ** (1 / p),
        exponent=p,
    )


def kumaraswamy(a: float, b: float) -> Warp:
    """tau = 1 - (1 - t^a)^b: the cumulative distribution of Kumaraswamy's law.

    Args:
        a: how the run leaves the base; positive, above 1 slowly.
        b: how it comes to the data; positive, above 1 slowly.
    """
    positive("a", a)
    positive("b", b)
    return _warp(
        "kumaraswamy",
        Schedule(lambda t: 1 - (1 - t**a) ** b),
        lambda s: (1 - (1 - s) ** (1 / b)) ** (1 / a),
        a=a,
        b=b,
    )


def exponential(rate: float) -> Warp:
    """tau = (exp(k t) - 1) / (exp(k) - 1).

    Args:
        rate: k, not 0; positive is slow at the base, negative at the data.
    """
    if not (math.isfinite(rate) and rate != 0):
        raise OptionError(f"rate={rate!r} does not fit. Give a finite number other than 0.")
    k, whole = rate, math.expm1(rate)
    return _warp(
        "exponential",
        Schedule(
            lambda t: torch.expm1(k * t) / whole,
            lambda t: torch.exp(k * t) * (k / whole),
            None,
            lambda t: torch.exp(k * t) * (k * k / whole),
        ),
        lambda s: torch.log1p(s * whole) / k,
        rate=k,
    )


def sine() -> Warp:
    """tau = sin^2(pi t / 2): slow at both ends."""
    return _warp(
        "sine",
        Schedule(
            lambda t: torch.sin(0.5 * math.pi * t) ** 2,
            lambda t: 0.5 * math.pi * torch.sin(math.pi * t),
            None,
            lambda t: 0.5 * math.pi**2 * torch.cos(math.pi * t),
        ),
        lambda s: torch.atan2(s.sqrt(), (1 - s).sqrt()) * (2 / math.pi),
    )


def smoothstep() -> Warp:
    """tau = 3 t^2 - 2 t^3: slow at both ends."""
    return _warp(
        "smoothstep",
        Schedule(
            lambda t: t * t * (3 - 2 * t),
            lambda t: 6 * t * (1 - t),
            None,
            lambda t: 6 - 12 * t,
        ),
        # The trigonometric solution of the cubic, from the sine of a third of an angle.
        lambda s: 0.5 - torch.sin(torch.asin((1 - 2 * s).clamp(-1, 1)) / 3),
    )


class _Spline(Composite):
    """A rational-quadratic spline as a schedule, with its inverse."""

    def __init__(self, spline: rational.Cells) -> None:
        super().__init__()
        self._spline = spline

    def _rule(self, t: Tensor) -> Jet:
        value, slope = rational.jet(self._spline.to(t.device), t)
        return value, slope, value * slope

    def back(self, s: Tensor) -> Tensor:
        t = rational.inverse(self._spline.to(s.device), s)
        return torch.where(s == 0, 0.0, torch.where(s == 1, 1.0, t))


def spline(values: Sequence[float], slopes: Sequence[float]) -> Warp:
    """Tau through ``values`` at equal steps of t, a monotone rational-quadratic spline.

    Args:
        values: rising from 0 to 1, two or more.
        slopes: tau' at the same times, positive.

    Raises:
        OptionError: values that do not rise from 0 to 1, or slopes that do not fit them.

    Source: Gregory, Delbourgo 1982; see `interp.schedules.rational`.
    """
    y, d = host([float(v) for v in values]), host([float(v) for v in slopes])
    rising = len(y) > 1 and y[0] == 0 and y[-1] == 1 and bool((y.diff() > 0).all())
    if not rising or d.shape != y.shape or not bool(((d > 0) & d.isfinite()).all()):
        raise OptionError(
            f"values={y.tolist()} and slopes={d.tolist()} make no time change. Give values that rise "
            "from 0 to 1, and as many positive slopes."
        )
    x = torch.linspace(0, 1, len(y), dtype=torch.float64, device="cpu")
    tau = _Spline(rational.cells(x, y, d))
    return _warp("spline", tau, tau.back, values=y.tolist(), slopes=d.tolist())


_FAMILIES: Mapping[str, Callable[..., Warp]] = {
    "shift": shift,
    "power": power,
    "kumaraswamy": kumaraswamy,
    "exponential": exponential,
    "sine": sine,
    "smoothstep": smoothstep,
    "spline": spline,
}


def from_config(config: Mapping[str, object]) -> Warp:
    """The time change of a ``config``: {"warp": name, and its arguments}.

    Raises:
        OptionError: no "warp", or arguments that are missing or make no sense.
        UnknownName: a family or an argument that does not exist.
    """
    options = dict(config)
    name = options.pop("warp", None)
    if name is None:
        raise OptionError(
            f'the time change {dict(config)} has no "warp". Give one of {", ".join(_FAMILIES)}.'
        )
    if name not in _FAMILIES:
        raise UnknownName.of("time change", name, _FAMILIES)
    family = _FAMILIES[str(name)]
    known = inspect.signature(family).parameters
    for option in options:
        if option not in known:
            raise UnknownName.of(f"option of the time change {name}", option, known)
    if missing := [option for option in known if option not in options]:
        raise OptionError(f"the time change {name} needs {', '.join(missing)}. Give it.")
    return family(**options)
