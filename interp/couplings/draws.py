"""Pairs drawn from a plan; every number from the generator that the caller gave."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def permutation(rows: int, generator: Generator | None) -> Tensor:
    """A random order of ``rows``, on the CPU."""
    device = "cpu" if generator is None else generator.device
    return torch.randperm(rows, generator=generator, device=device).cpu()


def uniform(rows: int, generator: Generator | None) -> Tensor:
    """``rows`` uniform numbers in [0, 1), float64, on the CPU."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(rows, generator=generator, dtype=torch.float64, device=device).cpu()


def by_row(log_plan: Tensor, generator: Generator | None) -> Tensor:
    """For each row i of a plan one column j, drawn from P(j | i)."""
    cdf = torch.softmax(log_plan, 1).cumsum(1)
    return _at(cdf, uniform(len(cdf), generator)[:, None]).squeeze(1)


def jointly(log_plan: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """As many pairs (i, j) as the plan has rows, each with the law P / |P|.

    The uniform numbers are stratified, one from each part of [0, 1) of size 1 / rows: the law of a
    pair picked from them at random is the same, and row i comes up n P_i times rounded up or down.
    """
    rows, columns = log_plan.shape
    cdf = torch.softmax(log_plan.flatten(), 0).cumsum(0)
    strata = (
        torch.arange(rows, dtype=torch.float64, device="cpu") + uniform(rows, generator)
    ) / rows
    flat = _at(cdf, strata)
    return flat // columns, flat % columns


def _at(cdf: Tensor, u: Tensor) -> Tensor:
    """The first index at which ``cdf`` is above u times its end: never one without mass."""
    total = cdf[..., -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # u times total may round up to total
    return torch.searchsorted(cdf, torch.minimum(u * total, below).contiguous(), right=True)
