"""The Rust engine: a solve enters it once and comes back when it is done.

Nothing of ours stands between `solve` and the native call, so that the traceback of an exception
in a field shows the caller, `solve` and the field. The numbers and types that cross the border are
those of `interp.solvers.problem` and `interp.solvers.tableaus`.
"""

import torch
from torch import Tensor

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


def takes(x: Tensor) -> bool:
    """Whether the engine runs states like ``x``: float32 and float64 on the cpu."""
    return x.is_cpu and x.dtype in (torch.float32, torch.float64)
