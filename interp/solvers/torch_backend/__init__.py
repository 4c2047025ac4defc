"""The same methods in torch: any device, differentiable, the same numbers to rounding."""

from .chains import chain
from .implicit import esdirk
from .recurrence import recurrence
from .rows import runge_kutta_rows
from .runge_kutta import runge_kutta
from .stochastic import stochastic

__all__ = ["chain", "esdirk", "recurrence", "runge_kutta", "runge_kutta_rows", "stochastic"]
