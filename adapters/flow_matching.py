"""Flow matching: regress the velocity of a path, sample by its flow.

Lipman, Chen, Ben-Hamu, Nickel, Le, 2210.02747; Tong et al., 2302.00482. Their time runs as ours,
from noise at 0 to data at 1. The variants of table 1 of Tong et al., by name:

    variant   I_t                                           x0 and x1            published sigma
    cfm       (1 - t) x0 + t x1 + sigma z                   independent          0 (0.1 in the paper)
    ot_cfm    (1 - t) x0 + t x1 + sigma z                   optimal transport    0 (0.1 in the paper)
    sb_cfm    (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) z   entropic, 2 sigma^2  1
    ve_cfm    x1 + sigma_max (sigma_min / sigma_max)^t z    independent          0.01 to 50

A constant sigma smooths both ends: sampling starts from N(0, 1 + sigma^2) and ends at the data plus
N(0, sigma^2), as in the paper. Couplings of a model with labels pair within each label, so that the
base given a label stays the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from interp import Interpolant, schedules
from interp.arguments import real
from interp.errors import OptionError, UnknownName

from .arguments import as_path, within_labels
from .path_family import Common, Label, PathFamily

VARIANTS: Mapping[str, str | None] = {
    "cfm": None,
    "ot_cfm": "optimal_transport",
    "sb_cfm": "schroedinger_bridge",
    "ve_cfm": None,
}


class FlowMatching(PathFamily):
    """Minimise E w(t) |network(t, I_t, label) - dI_t/dt|^2, x0 ~ N(0, 1), x1 the data.

    By default w = 1, t ~ U[0, 1], the ends are independent and the path has no sigma.

    Args:
        shape, network: as for every `PathFamily`. For "ve_cfm" it is preconditioned as EDM's, and gives
            the data: on that path the velocity is log(sigma_max / sigma_min) (D - x), and the loss
            is the same up to that factor squared.
        path: the name of a path, its config, or an Interpolant.
        variant: one of the table's, in place of ``path`` and ``coupling``; None is the path as it is.
        sigma: the table's; None is 0, and 1 for "sb_cfm". With a ``path`` it is the same for every t.
        common: see `adapters.path_family.Common`.

    Raises:
        UnknownName: a path or variant that does not exist; and as every `PathFamily`.
        OptionError: a variant beside a path or a coupling, or a sigma that it cannot have.
    """

    name = "flow_matching"

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        path: Interpolant | str | Mapping[str, object] = "linear",
        variant: str | None = None,
        sigma: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        self.sigma = 0.0 if sigma is None else real("sigma", sigma)
        if variant is not None:
            options = self._variant(variant, sigma, path, common)
            own: dict[str, Any] = {"variant": variant, "sigma": sigma}
            super().__init__(shape, network, own=own, own_base=True, **options)
            self.config = {**self.config, "coupling": None}  # the variant's own
            return
        base = as_path(path)
        coupled = common.get("coupling") not in (None, "independent")
        made = _smoothed(base, self.sigma, coupled) if self.sigma else base
        own = {"path": base.config, "sigma": sigma}
        super().__init__(shape, network, made, own, own_base=made is not base, **common)

    def _variant(
        self, name: str, sigma: float | None, path: object, common: Common
    ) -> dict[str, Any]:
        """What `PathFamily` is given for the variant ``name``."""
        if name not in VARIANTS:
            raise UnknownName.of("variant", name, VARIANTS)
        if path != "linear" or common.get("coupling") is not None:
            raise OptionError(
                f"variant={name!r} has a path and a coupling of its own, and another was given too. "
                "Leave them out, or leave out the variant."
            )
        if name == "ve_cfm":
            if sigma:
                raise OptionError(
                    f"sigma={sigma!r} means nothing for ve_cfm, whose noise falls from 50 to 0.01. Leave "
                    'it out, or give path={"name": "variance_exploding", ...}.'
                )
            filled = {"precondition": {"kind": "edm"}, "view": "data"}
            return {**common, **filled, "path": schedules.variance_exploding(0.01, 50.0)}
        coupling: dict[str, Any] | None = None
        if (plan := VARIANTS[name]) is not None:
            coupling = {"name": plan}
        if name == "sb_cfm":
            self.sigma = 1.0 if sigma is None else self.sigma
            made = schedules.brownian_bridge(self.sigma)
            coupling = {"name": "schroedinger_bridge", "sigma": self.sigma}
        else:
            made = schedules.linear()
            made = _smoothed(made, self.sigma, plan is not None) if self.sigma else made
        return {**common, "path": made, "coupling": within_labels(coupling, common.get("classes"))}

    def _solve(self, term: Any, x: Tensor, label: Label, **options: Any) -> Tensor:
        """A run; what sigma leaves of noise at t = 1 stays, as in the paper."""
        if self.sigma:
            options = {"denoise": False, **options}
        return super()._solve(term, x, label, **options)


def _smoothed(path: Interpolant, sigma: float, coupled: bool) -> Interpolant:
    """``path`` with gamma = sigma; under a coupling x0 and z are two functions of x."""
    return schedules.with_gamma(path, "constant", sigma, False if coupled else None)
