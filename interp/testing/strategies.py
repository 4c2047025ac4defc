"""What to test with: random schedules, paths, targets, couplings, times, solvers and families.

Numbers stay where a test's own finite differences do: slopes below about 30, log-SNR within 25,
covariances of condition below 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import couplings as pairings
from .. import families as registry
from .. import schedules as named
from ..couplings import Coupling
from ..errors import OptionError
from ..exact import Empirical, Gaussian, Mixture, Product, Target
from ..interpolant import Interpolant
from ..solvers import methods
from .made import composed, monotone, two_sided

Draw = st.DrawFn
Options = dict[str, Any]
Arguments = Mapping[str, st.SearchStrategy[object]]

_RATES: Arguments = {"beta_min": st.floats(0.05, 1.0), "beta_max": st.floats(2.0, 25.0)}
_LATENT: Arguments = {
    "gamma": st.sampled_from(["root", "parabola", "sine_squared"]),
    "a": st.floats(0.3, 2.0),
}
_RISES = st.lists(st.floats(0.2, 2.0), min_size=2, max_size=5)
_POWER = st.just(0.5) | st.floats(1.0, 3.0)
_FALLING = st.lists(
    st.integers(1, 99).map(lambda i: i / 100), min_size=2, max_size=20, unique=True
).map(lambda values: sorted(values, reverse=True))

# The named paths that start from N(0, sigma(0)^2), without a latent and with a log-SNR that rises,
# and what their arguments may be.
_SCHEDULES: Mapping[str, Arguments] = {
    "linear": {},
    "power": {"p": _POWER, "q": _POWER},
    "polynomial": {"n": _POWER},
    "trigonometric": {"theta": st.floats(0.2, 2.9)},
    "cosine": {"s": st.floats(0.001, 0.1)},
    "variance_preserving": _RATES,
    "sub_variance_preserving": _RATES,
    "variance_exploding": {"sigma_min": st.floats(0.005, 0.2), "sigma_max": st.floats(1.0, 50.0)},
    "edm": {
        "sigma_min": st.just(0.0) | st.floats(0.002, 0.2),
        "sigma_max": st.floats(1.0, 80.0),
        "rho": st.floats(1.0, 7.0),
    },
    "from_betas": {
        "betas": st.lists(st.floats(0.001, 0.3), min_size=3, max_size=30),
        "zero_terminal_snr": st.booleans(),
    },
    "from_alphas_cumprod": {"alphas_cumprod": _FALLING},
    "from_sigmas": {"sigmas": _FALLING.map(lambda values: [20 * v for v in reversed(values)])},
}
# Other paths with a Gaussian base: with a latent, from a point, from data to data.
_BRIDGES: Mapping[str, Arguments] = {
    "brownian_bridge": {"sigma": st.floats(0.2, 2.0), "gaussian_base": st.just(True)},
    "foellmer": {"sigma": st.floats(0.3, 2.0)},
    "mirror": _LATENT,
}
_MADE = ("monotone", "composed")


# Schedules


def schedules(names: Sequence[str] | None = None) -> st.SearchStrategy[Interpolant]:
    """Paths that start from a Gaussian base, without a latent, with a log-SNR that rises.

    Args:
        names: names of such paths in ``interp.schedules.names()``; "monotone" for `monotone`, random
            and smooth; "composed" for one of the others, warped and rescaled. None for all of them.
    """
    known = [*_SCHEDULES, *_MADE]
    chosen = known if names is None else list(names)
    if not chosen or not set(chosen) <= set(known):
        raise OptionError(f"names={names!r}. Give some of {', '.join(known)}.")
    return st.sampled_from(chosen).flatmap(_schedule)


def _schedule(name: str) -> st.SearchStrategy[Interpolant]:
    if name == "monotone":
        low, high = st.floats(-12.0, -4.0), st.floats(3.0, 12.0)
        ends = st.none() | st.tuples(low, high)
        return st.builds(monotone, rises=_RISES, log_snr=ends, tilt=st.floats(-1.0, 1.0))
    if name == "composed":
        parts = schedules([*_SCHEDULES, "monotone"])
        return st.builds(composed, parts, rises=_RISES, tilt=st.floats(-1.0, 1.0))
    return st.builds(getattr(named, name), **{**_SCHEDULES, **_BRIDGES}[name])


# Paths


def paths(two_sided: bool | None = None) -> st.SearchStrategy[Interpolant]:
    """Any path: a schedule, one with a latent, a bridge, or one between any two laws.

    Args:
        two_sided: only paths whose base is not Gaussian (True), only others (False), or both.
    """
    one = st.one_of(
        schedules(),
        st.builds(named.with_gamma, schedules(), **_LATENT),
        st.sampled_from(list(_BRIDGES)).flatmap(_schedule),
    )
    two = st.one_of(_between(), st.builds(named.encode_decode))
    if two_sided is None:
        return st.one_of(one, two)
    return two if two_sided else one


def _between() -> st.SearchStrategy[Interpolant]:
    ends = schedules(["linear", "trigonometric", "power", "monotone"])
    return st.builds(two_sided, ends, **_LATENT)


def times(inside: float = 0.02) -> st.SearchStrategy[float]:
    """Times in [inside, 1 - inside]."""
    return st.floats(inside, 1 - inside)


# Targets


def targets(
    dim: int | None = None, kinds: Sequence[str] = ("gaussian", "mixture")
) -> st.SearchStrategy[Any]:
    """Exact targets, in 1 to 3 dimensions; those of the default kinds may also be a base.

    Args:
        dim: the number of dimensions; None for any.
        kinds: some of "gaussian", "mixture", "empirical" (a few points, with and without a
            bandwidth) and "product" (of a Gaussian and a mixture).
    """
    known = {
        "gaussian": _gaussians,
        "mixture": _mixtures,
        "empirical": _empiricals,
        "product": _products,
    }
    if not kinds or not set(kinds) <= set(known):
        raise OptionError(f"kinds={tuple(kinds)!r}. Give some of {', '.join(known)}.")
    least = 2 if set(kinds) == {"product"} else 1
    if dim is not None and dim < least:
        raise OptionError(
            f"dim={dim!r} and kinds={tuple(kinds)!r}. Give {least} dimensions or more."
        )
    dims = st.integers(least, 3) if dim is None else st.just(dim)
    return dims.flatmap(
        lambda d: st.one_of([known[k](d) for k in kinds if (k, d) != ("product", 1)])
    )


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


def _empiricals(d: int) -> st.SearchStrategy[Empirical]:
    points = st.lists(_vectors(d, -2.0, 2.0), min_size=1, max_size=6)
    return st.builds(
        Empirical,
        points.map(lambda rows: torch.tensor(rows, dtype=torch.float64)),
        bandwidth=st.just(0.0) | st.floats(0.1, 1.0),
        chunk=st.integers(1, 4),
    )


def _products(d: int) -> st.SearchStrategy[Target]:
    return st.builds(Product, st.tuples(_gaussians(d - 1), _mixtures(1)))


# Couplings

_REG = st.none() | st.floats(0.05, 2.0)
_COUPLINGS: Mapping[str, st.SearchStrategy[Coupling]] = {
    "independent": st.builds(pairings.independent),
    "given": st.builds(pairings.given),
    "optimal_transport": st.builds(pairings.optimal_transport, reg=_REG),
    "unbalanced": st.builds(pairings.unbalanced, tau=st.none() | st.floats(0.5, 10.0)),
    "partial": st.builds(pairings.partial, st.floats(0.2, 1.0)),
    "schroedinger_bridge": st.builds(pairings.schroedinger_bridge, sigma=st.floats(0.3, 2.0)),
}


def couplings(names: Sequence[str] | None = None) -> st.SearchStrategy[Coupling]:
    """Couplings of the rows of two batches, without labels.

    Args:
        names: some of ``interp.couplings.names()`` but conditional, which needs labels; None for all.
    """
    chosen = list(_COUPLINGS) if names is None else list(names)
    if not chosen or not set(chosen) <= set(_COUPLINGS):
        raise OptionError(f"names={names!r}. Give some of {', '.join(_COUPLINGS)}.")
    return st.one_of([_COUPLINGS[name] for name in chosen])


# Families


def families(
    names: Sequence[str] | None = None,
    verbs: Sequence[str] = (),
    shape: tuple[int, ...] = (2,),
    **options: st.SearchStrategy[Any],
) -> st.SearchStrategy[registry.Family]:
    """Families that are installed or registered, untrained; with a width of 8 where they have one.

    Args:
        names: some of ``interp.families.available()``; None for all.
        verbs: that each of them has.
        shape: of a data point.
        **options: strategies of options by name; a family that has no such option is left out.

    Raises:
        UnknownName: a family that does not exist.
        OptionError: no family that has it all.
    """
    chosen = []
    for name in registry.available() if names is None else names:
        factory = registry.load(name)
        known, has = registry.options(factory), registry.verbs(factory)
        if all(has[v] for v in verbs) and (known is None or set(options) <= set(known)):
            chosen.append(name)
    if not chosen:
        raise OptionError(
            f"no family among {names or registry.available()} has the verbs {tuple(verbs)} and the "
            f"options {tuple(options)}. Ask for less."
        )

    def made(name: str) -> st.SearchStrategy[registry.Family]:
        # A small network is made in a moment, and a failure shrinks through hundreds of them.
        narrow = "width" in (registry.options(registry.load(name)) or ())
        small = {"width": st.just(8)} if narrow else {}
        # builds: the report of a failure shows the call.
        return st.builds(registry.create, st.just(name), st.just(shape), **{**small, **options})

    return st.sampled_from(chosen).flatmap(made)


# Solvers


@st.composite
def solvers(
    draw: Draw, kind: str = "ode", steps: tuple[int, int] = (20, 80), adaptive: bool = True
) -> Options:
    """Keyword arguments of `interp.solve`: a method that runs here, a backend, and its steps.

    Implicit methods are left out: they ask for derivatives of the model.

    Args:
        draw: given by Hypothesis.
        kind: "ode" or "sde".
        steps: the fewest and the most fixed steps.
        adaptive: whether a method that can may choose its own steps.
    """
    known = [m for m in methods(kind) if kind.upper() in m.terms and "rust" in m.backends]
    method = draw(st.sampled_from(known))
    options: Options = {
        "method": method.name,
        "backend": draw(st.sampled_from(["rust", "torch"])),
    }
    if not (adaptive and method.adaptive and draw(st.booleans())):
        options["steps"] = draw(st.integers(*steps))
    if kind == "sde":
        options["seed"] = draw(st.integers(0, 2**32 - 1))
    return options
