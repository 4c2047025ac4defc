"""The same methods in torch: any device, differentiable, the same numbers to rounding."""

from .implicit import esdirk
from .recurrence import euler_maruyama
from .rows import runge_kutta_rows
from .runge_kutta import runge_kutta

__all__ = ["esdirk", "euler_maruyama", "runge_kutta", "runge_kutta_rows"]
