"""Grids that are given as indices into a path's table or as noise levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import host
from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant

Numbers = Sequence[float] | Tensor


def timesteps(path: Interpolant, indices: Sequence[float]) -> list[float]:
    """The times t = 1 - (k + 1) / n of indices k into the path's table of n, then t = 1.

    Args:
        path: a path with a table.
        indices: falling, from the noise to the data, as samplers list them; rising for a run from
            data to noise, to which no t = 1 is added. A fraction lies between two nodes.

    Raises:
        Unsupported: a path without a table.
        OptionError: indices outside [0, n - 1], or that turn or repeat.
    """
    n = path.table
    if n is None:
        raise Unsupported(
            'grid=("timesteps", ...) counts in the table of a path, and this path has none. Give times, '
            'or ("sigmas", [...]) in sigma / beta.'
        )
    for k in indices:
        if not 0 <= k <= n - 1:
            raise OptionError(f"timestep {k:g} is outside the path's table. Give 0 to {n - 1}.")
    return _ending_clean("timesteps", indices, [(n - 1 - k) / n for k in indices])


#: Levels may have gone through float32, and through a power and back, as Karras's have.
_ROUNDING = 1e-6


def sigmas(path: Interpolant, levels: Sequence[float]) -> list[float]:
    """The times at which sigma / beta has the given values, then t = 1.

    Args:
        path: a path with a Gaussian base and a log-SNR that rises.
        levels: falling, from the noise to the data; 0 is t = 1. Rising for a run from data to noise,
            to which no t = 1 is added.

    Raises:
        Unsupported: a path that sigma / beta does not order.
        OptionError: levels that the path does not have, or that turn or repeat.
    """
    if not (path.gaussian_base and path.invertible):
        raise Unsupported(
            'grid=("sigmas", ...) counts in sigma / beta, which does not order the times of this path. '
            "Give times."
        )
    high, low = (float(path.noise_scale(t)) for t in (0.0, 1.0))
    if path.reversed:
        high, low = low, high
    for level in levels:
        near = (1 - _ROUNDING) * low <= level <= (1 + _ROUNDING) * high
        if not (near or level == 0) or math.isnan(level):
            raise OptionError(
                f"sigma / beta = {level:g} is not on this path, which has {low:g} to {high:g}. Give "
                "levels between them, and 0 for clean data."
            )
    kept = [level for level in levels if level > 0]
    inside = times_at(path, kept) if kept else []
    end = 0.0 if path.reversed else 1.0
    times = iter(inside)
    found = [next(times) if level > 0 else end for level in levels]
    if low > 0 and len(found) > 1 and levels[-1] == 0 and found[-2] == found[-1]:
        found = found[:-1]  # the step to clean data follows the end of such a path
    return _ending_clean("sigmas", levels, found)


def times_at(path: Interpolant, levels: Sequence[float]) -> list[float]:
    """The times of levels of sigma / beta, which may miss the path's range by rounding."""
    low, high = path.log_snr(0.0), path.log_snr(1.0)
    lam = (-2 * host(list(levels)).log()).clamp(torch.minimum(low, high), torch.maximum(low, high))
    times: list[float] = path.time_at_log_snr(lam).tolist()
    return times


def _ending_clean(name: str, given: Sequence[float], times: list[float]) -> list[float]:
    """The times, with t = 1 at the end of a run towards the data."""
    falls = len(given) < 2 or given[1] < given[0]
    if not given:
        raise OptionError(f'grid=("{name}", []) is empty. Give where the steps begin.')
    for i, (s, r) in enumerate(itertools.pairwise(times)):
        if (r > s) != falls:
            raise OptionError(
                f"{name}[{i}] = {given[i]!r} and {name}[{i + 1}] = {given[i + 1]!r} turn or repeat. "
                "Give numbers that fall strictly, from the noise to the data."
            )
    return [*times, 1.0] if falls and times[-1] != 1.0 else times


def numbers(name: str, values: object) -> list[float]:
    """A list of finite floats out of what was given beside the name of a grid."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, Tensor)):
        try:
            values = list(values)  # type: ignore[call-overload]
        except TypeError:
            raise OptionError(f'grid=("{name}", {values!r}). Give a list of numbers.') from None
    try:
        found = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        raise OptionError(f'grid=("{name}", ...) holds what is no number. Give numbers.') from None
    if not all(math.isfinite(v) for v in found):
        raise OptionError(f'grid=("{name}", ...) holds NaN or infinity. Give finite numbers.')
    return [float(v) for v in found]
