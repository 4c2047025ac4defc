"""Samples side by side, and samples on their way from noise."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from . import style
from .marginals import bare, check_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..solvers.result import Solution

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def grid(samples: Tensor, to: style.To, columns: int | None = None, size: int = 640) -> None:
    """Write ``samples`` as one PNG: images side by side, points as a scatter of two coordinates.

    Args:
        samples: images (n, 1 or 3, h, w), their values cut to [-1, 1] for display; or anything else
            (n, ...), of which the first two coordinates are shown.
        to: a path that ends in .png, or a BytesIO.
        columns: images in a row; about sqrt(n) where it is None.
        size: the least width of the picture in pixels; images are enlarged by whole numbers.

    Raises:
        OptionError: no samples.
    """
    if samples.ndim < 2 or samples.numel() == 0:
        raise OptionError(f"samples have shape {tuple(samples.shape)}. Give at least one row.")
    samples = samples.detach().float().cpu()
    if not is_images(samples):
        return _scatter(samples.flatten(1), to)
    if not isinstance(to, io.BytesIO):
        style.suffix(to, ("png",))
    content = io.BytesIO()
    from PIL import Image

    Image.fromarray(tiled(samples, columns, size)).save(content, format="PNG")
    style.write(to, content.getvalue())
    return None


def is_images(samples: Tensor) -> bool:
    """Whether these are rows of grey or colour images."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3)


def tiled(samples: Tensor, columns: int | None = None, size: int = 640) -> Pixels:
    """Images (n, c, h, w) side by side, as (height, width, 3) bytes."""
    from einops import repeat
    from torchvision.utils import make_grid

    columns = columns or math.ceil(math.sqrt(len(samples)))
    scale = max(1, round(size / (columns * samples.shape[-1])))
    large = repeat(samples, "n c h w -> n c (h i) (w j)", i=scale, j=scale)
    pixels = make_grid(
        (large.clamp(-1, 1) + 1) / 2, columns, padding=max(2, scale // 2), pad_value=1
    )
    array: Pixels = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return array


def strip(
    solution: Solution, *, rows: int = 4, times: Sequence[float] | None = None,
    to: style.To | None = None,
) -> Figure:  # fmt: skip
    """Images on their way from noise: a row for each sample, a column for each time.

    States are divided by what makes their mean square that of unit noise where it is more, so that
    noise of any scale is seen.

    Example:
        flow = interp.solve(path.ode(model), x, save_at=torch.linspace(0, 1, 9))
        plot.strip(flow, to="strip.png")

    Args:
        solution: what `interp.solve` returned, with ``save_at``; states (n, 1 or 3, h, w).
        rows: how many samples, the first ones.
        times: which of the saved times; the nearest are taken. None takes nine, evenly.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: states that are no images, not finite, or saved only once.
    """
    t, x = images_of(solution)
    if times is None:
        chosen = np.linspace(0, len(t) - 1, min(9, len(t))).round().astype(int).tolist()
    else:
        chosen = [int((t - float(time)).abs().argmin()) for time in times]
    if not chosen or rows < 1:
        raise OptionError(f"rows={rows} and times={times!r} leave nothing to draw. Give some.")
    rows = min(rows, x.shape[1])
    height, width = x.shape[-2:]
    panel = 9.0 / max(len(chosen), 5)
    size = (panel * len(chosen), 0.97 * panel * rows * height / width + 0.3)
    figure, axes = style.figure(rows, len(chosen), size)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for r in range(rows):
        for c, k in enumerate(chosen):
            axis = axes[r * len(chosen) + c]
            shown = (shown_images(x[k])[r].clamp(-1, 1) + 1) / 2
            axis.imshow(shown.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            bare(axis)
            if r == 0:
                end = {0: " (noise)", len(t) - 1: " (data)"}.get(k, "")
                axis.set_title(f"t = {float(t[k]):.3g}{end}", color=style.INK, fontsize=8.5, pad=4)
    return style.finish(style.fit(figure), to)


def images_of(solution: Solution) -> tuple[Tensor, Tensor]:
    """The times and the states (m, n, c, h, w), float32 on the host.

    Raises:
        OptionError: as in `strip`.
    """
    t, x = solution.ts.double().cpu(), solution.xs
    if len(t) < 2:
        raise OptionError(
            f"the solution was saved at {len(t)} times. Solve with save_at=torch.linspace(0, 1, 9)."
        )
    if x.ndim != 5 or not is_images(x[0]):
        raise OptionError(
            f"the states have shape {tuple(x.shape[1:])}, not that of images. Give (n, 1 or 3, h, w), "
            "or draw points by plot.trajectories."
        )
    check_finite("the solution", x)
    return t, x.detach().float().cpu()


def shown_images(x: Tensor) -> Tensor:
    """Images of any scale, (n, c, h, w), brought to a mean square of 1 where it is more."""
    size = x.square().mean().sqrt()
    return x / size.clamp(min=1.0)


def _scatter(points: Tensor, to: style.To) -> None:
    figure, (axes,) = style.figure(size=(6.4, 4.4))
    if points.shape[1] == 1:
        axes.hist(points[:, 0].numpy(), bins=50, color=style.DATA)
        style.name_axes(axes, x="x", y="samples")
    else:
        axes.scatter(
            points[:, 0].numpy(),
            points[:, 1].numpy(),
            s=7,
            color=style.DATA,
            alpha=0.65,
            linewidths=0,
        )
        axes.set_aspect("equal", adjustable="datalim")
        style.name_axes(axes, x="first coordinate", y="second coordinate")
    style.finish(figure, to)
