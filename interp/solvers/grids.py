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
from ..errors import OptionError, TimeError, UnknownName, Unsupported
from ..grids import Spacing, given, uniform
from ..grids.named import NAMED
from ..terms import PathMap, PathODE, PathSDE, Term

GIVEN = {"timesteps": given.timesteps, "sigmas": given.sigmas}

#: Steps of a grid, all of whose times are kept, with some hundred bytes a step.
MOST = 10**7

Times = Sequence[float] | Tensor
Grid = str | Spacing | Times | tuple[str, Times]


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


def resolved(
    term: Term, t: object, steps: int | None, grid: Grid | None
) -> tuple[tuple[float, float], list[float] | None]:
    """The ends of a run and the times of its fixed grid, None where it adapts.

    Raises:
        OptionError: a grid that fixes the interval itself beside a t or steps; and as `grid_times`.
        Unsupported: a grid that the term's path has not.
    """
    if isinstance(grid, tuple) and len(grid) == 2 and isinstance(grid[0], str):
        return _given(term, t, steps, *grid)
    spacing = _spacing(grid)
    ends = term.interval if t is None else interval(t)
    if spacing is None:
        return ends, grid_times(steps, grid, ends)  # type: ignore[arg-type]
    if steps is None:
        raise OptionError(f"grid={spacing.name!r} does not say how many steps. Give steps=N too.")
    if spacing.fixes and t is not None:
        raise OptionError(
            f"t={t!r} and grid={spacing.name!r} contradict each other: the grid says where the run "
            "begins. Leave t out."
        )
    times = spacing(term.path, ends, whole("steps", steps, 1, MOST))
    ends = (times[0], times[-1])
    check_monotone("grid", times, ends)
    return ends, times


def _given(
    term: Term, t: object, steps: int | None, name: str, values: Times
) -> tuple[tuple[float, float], list[float]]:
    """Ends and times of a grid that is a list of indices or of noise levels."""
    if name not in GIVEN:
        raise UnknownName.of("kind of grid", name, GIVEN)
    for what, value in (("t", t), ("steps", steps)):
        if value is not None:
            raise OptionError(
                f'{what}={value!r} and grid=("{name}", ...) contradict each other: the grid says where '
                f"the run begins, ends and stops between. Leave {what} out."
            )
    if not isinstance(term, (PathODE, PathSDE, PathMap)):
        raise Unsupported(
            f'grid=("{name}", ...) needs a path, and this term was made by hand. Give times.'
        )
    times = GIVEN[name](term.path, given.numbers(name, values))
    return (times[0], times[-1]), times


def _spacing(grid: Grid | None) -> Spacing | None:
    """What spaces the steps, where the grid is no list of times."""
    if not isinstance(grid, str):
        return grid if isinstance(grid, Spacing) else None
    if grid not in NAMED:
        raise UnknownName.of("grid", grid, NAMED)
    return NAMED[grid]()


def grid_times(
    steps: int | None, grid: Times | None, ends: tuple[float, float]
) -> list[float] | None:
    """The times of a fixed grid, or None where neither ``steps`` nor ``grid`` is given.

    Raises:
        OptionError: steps that are no positive integer, or a grid that is not strictly monotone
            from one end to the other.
    """
    if steps is not None:
        steps = whole("steps", steps, 1, MOST)
    if grid is None:
        return None if steps is None else uniform()(None, ends, steps)
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
    """The output times, in the order of the run."""
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
