"""One call, `solve`, and the methods, grids, backends and statistics behind it."""

from .call import solve
from .catalogue import Method, MethodTable, methods
from .result import RowStats, Solution, Stats, StepState

__all__ = [
    "Method",
    "MethodTable",
    "RowStats",
    "Solution",
    "Stats",
    "StepState",
    "methods",
    "solve",
]
