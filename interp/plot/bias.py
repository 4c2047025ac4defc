"""What stochastic samplers leave of a known standard deviation, a line of dots each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, UnknownName
from . import style
from .curves import limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..solvers.bias import BiasTable

_ROW, _AROUND = 0.22, 0.95  # inches: of a row, and of what is above and below all


def bias(
    table: BiasTable, names: Sequence[str] | None = None, *, to: style.To | None = None
) -> Figure:
    """The standard deviation that each sampler leaves, a dot for each number of steps.

    The line is the true one. A sampler that cannot run so many steps has no dot, and one that leaves
    more than is drawn, twice the true one at most, a cross at the edge.

    Example:
        plot.bias(interp.methods(bias=True, steps=(10, 50)), to="bias.png")

    Args:
        table: of `interp.methods` with ``bias=True``, for the steps, data and path that you have.
        names: the methods to draw; None draws all.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        UnknownName: a method that the table does not have.
        OptionError: no methods.
    """
    known = list(dict.fromkeys(row.name for row in table.rows))
    chosen = known if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise UnknownName.of("method with a bias", name, known)
    rows = [row for row in table.rows if row.name in chosen]
    if not rows:
        raise OptionError("there are no methods to draw. Give at least one, or leave names out.")
    figure, (axes,) = style.figure(size=(6.4, _AROUND + _ROW * len(rows)))
    axes.axvline(table.std, color=style.INK, linewidth=1.0, zorder=1)
    stds = np.array([row.stds for row in rows])
    low, high = limits([np.append(column, table.std) for column in stds.T])
    low, high = max(low, -0.05 * table.std), min(high, 2.05 * table.std or high)
    places = np.arange(len(rows))
    colors = style.time_colors()(np.linspace(0.0, 1.0, max(2, len(table.steps))))
    handles = []
    axes.hlines(places, low, high, color=style.HAIR, linewidth=0.7, zorder=0)
    for column, color in zip(stds.T, colors, strict=False):
        inside = (column >= low) & (column <= high)
        look: dict[str, Any] = {"color": [color], "zorder": 3, "clip_on": False}
        handles.append(axes.scatter(column[inside], places[inside], s=26, linewidths=0, **look))
        beyond = ~inside & ~np.isnan(column)
        axes.scatter(np.clip(column, low, high)[beyond], places[beyond], s=30, marker="x", **look)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(places, [f"{row.name}, {row.noise}" for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.spines["left"].set_visible(False)
    law = f"N({table.mean:g}, {table.std**2:g})"
    style.name_axes(axes, x=f"standard deviation left on {law}; the line: {table.std:g}")
    style.header(figure, handles, [f"{n} steps" for n in table.steps], [style.INK] * len(handles))
    return style.finish(figure, to)
