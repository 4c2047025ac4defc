"""Solutions over time, and over the density that they follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import OptionError
from . import style
from .marginals import COLUMNS, backdrop, bare, check_finite, laws_of, plane, sided

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..exact import Target
    from ..interpolant import Interpolant
    from ..solvers.result import Solution


def trajectories(
    solution: Solution, target: Target | None = None, path: Interpolant | None = None,
    base: Target | None = None, *, scaled: bool | None = None, to: style.To | None = None,
) -> Figure:  # fmt: skip
    """The rows of a solution in one dimension over (t, x), or in two over the plane.

    In the plane a line starts as a blue dot, ends as an orange one and changes its colour with t.

    Example:
        x = path.base.sample((60, 1), seed=0)
        times = torch.linspace(0, 1, 201)
        flow = interp.solve(path.ode(target.data(path), view="data"), x, save_at=times)
        plot.trajectories(flow, target, path, to="flow.png")

    Args:
        solution: what `interp.solve` returned, with ``save_at``; states (rows, 1) or (rows, 2).
        target: the law of the data, to draw the density below; with it its path.
        path: the path that the solution follows.
        base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
        scaled: divide x by the standard deviation of I_t; as in `density`.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: fewer than two times, NaN, states of three elements or more, a target without
            its path, or of other dimension than the states.
    """
    t, x = states(solution)
    check_pair(target, path, x.shape[2])
    if x.shape[2] == 1:
        figure = _over_time(t, x[..., 0], target, path, base, scaled)
    else:
        figure = _in_the_plane(t, x, target, path, base, scaled)
    return style.finish(figure, to)


def states(solution: Solution) -> tuple[Tensor, Tensor]:
    """The times (m,) and the states (m, rows, d), d 1 or 2, float64 on the host.

    Raises:
        OptionError: as in `trajectories`.
    """
    t, x = solution.ts.double().cpu(), solution.xs
    if len(t) < 2:
        raise OptionError(
            f"the solution was saved at {len(t)} times. Solve with save_at=torch.linspace(0, 1, 201)."
        )
    check_finite("the solution", x)
    x = x.detach().double().cpu().flatten(2) if x.ndim > 2 else x.detach().double().cpu()[..., None]
    if x.shape[2] > 2:
        raise OptionError(
            f"the states have shape {tuple(solution.xs.shape[2:])}. Give points of one or two "
            "elements, or draw images by plot.strip."
        )
    return t, x


def check_pair(target: Target | None, path: Interpolant | None, dim: int) -> None:
    """Refuse a target without its path, a path without its target, and another dimension."""
    if (target is None) != (path is None):
        missing = "path" if path is None else "target"
        raise OptionError(f"the {missing} is missing. Give target and path, or neither.")
    if target is not None and target.dim != dim:
        raise OptionError(
            f"the target has {target.dim} dimensions and the states {dim}. Give those of one run."
        )


def _over_time(
    t: Tensor, x: Tensor, target: Target | None, path: Interpolant | None, base: Target | None,
    scaled: bool | None,
) -> Figure:  # fmt: skip
    look: dict[str, Any] = {"color": style.DATA, "linewidth": 0.9, "alpha": 0.85, "zorder": 2}
    if target is None or path is None:
        figure, axes = style.figure(size=(7.2, 3.9))
        panel = axes[0]
        style.name_axes(panel, x="time t", y="x")
    else:
        laws = laws_of(target, path, base, COLUMNS, scaled)
        figure, axes = sided(laws)
        backdrop(figure, axes, laws, pale=True)
        panel = axes[1]
        at = laws_of(target, path, base, t, laws.scaled).scale if laws.scaled else t.new_ones(1)
        x = x / at[:, None]
    panel.plot(t.numpy(), x.numpy(), **look)
    return figure


def _in_the_plane(
    t: Tensor, x: Tensor, target: Target | None, path: Interpolant | None, base: Target | None,
    scaled: bool | None,
) -> Figure:  # fmt: skip
    from matplotlib.collections import LineCollection

    law = None
    if target is not None and path is not None:
        laws = laws_of(target, path, base, t, scaled)
        x = x / laws.scale[:, None, None]
        law = laws_of(target, path, base, t[-1:], laws.scaled)
    low, high = x.flatten(0, 1).amin(0), x.flatten(0, 1).amax(0)
    room = 0.06 * float((high - low).max()) or 1.0
    (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    figure, (axes,) = style.figure(size=(5.4, 5.4 * (top - bottom) / (right - left) + 0.32))
    if law is not None:
        plane(axes, law, 0, pale=True)
        axes.set_ylabel(law.name if law.scaled else "", color=style.INK, fontsize=9)
    middles = (t[1:] + t[:-1]) / 2
    rows = x.shape[1]
    pieces = torch.stack([x[:-1], x[1:]], dim=2)  # (m - 1, rows, 2, 2): all rows of a time together
    lines = LineCollection(
        list(pieces.flatten(0, 1).numpy()), cmap=style.time_colors(), linewidths=0.8, alpha=0.75,
        capstyle="round", zorder=2,
    )  # fmt: skip
    lines.set_array(middles.repeat_interleave(rows).numpy())
    lines.set_clim(*sorted((float(t[0]), float(t[-1]))))
    axes.add_collection(lines)
    for k, color in ((0, style.BASE), (-1, style.DATA)):
        axes.scatter(
            x[k, :, 0].numpy(),
            x[k, :, 1].numpy(),
            s=13,
            color=color,
            linewidths=0.4,
            edgecolors="white",
            zorder=3,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    bare(axes)
    axes.set_title(f"t = {float(t[0]):g}", loc="left", color=style.BASE, fontsize=10.5)
    axes.set_title(f"t = {float(t[-1]):g}", loc="right", color=style.DATA, fontsize=10.5)
    return style.fit(figure)
