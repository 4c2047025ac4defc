"""What every coupling is: who is paired with whom, and with what labels."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..arguments import require_same
from ..errors import OptionError

Pairs = tuple[Tensor | None, Tensor | None]
"""Which row of x0 and which of x1 stands in each pair; None for all rows as they come."""


class Coupling(ABC):
    """A coupling ``c(x0, x1, labels=None, generator=None) -> x0, x1[, labels]``, paired."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any] | None:
        """What `from_config` builds this coupling from, JSON-able; None where JSON cannot hold it."""

    @abstractmethod
    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        labels: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Pair the rows of ``x0`` with those of ``x1``.

        Args:
            x0: base points (rows, ...), floating.
            x1: data points, of the shape, dtype and device of ``x0``.
            labels: a tensor whose first axis is the rows of ``x1``; they stay with them.
            generator: where randomness comes from; None is torch's default one.

        Returns:
            x0 and x1, and labels where they were given; row i of one belongs to row i of the others.

        Raises:
            OptionError: points that do not match, are not floating, empty or not finite, labels of
                another length, or an option that does not suit the points.
        """


@dataclasses.dataclass(frozen=True)
class BatchCoupling(Coupling):
    """A coupling that chooses among the rows it is given."""

    @abstractmethod
    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """Which rows to pair: indices on the CPU, from points (rows, features) on the CPU."""

    def match(
        self,
        x0: Tensor,
        x1: Tensor,
        labels: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Pairs:
        """Which row of x0 and which of x1 stand in each pair: arguments as of `__call__`."""
        check(x0, x1, labels, generator)
        with torch.no_grad():
            on_cpu = None if labels is None else labels.detach().cpu()
            return self.pairs(as_rows(x0), as_rows(x1), on_cpu, generator)

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        labels: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """See `Coupling.__call__`."""
        i, j = self.match(x0, x1, labels, generator)
        paired = (take(x0, i), take(x1, j))
        return paired if labels is None else (*paired, take(labels, j))

    @property
    def config(self) -> Mapping[str, Any] | None:
        """{"name": ..., and the options}; None where one of them is a function of the user's own."""
        config: dict[str, Any] = {"name": self.name}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Coupling):
                value = value.config
                if value is None:
                    return None
            elif callable(value):
                return None
            config[option.name] = list(value) if isinstance(value, tuple) else value
        return config


def check(
    x0: Tensor, x1: Tensor, labels: Tensor | None = None, generator: Generator | None = None
) -> None:
    """Refuse with an `OptionError` what no coupling can pair."""
    for name, points in (("x0", x0), ("x1", x1)):
        if not isinstance(points, Tensor):
            raise OptionError(f"{name} is a {type(points).__name__}. Give a tensor of points.")
        if points.layout is not torch.strided or points.is_meta or points.is_nested:
            kind = "meta" if points.is_meta else str(points.layout)
            raise OptionError(f"{name} is a {kind} tensor. Give a dense one with values.")
    require_same(x0=x0, x1=x1)
    if x0.ndim == 0 or len(x0) == 0:
        raise OptionError(
            f"x0 and x1 have shape {tuple(x0.shape)}, so there is nothing to pair. Give (rows, ...), "
            "one row or more."
        )
    if labels is not None:
        check_labels(labels, len(x1))
    if not isinstance(generator, Generator | None):
        raise OptionError(
            f"generator is a {type(generator).__name__}. Give a torch.Generator, or None."
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Refuse with an `OptionError` labels that are not one a row."""
    if not isinstance(labels, Tensor):
        raise OptionError(f"labels is a {type(labels).__name__}. Give a tensor, one label a row.")
    if labels.ndim == 0 or len(labels) != rows:
        raise OptionError(
            f"labels have shape {tuple(labels.shape)} for {rows} rows of x1. Give one label a row."
        )


def as_rows(x: Tensor) -> Tensor:
    """Points as (rows, features) on the CPU, in float32 or float64."""
    rows = x.detach().cpu().reshape(len(x), math.prod(x.shape[1:]))
    return rows if rows.dtype is torch.float64 else rows.float()


def take(x: Tensor, index: Tensor | None) -> Tensor:
    """The rows ``index`` of ``x``; all, untouched, where it is None."""
    return x if index is None else x.index_select(0, index.to(x.device))
