"""Flow matching: regress the velocity of a path, sample by its flow.

Lipman, Chen, Ben-Hamu, Nickel, Le, 2210.02747; Tong et al., 2302.00482. Their time runs as ours,
from noise at 0 to data at 1, and ``path="linear"`` is both papers' path at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import nn

from interp import Interpolant

from .arguments import as_path
from .path_family import Common, PathFamily


class FlowMatching(PathFamily):
    """Minimise E w(t) |network(t, I_t, label) - dI_t/dt|^2, x0 ~ N(0, 1), x1 the data.

    By default w = 1, t ~ U[0, 1] and the ends are independent; ``coupling="optimal_transport"`` is
    OT-CFM (Tong et al., 2302.00482).

    Args:
        shape, network: as for every `PathFamily`.
        path: the name of a path, its config, or an Interpolant.
        common: see `adapters.path_family.Common`.

    Raises:
        UnknownName: a path that does not exist; and as every `PathFamily`.
    """

    name = "flow_matching"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        path: Interpolant | str | Mapping[str, object] = "linear",
        **common: Unpack[Common],
    ) -> None:
        path = as_path(path)
        super().__init__(shape, network, path, {"path": path.config}, **common)
