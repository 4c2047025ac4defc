"""Laws to look at: mixtures of one and two dimensions, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..errors import UnknownName
from ..exact import Mixture


def peaks() -> Mixture:
    """Three narrow peaks on the line."""
    return Mixture([0.3, 0.45, 0.25], [-2.0, 0.6, 2.2], [0.06, 0.04, 0.1])


def moons() -> Mixture:
    """Two interleaved half circles in the plane."""
    angle = torch.linspace(0, math.pi, 16, dtype=torch.float64)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    means = 1.6 * torch.cat([upper, -upper])
    return Mixture([1 / 32] * 32, means, [0.03] * 32)


def eight() -> Mixture:
    """Eight round peaks on a circle in the plane."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 2.2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Mixture([1 / 8] * 8, means, [0.05] * 8)


_PRESETS: dict[str, Callable[[], Mixture]] = {"eight": eight, "moons": moons, "peaks": peaks}


def names() -> tuple[str, ...]:
    """The names that `target` knows."""
    return tuple(_PRESETS)


def target(name: str) -> Mixture:
    """The law called ``name``: "peaks" on the line, "moons" and "eight" in the plane.

    Raises:
        UnknownName: another name.
    """
    if name not in _PRESETS:
        raise UnknownName.of("target", name, _PRESETS)
    return _PRESETS[name]()
