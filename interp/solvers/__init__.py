"""One call, `solve`, and the methods, grids, backends and statistics behind it."""

from .methods import Method, MethodTable, methods
from .result import Solution, Stats, StepState
from .solve import solve

__all__ = ["Method", "MethodTable", "Solution", "Stats", "StepState", "methods", "solve"]
