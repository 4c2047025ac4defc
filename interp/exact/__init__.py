"""Targets whose law at every time of every path is a closed form.

    Gaussian, Mixture    normals and their mixtures; also the base of a path between two laws
    Empirical            a finite data set, whose posterior mean is the optimal denoiser
    Product              independent blocks of any of these

Each gives, for any path, E[dI/dt | x], grad log rho, E[x1 | x], Cov[x1 | x] and so on: worked out
in float64 on the target's device, and handed back in x's shape and dtype and on its device. Rows of
x may have any shape of as many elements as the target has dimensions.
"""

from __future__ import annotations

from .empirical import Empirical
from .gradient_flows import gradient_flow, jko_step, particle_law
from .mixture import Gaussian, Mixture
from .plans import schroedinger_plan, transport_plan
from .product import Product
from .target import Estimate, Field, FlowMap, Target

__all__ = [
    "Empirical",
    "Estimate",
    "Field",
    "FlowMap",
    "Gaussian",
    "Mixture",
    "Product",
    "Target",
    "gradient_flow",
    "jko_step",
    "particle_law",
    "schroedinger_plan",
    "transport_plan",
]
