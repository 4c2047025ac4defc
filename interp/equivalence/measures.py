"""What two families do on exact targets: marginals, views, steps, flows, losses and samples.

A family's network is replaced by the exact view of a target, so that what is compared are the families
and not their training. Everything on either path comes from the law on that path; the two share nothing
but the change of time and scale that is put to the test.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import views
from ..between import Between
from ..exact import Gaussian, Mixture, Target
from ..families import ExactModel
from ..interpolant import Interpolant, Model
from ..solvers import solve
from ..solvers.catalogue import find
from ..terms import ODE

_ROWS = 64
_FAR = 8.0  # log-SNR from -8 to 8: strictly inside, where every view is regular
MEAN, STD = 0.5, 0.5  # of the data whose samples are measured


class Apart(NamedTuple):
    """How far apart the exact models of a mixture are at matched times, after the scale map."""

    marginals: float = math.nan
    views: float = math.nan
    step: float = math.nan
    flow: float = math.nan


def exact(target: Target, path: Interpolant, view: str) -> Model:
    """The exact ``view`` of ``target`` on ``path``."""
    if hasattr(target, view):
        model: Model = getattr(target, view)(path)
        return model
    noise, data = target.noise(path), target.data(path)

    def mixed(t: Tensor, x: Tensor) -> Tensor:
        n, d = noise(t, x), data(t, x)
        if view == "flow_prediction":
            return n - d
        if view == "v_prediction":
            k = path.coefficients(t)
            return k.beta * n - k.sigma * d
        return path.convert(d, "data", view, x, t)

    return mixed


@torch.no_grad()
def apart(change: Between, mine: str, theirs: str) -> Apart:
    """Everything of `Apart`, of families whose networks give the views ``mine`` and ``theirs``."""
    target = Mixture([0.3, 0.7], [[-0.8, 0.2], [0.6, -0.1]], [0.05, 0.1])
    low, high = change.interval
    ends = [max(low, _time(change.path, -_FAR)), min(high, _time(change.path, _FAR))]
    middle = _time(change.path, 0.0)
    middle = middle if ends[0] < middle < ends[1] else sum(ends) / 2
    later = 0.5 * (middle + ends[1])
    times = [ends[0] + share * (ends[1] - ends[0]) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    laws = [_differences(change, target, (mine, theirs), t) for t in times]
    step = _carried(change, target, middle, later, adaptive=False)
    flow = _carried(change, target, ends[0], ends[1], adaptive=True)
    return Apart(max(m for m, _ in laws), max(v for _, v in laws), step, flow)


def _differences(
    change: Between, target: Mixture, own: tuple[str, str], t: float
) -> tuple[float, float]:
    """Of log densities and of data estimates, each by its own network's view, at t."""
    a, b = change.path, change.other
    there, scale = change.both(t)
    x = target.marginal(a, t).sample(_ROWS, seed=1, dtype=torch.float64)
    y = scale * x
    here = target.log_density(a)(t, x)
    density = (here - target.log_density(b)(there, y) - target.dim * scale.log()).abs().max()
    found = [
        path.convert(exact(target, path, view)(at, z), view, "data", z, at)
        for path, view, at, z in ((a, own[0], torch.full_like(there, t), x), (b, own[1], there, y))
    ]
    return float(density), float((found[0] - found[1]).abs().max())


