"""A schedule as a picture: how far each step goes, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..plot import style
from ..plot.labels import label_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import BestSchedule


def picture(best: BestSchedule, to: style.To | None) -> Figure:
    """Log-SNR at each step of the run, before and after the search."""
    figure, (axes,) = style.figure(size=(6.4, 4.2))
    lines = []
    runs = {"before": best.before, "after": (best.grid, best.path)}
    for k, (grid, path) in enumerate(runs.values()):
        if path is None:
            continue
        with torch.no_grad():
            lam = path.log_snr(torch.tensor(grid, dtype=torch.float64))
        lam[lam.isinf()] = torch.nan  # pure noise and clean data are no points of this picture
        look = style.line_style(k)
        lines += axes.plot(range(len(grid)), lam.numpy(), marker="o", markersize=4, **look)
    title = f"{best.optimised} for {best.solver}, by {best.objective.replace('_', ' ')}"
    style.name_axes(axes, x="step", y="log-SNR, nats", title=title)
    label_lines(axes, lines, list(runs))
    return style.finish(figure, to)
