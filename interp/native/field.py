"""What a run needs of a field without Python."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engine import Network, UserKernel

Reads = Callable[[list[float]], list[tuple[float, float, float, float]]]


@dataclass
class NativeField:
    """A native field for one run, as the engine takes it.

    Attributes:
        source: the program, or a user's kernel.
        weights: the tensors that hold its weights now.
        conditions: its inputs beside t and x.
        threads: at most so many; None is torch's number.
        reads: from readings tau of the run's clock to (t, c, a, b): the slope at y is
            a field(t, c y) + b y. None where it is field(tau, y).
    """

    source: Network | UserKernel
    weights: list[Tensor]
    conditions: list[Tensor]
    threads: int | None
    reads: Reads | None


class NativeModel(ABC):
    """A model that a run can call without Python."""

    @abstractmethod
    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Any:
        """The model at t and x, for whoever calls it from Python."""

    @abstractmethod
    def native(
        self, x: Tensor, time: torch.dtype, cond: Mapping[str, Any], reads: Reads | None,
        per_row: bool = False,
    ) -> NativeField | None:  # fmt: skip
        """The field for a run from x, told the time, or with ``per_row`` that of each row, in the dtype
        ``time``; None where there is none.
        """