def _carried(change: Between, target: Mixture, t: float, r: float, adaptive: bool) -> float:
    """How far apart the points are that both paths carry from t to r."""
    x = target.sample(_ROWS, seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    k = change.path.coefficients(t)
    start = k.beta * x + k.sigma * n

    def on(path: Interpolant, t: float, r: float, x: Tensor) -> Tensor:
        if adaptive:  # in the path's own time and scale, which the two do not share
            field = ODE(target.velocity(path))
            if path.table is None:
                return solve(field, x, t=(t, r), method="dop853", rtol=1e-10, atol=1e-10).x
            # Between the nodes of a table nothing is smooth enough for a high order.
            return solve(field, x, t=(t, r), method="dopri5", rtol=1e-7, atol=1e-7).x
        term = path.ode(target.data(path), view="data")
        times = torch.tensor([t, r], dtype=torch.float64)
        return term.first_order(times[0], times[1], x, term.call(times[0], x, {}))

    here = on(change.path, t, r, start)
    t_b, r_b = (change.time(s).item() for s in (t, r))
    there = on(change.other, t_b, r_b, change.scale(t) * start)
    return float((there / change.scale(r) - here).abs().max())


@torch.no_grad()
def maps_apart(change: Between, mine: str, theirs: str) -> float:
    """How far apart the exact maps to the end are, as points of the first; of a mixture on the line.

    Each is taken in its own view, "point" or "mean_velocity", and told as a point by its own path.
    """
    target = Mixture([0.3, 0.7], [[-0.8], [0.6]], [0.05, 0.1])
    low, high = change.interval
    r, r_b = torch.tensor(high, dtype=torch.float64), change.time(high)
    if (mine == "point" and high != 1) or (theirs == "point" and float(r_b) != 1):
        return math.nan  # the end that one of them maps to is not on the other
    errors = []
    for t in (low + share * (high - low) for share in (0.3, 0.6, 0.9)):
        x = target.marginal(change.path, t).sample(_ROWS, seed=1, dtype=torch.float64)
        ends = []
        for path, view, s, end, y in (
            (change.path, mine, t, r, x),
            (change.other, theirs, change.time(t), r_b, change.scale(t) * x),
        ):
            value = target.flow_map(path, view)(s, end, y)
            ends.append(path.convert(value, view, "point", y, s, end))
        errors.append(float((ends[1] / change.scale(high) - ends[0]).abs().max()))
    return max(errors)


def _time(path: Interpolant, log_snr: float) -> float:
    low, high = path.log_snr(0.0).item(), path.log_snr(1.0).item()
    return path.time_at_log_snr(min(max(log_snr, low), high)).item()


# Samples


@torch.no_grad()
def sampled(one: ExactModel) -> float:
    """The W2 distance of what an exact model samples, by the family's sampler, from data N(1/2, 1/4).

    The sampler of a flow is affine for normal data: mean and deviation are read off two of its points.
    One with noise is run on 4096 rows, so that about 0.008 is chance. NaN for pairs that are not
    independent and a view that is not the velocity, whose exact model is no closed form.
    """
    path, view, options = one.path, one.view, dict(one.sampler)
    target = Gaussian([MEAN], STD**2)
    if one.pairs == "independent":
        model = exact(target, path, view)
    elif one.coupling is not None and view == "velocity":
        model = target.velocity(path, coupling=one.coupling)
    else:
        return math.nan
    if find(options["method"]).kind == "sde":
        term: Any = path.sde(model, view, diffusion=one.diffusion)
    else:
        term = path.ode(model, view)
    scale = path.base.scale
    probes = scale * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    sol = solve(term, probes, **options)
    if sol.stats.seed is None:
        mean, std = sol.x[1].item(), 0.5 * (sol.x[2] - sol.x[0]).item()
    else:
        rows = path.base.sample((4096, 1), seed=0, dtype=torch.float64)
        x = solve(term, rows, seed=0, **options).x
        mean, std = x.mean().item(), x.std().item()
    return math.hypot(mean - MEAN, std - STD)


@torch.no_grad()
def pairs_apart(a: ExactModel, b: ExactModel) -> float:
    """The difference of the exact velocities at t = 1/2 under the pairs of each, data N(1/2, 1/4).

    Its root mean square; NaN where a plan has no closed form.
    """
    if any(one.coupling is None and one.pairs != "independent" for one in (a, b)):
        return math.nan
    target = Gaussian([MEAN, MEAN], STD**2)
    t, found = 0.5, []
    x = target.marginal(a.path, t).sample(256, seed=0, dtype=torch.float64)
    for one in (a, b):
        found.append(target.velocity(a.path, coupling=one.coupling)(t, x))
    return float((found[0] - found[1]).square().mean().sqrt())


# Losses


@torch.no_grad()
def loss_ratio(a: ExactModel, b: ExactModel, change: Between) -> float:
    """How far the weights of |n_model - n|^2 by log-SNR differ, up to a constant factor."""
    low, high = change.interval
    t = low + (high - low) * torch.linspace(0.002, 0.998, 999, dtype=torch.float64)
    here, there = by_log_snr(a, t), by_log_snr(b, change.time(t))
    counted = torch.ones_like(t, dtype=torch.bool)
    for w in (here, there):
        # What matters of a loss is where most of it is: in units of log-SNR, from its peak downwards.
        counted &= w > 0.01 * w[w.isfinite()].max()
    ratio = (here / there)[counted & here.isfinite() & there.isfinite()]
    return float(ratio.max() / ratio.min()) if len(ratio) else math.inf


def by_log_snr(one: ExactModel, t: Tensor) -> Tensor:
    """w(t) p(t) / lambda'(t), w of the noise's squared error: the weight of a loss by log-SNR."""
    regression = one.regression
    k = regression.path.coefficients(t)
    w = regression.weight.on(k, regression.view)
    w = torch.ones_like(t) if w is None else w
    # An error of the noise, seen in the view that is trained.
    if regression.view != "noise":
        w = w * views.weights(k, "noise", regression.view)[1].square()
    density = torch.ones_like(t)
    if not regression.unbiased:
        interval = regression.interval
        density = 1 / (regression.times.weight(t) * (interval[1] - interval[0]))
    return w * density / views.log_snr_rate(k)
