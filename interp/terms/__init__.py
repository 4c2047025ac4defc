"""What can be integrated: an ODE or an SDE, made by hand or from a path and a model; or a map.

A term made from a path is integrated in the coordinates in which its view is regular:

    view             state      clock               equation         sampling ends at
    velocity         x          t                   dx/dt = v        t = 1
    noise, ...       x / beta   sigma / beta        dy/dtau = n      0
    data             x / sigma  beta / sigma        dy/dtau = D      infinity, by a first-order step
    v_prediction     x / r      atan(sigma / beta)  dy/dtau = v / r  0
    flow_prediction  x / w      sigma / w           dy/dtau = n - D  0

with r^2 = beta^2 + sigma^2, w = beta + sigma, and noise standing for score, base and energy_gradient as well.

(Karras, Aittala, Aila, Laine, arXiv 2206.00364, eq. 4, is the second row; all follow from
x = beta D + sigma n along the probability flow.) Steps, stages and tolerances are taken there, and
no conversion divides by zero.
"""

from __future__ import annotations

from .by_hand import ODE, SDE
from .coordinates import AngleClock, Carried, Coordinates, DataClock, LineClock, NoiseClock
from .energy import Energy
from .flow_map import PathMap
from .model import TIMES, Cond, Field, Model, told
from .ode import PathODE
from .sde import PathSDE, Steps

Term = ODE | SDE | PathODE | PathSDE | PathMap

__all__ = [
    "ODE", "SDE", "TIMES", "AngleClock", "Carried", "Cond", "Coordinates", "DataClock", "Energy", "Field",
    "LineClock", "Model", "NoiseClock", "PathMap", "PathODE", "PathSDE", "Steps", "Term", "told",
]  # fmt: skip
