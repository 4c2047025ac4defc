"""Whether a path of one's own does what everything that is built on it relies on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact import Gaussian
from ..interpolant import Interpolant
from ..scalar import GRID
from ..solvers import solve
from ..terms import ODE

_VIEWS = ("velocity", "score", "noise", "data")


def assert_path(path: Interpolant, tol: float = 1e-6) -> None:
    """Assert that a path leads from base to data, and that views and flow along it are right.

    Its ratio of data to noise rises all the way; alpha', beta' and gamma' are the slopes that
    differences show. With a Gaussian base each exact view of a normal law also converts into each other,
    and the flow of its velocity, solved, is the closed form x -> beta_r m + sqrt(S_r / S_t)(x - beta_t m).

    Args:
        path: of your own.
        tol: of slopes, views and flow, in units of their size.

    Raises:
        AssertionError: naming the times at which it fails, and the values there.
    """
    _assert_rising(path)
    _assert_slopes(path, max(tol, 1e-6))
    if path.gaussian_base:
        _assert_views(path, tol)
        _assert_flow(path, tol)


@torch.no_grad()
def _assert_rising(path: Interpolant) -> None:
    t = torch.unique(torch.cat([GRID, torch.linspace(0, 1, 1001, dtype=torch.float64)]))
    k = path.coefficients(t)
    share = torch.atan2(k.beta, k.sigma) * (-1 if path.reversed else 1)
    falls = (share.diff() < -1e-14).nonzero()
    if len(falls):
        i = int(share.diff().argmin())
        lam = path.log_snr(t) if path.gaussian_base else 2 * (k.beta.log() - k.sigma.log())
        raise AssertionError(
            f"log-SNR falls from {lam[i].item():.6g} at t = {t[i].item():.4g} to "
            f"{lam[i + 1].item():.6g} at t = {t[i + 1].item():.4g}: the path turns back on its way."
        )


def _assert_slopes(path: Interpolant, tol: float) -> None:
    h, t = 1e-5, torch.linspace(0.05, 0.95, 37, dtype=torch.float64)
    for name in ("alpha", "beta", "gamma"):
        f = getattr(path, name)
        if f is None:
            continue
        found, at, up, down = f.derivative(t), f(t), f(t + h), f(t - h)
        # From the middle and from either side: a table's slope may jump at a node.
        sides = torch.stack([
            up - down, 4 * up - f(t + 2 * h) - 3 * at, 3 * at - 4 * down + f(t - 2 * h)
        ]) / (2 * h)  # fmt: skip
        nearest = (sides - found).abs().argmin(0)
        seen = sides.gather(0, nearest[None])[0]
        gap = (found - seen).abs() - tol * (1 + seen.abs())
        if gap.max() > 0:
            i = int(gap.argmax())
            raise AssertionError(
                f"{name}' is {found[i].item():.8g} at t = {t[i].item():.4g}, and differences show "
                f"{seen[i].item():.8g}."
            )


def _assert_views(path: Interpolant, tol: float) -> None:
    law = Gaussian([0.5, -0.3], [0.25, 0.6])
    for time in (0.1, 0.5, 0.9):
        x = law.marginal(path, time).sample(4, seed=0, dtype=torch.float64)
        views: dict[str, Tensor] = {v: getattr(law, v)(path)(time, x) for v in _VIEWS}
        for source, value in views.items():
            for target, wanted in views.items():
                found = path.convert(value, source, target, x, time)
                # What a conversion adds up may be larger than its sum.
                size = 1 + wanted.abs().max() + max(v.abs().max() for v in views.values())
                if (found - wanted).abs().max() > tol * size:
                    raise AssertionError(
                        f"{source} converted to {target} is off by "
                        f"{(found - wanted).abs().max().item():.3g} at t = {time}."
                    )


def _assert_flow(path: Interpolant, tol: float) -> None:
    law = Gaussian([0.5, -0.3], [0.25, 0.6])
    t, r = (0.98, 0.02) if path.reversed else (0.02, 0.98)
    x = law.marginal(path, t).sample(4, seed=0, dtype=torch.float64)
    field = ODE(law.velocity(path))
    found = solve(field, x, t=(t, r), method="dopri5", rtol=1e-9, atol=1e-9).x
    wanted = law.flow(path)(t, r, x)
    gap = (found - wanted).abs().max().item()
    if gap > tol * (1 + wanted.abs().max().item()):
        raise AssertionError(
            f"the flow from t = {t} to {r}, solved, is off its closed form by {gap:.3g}."
        )
