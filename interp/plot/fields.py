"""Velocity fields: arrows in the plane, or colours and streamlines over (t, x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..arguments import like
from ..errors import OptionError
from . import style
from .marginals import Laws, bare, laws_of, panel_times, plane
from .runs import check_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..exact import Target
    from ..interpolant import Interpolant

_ARROWS, _COLUMNS, _ROWS = 21, 181, 181
_DEPTH = 4.5  # nats below the densest point, where arrows end


@torch.no_grad()
def velocity(
    model: Callable[[Tensor, Tensor], Tensor], dim: int = 2, *,
    times: Sequence[float] = (0.05, 0.35, 0.65, 0.95), extent: float = 3.0,
    target: Target | None = None, path: Interpolant | None = None, base: Target | None = None,
    to: style.To | None = None,
) -> Figure:  # fmt: skip
    """A velocity field: arrows at some times in the plane, or colours over (t, x) on the line.

    The arrows of all panels have one scale; with a target whose spread varies more than fourfold
    they and x are divided by it. On the line there are the streamlines of dx/dt = v as well.

    Example:
        plot.velocity(target.velocity(path), target=target, path=path, to="velocity.png")

    Args:
        model: model(t, x) -> tensor of x's shape, velocities; t 0-d, x (n, dim) float32.
        dim: 2 or 1.
        times: of the panels; on the line, the first and the last time.
        extent: x reaches from minus this to this; with a target, as far as its law does.
        target: the law of the data, to draw the density below, in the plane; with it its path.
        path: the path.
        base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: another dim, no times, an extent that is not positive, or a velocity that is not
            finite.
        FieldError: a model that does not return a tensor like x.
    """
    if dim not in (1, 2):
        raise OptionError(f"dim={dim!r}. Give 1 or 2: more cannot be drawn.")
    t = panel_times(times)
    if len(t) < 3 - dim:
        raise OptionError(f"times={times!r} do not fit. Give the first and the last time.")
    if not 0 < extent < np.inf:
        raise OptionError(f"extent={extent!r}. Give a positive number.")
    check_pair(target, path, dim)
    if dim == 1:
        ends = float(t[0]), float(t[-1])
        if target is None or path is None:
            return style.finish(_over_time(model, *ends, -float(extent), float(extent)), to)
        reach = laws_of(target, path, base, t, scaled=False)
        return style.finish(_over_time(model, *ends, float(reach.low), float(reach.high)), to)
    laws = laws_of(target, path, base, t, None) if target is not None and path is not None else None
    return style.finish(_panels(model, t, float(extent), laws), to)


def _panels(
    model: Callable[[Tensor, Tensor], Tensor], t: Tensor, extent: float, laws: Laws | None
) -> Figure:
    """Arrows at some times; with laws their density below, all divided by a spread that varies."""
    scale = torch.ones_like(t) if laws is None else laws.scale
    low, high = torch.full((2,), -extent).double(), torch.full((2,), extent).double()
    if laws is not None:
        low, high = laws.low, laws.high
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    width = 10.0 / max(len(t), 3)
    size = (width * len(t), width * (top - bottom) / (right - left) + 0.32)
    figure, axes = style.figure(1, len(t), size, sharey=True)
    xs, ys = (torch.linspace(a, b, _ARROWS + 2)[1:-1] for a, b in zip(low, high, strict=True))
    x, y = torch.meshgrid(xs, ys, indexing="xy")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    fields = torch.stack(
        [_finite(model, time, points * s) / s for time, s in zip(t, scale.float(), strict=True)]
    )
    there = torch.ones(len(t), len(points), dtype=torch.bool)
    if laws is not None:  # no arrows where no point ever is: the longest would be there
        log = torch.stack([laws.log_density(k, points.double()) for k in range(len(t))])
        there = log > log.amax(1, keepdim=True) - _DEPTH
    # The longest arrows, but for a few, reach a little beyond the next.
    longest = float(fields[there].norm(dim=-1).quantile(0.95))
    length = (longest or 1.0) / (1.2 * (right - left) / _ARROWS)
    for k, panel in enumerate(axes):
        if laws is not None:
            plane(panel, laws, k, pale=True)
        panel.quiver(
            *points[there[k]].T.numpy(), *fields[k][there[k]].T.numpy(), color=style.DATA,
            angles="xy", scale_units="xy", scale=length, width=0.005, minlength=0, zorder=2,
        )  # fmt: skip
        panel.set_aspect("equal")
        panel.set_xlim(left, right)
        panel.set_ylim(bottom, top)
        bare(panel)
        style.name_axes(panel, title=f"t = {float(t[k]):g}")
    if laws is not None and laws.scaled:
        axes[0].set_ylabel(laws.name, color=style.INK, fontsize=9)
    return style.fit(figure)


def _over_time(
    model: Callable[[Tensor, Tensor], Tensor], first: float, last: float, low: float, high: float
) -> Figure:
    t = torch.linspace(first, last, _COLUMNS, dtype=torch.float64)
    x = torch.linspace(low, high, _ROWS)
    field = torch.stack([_finite(model, time, x[:, None])[:, 0] for time in t], dim=1).numpy()
    figure, (axes,) = style.figure(size=(7.2, 3.9))
    top = float(np.quantile(np.abs(field), 0.99)) or 1.0
    even = np.linspace(low, high, _ROWS)  # streamplot asks for exactly even points
    image = axes.imshow(
        field, extent=(first, last, low, high), origin="lower", cmap=style.signed_colors(),
        vmin=-top, vmax=top, aspect="auto", interpolation="bilinear", interpolation_stage="data",
    )  # fmt: skip
    axes.streamplot(
        np.linspace(first, last, _COLUMNS), even, np.ones_like(field), field, color=style.INK,
        linewidth=0.6, density=(0.9, 0.7), arrowsize=0.7, broken_streamlines=False,
    )  # fmt: skip
    axes.set_xlim(first, last)
    axes.set_ylim(low, high)
    style.name_axes(axes, x="time t", y="x")
    style.scale_bar(figure, image, axes, "velocity, x per unit of time")
    return figure


def _finite(model: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor) -> Tensor:
    v = like(model(t, x), x, "the model").detach().float().cpu()
    if not v.isfinite().all():
        raise OptionError(
            f"the velocity is not finite at t = {float(t):g}. Give times strictly inside (0, 1)."
        )
    return v
