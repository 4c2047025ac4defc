"""The same methods in torch: any device, differentiable, the same numbers to rounding."""

from .recurrence import euler_maruyama
from .runge_kutta import runge_kutta

__all__ = ["euler_maruyama", "runge_kutta"]
