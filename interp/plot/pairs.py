"""Who is paired with whom: a line from each base point to its data point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import require_same
from ..errors import OptionError
from . import style
from .marginals import bare, check_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[Tensor, Tensor]


def coupling(pairs: Pair | Mapping[str, Pair], *, to: style.To | None = None) -> Figure:
    """Lines from base points to the data points that they are paired with, a panel for each coupling.

    Above each panel, the mean of |x1 - x0|^2.

    Example:
        ot = interp.couplings.optimal_transport()
        plot.coupling({"independent": (x0, x1), "optimal transport": ot(x0, x1)}, to="pairs.png")

    Args:
        pairs: (x0, x1), both (n, 2), or a mapping of names to such pairs.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: no pairs, points that do not match, are not in the plane, or are not finite.
    """
    from matplotlib.collections import LineCollection

    named = dict(pairs) if isinstance(pairs, Mapping) else {"": pairs}
    if not named:
        raise OptionError("there are no pairs to draw. Give (x0, x1).")
    for name, pair in named.items():
        _check(name, pair)
    everyone = torch.cat([p.detach().cpu().double() for pair in named.values() for p in pair])
    low, high = everyone.amin(0), everyone.amax(0)
    room = 0.05 * float((high - low).max()) or 1.0
    shape = float((high - low)[1] + 2 * room) / float((high - low)[0] + 2 * room)
    width = 3.7
    figure, axes = style.figure(1, len(named), (width * len(named), width * shape + 0.75))
    for (name, pair), panel in zip(named.items(), axes, strict=True):
        x0, x1 = (p.detach().cpu().double() for p in pair)
        lines = torch.stack([x0, x1], dim=1).numpy()
        panel.add_collection(
            LineCollection(list(lines), colors=style.GREY, linewidths=0.6, alpha=0.55, zorder=1)
        )
        for points, color in ((x0, style.BASE), (x1, style.DATA)):
            panel.scatter(
                points[:, 0].numpy(),
                points[:, 1].numpy(),
                s=14,
                color=color,
                linewidths=0.4,
                edgecolors="white",
                zorder=2,
            )
        panel.set_xlim(float(low[0]) - room, float(high[0]) + room)
        panel.set_ylim(float(low[1]) - room, float(high[1]) + room)
        panel.set_aspect("equal")
        bare(panel)
        cost = float((x1 - x0).square().sum(1).mean())
        style.name_axes(panel, title=f"{name}\nmean |x1 − x0|² = {cost:.3g}".strip())
    dots = list(axes[0].collections)[1:]
    style.header(figure, dots, ("x0, base", "x1, data"), (style.BASE, style.DATA))
    return style.finish(style.fit(figure), to)


def _check(name: str, pair: Pair) -> None:
    who = f"the pair {name!r}" if name else "the pair"
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise OptionError(f"{who} is a {type(pair).__name__}. Give two tensors (x0, x1).")
    x0, x1 = pair
    require_same(x0=x0, x1=x1)
    if x0.ndim != 2 or x0.shape[1] != 2:
        raise OptionError(
            f"{who} has points of shape {tuple(x0.shape)}. Give points of the plane, (n, 2)."
        )
    check_finite(f"{who}: x0", x0)
    check_finite(f"{who}: x1", x1)
