"""The Rust engine: a solve enters it once and comes back when it is done.

Nothing of ours stands between `solve` and the native call, so that the traceback of an exception
in a field shows the caller, `solve` and the field. The numbers and types that cross the border are
those of `interp.solvers.problem` and `interp.solvers.tableaus`.
"""

from rust_solvers import (
    chain,
    finite,
    recurrence,
    reversible_heun,
    runge_kutta,
    runge_kutta_rows,
    stochastic,
)

__all__ = [
    "chain",
    "finite",
    "recurrence",
    "reversible_heun",
    "runge_kutta",
    "runge_kutta_rows",
    "stochastic",
]
