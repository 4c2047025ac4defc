"""One call, `solve`, and the methods, grids, backends and statistics behind it."""

from .call import solve
from .catalogue import Method, MethodTable, methods
from .result import Solution, Stats, StepState

__all__ = ["Method", "MethodTable", "Solution", "Stats", "StepState", "methods", "solve"]
