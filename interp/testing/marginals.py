"""Whether two terms leave the same law at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base import IsotropicNormal
from ..errors import OptionError
from ..exact import Gaussian
from ..solvers import solve
from ..terms import ODE, PathODE, PathSDE, Term

_AFFINE = 1e-6  # how far from affine, in units of its size, solver tolerances may make a flow


class Law(Protocol):
    """What a run may start from: anything with a numbered sample."""

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """(n, ...) rows."""
        ...


@dataclass(frozen=True)
class Agreement:
    """How two laws were compared, and the comparison that came closest to failing.

    Attributes:
        exact: whether by mean and covariance of affine flows, without chance; else by moments.
        what: the worst of what was compared.
        gap: its difference.
        allowed: the difference at which the assertion fails.
    """

    exact: bool
    what: str
    gap: float
    allowed: float


def assert_same_marginals(
    term_a: Term,
    term_b: Term,
    start: Law | Tensor | None = None,
    start_b: Law | Tensor | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    t: tuple[float, float] = (0.0, 1.0),
    t_b: tuple[float, float] | None = None,
    n: int = 4096,
    seed: int = 0,
    tol: float = 1e-4,
    false_alarm: float = 1e-6,
    solver_b: Mapping[str, Any] | None = None,
    **solver: Any,
) -> Agreement:
    """Assert that two terms leave the same law at the end.

    Where both are ODEs whose flows turn out to be affine and the starts are Gaussian, x -> A x + b
    is read off d + 2 rows and mean and covariance, A m + b and A C A^T, are compared without chance.
    Otherwise n rows are run and means, second moments, and cosines of the standardised coordinates
    are compared by their paired differences; for laws that are the same a failure then has the
    probability ``false_alarm``, by the normal approximation and Bonferroni's bound.

    Args:
        term_a: `path.ode(...)`, `path.sde(...)`, `interp.ODE` or `interp.SDE`.
        term_b: the same.
        start: what the first run starts from: an exact law, or rows. None is N(0, sigma^2) of the
            term's path at t[0], of ``shape``.
        start_b: the second one's; None is ``start``, or of its own path where that is None too.
        shape: one row's shape, where a start is None.
        t: the ends of the run.
        t_b: the second one's; None is ``t``.
        n: rows.
        seed: keys the starts, and the noise (the second run's by ``seed + 1``).
        tol: what is allowed beyond chance, for the error of the solvers, in units of the law's
            root mean square.
        false_alarm: the probability of failing by chance.
        solver_b: arguments of `interp.solve` for the second run, over those of ``solver``.
        **solver: arguments of `interp.solve`; without a method, dopri5 at rtol = atol = 1e-7 and
            euler_maruyama in 200 steps.

    Raises:
        AssertionError: naming what differs, by how much, and how much was allowed.
        OptionError: a start that is missing.
    """
    first = _Run(term_a, _start(term_a, start, shape, t), t, _options(term_a, solver))
    second = _Run(
        term_b,
        _start(term_b, start if start_b is None else start_b, shape, t_b or t),
        t_b or t,
        _options(term_b, {**solver, **(solver_b or {})}),
    )
    flows = first.flow(), second.flow()
    if flows[0] is not None and flows[1] is not None:
        agreement = _compare_flows(flows[0], flows[1], tol)
    else:
        rows = first.rows(n, seed, seed), second.rows(n, seed, seed + 1)
        agreement = _compare_moments(*rows, tol, false_alarm)
    if agreement.gap > agreement.allowed:
        how = "exactly" if agreement.exact else f"with a false-alarm rate of {false_alarm:g}"
        raise AssertionError(
            f"the two laws differ: {agreement.what} by {agreement.gap:.3g}, where "
            f"{agreement.allowed:.3g} is allowed ({how} compared)."
        )
    return agreement


def _options(term: Term, given: Mapping[str, Any]) -> dict[str, Any]:
    if "method" in given:
        return dict(given)
    if term.kind == "ode":
        return {"rtol": 1e-7, "atol": 1e-7, **given}
    return {"method": "euler_maruyama", "steps": 200, **given}


def _start(
    term: Term, start: Law | Tensor | None, shape: tuple[int, ...] | None, t: tuple[float, float]
) -> Law | Tensor:
    if start is not None:
        return start
    if not isinstance(term, (PathODE, PathSDE)) or shape is None:
        raise OptionError(
            "there is nothing to start from. Give start= (a law or rows), or shape= (one row's) for "
            "the term of a path with a Gaussian base."
        )
    scale = IsotropicNormal(float(term.path.coefficients(t[0]).sigma)).scale
    return Gaussian(torch.zeros(math.prod(shape)), scale**2)


@dataclass(frozen=True)
class _Run:
    """A term, where it starts, and how it is solved."""

    term: Term
    start: Law | Tensor
    t: tuple[float, float]
    options: Mapping[str, Any]

    def rows(self, n: int, seed: int, noise_seed: int) -> Tensor:
        """The end of n rows, (n, d)."""
        start = self.start
        x = start if isinstance(start, Tensor) else start.sample(n, seed=seed)
        keyed = {} if self.term.kind == "ode" else {"seed": noise_seed}
        end = solve(self.term, x.double(), self.t, **{**keyed, **self.options}).x
        return end.reshape(len(end), -1)

    def flow(self) -> tuple[Tensor, Tensor] | None:
        """Mean and covariance at the end, where flow and start are affine and Gaussian."""
        start = self.start
        if not isinstance(self.term, (ODE, PathODE)) or not isinstance(start, Gaussian):
            return None
        d = start.dim
        root = torch.linalg.cholesky(start.cov)
        probes = torch.cat([torch.zeros(1, d).double(), root.mT, -0.7 * root.mT.sum(0)[None]])
        ends = solve(self.term, start.mean + probes, self.t, **self.options).x
        columns = ends[1:-1] - ends[0]
        crooked = ends[-1] - ends[0] + 0.7 * columns.sum(0)
        if crooked.abs().max() > _AFFINE * (1 + columns.abs().sum()):
            return None
        return ends[0], columns.mT @ columns


def _compare_flows(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], tol: float) -> Agreement:
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    size = max(float((m.square() + C.diag()).max()) for m, C in (a, b))
    gaps = {
        "the mean": (float((mean_a - mean_b).abs().max()), tol * math.sqrt(size)),
        "the covariance": (float((cov_a - cov_b).abs().max()), 2 * tol * size),
    }
    return _worst(True, gaps)


def _compare_moments(a: Tensor, b: Tensor, tol: float, false_alarm: float) -> Agreement:
    pooled = torch.cat([a, b])
    root = float(pooled.square().mean(0).max().sqrt())
    middle, spread = pooled.mean(0), pooled.std(0)
    u, v = (a - middle) / spread, (b - middle) / spread
    differences = {  # each with what the solvers may change
        "the mean": (a - b, tol * root),
        "a second moment": (_products(a) - _products(b), 2 * tol * root**2),
        "a cosine": (u.cos() - v.cos(), tol * root / float(spread.min())),
    }
    count = sum(difference.shape[1] for difference, _ in differences.values())
    probability = torch.tensor(false_alarm / (2 * count), dtype=torch.float64)
    deviations = -float(torch.special.ndtri(probability))
    gaps = {}
    for what, (difference, drift) in differences.items():
        gap = difference.mean(0).abs()
        allowed = drift + deviations * difference.std(0) / math.sqrt(len(a))
        worst = int((gap - allowed).argmax())
        gaps[what] = (float(gap[worst]), float(allowed[worst]))
    return _worst(False, gaps)


def _products(x: Tensor) -> Tensor:
    """All products of two coordinates, up to 16 of them; of many coordinates the squares."""
    d = x.shape[1]
    if d > 16:
        return x.square()
    i, j = torch.triu_indices(d, d)
    return x[:, i] * x[:, j]


def _worst(exact: bool, gaps: Mapping[str, tuple[float, float]]) -> Agreement:
    what = max(gaps, key=lambda name: gaps[name][0] - gaps[name][1])
    return Agreement(exact, what, *gaps[what])
