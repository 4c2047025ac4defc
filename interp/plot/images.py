"""Samples side by side, and samples on their way from noise."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target = str | Path | io.BytesIO

_INK, _PALE = "#1f4e79", "#b9cfe4"


def grid(samples: Tensor, to: Target, columns: int | None = None, size: int = 640) -> None:
    """Write ``samples`` as one PNG: images side by side, points as a scatter of two coordinates.

    Args:
        samples: images (n, 1 or 3, h, w), their values cut to [-1, 1] for display; or anything else
            (n, ...), of which the first two coordinates are shown.
        to: a path or an open binary file.
        columns: images in a row; about sqrt(n) where it is None.
        size: the least width of the picture in pixels; images are enlarged by whole numbers.

    Raises:
        OptionError: no samples.
    """
    if samples.ndim < 2 or samples.numel() == 0:
        raise OptionError(f"samples have shape {tuple(samples.shape)}. Give at least one row.")
    samples = samples.detach().float().cpu()
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        return _scatter(samples.flatten(1), to)
    from einops import repeat
    from PIL import Image
    from torchvision.utils import make_grid

    columns = columns or math.ceil(math.sqrt(len(samples)))
    scale = max(1, round(size / (columns * samples.shape[-1])))
    large = repeat(samples, "n c h w -> n c (h i) (w j)", i=scale, j=scale)
    pixels = make_grid(
        (large.clamp(-1, 1) + 1) / 2, columns, padding=max(2, scale // 2), pad_value=1
    )
    array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(array).save(to, format="PNG")
    return None


def loss_curve(losses: Sequence[tuple[int, float]], to: Target) -> None:
    """Write (step, loss) as a PNG: every step pale, its running mean in ink.

    Args:
        losses: in the order of the steps.
        to: a path or an open binary file.
    """
    figure, axes = _figure()
    steps, values = [float(s) for s, _ in losses], [v for _, v in losses]
    axes.plot(steps, values, color=_PALE, linewidth=0.8, label="each step")
    window = max(1, len(values) // 50)
    if window > 1:
        mean = torch.tensor(values).unfold(0, window, 1).mean(1)
        middle = torch.tensor(steps).unfold(0, window, 1).mean(1)
        axes.plot(middle, mean, color=_INK, linewidth=1.8, label=f"mean of {window}")
        axes.legend(frameon=False)
    if values and min(values) > 0 and max(values) / min(values) > 5:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    figure.savefig(to, format="png")


def _scatter(points: Tensor, to: Target) -> None:
    figure, axes = _figure()
    if points.shape[1] == 1:
        axes.hist(points[:, 0].numpy(), bins=50, color=_INK)
    else:
        axes.scatter(points[:, 0], points[:, 1], s=6, color=_INK, alpha=0.6, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
    figure.savefig(to, format="png")


def _figure() -> tuple[Figure, Axes]:
    """A figure of its own, which no pyplot and no backend of the user's knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes
