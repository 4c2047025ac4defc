"""What to test with: random schedules, paths, targets, times and solvers.

Numbers stay where a test's own finite differences do: slopes below about 30, log-SNR within 25,
covariances of condition below 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import schedules as closed
from ..errors import OptionError
from ..exact import Gaussian, Mixture
from ..interpolant import Interpolant
from ..scalar import Schedule
from ..solvers import methods

Draw = st.DrawFn
Options = dict[str, Any]

# The closed forms with a Gaussian base and no latent, and what their arguments may be.
_ARGUMENTS: Mapping[str, Mapping[str, st.SearchStrategy[object]]] = {
    "linear": {},
    "power": {"p": st.floats(1.0, 3.0), "q": st.floats(1.0, 3.0)},
    "polynomial": {"n": st.floats(1.0, 3.0)},
    "cosine": {"s": st.floats(0.001, 0.1)},
    "sub_variance_preserving": {"beta_min": st.floats(0.05, 1.0), "beta_max": st.floats(2.0, 25.0)},
    "variance_exploding": {"sigma_min": st.floats(0.02, 0.2), "sigma_max": st.floats(1.0, 5.0)},
    "edm": {
        "sigma_min": st.floats(0.002, 0.2) | st.just(0.0),
        "sigma_max": st.floats(1.0, 5.0),
        "rho": st.floats(1.0, 7.0),
    },
    "trigonometric": {"theta": st.floats(0.2, 2.9)},
    "variance_preserving": {"beta_min": st.floats(0.05, 1.0), "beta_max": st.floats(2.0, 25.0)},
}
_LATENTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "root": lambda t: torch.sqrt(t * (1 - t)),
    "product": lambda t: t * (1 - t),
    "sine": lambda t: torch.sin(math.pi * t) ** 2,
}


# Schedules


def schedules(names: Sequence[str] | None = None) -> st.SearchStrategy[Interpolant]:
    """Paths with a Gaussian base and no latent: closed forms, and random monotone ones.

    Args:
        names: some of ``interp.schedules.names()``, and "monotone" for `monotone`; None for all.
    """
    known = [*_closed_names(), "monotone"]
    chosen = known if names is None else list(names)
    if not chosen or not set(chosen) <= set(known):
        raise OptionError(f"names={names!r}. Give some of {', '.join(known)}.")
    return st.sampled_from(chosen).flatmap(_named)


def _closed_names() -> list[str]:
    """The closed forms whose arguments are known here."""
    return [n for n in closed.names() if n in _ARGUMENTS]


def _named(name: str) -> st.SearchStrategy[Interpolant]:
    if name == "monotone":
        return _monotone()
    return st.builds(getattr(closed, name), **_ARGUMENTS[name])


def _monotone() -> st.SearchStrategy[Interpolant]:
    rise, low, high = st.floats(0.2, 2.0), st.floats(-12.0, -4.0), st.floats(3.0, 12.0)
    return st.builds(
        monotone,
        rises=st.lists(rise, min_size=2, max_size=5),
        log_snr=st.none() | st.tuples(low, high),
        tilt=st.floats(-1.0, 1.0),
    )


def monotone(
    rises: Sequence[float], log_snr: tuple[float, float] | None = None, tilt: float = 0.0
) -> Interpolant:
    """A smooth path whose log-SNR rises by a polynomial with positive Bernstein differences.

        tau = sum_j c_j C(n, j) t^j (1 - t)^(n - j),   c_j = (rises_1 + ... + rises_j) / sum

    With ``log_snr`` = (low, high) the log-SNR is low + (high - low) tau, and beta^2 + sigma^2 =
    exp(2 tilt (1 - t)); without it, alpha and beta are 1 - tau and tau times exp(tilt (1 - t)), so
    that the ends are pure.

    Args:
        rises: positive numbers; as many as the polynomial's degree n.
        log_snr: the log-SNR at both ends, or None for -inf and +inf.
        tilt: how the scale of the path changes.
    """
    if not rises or not all(r > 0 for r in rises):
        raise OptionError(f"rises={rises!r}. Give positive numbers.")
    n, total = len(rises), math.fsum(rises)
    up = [math.comb(n, j) * math.fsum(rises[:j]) / total for j in range(n + 1)]
    down = [math.comb(n, j) * math.fsum(rises[j:]) / total for j in range(n + 1)]

    def bernstein(c: Sequence[float], t: Tensor) -> Tensor:
        terms = (c[j] * t**j * (1 - t) ** (n - j) for j in range(n + 1))
        return sum(terms, torch.zeros_like(t))

    def scale(t: Tensor) -> Tensor:
        return torch.exp(tilt * (1 - t))

    if log_snr is None:
        return Interpolant(
            lambda t: scale(t) * bernstein(down, t), lambda t: scale(t) * bernstein(up, t)
        )
    low, high = log_snr

    def lam(t: Tensor) -> Tensor:
        return low + (high - low) * bernstein(up, t)

    return Interpolant(
        lambda t: scale(t) * torch.sigmoid(-lam(t)).sqrt(),
        lambda t: scale(t) * torch.sigmoid(lam(t)).sqrt(),
    )


# Paths


def paths(two_sided: bool | None = None) -> st.SearchStrategy[Interpolant]:
    """Any path: a schedule, a schedule with a latent, or one between two laws (two-sided).

    Args:
        two_sided: only paths whose base is not Gaussian (True), only others (False), or both.
    """
    latent = st.builds(
        with_latent, schedules(), st.sampled_from(sorted(_LATENTS)), st.floats(0.1, 1.0)
    )
    between = st.builds(
        with_latent,
        schedules(["linear", "trigonometric"]),
        st.sampled_from(sorted(_LATENTS)),
        st.floats(0.1, 1.0),
        gaussian_base=st.just(False),
    )
    if two_sided is None:
        return st.one_of(schedules(), latent, between)
    return between if two_sided else st.one_of(schedules(), latent)


def with_latent(
    path: Interpolant, kind: str, size: float, gaussian_base: bool = True
) -> Interpolant:
    """``path`` with a latent of gamma = ``size`` times sqrt(t (1 - t)), t (1 - t) or sin^2 (pi t).

    Args:
        path: gives alpha and beta.
        kind: "root", "product" or "sine".
        size: what gamma is multiplied by.
        gaussian_base: whether x0 ~ N(0, 1).
    """
    gamma = _LATENTS[kind]
    return Interpolant(path.alpha, path.beta, Schedule(lambda t: size * gamma(t)), gaussian_base)


def times(inside: float = 0.02) -> st.SearchStrategy[float]:
    """Times in [inside, 1 - inside]."""
    return st.floats(inside, 1 - inside)


# Targets


def targets(
    dim: int | None = None, kinds: Sequence[str] = ("gaussian", "mixture")
) -> st.SearchStrategy[Mixture]:
    """Laws with closed forms along every path, in 1 to 3 dimensions.

    Args:
        dim: the number of dimensions; None for any.
        kinds: some of "gaussian" and "mixture".
    """
    known = {"gaussian": _gaussians, "mixture": _mixtures}
    if not kinds or not set(kinds) <= set(known):
        raise OptionError(f"kinds={tuple(kinds)!r}. Give some of {', '.join(known)}.")
    dims = st.integers(1, 3) if dim is None else st.just(dim)
    return dims.flatmap(lambda d: st.one_of([known[kind](d) for kind in kinds]))


def _vectors(d: int, low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(low, high), min_size=d, max_size=d)


@st.composite
def _covs(draw: Draw, d: int) -> float | list[float] | Tensor:
    """A variance, a diagonal or a matrix."""
    kind = draw(st.sampled_from(["isotropic", "diagonal", "matrix"]))
    if kind == "isotropic":
        return draw(st.floats(0.1, 3.0))
    deviations = draw(_vectors(d, 0.3, 1.6))
    if kind == "diagonal" or d == 1:
        return [s * s for s in deviations]
    root = torch.tensor(deviations, dtype=torch.float64).diag()
    for i in range(1, d):
        root[i, :i] = torch.tensor(draw(_vectors(i, -0.5, 0.5)), dtype=torch.float64)
    return root @ root.mT


def _gaussians(d: int) -> st.SearchStrategy[Gaussian]:
    return st.builds(Gaussian, mean=_vectors(d, -2.0, 2.0), cov=_covs(d))


@st.composite
def _mixtures(draw: Draw, d: int) -> Mixture:
    n = draw(st.integers(2, 3))
    shares = draw(st.lists(st.floats(0.2, 1.0), min_size=n, max_size=n))
    means = [draw(_vectors(d, -2.5, 2.5)) for _ in range(n)]
    covs = [draw(_covs(d)) for _ in range(n)]
    return Mixture([s / math.fsum(shares) for s in shares], means, covs)


# Solvers


@st.composite
def solvers(
    draw: Draw, kind: str = "ode", steps: tuple[int, int] = (20, 80), adaptive: bool = True
) -> Options:
    """Keyword arguments of `interp.solve`: a method that runs here, a backend, and its steps.

    Args:
        draw: given by Hypothesis.
        kind: "ode" or "sde".
        steps: the fewest and the most fixed steps.
        adaptive: whether a method that can may choose its own steps.
    """
    method = draw(st.sampled_from([m for m in methods(kind) if kind.upper() in m.terms]))
    options: Options = {
        "method": method.name,
        "backend": draw(st.sampled_from(["rust", "torch"])),
    }
    if not (adaptive and method.adaptive and draw(st.booleans())):
        options["steps"] = draw(st.integers(*steps))
    if kind == "sde":
        options["seed"] = draw(st.integers(0, 2**32 - 1))
    return options
