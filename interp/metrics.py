"""How far samples are from data or from a law: distances between two sets of rows.

Each takes rows of any shape, flattened, and gives a float; none needs a network of features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import noise
from .errors import OptionError

_CHUNK = 1024
"""Rows whose distances are held at once."""


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|: zero where two laws are one, positive elsewhere.

    The unbiased estimate, a mean over pairs of different rows; so it may come out a little below
    zero where the laws are alike. Székely, Rizzo, "Energy statistics" (2013), eq. 5.

    Args:
        x: (n, ...) rows of the one law, n >= 2.
        y: (m, ...) rows of the other, m >= 2.

    Raises:
        OptionError: rows of different sizes, fewer than two of them, or a value that is not finite.
    """
    x, y = _rows(x, y)
    n, m = len(x), len(y)
    across, within_x, within_y = _distances(x, y), _distances(x, x), _distances(y, y)
    return 2 * across / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1))


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 128, seed: int = 0) -> float:
    """The sliced Wasserstein distance W2, sqrt(E_u W2^2(<u, X>, <u, Y>)) over directions |u| = 1.

    Exact in each direction, for as many rows of the one as of the other or not. Two laws that are
    apart by a shift m are |m| / sqrt(d) apart. Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon
    Wasserstein barycenters of measures" (2015).

    Args:
        x: (n, ...) rows of the one law.
        y: (m, ...) rows of the other.
        directions: how many are drawn.
        seed: of the directions.

    Raises:
        OptionError: rows of different sizes, fewer than two of them, a value that is not finite, or no
            directions.
    """
    x, y = _rows(x, y)
    if directions < 1:
        raise OptionError(f"directions is {directions}. Give a whole number, 1 or more.")
    u = noise.normal((directions, x.shape[1]), seed=seed, dtype=torch.float64)
    u = (u / u.norm(dim=1, keepdim=True)).T
    a, b = (x @ u).sort(0).values, (y @ u).sort(0).values
    # Between two of these levels, in units of 1 / (n m), both quantile functions are constant;
    # levels that both have stand twice, with no width between them.
    n, m = len(a), len(b)
    levels = torch.cat((torch.arange(n) * m, torch.arange(m) * n)).sort().values
    widths = torch.diff(levels, append=torch.tensor([n * m])).double() / (n * m)
    gaps = (a[levels // m] - b[levels // n]).square()
    return math.sqrt((widths @ gaps).mean().item())


def near_copies(x: Tensor, seen: Tensor, held_out: Tensor, share: float = 0.1) -> float:
    """How many times as often a row of ``x`` lies close to a row of ``seen`` as a held-out row does.

    Close is nearer than all but the ``share`` nearest of the held-out rows are to their nearest
    seen row; so new data give about 1, and a model that repeats its training data 1 / share.

    Args:
        x: (n, ...) samples.
        seen: (m, ...) the data that the model was trained on.
        held_out: (k, ...) data of the same law that it was not.
        share: of the held-out rows that counts as close, in (0, 1).

    Raises:
        OptionError: rows of different sizes, fewer than two of them, a value that is not finite, or a
            share outside (0, 1).
    """
    if not 0 < share < 1:
        raise OptionError(f"share is {share}. Give a share between 0 and 1, such as 0.1.")
    (samples, data), (fresh, _) = _rows(x, seen), _rows(held_out, seen)
    found, usual = nearest(samples, data), nearest(fresh, data)
    radius = usual.quantile(share)
    return ((found <= radius).double().mean() / (usual <= radius).double().mean()).item()


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """The distance of each row of ``x`` to the nearest row of ``y``: (n,), float64."""
    x, y = _rows(x, y)
    return torch.cat([torch.cdist(some, y).amin(1) for some in _chunks(x)])


def _distances(x: Tensor, y: Tensor) -> float:
    """The sum of |x_i - y_j| over all pairs."""
    return math.fsum(torch.cdist(some, y).sum().item() for some in _chunks(x))


def _chunks(x: Tensor) -> Iterator[Tensor]:
    for first in range(0, len(x), _CHUNK):
        yield x[first : first + _CHUNK]


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (rows, elements) in float64 on the CPU."""
    for name, values in (("x", x), ("y", y)):
        if values.ndim < 1 or len(values) < 2:
            raise OptionError(
                f"{name} has shape {tuple(values.shape)}. Give at least two rows, (rows, ...)."
            )
        if not bool(torch.isfinite(values).all()):
            raise OptionError(f"{name} holds values that are not finite. Leave their rows out.")
    if x.shape[1:] != y.shape[1:]:
        raise OptionError(
            f"rows of x have shape {tuple(x.shape[1:])}, rows of y {tuple(y.shape[1:])}. Compare "
            "rows of one shape."
        )
    return tuple(v.detach().to("cpu", torch.float64).reshape(len(v), -1) for v in (x, y))  # type: ignore[return-value]
