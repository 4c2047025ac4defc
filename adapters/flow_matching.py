"""Flow matching: regress the velocity of a path, sample by its flow.

Lipman, Chen, Ben-Hamu, Nickel, Le, 2210.02747; Tong et al., 2302.00482. Their time runs as ours,
from noise at 0 to data at 1, and ``path="linear"`` is both papers' path at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

import interp
from interp.couplings import couple
from interp.errors import OptionError
from interp.likelihood import bits_per_dim, dequantise, level_width
from interp.losses import Regression
from interp.solvers import solve
from interp.solvers.catalogue import find

from . import networks
from .arguments import as_path, check_label, given, recorded, split
from .protocol import Batch, Family

Label = Tensor | Sequence[int] | int | None


class FlowMatching(Family):
    """Minimise E w(t) |network(t, I_t, label) - dI_t/dt|^2, x0 ~ N(0, 1), x1 the data.

    By default w = 1, t ~ U[0, 1] and the ends are independent; see `interp.losses.Regression`.

    Args:
        shape: of one data point.
        network: ``network(t, x)``, or with ``classes`` ``network(t, x, label)`` where a label of
            ``classes``, or None, stands for none; or "unet", "mlp"; None chooses by shape.
        path: the name of a path, its config, or an Interpolant.
        classes: the number of labels; None for a model without them.
        label_dropout: how often training hides a label, so that the network also learns the
            velocity without one (Ho, Salimans, 2207.12598).
        levels: the number of grey levels of data on a grid over [-1, 1]: training then spreads
            each level evenly over its width, and `bits_per_dim` is defined.
        width: of a network made here; None for its own default.
        lr: the largest learning rate.
        weight: of the loss, a name of `interp.losses.weights` or a mapping with it and its options.
        times: the law of t, a name of `interp.times.names` or such a mapping; None is uniform.
        coupling: pairs noise and data, a name of `interp.couplings.names` or such a mapping, as
            "optimal_transport" for OT-CFM (Tong et al., 2302.00482); None leaves them independent.
            A batch with an "x0" is paired already.

    Raises:
        UnknownName: a path, a kind of network, a weight, law or coupling that does not exist.
        OptionError: an option out of range.
    """

    name = "flow_matching"
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode",
        "reverse": "ode",
        "loss": "exact",
        "sample": "ode",
        "log_prob": "ode",
    }

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        path: interp.Interpolant | str | Mapping[str, object] = "linear",
        classes: int | None = None,
        label_dropout: float = 0.1,
        levels: int | None = None,
        width: int | None = None,
        lr: float = 2e-3,
        weight: Any = "simple",
        times: Any = None,
        coupling: Any = None,
    ) -> None:
        loss = {"weight": weight, "times": times, "coupling": coupling}
        for option, value in loss.items():
            given(option, value)
        if not 0 <= label_dropout < 1:
            raise OptionError(f"label_dropout is {label_dropout}. Give a share in [0, 1).")
        if levels is not None:
            level_width(levels)
        path = as_path(path)
        if not path.gaussian_base:
            raise OptionError(
                "this path was built with gaussian_base=False, and flow matching draws x0 ~ N(0, 1). "
                "Build it with gaussian_base=True."
            )
        made, kind = networks.resolve(network, shape, classes, width)
        config = {
            "network": kind, "path": path.config, "classes": classes, "width": width,
            "label_dropout": label_dropout, "levels": levels,
            **{option: recorded(value) for option, value in loss.items()},
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.network, self.path, self.classes = made, path, classes
        self.regression = Regression(path, **loss)
        self.prepares = 0 if coupling is None else 2
        self.label_dropout, self.levels = label_dropout, levels

    def prepare(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with its noise, paired by the coupling: ahead of the step that takes it."""
        coupling = self.regression.coupling
        paired = isinstance(batch, Mapping) and "x0" in batch
        return batch if coupling is None or paired else couple(coupling, batch, generator)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The mean of w(t) |network(t, I_t, label) - dI_t/dt|^2 over rows and elements."""
        x1, label = split(batch, self.shape)
        x0 = batch.get("x0") if isinstance(batch, Mapping) else None
        if self.levels is not None:
            x1 = dequantise(x1, self.levels, generator)
        cond = {} if self.classes is None else self._cond(label, x1)

        def network(t: Tensor, x: Tensor, label: Tensor | None = None) -> Any:
            if label is None or self.classes is None:
                return self.network(t, x)
            hidden = torch.rand(len(x), generator=generator, device=x.device) < self.label_dropout
            return self.network(t, x, label.masked_fill(hidden, self.classes))

        loss: Tensor = self.regression(
            network, x1, x0, cond=cond, generator=generator, paired=x0 is not None
        )
        return loss

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        label: Label = None,
        guidance: float = 1.0,
        diffusion: float | str | Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """``n`` samples by the flow, or by the SDE of ``diffusion``, from the path's base.

        Args:
            n: how many rows.
            seed: of the base and of the SDE's noise; None draws one.
            first_row: the number of the first row.
            label: one for all rows or one a row; None for no label.
            guidance: u + guidance (c - u) with c the velocity under the label and u without.
            diffusion: of the SDE, where the method is for SDEs.
            options: of `interp.solve`; heun where no method is given, 32 steps where none are.

        Raises:
            OptionError: labels or guidance for a model without labels, guidance without a label,
                or no label for a model that never saw a hidden one.
        """
        like = next(self.parameters())
        x0 = self.path.base.sample(
            (n, *self.shape), seed=seed, first_row=first_row, dtype=like.dtype, device=like.device
        )
        self._check_conditions(label, guidance)
        model = interp.guide(self.network, {"label": None}, guidance)
        method = find(options.setdefault("method", "heun"))
        if not method.adaptive and not {"steps", "grid"} & options.keys():
            options["steps"] = 32
        if method.kind == "sde" and diffusion is None:
            raise OptionError(
                f"{method.name} integrates SDEs. Give diffusion=, the size of its noise."
            )
        term = (
            self.path.ode(model) if diffusion is None else self.path.sde(model, diffusion=diffusion)
        )
        return self._solve(term, x0, label, seed=seed, first_row=first_row, **options)

    def forward(self, x: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The noise that the flow carries to ``x``: from t = 1 to 0, by dopri5 unless told."""
        return self._solve(self.path.ode(self.network), x, label, t=(1.0, 0.0), **options)

    def reverse(self, z: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The data that the flow carries ``z`` to: from t = 0 to 1, by dopri5 unless told."""
        return self._solve(self.path.ode(self.network), z, label, **options)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, label: Label = None, **options: Any) -> Tensor:
        """The log density of each row of ``x`` by the flow, nats: see `interp.log_prob`."""
        x, _ = split(x, self.shape)
        term = self.path.ode(self.network)
        return interp.log_prob(term, x, cond=self._cond(label, x), **options)

    def bits_per_dim(self, x: Tensor, seed: int = 0, **options: Any) -> Tensor:
        """Bits per dimension of each image of ``x``, on a grid of ``levels``: (rows,).

        By one draw of uniform dequantisation, so an upper bound in the mean; see
        `interp.likelihood.bits_per_dim`. Options as in `log_prob`.

        Raises:
            OptionError: a family made without ``levels``.
        """
        if self.levels is None:
            raise OptionError(
                "this family was made without levels, so its data have no grid to count bits on. "
                "Make it with levels=..., the number of grey levels."
            )
        generator = torch.Generator(x.device).manual_seed(seed)
        spread = dequantise(x, self.levels, generator)
        return bits_per_dim(self.log_prob(spread, **options), self.shape, self.levels)

    def _check_conditions(self, label: Label, guidance: float) -> None:
        if guidance != 1 and label is None:
            raise OptionError(
                f"guidance is {guidance} but no label is given. Give one; a model has labels if "
                "it was made with classes=..."
            )
        if self.classes is None or (label is not None and guidance == 1):
            return
        if self.label_dropout == 0:
            raise OptionError(
                "this model was made with label_dropout=0, so it knows no velocity without a label. "
                "Give a label and no guidance, or train with label_dropout=0.1."
            )

    @torch.no_grad()
    def _solve(self, term: Any, x: Tensor, label: Label, **options: Any) -> Tensor:
        x, _ = split(x, self.shape)
        return solve(term, x, cond=self._cond(label, x), **options).x

    def _cond(self, label: Label, x: Tensor) -> dict[str, Tensor]:
        return (
            {} if label is None else {"label": check_label(label, len(x), self.classes, x.device)}
        )
