"""What families of maps between two times share: they sample by one call of a network a step.

The flow of a path carries x from t to r; X(t, r, x) is where. A consistency function is X(t, 1, x), the
mean velocity (X - x) / (r - t). A family here says what its network is regressed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp.arguments import spread
from interp.errors import OptionError
from interp.solvers.catalogue import find
from interp.solvers.torch_backend.run import load_forward_mode
from interp.terms import PathMap, PathODE, PathSDE

from .path_family import Diffusion, Guidance, PathFamily, Told
from .protocol import Batch, ExactModel


class FewStep(PathFamily):
    """A network of a map between two times on a path, of the ``map_view``.

    It samples by method="map", in one step where nothing is asked. Any other method integrates the
    map's limit at r = t, where the family has one.

    Attributes:
        map_view: what `mapping` returns.
        view: what the family is a model of, "mean_velocity" or "point"; its ``regression`` weighs errors
            of the velocity or of the data.
        renoises: whether several steps map to the data and noise again, as consistency models do.
    """

    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode", "reverse": "exact", "loss": "exact", "sample": "exact", "log_prob": "ode",
    }  # fmt: skip
    sampler: ClassVar[Mapping[str, Any]] = {"method": "map", "steps": 1}
    map_view: ClassVar[str] = "mean_velocity"
    renoises: ClassVar[bool] = False

    def mapping(self, t: Tensor, r: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The map's ``map_view`` at (t, r, x)."""
        found: Tensor = self.network(t, r, x, **cond)
        return found

    def flow_map(self, guidance: Guidance = 1.0) -> PathMap:
        """The family as a term; with guidance u + guidance (c - u) of the map's own view.

        Raises:
            OptionError: guidance by a function of the field, which a map has not.
        """
        if callable(guidance):
            raise OptionError(
                f"guidance is a function of a field at one time, and {self.name} maps between two. Give a "
                'scale; or where it has a velocity, integrate that by a method such as "heun".'
            )
        if guidance == 1:
            return self.path.flow_map(self.mapping, self.map_view)

        def guided(t: Tensor, r: Tensor, x: Tensor, **cond: Any) -> Tensor:
            without = self.mapping(t, r, x, **{**cond, "label": None})
            return torch.lerp(without, self.mapping(t, r, x, **cond), guidance)

        guided.exact_time = getattr(self.mapping, "exact_time", False)  # type: ignore[attr-defined]
        return self.path.flow_map(guided, self.map_view)

    def term(
        self,
        guidance: Guidance = 1.0,
        diffusion: Diffusion = None,
    ) -> PathODE | PathSDE:
        """The flow by the map's limit at r = t, or with ``diffusion`` an SDE."""
        flow = self.flow_map(1.0 if callable(guidance) else guidance).ode()
        model: Callable[..., Any] = Told(flow.model, flow.view, flow.time, self.path)
        if callable(guidance):
            model = guidance(model)
        return (
            self.path.ode(model) if diffusion is None else self.path.sde(model, diffusion=diffusion)
        )

    def reverse(self, z: Tensor, *, label: Any = None, **options: Any) -> Tensor:
        """The data that the map carries ``z`` to: in one step from t = 0 to 1 unless told."""
        options = self._sampler(options)
        kind = find(options["method"]).kind
        term = self.flow_map() if kind == "map" else self.term()
        return self._solve(term, z, label, **options)

    def _sampler(self, options: Mapping[str, Any]) -> dict[str, Any]:
        filled: dict[str, Any] = {"method": "map", **options}
        method = find(filled["method"])
        if method.kind == "map":
            filled.setdefault("renoise", self.renoises)
        if not method.adaptive and not {"steps", "grid"} & filled.keys():
            filled["steps"] = 1 if method.kind == "map" else 50
        return filled

    def exact(self) -> ExactModel:
        """A map on the path, whose loss is no regression of a field's view."""
        return replace(super().exact(), regression=None)

    # What the losses share

    def ends(
        self, batch: Batch, generator: Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Base and data of a step, paired, and what the network is told: some labels hidden."""
        x0, x1, cond = self.drawn(batch, generator)
        x0, x1, cond = self.regression.ends(x0, x1, cond, generator, x0 is not None)
        if "label" in cond:
            cond["label"] = self.some_hidden(cond["label"], generator)
        return x0, x1, cond

    def latent(self, x: Tensor, generator: Generator | None) -> Tensor | None:
        """The z of a path with a gamma."""
        if self.path.gamma is None:
            return None
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def weighed(self, rows: Tensor, t: Tensor) -> Tensor:
        """The mean of the losses of rows at times t, under the family's weight."""
        k = self.path.coefficients(t)
        w = self.regression.weight.on(k, self.regression.view)
        rows = rows if w is None else rows * w.to(rows)
        return self.regression.scaled(k, rows).mean().to(rows.dtype)


@torch.no_grad()
def total_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value of ``function`` and its derivative along ``tangents``, both constants: one JVP."""
    load_forward_mode()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
        value, slope = torch.func.jvp(function, inputs, tangents)  # type: ignore[misc]
    return value, slope


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """The weights of ``average`` <- decay of them + (1 - decay) of ``module``'s."""
    for a, p in zip(average.parameters(), module.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


def rowwise(coefficient: Tensor, x: Tensor) -> Tensor:
    """A number a row, ready to multiply x."""
    return spread(coefficient, x)
