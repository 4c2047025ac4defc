"""The probability flow as a map between two times, in any view, closed or integrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import maps
from ..arguments import Time, check_rows, like, spread
from ..errors import Unsupported
from ..interpolant import Interpolant
from ..solvers import solve
from ..terms import ODE, AngleClock

if TYPE_CHECKING:
    from .target import Coupling, Field, FlowMap, Target

_TOLERANCE = 1e-11


def exact_map(
    target: Target, path: Interpolant, view: str, base: Target | None, coupling: Coupling
) -> FlowMap:
    """See `Target.flow_map`."""
    maps.check(view)
    try:
        flow = target.flow(path, base, coupling)
    except Unsupported:
        flow = _integrated(target, path, base, coupling)
    if view == "point":
        return flow
    instant = target.velocity(path, base, coupling)
    source = "mean_velocity"
    if base is None and coupling is None and view not in ("mean_velocity", "velocity"):
        instant, source = target.data(path), "data"

    def value(t: Time, r: Time, x: Tensor) -> Tensor:
        first, second = (torch.as_tensor(s, dtype=torch.float64) for s in (t, r))
        check_rows(first, x)
        check_rows(second, x)
        same = (first == second).expand(x.shape[:1]).to(x.device)
        out = torch.empty_like(x)
        for rows, made in ((same, instant), (~same, None)):
            if not bool(rows.any()):
                continue
            t_, r_ = (s if s.ndim == 0 else s[rows.to(s.device)] for s in (first, second))
            y = x[rows]
            if made is None:
                found = path.convert(flow(t_, r_, y), "point", view, y, t_, r_)
            else:
                found = path.convert(made(t_, y), source, view, y, t_, r_)
            out[rows] = like(found, y, "the map")
        return out

    return value


def _integrated(
    target: Target, path: Interpolant, base: Target | None, coupling: Coupling
) -> FlowMap:
    """The flow by DOP853, over a clock s of each row's own: from 0 at t to 1 at r."""
    turned = base is None and coupling is None and path.gaussian_base and path.invertible
    rate = _turning(target, path) if turned else target.velocity(path, base, coupling)
    at = AngleClock(path) if turned else None

    def flow(t: Time, r: Time, x: Tensor) -> Tensor:
        first, second = (torch.as_tensor(s, dtype=torch.float64).to(x.device) for s in (t, r))
        start, stop = (s if at is None else at.tau(s) for s in (first, second))

        def field(s: Tensor, y: Tensor) -> Tensor:
            clock = torch.lerp(start, stop, s.double().to(start.device))
            return spread(stop - start, y) * rate(clock, y)

        y = x.double()
        if at is not None:
            y = y / spread(at.scale(first), y)
        y = solve(ODE(field), y, method="dop853", rtol=_TOLERANCE, atol=_TOLERANCE).x
        if at is not None:
            y = spread(at.scale(second), y) * y
        return y.to(x.dtype)

    return flow


def _turning(target: Target, path: Interpolant) -> Field:
    """dy/dtau = (beta n - sigma D) / c in the coordinates of `AngleClock`: regular at both ends."""
    at, data, noise = AngleClock(path), target.data(path), target.noise(path)

    def rate(tau: Time, y: Tensor) -> Tensor:
        t = at.time(torch.as_tensor(tau))
        c, k = at.scale(t), path.coefficients(t)
        x = spread(c, y) * y
        return spread(k.beta / c, y) * noise(t, x) - spread(k.sigma / c, y) * data(t, x)

    return rate
