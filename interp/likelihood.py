"""Densities by the change of variables along a flow, and what they are in bits.

    log p_1(x_1) = log p_0(x_0) - int_0^1 div v(t, x_t) dt,   dx/dt = v

Chen, Rubanova, Bettencourt, Duvenaud, 1806.07366; Grathwohl, Chen, Bettencourt, Sutskever,
Duvenaud, 1810.01367. The divergence is exact or estimated: see `interp.divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from . import solvers, terms
from .adapted import Adapted
from .arguments import host, require_floating, spread, transforming, whole
from .base import IsotropicNormal
from .divergence import Field, WithDivergence, estimator
from .errors import DataError, OptionError, Unsupported
from .solvers.gradients import unit
from .terms import ODE, PathODE

Estimator = Callable[[Field], WithDivergence]


class Law(Protocol):
    """Anything with a density."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of ``x``: (rows,), nats."""
        ...


def log_prob(
    term: Any,
    x: Tensor,
    base: Law | None = None,
    divergence: str = "exact",
    *,
    probe: str = "rademacher",
    probes: int = 1,
    seed: int = 0,
    first_row: int = 0,
    cond: Mapping[str, Any] | None = None,
    t: tuple[float, float] | None = None,
    control_log_det: bool = True,
    gradient: str | None = None,
    **options: Any,
) -> Tensor:
    """The log density of each row of ``x`` under the flow of an ODE ``term``: (rows,), nats.

    The integral of the divergence is one more column of the state. The rows are taken to be
    independent of one another (no batch statistics).

    It is differentiated by x and by the parameters of the model wherever grad mode is on and one of
    them requires it (a plain x costs one evaluation to find out); under `torch.no_grad` nothing is
    recorded. What a learned path is made of is a constant.

    Args:
        term: an ODE, by hand or from a path, or a bare field(t, x).
        x: (rows, ...), the points at t[0].
        base: the law at t[1], anything with ``log_prob(x) -> (rows,)``; None is N(0, sigma(t[1])^2)
            of a path with a Gaussian base.
        divergence: "exact", as many Jacobian-vector products as x has elements a row; "hutchinson",
            ``probes`` products, unbiased, of variance 2 (|A|^2 - sum a_ii^2) / probes with A the
            symmetric part of J (2 |A|^2 / probes for Gaussian probes); "hutch++", 3 ``probes``
            products, exact for a J of rank ``probes``. See `interp.divergence`.
        probe: "rademacher" or "gaussian": the law of the elements of the noise, one for a solve.
        probes: how many vectors of noise, each by row from ``first_row``.
        seed: of the noise.
        first_row: the number of the first row.
        cond: what the model is told beside (t, x).
        t: from where to where; None is all of the term's interval, backwards.
        control_log_det: whether the error of the log-determinant has a say in adaptive steps; if not
            they are those of `solve` on x alone.
        gradient: how it is differentiated, as in `interp.solve`; None is "direct".
        options: of `interp.solve`; dopri5 at its default tolerance where none is given.

    Raises:
        UnknownName: a divergence or probe that does not exist.
        OptionError: no base, or x not floating.
        Unsupported: "exact" for a model that forward mode cannot pass through; a term that is not
            an ODE; checkpointed gradients of an estimated divergence.
    """
    run = _run(
        term, x, t, True, divergence, probe, probes, seed, first_row, cond, control_log_det,
        gradient, **options,
    )  # fmt: skip
    law = _base(run.term, base, run.ends[1])
    end, log_det = run(x)
    return law.log_prob(end) + log_det


