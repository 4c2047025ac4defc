"""Who is paired with whom: the joint law of base and data that a path is drawn between.

Every coupling is called ``c(x0, x1, labels=None, generator=None) -> x0, x1[, labels]``: the rows come
back paired, labels with the x1 they belong to. Each states its marginals: which end is kept exactly,
which in expectation, which is re-weighted.
"""

from __future__ import annotations

from .ahead import ahead, couple
from .bridge import BridgePoint, SchroedingerBridge
from .conditional import Conditional
from .coupling import BatchCoupling, Coupling
from .exact import OptimalTransport
from .independent import Given, Independent
from .registry import from_config, names
from .semi_discrete import SemiDiscrete
from .unbalanced import Partial, Unbalanced

# By the names of configs.
independent = Independent
given = Given
optimal_transport = OptimalTransport
unbalanced = Unbalanced
partial = Partial
schroedinger_bridge = SchroedingerBridge
conditional = Conditional
semi_discrete = SemiDiscrete

__all__ = [  # noqa: RUF022 - grouped as a reader meets them
    "independent", "given", "optimal_transport", "unbalanced", "partial", "schroedinger_bridge",
    "conditional", "semi_discrete", "ahead", "couple", "from_config", "names", "Coupling",
    "BatchCoupling", "BridgePoint",
]  # fmt: skip
