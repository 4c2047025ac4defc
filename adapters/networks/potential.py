"""One number a row from a network of x's shape: energies, logits, Kantorovich potentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import resolve

Scalar = Callable[..., Tensor]
"""scalar(t, x) -> (rows,)."""


class Potential(nn.Module):
    """x . network(t, x) + b: any network of x's shape as a function with one value a row.

    After Du et al., 2302.11552; b makes it any function, where a logit's constant is its to learn; it is
    left out without a ``constant``. A network whose last layer starts at zero gives zero at first.
    """

    def __init__(self, network: nn.Module, constant: bool = True) -> None:
        super().__init__()
        self.network = network
        self.bias = nn.Parameter(torch.zeros(())) if constant else None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """(rows,); ``t`` is 0-d or (rows,)."""
        out: Tensor = self.network(t, x)
        value = (x * out).flatten(1).sum(1)
        return value if self.bias is None else value + self.bias


def potential(
    network: nn.Module | str | None,
    shape: Sequence[int],
    width: int | None = None,
    constant: bool = True,
) -> tuple[nn.Module, str]:
    """The scalar network that a family was given or is to make, and the name it has in a config.

    Args:
        network: the user's own network(t, x) -> (rows,), twice differentiable; or "mlp", "unet", "dit",
            whose output x is multiplied with; None is "mlp", as slopes of slopes are dear.
        shape: of one data point.
        width: of a network made here.
        constant: whether a network made here learns one; an energy means nothing by its own.

    Raises:
        UnknownName, OptionError: as `adapters.networks.resolve`.
    """
    made, kind = resolve("mlp" if network is None else network, shape, width=width)
    return (made if isinstance(network, nn.Module) else Potential(made, constant)), kind


def slope(scalar: Scalar, t: Tensor, x: Tensor) -> Tensor:
    """The gradient of ``scalar`` by x, itself differentiable by x and by the weights."""
    gradient: Tensor = torch.func.grad(lambda at: scalar(t, at).sum())(x)
    return gradient