def sample_and_log_prob(
    term: Any,
    z: Tensor,
    base: Law | None = None,
    divergence: str = "exact",
    *,
    t: tuple[float, float] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Samples and their log densities in one pass: points ``z`` of the base carried along the flow.

    Args:
        term: as in `log_prob`.
        z: (rows, ...), points of the base at t[0], as path.base.sample((rows, ...)).
        base: the law of z at t[0].
        divergence: as in `log_prob`.
        t: from where to where; None is all of the term's interval, forwards.
        options: as in `log_prob`: probe, probes, seed, first_row, cond, control_log_det, gradient and
            those of `interp.solve`.

    Returns:
        The points at t[1], (rows, ...), and their log densities, (rows,), nats. A path that keeps
        noise at t = 1 is not denoised: a point moved to clean data has no density.

    Raises:
        UnknownName, OptionError, Unsupported: as in `log_prob`.
    """
    run = _run(term, z, t, False, divergence, **options)
    law = _base(run.term, base, run.ends[0])
    end, log_det = run(z)
    return end, law.log_prob(z) - log_det


def _run(
    term: Any, x: object, t: tuple[float, float] | None, backwards: bool,
    divergence: str, probe: str = "rademacher", probes: int = 1, seed: int = 0, first_row: int = 0,
    cond: Mapping[str, Any] | None = None, control_log_det: bool = True,
    gradient: str | None = None, **options: Any,
) -> _Run:  # fmt: skip
    if not isinstance(x, Tensor) or x.ndim == 0:
        shown = "a single number" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise OptionError(f"x is {shown}. Give a tensor of points, (rows, ...).")
    require_floating(x=x)
    term = term if hasattr(term, "kind") else ODE(term)
    if term.kind != "ode":
        raise Unsupported(
            "the likelihood was asked of an SDE, whose samples follow no single flow. Use the "
            "probability flow, path.ode(model), or interp.ODE(field)."
        )
    if t is None:
        low, high = term.interval
        t = (high, low) if backwards else (low, high)
    ends = (float(t[0]), float(t[1]))
    if gradient == "checkpointed" and divergence != "exact":
        raise Unsupported(
            f"torch cannot recompute the backward pass inside of {divergence}. Use "
            'gradient="direct", "adjoint" or "reversible", or divergence="exact".'
        )
    if options.get("per_row"):
        raise Unsupported(
            "densities are carried in steps of all rows together. Leave out per_row=True."
        )
    make = estimator(divergence, x, probe, probes, seed, first_row)
    return _Run(term, ends, make, dict(cond or {}), control_log_det, gradient, options)


def _base(term: ODE | PathODE, base: Law | None, t: float) -> Law:
    if base is not None:
        if not hasattr(base, "log_prob"):
            kind = type(base).__name__
            raise OptionError(f"base is a {kind}. Give a law with log_prob(x), nats by row.")
        return base
    if not isinstance(term, PathODE):
        raise OptionError(
            "a field made by hand has no base of its own. Give base=, any law with log_prob(x)."
        )
    if isinstance(term.model, Adapted) and t == term.interval[0]:
        return term.model.base
    if t == 0:
        return term.path.base
    if not term.path.gaussian_base or term.path.element:
        raise OptionError(f"this path has no Gaussian law at t = {t:g}. Give base=, the law there.")
    return IsotropicNormal(float(term.path.sigma(t)))


@dataclass
class _Run:
    """The flow of a term over an interval, with the integral of its divergence."""

    term: ODE | PathODE
    ends: tuple[float, float]
    make: Estimator
    cond: dict[str, Any]
    control: bool
    gradient: str | None
    options: dict[str, Any]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x at the end, and its log density at the start less that at the end, (rows,)."""
        rows, d = len(x), math.prod(x.shape[1:])
        scale, options = 1.0, dict(self.options)
        if not self.control:
            scale = unit(x.dtype)
            options |= self._tolerances(d)
        (start, stop), near = self.ends, self._inside(x)
        if near[0] != start:  # the first-order step from clean data, backwards
            x, log_det = self._rescaled(x, start, near[0])
        else:
            log_det = x.new_zeros(rows)

        def augmented(slope: Field) -> Field:
            both = self.make(slope)

            def field(t: Tensor, state: Tensor) -> Tensor:
                v, div = both(t, state[:, :d].reshape(x.shape))
                return torch.cat([v.reshape(rows, d), scale * div[:, None]], dim=1)

            return field

        state = torch.cat([x.reshape(rows, d), x.new_zeros(rows, 1)], dim=1)
        end = solvers.solve(
            _with(self.term, augmented), state, t=near, cond=self.cond, denoise=False,
            gradient=self._recording(x, near[0]), **options,
        ).x  # fmt: skip
        y, at = end[:, :d].reshape(x.shape), self.term.coordinates
        grown = 1.0
        if at is not None:  # the last column was carried in coordinates of the state
            first, last = (float(at.scale(host(t))) for t in near)
            grown, log_det = last, log_det + d * math.log(last / first)
        log_det = log_det + end[:, d] / (scale * grown)
        if near[1] != stop and isinstance(self.term, PathODE):
            _, more = self._rescaled(y, near[1], stop)
            data = self.term.call(host(near[1]), y, self.cond)
            y, log_det = self.term.first_order(host(near[1]), host(stop), y, data), log_det + more
        return y, log_det

    def _inside(self, x: Tensor) -> tuple[float, float]:
        """The ends, or for a view of the data where it is not yet clean.

        x / beta is there what it is at the end but for a second order of sigma / beta, and so is the
        log-determinant; a tenth of the tolerance's square root makes that less than the tolerance.
        """
        term = self.term
        if not isinstance(term, PathODE) or term.view != "data":
            return self.ends
        term.check_interval(*self.ends)
        if not any(term.clean(end) for end in self.ends):
            return self.ends
        rtol, atol = (float(self.options.get(name, 1e-5)) for name in ("rtol", "atol"))
        near = term.almost_clean(0.1 * math.sqrt(rtol + atol))
        start, stop = (near if term.clean(end) else end for end in self.ends)
        return start, stop

    def _rescaled(self, x: Tensor, t: float, r: float) -> tuple[Tensor, Tensor]:
        """x beta(r) / beta(t), and the logarithm of how volumes grow, (rows,)."""
        assert isinstance(self.term, PathODE)
        path = self.term.path
        ratio = path.beta(host(r)) / path.beta(host(t))
        moved = spread(ratio, x, path.element) * x
        share = math.prod(x.shape[1:]) / max(1, ratio.numel())
        return moved, x.new_full((len(x),), float(ratio.log().sum()) * share)

    def _tolerances(self, d: int) -> dict[str, float]:
        """What makes the mean over d + 1 columns, one of which is silent, that over d."""
        rtol, atol = (float(self.options.get(name, 1e-5)) for name in ("rtol", "atol"))
        if atol == 0:
            raise OptionError(
                "atol=0 counts a relative error of the log-determinant however small its units are. "
                "Give a positive atol, or control_log_det=True."
            )
        factor = 1.0 if self.options.get("norm") == "max" else math.sqrt(d / (d + 1))
        return {"rtol": factor * rtol, "atol": factor * atol}

    def _recording(self, x: Tensor, t: float) -> str | None:
        """How to record: as asked, or directly where the model's parameters want a derivative."""
        quiet = transforming() or x.requires_grad or not torch.is_grad_enabled()
        if self.gradient is not None or quiet:
            return self.gradient
        at = self.term.coordinates
        y = x if at is None else spread(1 / at.scale(host(t)), x) * x
        time = host(t).to(x.device, torch.float64 if self.term.exact_time else x.dtype)
        v = self.term.slope(self.cond)(time, y)
        return "direct" if isinstance(v, Tensor) and v.requires_grad else None


class _Augmented(PathODE):
    """A path's term whose state has one more column, in the same coordinates."""

    def __init__(self, term: PathODE, wrap: Callable[[Field], Field]) -> None:
        self.__dict__.update(vars(term))
        self._wrap = wrap

    def slope(self, cond: terms.Cond) -> Field:
        return self._wrap(super().slope(cond))

    def affine(self) -> None:
        """None: there is a divergence beside the model's value."""


def _with(term: ODE | PathODE, wrap: Callable[[Field], Field]) -> ODE | PathODE:
    if isinstance(term, PathODE):
        return _Augmented(term, wrap)
    return ODE(lambda t, state, **cond: wrap(term.slope(cond))(t, state))


# Densities of images in bits


def level_width(levels: int) -> float:
    """How far apart ``levels`` grey levels are on [-1, 1]: 2 / (levels - 1).

    Raises:
        OptionError: fewer than two levels, or no whole number of them.
    """
    return 2 / (whole("levels", levels, 2) - 1)


def dequantise(x: Tensor, levels: int, generator: Generator | None = None) -> Tensor:
    """Each grey level spread evenly over its width: x + (2 / (levels - 1)) (u - 1/2), u ~ U[0, 1).

    Theis, van den Oord, Bethge, 1511.01844, sec. 3.1, on our scale of [-1, 1].

    Args:
        x: images on the grid of ``levels`` values from -1 to 1.
        levels: how many there are.
        generator: what u is drawn from; None is torch's global one.

    Raises:
        DataError: x outside [-1, 1].
        OptionError: fewer than two levels.
    """
    width = level_width(levels)
    if x.numel() and not bool((x.abs() <= 1).all()):
        low, high = x.min().item(), x.max().item()
        raise DataError(
            f"images run from {low:g} to {high:g}, outside [-1, 1]. Rescale them, e.g. "
            " x / 127.5 - 1 for bytes."
        )
    u = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x + width * (u - 0.5)


def bits_per_dim(nats: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Bits per dimension of grey-level images from the log density of their dequantisation.

    Level k sits at 2 k / (levels - 1) - 1 and owns a cell of width w = 2 / (levels - 1), so that
    P(k) is the integral of p over d such cells and, by Jensen, for u uniform in the cell

        log P(k) >= E_u log p(k + u) + d log w,
        bits / dim <= -(E log p) / (d log 2) + log2((levels - 1) / 2).

    Args:
        nats: log p of dequantised images on [-1, 1], (rows,).
        shape: of one image; d is its number of elements.
        levels: the number of grey levels.

    Raises:
        OptionError: fewer than two levels.
    """
    return -nats / (math.prod(shape) * math.log(2)) - math.log2(level_width(levels))
