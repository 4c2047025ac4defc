"""Everything that a training run is after some steps, and the step itself."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import CheckpointError, OptionError, TrainingError, UnknownName
from ..families import Batch, Family, Losses, Objective
from .checkpoint import Checkpoint
from .device import as_device
from .ema import Average


class State:
    """A family's weights, their average, the optimizers, and how many steps were taken.

    Args:
        family: an ``nn.Module`` with what `interp.families.Family` asks.
        total: how many steps the run will have.
        decay: of the average.
        device: where to take the family; None leaves it where it is.

    Raises:
        OptionError: a family that is no module or has nothing to train, a decay out of
            range, or a device that is not there.
    """

    def __init__(
        self,
        family: Family,
        total: int,
        decay: float,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(family, nn.Module):
            raise OptionError(
                f"the family is a {type(family).__name__}, not an nn.Module. Give an object of "
                "adapters.create(...) or of your own subclass of adapters.protocol.Family."
            )
        self.family: Family = family
        self.module: nn.Module = family
        self.name = family.name or type(family).__name__
        if device is not None:
            self.module.to(as_device(device))
        first = next(self.module.parameters(), None)
        if first is None:
            raise OptionError(f"{self.name} has no parameters. There is nothing to train.")
        self.device = first.device
        self.total, self.step = total, 0
        self.average = Average(self.module, decay)
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._saved: dict[str, dict[int, dict[str, Any]]] = {}

    def advance(self, batch: Batch, generator: Generator) -> dict[str, float]:
        """Take one step on ``batch``; the losses by name, in order.

        Raises:
            TrainingError: a loss or a gradient that is not finite; names it and the step.
            OptionError: an objective with nothing to move.
            UnknownName: an optimizer that torch does not have.
        """
        losses: dict[str, float] = {}
        for objective in self.family.objectives(self.step, self.total):
            terms = _named(objective.name, objective.evaluate(batch, generator))
            values = {name: term.item() for name, term in terms.items()}
            for name, value in values.items():
                self._check_finite(f"the loss {name!r}", value)
            self._descend(objective, torch.stack([*terms.values()]).sum())
            losses |= values
        with torch.no_grad():
            self.family.after_step(self.step, self.total)
        step, self.step = self.step, self.step + 1
        self.average.update(self.step)
        stage = self.family.stage
        if self.step < self.total and stage(step, self.total) != stage(self.step, self.total):
            # A phase ends as a run does, so that the next one builds on the averaged weights.
            self.module.load_state_dict(self.average.state())
            with torch.no_grad():
                self.family.after_stage(step, self.total)
        return losses

    def _descend(self, objective: Objective, loss: Tensor) -> None:
        parameters = [p for p in objective.parameters if p.requires_grad]
        if not (parameters and loss.requires_grad):
            raise OptionError(
                f"the loss of {objective.name!r} does not depend on any of its {len(parameters)} "
                "parameters. Give the parameters that it is to move, and do not detach the loss."
            )
        optimizer = self._optimizer(objective, parameters)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        clip = objective.optimizer.clip
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        self._check_finite(f"the gradient of {objective.name!r}", norm.item())
        optimizer.step()

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} is {value} at step {self.step}. Lower the learning rate, or look for "
                "values in the data that are not finite or far out of scale."
            )

    def _optimizer(
        self, objective: Objective, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """The optimizer of this objective, with the learning rate and options of this step."""
        name, wanted = objective.name, objective.optimizer
        if name not in self._optimizers:
            kind = getattr(torch.optim, wanted.kind, None)
            if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
                raise UnknownName.of("optimizer", wanted.kind, torch.optim.__all__)
            made = kind(parameters, lr=wanted.lr, **wanted.options)  # type: ignore[call-arg]
            if name in self._saved:
                groups = made.state_dict()["param_groups"]
                made.load_state_dict({"state": self._saved.pop(name), "param_groups": groups})
            self._optimizers[name] = made
        optimizer = self._optimizers[name]
        optimizer.param_groups[0].update(lr=wanted.lr, **wanted.options)
        return optimizer

    def finish(self) -> None:
        """Put the averaged weights into the family, in evaluation mode."""
        self.module.load_state_dict(self.average.state())
        self.module.eval()

    # To and from a checkpoint

    def checkpoint(self) -> Checkpoint:
        """What is needed to go on to the same numbers."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, dict[str, dict[str, Any]]] = {}
        states = {n: o.state_dict()["state"] for n, o in self._optimizers.items()} | self._saved
        for name, state in states.items():
            plain[name] = {str(index): {} for index in state}
            for index, values in state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"{name}/{index}/{key}"] = value
                    else:
                        plain[name][str(index)][key] = value
        parts = {
            "model": self.module.state_dict(),
            "average": self.average.weights,
            "optimizer": tensors,
        }
        return Checkpoint(self.step, self.name, parts, {"optimizer": plain})

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from ``checkpoint``.

        Raises:
            CheckpointError: of another family, or whose weights do not fit this one.
        """
        if checkpoint.family != self.name:
            raise CheckpointError(
                f"the checkpoint is of the family {checkpoint.family!r} and not of "
                f"{self.name!r}. Train it as {checkpoint.family!r}, or choose another folder."
            )
        try:
            self.module.load_state_dict(dict(checkpoint.parts["model"]))
            self.average.load(checkpoint.parts["average"])
            plain = checkpoint.extra["optimizer"]
            saved: dict[str, dict[int, dict[str, Any]]] = {
                name: {int(index): dict(values) for index, values in state.items()}
                for name, state in plain.items()
            }
            for path, value in checkpoint.parts["optimizer"].items():
                name, index, key = path.rsplit("/", 2)
                saved[name][int(index)][key] = value
        except (RuntimeError, KeyError, ValueError, AttributeError) as error:
            raise misfit(self.name, error) from error
        self.step, self._saved, self._optimizers = checkpoint.step, saved, {}


def misfit(family: str, error: Exception) -> CheckpointError:
    """The error for saved weights that do not fit a family."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = textwrap.shorten(lines[min(1, len(lines) - 1)], 160, placeholder=" ... and so on")
    return CheckpointError(
        f"the saved weights do not fit this {family}: {why.rstrip('.')}. Make the family with the "
        "options that it was trained with."
    )


def _named(objective: str, losses: Losses) -> Mapping[str, Tensor]:
    """The terms of a loss, by "objective" or "objective.term"."""
    if isinstance(losses, Tensor):
        return {objective: losses}
    return {f"{objective}.{name}": term for name, term in losses.items()}
