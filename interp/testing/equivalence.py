"""Whether two paths are one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OutOfRange, ScheduleError
from ..interpolant import Interpolant
from ..scalar import GRID


def assert_equivalent(a: Interpolant, b: Interpolant, tol: float = 1e-6) -> float:
    """Assert that a change of time and scale carries one path onto the other, for all laws of the ends.

    With Gaussian bases this is so where both cover the same range of log-SNR, otherwise where
    (alpha : beta : gamma) run through the same ratios; see `Interpolant.between`.

    Args:
        a: a path.
        b: another.
        tol: the largest angle, in radians, between (sigma, beta), or (alpha, beta, gamma), of the one
            and of the other at matched times and at the ends.

    Returns:
        The largest angle.

    Raises:
        AssertionError: says where they part.
    """
    try:
        change = a.between(b)
    except (ScheduleError, OutOfRange) as error:
        raise AssertionError(f"{a!r} and {b!r} are not one path: {error}") from error
    low, high = change.interval
    inside = low + (high - low) * GRID
    angles = torch.cat(
        [
            _angle(_ratios(a, GRID[[0, -1]]), _ratios(b, GRID[[0, -1]])),
            _angle(_ratios(a, inside), _ratios(b, change.time(inside))),
        ]
    )
    times = torch.cat([GRID[[0, -1]], inside])
    worst = int(angles.argmax())
    if float(angles[worst]) > tol:
        raise AssertionError(
            f"{a!r} and {b!r} are not one path: at t = {times[worst].item():g} of the first they are "
            f"{angles[worst].item():.3g} radians apart, where {tol:g} is allowed."
        )
    return float(angles[worst])


def _ratios(path: Interpolant, t: Tensor) -> Tensor:
    """(sigma, beta), or (alpha, beta, gamma), as a unit vector: (n, 2) or (n, 3)."""
    k = path.coefficients(t)
    parts = (k.sigma, k.beta) if path.gaussian_base else (k.alpha, k.beta, k.gamma)
    return torch.nn.functional.normalize(torch.stack(parts, -1), dim=-1, eps=1e-300)


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """The angle between unit vectors, right also where it is small."""
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
