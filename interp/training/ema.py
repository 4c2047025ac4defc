"""The exponential moving average of a family's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import OptionError


class Average:
    """a <- m a + (1 - m) p after every step, with m = min(decay, (1 + step) / (10 + step)).

    While the run is young the average forgets faster, over the last ninth or so of the steps, so
    that a short run is not dragged down by its beginning. The running statistics of
    normalisation layers are averaged too, since those of the last weights do not fit their average;
    other buffers, and parameters that are frozen at the time, are taken as they are.

    Args:
        module: what to average, from its present weights on.
        decay: m in the long run, in [0, 1); 0 takes the weights themselves.

    Raises:
        OptionError: a decay outside [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not (0 <= decay < 1 and math.isfinite(decay)):
            raise OptionError(f"ema is {decay}. Give a decay in [0, 1), such as 0.999; 0 is none.")
        self.module, self.decay = module, decay
        self.weights = {name: tensor.detach().clone() for name, tensor in self._moving()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        m = min(self.decay, (1 + step) / (10 + step))
        for name, weight in self._moving():
            still = isinstance(weight, nn.Parameter) and not weight.requires_grad
            self.weights[name].lerp_(weight, 1.0 if still else 1 - m)

    def state(self) -> dict[str, Tensor]:
        """The module's state with its parameters averaged, under every name that one has."""
        named = self.module.named_parameters()
        averaged = {id(p): self.weights[name] for name, p in named if name in self.weights}
        everywhere = self.module.named_parameters(remove_duplicate=False)
        shared = {name: averaged[id(p)] for name, p in everywhere if id(p) in averaged}
        return {**self.module.state_dict(), **self.weights, **shared}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from saved ``weights``, which has each name of ours."""
        for name, mine in self.weights.items():
            mine.copy_(weights[name])

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        """What is averaged, by its name in the module's state."""
        yield from ((n, p) for n, p in self.module.named_parameters() if p.is_floating_point())
        for prefix, layer in self.module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                for name, buffer in layer.named_buffers(prefix):
                    if buffer.is_floating_point():
                        yield name, buffer
