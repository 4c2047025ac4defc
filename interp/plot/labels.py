"""The name of each curve written beside it, where it is furthest from all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Array = NDArray[np.float64]

_GAP = 5.0  # pixels between a curve and its name
_FAR = 60.0  # further away than this is no better


def label_lines(
    axes: Axes, lines: Sequence[Line2D], names: Sequence[str], size: float = 10
) -> None:
    """Write each name beside its line, in its colour, clear of the other lines and names.

    Call it last: what the axes show and their limits decide the places.
    """
    import matplotlib.patheffects as effects

    figure: Any = axes.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    box = axes.get_window_extent(renderer)
    curves = [_visible(axes, line, box) for line in lines]
    taken: list[tuple[float, float, float, float]] = []
    for k, (line, name) in enumerate(zip(lines, names, strict=True)):
        text = axes.text(
            0, 0, name, transform=None, color=line.get_color(), fontsize=size, ha="center",
            va="center", path_effects=[effects.withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        w, h = extent.width / 2, extent.height / 2
        x, y = _place(curves, k, (w, h), taken, box)
        taken.append((x, y, w, h))
        text.set_transform(axes.transAxes)
        left, bottom = axes.transAxes.inverted().transform((x, y))
        text.set_position((float(left), float(bottom)))
        text.set_in_layout(False)


def _visible(axes: Axes, line: Line2D, box: Any) -> Array:
    """The points of a line in pixels that lie in the axes, close together: (m, 2)."""
    points = np.asarray(axes.transData.transform(line.get_xydata()), dtype=float)
    points = points[np.isfinite(points).all(1)]
    if len(points) > 1:  # a point every two pixels or so along the line
        length = np.r_[0.0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
        even = np.linspace(0, length[-1], min(2000, 2 + int(length[-1] / 2)))
        points = np.stack([np.interp(even, length, p) for p in points.T], axis=1)
    inside = (points > [box.x0, box.y0]).all(1) & (points < [box.x1, box.y1]).all(1)
    return points[inside]


def _place(
    curves: list[Array], k: int, half: tuple[float, float],
    taken: list[tuple[float, float, float, float]], box: Any,
) -> tuple[float, float]:  # fmt: skip
    """The centre of a box of half size ``half`` that touches nothing and is far from other curves."""
    w, h = half
    own = curves[k]
    others = np.concatenate([c for i, c in enumerate(curves) if i != k] or [np.empty((0, 2))])
    if not len(own):
        return box.x0 + w + _GAP, box.y1 - h - _GAP
    shifts = [(s * (w + _GAP), u * (h + _GAP)) for s in (-1, -0.5, 0, 0.5, 1) for u in (-1, 1)]
    shifts += [(s * (w + _GAP), 0.0) for s in (-1, 1)]
    spots = (own[:: max(1, len(own) // 80), None] + np.array(shifts)[None]).reshape(-1, 2)
    low, high = [box.x0 + w + 2, box.y0 + h + 2], [box.x1 - w - 2, box.y1 - h - 2]
    spots = spots[(spots >= low).all(1) & (spots <= high).all(1)]
    for x, y, tw, th in taken:
        apart = (abs(spots[:, 0] - x) > w + tw + 4) | (abs(spots[:, 1] - y) > h + th + 2)
        spots = spots[apart]
    if not len(spots):
        return box.x0 + w + _GAP, box.y1 - h - _GAP
    score = np.minimum(_distance(spots, others, half), _FAR)
    score -= 100.0 * (_distance(spots, own, half) < _GAP - 1.5)
    x, y = spots[score.argmax()]
    return float(x), float(y)


def _distance(spots: Array, points: Array, half: tuple[float, float]) -> Array:
    """From the box around each spot to the nearest point."""
    if not len(points):
        return np.full(len(spots), _FAR)
    away = np.abs(spots[:, None] - points[None]) - np.array(half)
    nearest: Array = np.hypot(*np.maximum(away, 0.0).transpose(2, 0, 1)).min(1)
    return nearest
