"""Where the steps of a run lie: grids apart from methods, any with any method on any path.

``solve(..., steps=20, grid="karras")`` takes a name, ``grid=interp.grids.karras(rho=5)`` a spacing with
options; see `interp.grids.named` for the formulas.
"""

from .given import sigmas, timesteps
from .named import (
    Spacing,
    ays,
    beta,
    cosine,
    exponential,
    karras,
    leading,
    linspace,
    names,
    polyexponential,
    quadratic,
    shift,
    trailing,
    uniform,
)

__all__ = [
    "Spacing", "ays", "beta", "cosine", "exponential", "karras", "leading", "linspace", "names",
    "polyexponential", "quadratic", "shift", "sigmas", "timesteps", "trailing", "uniform",
]  # fmt: skip
