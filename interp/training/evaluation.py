"""How well a family explains data that it has not seen, and how far its samples are from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..errors import Unsupported
from ..families import Family
from ..likelihood import bits_per_dim, dequantise
from ..seeds import derive, generator


@dataclass(frozen=True)
class Likelihood:
    """The mean log likelihood of some rows, and its standard error.

    Attributes:
        rows: how many.
        nats: the mean of log p(x) of a row.
        nats_error: its standard error over the rows.
        bits: bits a dimension, where the data have grey levels; an upper bound.
        bits_error: its standard error.
        kind: how the family does log_prob: "exact", "ode" or "bound".
    """

    rows: int
    nats: float
    nats_error: float
    bits: float | None
    bits_error: float | None
    kind: str

    def __str__(self) -> str:
        text = f"log_prob ({self.kind}): {self.nats:.3f} ± {self.nats_error:.3f} nats a row"
        if self.bits is not None:
            text += f", {self.bits:.4f} ± {self.bits_error:.4f} bits/dim"
        return f"{text}, over {self.rows} rows (± one standard error)."


def likelihood(
    family: Family, x: Tensor, *, seed: int = 0, batch_size: int = 64, **options: Any
) -> Likelihood:
    """The mean of ``family.log_prob`` over the rows of ``x``.

    A family with ``levels`` is asked for images that are dequantised once, uniformly, and its
    answer is given in bits a dimension too (see `interp.likelihood.bits_per_dim`).

    Args:
        family: whose log_prob to take.
        x: the data, on the grid of the family's levels where it has them.
        seed: of the dequantisation, and of the probes of an estimated divergence.
        batch_size: rows at once; the result does not depend on it.
        options: of the family's ``log_prob``.

    Raises:
        Unsupported: a family without log_prob.
    """
    kind = family.supports("log_prob")
    if not kind:
        raise Unsupported(
            f"{family.name} has no log_prob. Evaluate a family that has it: see `interp list`."
        )
    levels: int | None = getattr(family, "levels", None)
    if levels is not None:
        x = dequantise(x, levels, generator("cpu", derive(seed, "dequantise")))
    like, chunks = next(family.parameters(), x), []
    for first in range(0, len(x), batch_size):
        some = x[first : first + batch_size].to(like.device, like.dtype)
        numbered = {} if kind == "exact" else {"first_row": first, "seed": seed}
        chunks.append(family.log_prob(some, **numbered, **options).cpu().double())
    nats = torch.cat(chunks)
    error = nats.std().item() / math.sqrt(len(nats))
    if levels is None:
        return Likelihood(len(x), nats.mean().item(), error, None, None, str(kind))
    bits = bits_per_dim(nats, x.shape[1:], levels)
    spread = bits.std().item() / math.sqrt(len(bits))
    return Likelihood(len(x), nats.mean().item(), error, bits.mean().item(), spread, str(kind))


@dataclass(frozen=True)
class Distances:
    """How far rows are from held-out rows.

    Attributes:
        energy: `interp.metrics.energy_distance`.
        sliced: `interp.metrics.sliced_wasserstein`.
        copies: `interp.metrics.near_copies` of the training data.
    """

    energy: float
    sliced: float
    copies: float

    @classmethod
    def of(cls, x: Tensor, seen: Tensor, held_out: Tensor) -> Distances:
        """Those of ``x``, with ``seen`` the data that were trained on."""
        return cls(
            metrics.energy_distance(x, held_out),
            metrics.sliced_wasserstein(x, held_out),
            metrics.near_copies(x, seen, held_out),
        )


def distances(
    samples: Tensor, seen: Tensor, held_out: Tensor, seed: int = 0
) -> dict[str, Distances]:
    """The distances of samples from held-out data, beside what they can be measured by.

    Beside them stand the training data themselves, which are as near in law as data can be, and a
    Gaussian of their mean and covariance, the least that a model of them has to beat.

    Args:
        samples: (n, ...).
        seen: (m, ...) the training data.
        held_out: (k, ...) data of the same law that the model has not seen.
        seed: of the Gaussian.

    Raises:
        OptionError: as in `interp.metrics`.
    """
    fit = gaussian_fit(seen, len(samples), seed)
    rows = {"samples": samples, "training data": seen, "a Gaussian fit": fit}
    return {name: Distances.of(x, seen, held_out) for name, x in rows.items()}


def gaussian_fit(data: Tensor, n: int, seed: int) -> Tensor:
    """``n`` rows of the Gaussian with the mean and the covariance of ``data``, in its shape."""
    flat = data.detach().to("cpu", torch.float64).flatten(1)
    mean, centred = flat.mean(0), flat - flat.mean(0)
    # Rows of normals times the centred data have their covariance, whatever its rank.
    z = torch.randn(n, len(flat), generator=generator("cpu", derive(seed, "fit")), dtype=flat.dtype)
    rows = mean + z @ centred / math.sqrt(len(flat))
    return rows.to(data.dtype).reshape(n, *data.shape[1:])
