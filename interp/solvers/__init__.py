"""One call, `solve`, and the methods, grids, backends and statistics behind it."""

from .call import solve
from .catalogue import Method, MethodTable, methods
from .events import Event
from .result import Occurrences, RowStats, Solution, Stats, StepState

__all__ = [
    "Event",
    "Method",
    "MethodTable",
    "Occurrences",
    "RowStats",
    "Solution",
    "Stats",
    "StepState",
    "methods",
    "solve",
]
