"""Times: intervals, grids and output times, from what a caller gives."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..arguments import whole
from ..errors import OptionError, TimeError, UnknownName

GRIDS = ("uniform",)

Times = Sequence[float] | Tensor


def numbers(name: str, times: object) -> list[float]:
    """A list of finite floats out of a sequence or tensor of times.

    Raises:
        OptionError: anything else.
    """
    if isinstance(times, Tensor):
        values = times.detach().double().flatten().tolist()
    elif isinstance(times, (str, bytes)) or not hasattr(times, "__iter__"):
        raise OptionError(f"{name}={times!r} is not a list of times. Give a list or a tensor.")
    else:
        try:
            values = [float(t) for t in times]
        except (TypeError, ValueError):
            raise OptionError(f"{name} holds something that is not a number. Give times.") from None
    bad = [t for t in values if not math.isfinite(t)]
    if bad:
        raise TimeError(f"{name} holds {bad[0]}. Give finite times.")
    return values


def interval(t: object) -> tuple[float, float]:
    """The two ends of a run.

    Raises:
        TimeError: not two different finite times.
    """
    ends = numbers("t", t)
    if len(ends) != 2:
        raise TimeError(
            f"t has {len(ends)} entries. Give the two ends of the run, e.g. (0.0, 1.0)."
        )
    if ends[0] == ends[1]:
        raise TimeError(f"the run starts and ends at t = {ends[0]:g}. Give two different times.")
    return ends[0], ends[1]


def grid_times(
    steps: int | None, grid: str | Times | None, ends: tuple[float, float]
) -> list[float] | None:
    """The times of a fixed grid, or None where neither ``steps`` nor ``grid`` is given.

    Raises:
        OptionError: steps that are no positive integer, or a grid that is not strictly monotone
            from one end to the other.
        UnknownName: the name of a grid that does not exist.
    """
    if steps is not None:
        steps = whole("steps", steps, 1)
    if grid is None or isinstance(grid, str):
        if grid is not None and grid not in GRIDS:
            raise UnknownName.of("grid", grid, GRIDS)
        if steps is None:
            if grid is not None:
                raise OptionError(f"grid={grid!r} does not say how many steps. Give steps=N too.")
            return None
        step = (ends[1] - ends[0]) / steps
        return [ends[0], *(ends[0] + i * step for i in range(1, steps)), ends[1]]
    if steps is not None:
        raise OptionError("steps and a grid of times contradict each other. Give one of the two.")
    times = numbers("grid", grid)
    if len(times) < 2 or (times[0], times[-1]) != ends:
        shown = f"from {times[0]!r} to {times[-1]!r}" if times else "empty"
        raise OptionError(
            f"the grid is {shown}, and the run goes from {ends[0]!r} to {ends[1]!r}. "
            "Give a grid with these ends, or t= with the grid's."
        )
    check_monotone("grid", times, ends)
    return times


def check_monotone(name: str, times: list[float], ends: tuple[float, float]) -> None:
    """Refuse times that repeat, turn back or leave the interval, with an `OptionError`."""
    sign = 1 if ends[1] > ends[0] else -1
    for i, (s, t) in enumerate(itertools.pairwise(times)):
        if (t - s) * sign <= 0:
            raise OptionError(
                f"{name}[{i}] = {s!r} and {name}[{i + 1}] = {t!r} do not go from {ends[0]:g} towards "
                f"{ends[1]:g}. Give strictly monotone times."
            )
    low, high = sorted(ends)
    outside = [t for t in times if not low <= t <= high]
    if outside:
        raise TimeError(
            f"{name} holds t = {outside[0]!r}, outside the run from {ends[0]:g} to {ends[1]:g}. "
            "Give times inside it."
        )


def save_times(save_at: object, ends: tuple[float, float]) -> list[float]:
    """The output times; the end alone where ``save_at`` is None."""
    if save_at is None:
        return [ends[1]]
    times = numbers("save_at", save_at)
    check_monotone("save_at", times, ends)
    return times


def rounding_of(times: object) -> float:
    """The relative rounding of a tensor or an array of times; that of float64 for anything else."""
    dtype = getattr(times, "dtype", None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return torch.finfo(dtype).eps
    if isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.floating):
        return float(np.finfo(dtype).eps)
    return 2.0**-52


def snapped(
    times: list[float], grid: list[float], ends: tuple[float, float], eps: float = 2.0**-52
) -> list[float]:
    """The times, each replaced by the grid time that it misses by rounding (``eps``) alone."""
    rounding = 4 * eps * max(abs(ends[0]), abs(ends[1]))
    ordered, nodes, result = sorted(grid), set(grid), []
    for t in times:
        if t in nodes:
            result.append(t)
            continue
        i = bisect.bisect_left(ordered, t)
        near = min(ordered[max(i - 1, 0) : i + 1], key=lambda s: abs(s - t))
        result.append(near if abs(near - t) <= rounding else t)
    return result
