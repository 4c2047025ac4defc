"""Named grids: how the times of a run are spaced.

In t, over any interval, with v falling evenly from 1 to 0 over the run and t = t1 + (t0 - t1) f(v):

    uniform     v
    quadratic   v^2                                  (DDIM's; Song, Meng, Ermon 2010.02502, app. D.2)
    beta        the quantile of a Beta(a, b) law      (Lee et al. 2407.12173: a = b = 0.6)
    shift       c v / (1 + (c - 1) v)                (Esser et al. 2403.03206, eq. 23: c = 3)

In the noise level s = sigma / beta, for the terms of a path with a Gaussian base, r from 0 to 1:

    karras           (s_max^(1/rho) + r (s_min^(1/rho) - s_max^(1/rho)))^rho   (2206.00364, eq. 5)
    exponential      s_max (s_min / s_max)^r, even in log-SNR; also called log_snr  (2206.00927)
    polyexponential  log s = log s_min + (1 - r)^rho log(s_max / s_min)
    cosine           tan of an angle that falls evenly: even times of a cosine path, on any path
    ays              Align Your Steps, a table for Stable Diffusion, SDXL or SVD, stretched to the
                     run's range (Sabour, Fidler, Kreis 2404.14507, table 3)

A run begins and ends where it is told to. Where it begins with nothing but noise, s is infinite and
the first step goes to s_max (80 unless given); where it ends at clean data, s = 0 follows s_min, which
is the table's least level or 0.002 unless given.

In the indices of a path's table of n, from the first of which the run begins (x is the state there):

    leading     (N - 1) c + offset, ..., c + offset, offset,  c = floor(n / N)
    linspace    round(linspace(n - 1, 0, N))
    trailing    round(n - i n / N) - 1

(the names are those of Lin et al. 2305.08891, table 2.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arguments import positive
from ..errors import OptionError, UnknownName, Unsupported
from ..interpolant import Interpolant
from .given import times_at, timesteps

Array = NDArray[np.float64]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Spacing:
    """A way to space the steps of a run; call it with the path, the ends and how many.

    Attributes:
        name: what it is called.
        place: (path or None, ends, steps) -> steps + 1 times, the ends among them.
        fixes: whether it says itself where the run begins.
    """

    name: str
    place: Callable[[Interpolant | None, Ends, int], list[float]]
    fixes: bool = False

    def __call__(self, path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        """The times, from ends[0] to ends[1] unless it ``fixes`` them."""
        return self.place(path, ends, steps)


# In t


def _in_t(name: str, f: Callable[[Array], Array]) -> Spacing:
    def place(path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        v = np.linspace(1.0, 0.0, steps + 1)
        inside = (ends[1] + (ends[0] - ends[1]) * f(v))[1:-1].tolist()
        return [ends[0], *inside, ends[1]]

    return Spacing(name, place)


def uniform() -> Spacing:
    """Even in t."""

    def place(path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        step = (ends[1] - ends[0]) / steps  # in Python's numbers, which torch.compile follows
        return [ends[0], *[ends[0] + i * step for i in range(1, steps)], ends[1]]

    return Spacing("uniform", place)


def quadratic() -> Spacing:
    """Denser towards the end of the run: t1 - t falls as a square."""
    return _in_t("quadratic", np.square)


def beta(a: float = 0.6, b: float = 0.6) -> Spacing:
    """At the quantiles of a Beta(a, b) law: denser at both ends where a, b < 1."""
    a, b = positive("a", a), positive("b", b)

    def f(v: Array) -> Array:
        from scipy.special import betaincinv

        return np.asarray(betaincinv(a, b, v), dtype=np.float64)

    return _in_t("beta", f)


def shift(c: float = 3.0) -> Spacing:
    """More of the steps at high noise, for c > 1, as larger images need."""
    c = positive("c", c)
    return _in_t("shift", lambda v: c * v / (1 + (c - 1) * v))


# In sigma / beta

Levels = Callable[[float, float, int, bool], Array]
"""(s_max, s_min, count, whether clean data follow) -> levels that fall from s_max."""


def _in_noise(
    name: str, levels: Levels, sigma_min: float | None, sigma_max: float | None
) -> Spacing:
    for what, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is not None:
            positive(what, value)

    def place(path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        path, first, last, backwards = _oriented(name, path, ends)
        noisy, clean = (float(path.noise_scale(t)) for t in (first, last))
        top = noisy if sigma_max is None and math.isfinite(noisy) else min(noisy, sigma_max or 80.0)
        bottom = clean
        if clean == 0 or (sigma_min is not None and clean < sigma_min):
            bottom = min(_least(path) if sigma_min is None else sigma_min, 0.01 * top)
        above, below = noisy > top * (1 + 1e-9), clean < bottom * (1 - 1e-9)
        count = steps + 1 - above - below
        found = levels(top, bottom, count, below) if count > 0 else np.empty(0)
        if count == 1 and above and below:
            found = np.array([math.sqrt(top * bottom)])
        times = times_at(path, found.tolist()) if len(found) else []
        times = [first] * above + times + [last] * below
        times = [first, *times[1:-1], last]
        return times[::-1] if backwards else times

    return Spacing(name, place)


def _oriented(
    name: str, path: Interpolant | None, ends: Ends
) -> tuple[Interpolant, float, float, bool]:
    """The path, its noisy and its clean end, and whether the run goes from the second to the first."""
    if path is None or not path.gaussian_base or not path.invertible:
        raise Unsupported(
            f'grid="{name}" counts in sigma / beta, which does not order the times of this term. Use '
            '"uniform", "quadratic", "beta" or "shift".'
        )
    first, last = ends
    backwards = bool(path.noise_scale(first) < path.noise_scale(last))
    return (path, last, first, True) if backwards else (path, first, last, False)


def _least(path: Interpolant) -> float:
    """The noise that is left before the last step, where nobody says."""
    return 0.002 if path.table is None else float(path.noise_scale(1 - 1 / path.table))


def karras(
    rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Spacing:
    """Even in s^(1 / rho)."""
    rho = positive("rho", rho)

    def levels(top: float, bottom: float, n: int, clean: bool) -> Array:
        a, b = top ** (1 / rho), bottom ** (1 / rho)
        return np.asarray(np.linspace(a, b, n) ** rho, dtype=np.float64)

    return _in_noise("karras", levels, sigma_min, sigma_max)


def polyexponential(
    rho: float = 1.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Spacing:
    """A power in log s; rho = 1 is `exponential`."""
    rho = positive("rho", rho)

    def levels(top: float, bottom: float, n: int, clean: bool) -> Array:
        return bottom * np.exp(np.linspace(1.0, 0.0, n) ** rho * math.log(top / bottom))

    return _in_noise("polyexponential", levels, sigma_min, sigma_max)


def exponential(sigma_min: float | None = None, sigma_max: float | None = None) -> Spacing:
    """Even in log s, which is even in log-SNR."""
    return Spacing("exponential", polyexponential(1.0, sigma_min, sigma_max).place)


_AYS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def ays(
    table: str = "sd", sigma_min: float | None = None, sigma_max: float | None = None
) -> Spacing:
    """The published levels of ten steps, between them by lines in log s."""
    if table not in _AYS:
        raise UnknownName.of("table of ays", table, _AYS)
    logs = np.log(np.array(_AYS[table]))
    share = (logs - logs[-1]) / (logs[0] - logs[-1])

    def levels(top: float, bottom: float, n: int, clean: bool) -> Array:
        r = np.linspace(0.0, 1.0, n + 1)[:-1] if clean else np.linspace(0.0, 1.0, n)
        part = np.interp(r, np.linspace(0.0, 1.0, len(share)), share)
        return np.asarray(bottom * np.exp(part * math.log(top / bottom)))

    return _in_noise("ays", levels, sigma_min, sigma_max)


def cosine() -> Spacing:
    """Even in the angle atan(s), at both ends regular."""

    def place(path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        path, first, last, backwards = _oriented("cosine", path, ends)
        a, b = (math.atan(float(path.noise_scale(t))) for t in (first, last))
        inside = (
            times_at(path, np.tan(np.linspace(a, b, steps + 1)[1:-1]).tolist()) if steps > 1 else []
        )
        times = [first, *inside, last]
        return times[::-1] if backwards else times

    return Spacing("cosine", place)


# In the indices of a table


def _in_table(name: str, indices: Callable[[int, int], list[float]]) -> Spacing:
    def place(path: Interpolant | None, ends: Ends, steps: int) -> list[float]:
        if path is None or path.table is None:
            raise Unsupported(
                f'grid="{name}" counts in the table of a path. Use another, "karras".'
            )
        if steps > path.table:
            raise OptionError(
                f"steps={steps} are more than the {path.table} entries of the path's table. Take fewer."
            )
        return timesteps(path, indices(path.table, steps))

    return Spacing(name, place, fixes=True)


def leading(offset: int = 0) -> Spacing:
    """Every floor(n / N)-th index from ``offset`` on: the first of the run is not n - 1."""
    return _in_table("leading", lambda n, N: [(N - 1 - i) * (n // N) + offset for i in range(N)])


def linspace() -> Spacing:
    """From n - 1 to 0, evenly, rounded."""
    return _in_table("linspace", lambda n, N: np.linspace(n - 1, 0, N).round().tolist())


def trailing() -> Spacing:
    """From n - 1 down, evenly, to n / N - 1."""
    return _in_table("trailing", lambda n, N: [round(n - i * n / N) - 1 for i in range(N)])


NAMED: dict[str, Callable[[], Spacing]] = {
    "ays": ays,
    "beta": beta,
    "cosine": cosine,
    "exponential": exponential,
    "karras": karras,
    "leading": leading,
    "linspace": linspace,
    "log_snr": exponential,
    "polyexponential": polyexponential,
    "quadratic": quadratic,
    "shift": shift,
    "trailing": trailing,
    "uniform": uniform,
}


def names() -> tuple[str, ...]:
    """The names that ``grid=`` takes."""
    return tuple(NAMED)
