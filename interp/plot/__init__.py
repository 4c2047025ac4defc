"""Pictures of paths, laws, runs and samples: one function each, in one style.

Every function returns a matplotlib `Figure` (`animate` the frames of a film) and writes it where
``to`` says. Nothing here imports pyplot, so that a user's own figures and backend are left alone.

    schedules, log_snr      curves of one or several paths
    density                 the law of I_t over time
    trajectories, velocity  solutions over it, and the field that they follow
    coupling                who is paired with whom
    equivalence             two paths that were compared, and the map between their times
    loss_by_time            where on [0, 1] a model errs
    strip, grid             images on their way from noise, and where they arrived
    bias                    what stochastic samplers leave of a known standard deviation
    animate                 a solution as a GIF
    target                  a law to look at, by name
"""

from __future__ import annotations

from .animation import animate
from .bias import bias
from .curves import log_snr, schedules
from .equivalence import equivalence
from .fields import velocity
from .images import grid, strip
from .losses import loss_by_time, loss_curve
from .marginals import density
from .pairs import coupling
from .presets import target
from .runs import trajectories

__all__ = [
    "animate",
    "bias",
    "coupling",
    "density",
    "equivalence",
    "grid",
    "log_snr",
    "loss_by_time",
    "loss_curve",
    "schedules",
    "strip",
    "target",
    "trajectories",
    "velocity",
]
