"""Which schedule is best: grids, clocks and paths made for a solver and a number of steps.

    best = interp.best_schedule(target, "heun", steps=8)

search: what is called; flows: what it is for; spaces: what is free; objectives: what is minimised;
least_squares: how; result: what comes back.
"""

from __future__ import annotations

from .result import BestSchedule, Change, load
from .search import best_schedule

__all__ = ["BestSchedule", "Change", "best_schedule", "load"]
