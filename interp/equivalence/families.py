"""Two families: their paths, what their losses weigh, one step, and what they sample.

A family is asked for what every family of a path has: ``path``, ``view`` and ``regression``. Its network
is replaced by the exact view of a target, so that what is compared are the families and not their
training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import views
from ..errors import InterpError
from ..exact import Mixture
from ..interpolant import Interpolant
from ..solvers import solve
from ..terms import ODE
from .paths import PathReport, compare_paths
from .table import Table

_NAN = math.nan


@dataclass(frozen=True)
class FamilyReport(PathReport):
    """What `compare` found of two families; beside the paths:

    Attributes:
        loss_ratio: the losses, in expectation, are sum_lambda w(lambda) E|n_model - n|^2 with the weight
            and the law of time of each; this is the largest of w_a / w_b over its smallest, where both
            put 99 % of theirs: 1 where they are one loss up to a constant.
        step_error: one first-order step (DDIM) from the middle of the way to nearer the data, on each path
            with the exact model of a mixture: the largest difference after the scale map.
        flow_error: the whole flow on each path from one matched start to one matched end, by a solver, with
            the exact model of the mixture: the largest difference.
        views: what each network returns.
    """

    loss_ratio: float = _NAN
    step_error: float = _NAN
    flow_error: float = _NAN
    views: tuple[str, str] = field(default=("", ""))

    def rows(self) -> list[tuple[str, str]]:
        """What the table says, line by line."""
        *lines, because = super().rows()
        if self.views[0]:
            lines.append(("networks return", " and ".join(self.views)))
        if not math.isnan(self.loss_ratio):
            one = " (one loss)" if self.loss_ratio < 1.01 else ""
            lines.append(("weights of the losses", f"within a factor {self.loss_ratio:.3g}{one}"))
        if not math.isnan(self.flow_error):
            lines += [
                ("one DDIM step apart", f"{self.step_error:.2g}"),
                ("flows apart", f"{self.flow_error:.2g}, on a mixture of two normals"),
            ]
        return [*lines, because]

    def __str__(self) -> str:
        return str(Table(f"{_name(self.a)}  and  {_name(self.b)}", self.rows()))


def _name(family: Any) -> str:
    return getattr(family, "name", "") or type(family).__name__


def compare_families(a: Any, b: Any, tol: float) -> FamilyReport:
    """See `interp.equivalence.compare`."""
    without = [one for one in (a, b) if not isinstance(getattr(one, "path", None), Interpolant)]
    if without:
        reason = (
            f"{_name(without[0])} is no interpolant: nothing like a time and a scale could carry it "
            "onto the other."
        )
        return FamilyReport(a, b, False, math.pi / 2, _NAN, _NAN, reason, tol, None)
    paths = compare_paths(a.path, b.path, tol)
    shared = {
        name: getattr(paths, name)
        for name in PathReport.__dataclass_fields__
        if name not in ("a", "b")
    }
    own = (str(getattr(a, "view", "velocity")), str(getattr(b, "view", "velocity")))
    if paths._change is None or not a.path.gaussian_base:
        return FamilyReport(a, b, **shared, views=own)
    step, flow = _runs(paths)
    return FamilyReport(
        a,
        b,
        **shared,
        loss_ratio=_loss_ratio(a, b, paths),
        step_error=step,
        flow_error=flow,
        views=own,
    )


def _target() -> Mixture:
    return Mixture([0.3, 0.7], [[-0.8, 0.2], [0.6, -0.1]], [0.05, 0.1])


@torch.no_grad()
def _runs(paths: PathReport) -> tuple[float, float]:
    """One first-order step and the whole flow on both paths, from one point to one point."""
    change, target = paths._between(), _target()
    low, high = change.interval
    # Strictly inside, where every view is regular: log-SNR from -8 to 8, or what there is of it.
    ends = [max(low, _time(change.path, -8.0)), min(high, _time(change.path, 8.0))]
    middle = _time(change.path, 0.0) if low < _time(change.path, 0.0) < high else sum(ends) / 2
    later = 0.5 * (middle + ends[1])
    x = target.sample(64, seed=0, dtype=torch.float64)
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def on(path: Interpolant, t: float, r: float, x: Tensor, adaptive: bool) -> Tensor:
        if adaptive:  # in the path's own time and scale, which the two do not share
            field = ODE(target.velocity(path))
            return solve(field, x, t=(t, r), method="dopri5", rtol=1e-10, atol=1e-10).x
        term = path.ode(target.data(path), view="data")
        times = torch.tensor([t, r], dtype=torch.float64)
        return term.first_order(times[0], times[1], x, term.call(times[0], x, {}))

    found = []
    for t, r, adaptive in ((middle, later, False), (ends[0], ends[1], True)):
        start = change.path.at(t, z, x) if change.path.gamma is None else change.path.at(t, z, x, z)
        here = on(change.path, t, r, start, adaptive)
        t_b, r_b = (change.time(s).item() for s in (t, r))
        there = on(change.other, t_b, r_b, change.scale(t) * start, adaptive)
        found.append(float((there / change.scale(r) - here).abs().max()))
    return found[0], found[1]


def _time(path: Interpolant, log_snr: float) -> float:
    low, high = path.log_snr(0.0).item(), path.log_snr(1.0).item()
    return path.time_at_log_snr(min(max(log_snr, low), high)).item()


@torch.no_grad()
def _loss_ratio(a: Any, b: Any, paths: PathReport) -> float:
    """How far the weights of |n_model - n|^2 by log-SNR differ, up to a constant factor."""
    change = paths._between()
    low, high = change.interval
    t = low + (high - low) * torch.linspace(0.002, 0.998, 999, dtype=torch.float64)
    try:
        here = _by_log_snr(a, t)
        there = _by_log_snr(b, change.time(t))
    except (
        InterpError,
        AttributeError,
    ):  # a loss that is no regression, or a law without a density
        return _NAN
    counted = torch.ones_like(t, dtype=torch.bool)
    for w in (here, there):
        # What matters of a loss is where most of it is: in units of log-SNR, from its peak downwards.
        counted &= w > 0.01 * w[w.isfinite()].max()
    ratio = (here / there)[counted & here.isfinite() & there.isfinite()]
    return float(ratio.max() / ratio.min()) if len(ratio) else math.inf


def _by_log_snr(family: Any, t: Tensor) -> Tensor:
    """w(t) p(t) / lambda'(t), w of the noise's squared error: the weight of a loss by log-SNR."""
    regression = family.regression
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
