"""Samples of a family with labels as its data have them, and the pictures of a finished run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import noise, plot
from ..errors import OptionError
from ..families import Family
from ..files import write_bytes
from ..seeds import derive
from .run import read_metrics


def sample(
    family: Family,
    n: int,
    *,
    seed: int,
    frequencies: Sequence[float] | None = None,
    label: int | None = None,
    batch_size: int = 256,
    x0: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """``n`` samples, in chunks that make up the whole run, and their labels.

    Args:
        family: what to sample from.
        n: how many.
        seed: of the samples and of their labels.
        frequencies: how often each label occurs; None makes all equally likely.
        label: one for all; None draws them by ``frequencies``, where the family has labels.
        batch_size: how many at once.
        x0: the points that a family of paths starts from, as many; None leaves it to the family.
        options: of the family's ``sample``.

    Raises:
        OptionError: a label for a family without labels.
    """
    labels, classes = None, getattr(family, "classes", None)
    if label is not None and classes is None:
        raise OptionError(
            f"{family.name} was made without labels, and label {label} was asked for. Leave it out, or "
            "train a family with classes."
        )
    if label is not None:
        labels = torch.full((n,), label)
    elif classes is not None:
        labels = draw_labels(n, frequencies or [1.0] * classes, seed)
    chunks = []
    for first in range(0, n, batch_size):
        rows = min(batch_size, n - first)
        columns = {"label": labels, "x0": x0}
        given = {k: v[first : first + rows] for k, v in columns.items() if v is not None}
        chunk = family.sample(rows, seed=seed, first_row=first, **given, **options)
        chunks.append(chunk.cpu())
    return torch.cat(chunks), labels


def draw_labels(n: int, frequencies: Sequence[float], seed: int) -> Tensor:
    """Labels of rows 0 ... n - 1 by their ``frequencies``: row i depends on (seed, i) alone."""
    z = noise.normal((n, 1), seed=derive(seed, "label"), dtype=torch.float64)[:, 0]
    edges = torch.tensor(frequencies, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges / edges[-1], torch.special.ndtr(z), right=True).clamp(
        max=len(edges) - 1
    )


def draw(family: Family, folder: Path, seed: int, about: Mapping[str, Any]) -> None:
    """Put samples.png, where the family can sample, and loss.png into a run folder."""
    losses: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(folder):
        for name, value in row.get("losses", {"loss": row["loss"]}).items():
            losses.setdefault(name, []).append((row["step"], value))
    picture = io.BytesIO()
    plot.loss_curve(losses, picture)
    write_bytes(folder / "loss.png", picture.getvalue())
    if family.supports("sample"):
        samples, _ = sample(family, 64, seed=seed, frequencies=about.get("label_frequencies"))
        picture = io.BytesIO()
        plot.grid(samples, picture)
        write_bytes(folder / "samples.png", picture.getvalue())


def write_samples(folder: Path, samples: Tensor, labels: Tensor | None) -> None:
    """Put grid.png and samples.npz into ``folder``, the values cut to [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = samples.float().clamp(-1, 1)  # a flow ends near the data, not exactly in their range
    arrays = {"samples": samples.numpy()} | ({} if labels is None else {"label": labels.numpy()})
    packed, picture = io.BytesIO(), io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    plot.grid(samples, picture)
    write_bytes(folder / "samples.npz", packed.getvalue())
    write_bytes(folder / "grid.png", picture.getvalue())
