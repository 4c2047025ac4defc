"""A schedule of one's own."""

import math

import torch

import interp


def sway(depth: float = 0.5) -> interp.Interpolant:
    """The straight path by the clock tau = t + depth sin(2 pi t) / (2 pi): slow half-way."""

    def tau(t: torch.Tensor) -> torch.Tensor:
        return t + depth * torch.sin(2 * math.pi * t) / (2 * math.pi)

    return interp.Interpolant(lambda t: 1 - tau(t), tau)
