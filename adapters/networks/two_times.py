"""A network of a map between two times."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoTimes(nn.Module):
    """``network(t, r, x, label=None)`` from one of two times: it is told t and the step r - t.

    Args:
        net: net(times, x, label), times being (rows, 2) or (2,).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, r: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """A tensor like ``net``'s; ``t`` and ``r`` are 0-d or (rows,), ``label`` (rows,) or None."""
        times = torch.stack(torch.broadcast_tensors(t, r - t), -1)  # type: ignore[no-untyped-call]
        out: Tensor = self.net(times, x, label)
        return out
