"""Couplings that leave the base given a label as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor

from ..arguments import positive, require_finite
from ..errors import OptionError
from .coupling import BatchCoupling, Coupling, Pairs
from .registry import from_config


@dataclass(frozen=True)
class Conditional(BatchCoupling):
    """Another coupling within each label, or with labels in its cost.

        weight=None    rows pair only with rows of their own label
        weight=w       the cost is |x - y|^2 + w d(label of x, label of y)

    Row i of x0 has the label of row i of x1, before anything is paired. A batch plan that does not
    look at labels gives each of them the part of the base nearest to its data, while sampling starts
    from the whole base: the model is then asked where it was never trained. Within labels the base
    given a label is what it was, whatever the plan. d is 1 between whole-number labels that differ
    and 0 else, and |l - l'|^2 between floating ones; as w grows the two ways become one.

    Marginals: those of the inner coupling, for each label where weight is None.

    Args:
        coupling: the inner one: a coupling among rows, its name, or its config.
        weight: of the labels in the cost, positive; None pairs within labels.

    Raises:
        OptionError: an inner coupling that does not choose among rows, a weight that is not
            positive; when called, no labels, or floating ones where weight is None.

    Source: Cheng, Schwing 2025 (2503.10636).
    """

    name: ClassVar[str] = "conditional"
    coupling: Coupling | str | Mapping[str, Any] = "optimal_transport"
    weight: float | None = None

    def __post_init__(self) -> None:
        inner = from_config(self.coupling)
        if not isinstance(inner, BatchCoupling) or isinstance(inner, Conditional):
            raise OptionError(
                f"{inner.name} cannot be made conditional. Give a coupling that chooses among the "
                "rows of a batch, such as optimal_transport()."
            )
        object.__setattr__(self, "coupling", inner)
        if self.weight is not None:
            object.__setattr__(self, "weight", positive("weight", self.weight))

    def pairs(
        self, x0: Tensor, x1: Tensor, labels: Tensor | None, generator: Generator | None
    ) -> Pairs:
        """The inner coupling's pairs, of each label or of points with their labels beside them."""
        inner = cast(BatchCoupling, self.coupling)
        if labels is None:
            raise OptionError(
                "noise and data are paired within each label, and no labels are given. Add a 'label' to "
                "the batch (labels= to a call of the coupling), or make the family without classes."
            )
        for name, points in (("x0", x0), ("x1", x1)):  # here the rows are still the caller's
            require_finite(name, points)
        if self.weight is not None:
            beside = math.sqrt(self.weight) * _features(labels).to(x0.dtype)
            return inner.pairs(
                torch.cat([x0, beside], 1), torch.cat([x1, beside], 1), None, generator
            )
        if labels.is_floating_point() or labels.is_complex():
            raise OptionError(
                f"labels are {labels.dtype}, of which no two need be equal. Give weight=, the price of "
                "a difference of labels, or whole-number labels."
            )
        _, group = torch.unique(labels, dim=0, return_inverse=True)
        first, second = torch.empty_like(group), torch.empty_like(group)
        sizes: list[int] = torch.bincount(group).tolist()
        for members in torch.split(torch.argsort(group, stable=True), sizes):
            i, j = inner.pairs(x0[members], x1[members], None, generator)
            first[members] = members if i is None else members[i]
            second[members] = members if j is None else members[j]
        return first, second


def _features(labels: Tensor) -> Tensor:
    """(rows, k) whose squared distances are d: floating labels themselves, else half one-hot."""
    if labels.is_floating_point():
        return labels.reshape(len(labels), math.prod(labels.shape[1:]))
    if labels.is_complex():
        raise OptionError(f"labels are {labels.dtype}. Give real or whole-number labels.")
    _, group = torch.unique(labels, dim=0, return_inverse=True)
    return torch.nn.functional.one_hot(group) * math.sqrt(0.5)
