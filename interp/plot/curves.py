"""Curves of one or several paths: their schedules with the derivatives, and log-SNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OptionError
from ..interpolant import Interpolant
from . import style
from .labels import label_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Paths = Interpolant | Sequence[Interpolant] | Mapping[str, Interpolant]

_SIGNS = {"alpha": "α", "beta": "β", "gamma": "γ", "sigma": "σ"}
_ROLES = {"alpha": "base", "beta": "data", "gamma": "latent", "sigma": "all noise"}
_LARGE = 10.0  # a panel that reaches further than this is drawn on a logarithmic scale
_ELEMENTS = 7  # lines of a path with a schedule for each element
_LONG = 48  # letters of a name: that of a table holds its numbers
_FAR = 20.0  # nats: all that is beyond is pure noise or pure data, and EDM runs to infinity


def schedules(
    paths: Paths, *, derivatives: bool = True, points: int = 401, to: style.To | None = None
) -> Figure:
    """Alpha, beta, gamma and sigma over time, with their derivatives below.

    One path has all its functions in one panel, several have a panel for each function. Gamma is
    left out where it is zero, and sigma where it is alpha.

    Example:
        plot.schedules([schedules.linear(), schedules.trigonometric()], to="schedules.png")

    Args:
        paths: a path, several, or a mapping of names to paths.
        derivatives: whether to draw the derivatives as well.
        points: times on [0, 1].
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: no paths, or something else than paths.
    """
    named = names_of(paths)
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    with torch.no_grad():
        tables = {name: path.coefficients(t) for name, path in named.items()}
    functions = _shown(list(named.values()))
    orders = ("", "d") if derivatives else ("",)
    if len(named) == 1:
        return _one(tables, t, functions, orders, all(map(_to_data, named.values())), to)
    rows, columns = len(orders), len(functions)
    size = (max(6.4, 3.1 * columns), 0.5 + 2.5 * rows)
    figure, axes = style.figure(rows, columns, size, sharex=True)
    handles: list[Line2D] = []
    ends = all(map(_to_data, named.values()))
    for r, order in enumerate(orders):
        for c, function in enumerate(functions):
            panel = axes[r * columns + c]
            curves = {
                name: getattr(tables[name], order + function)
                if path.gamma is not None or function != "gamma"
                else None
                for name, path in named.items()
            }
            lines = _draw(panel, t, curves)
            _scale(panel)
            handles = handles or lines
            sign = _SIGNS[function]
            title = f"d{sign}/dt" if order else f"{sign}(t), {_ROLES[function]}"
            style.name_axes(panel, title=title)
            style.time_axis(panel, named=r == rows - 1, ends=ends)
    style.header(figure, handles, list(named))
    return style.finish(figure, to)


def _one(
    tables: Mapping[str, object], t: Tensor, functions: list[str], orders: tuple[str, ...],
    ends: bool, to: style.To | None,
) -> Figure:  # fmt: skip
    """All functions of one path in one panel, their derivatives in a second."""
    (name, k), *_ = tables.items()
    figure, axes = style.figure(1, len(orders), (4.2 * len(orders) + 0.4, 3.3))
    for panel, order in zip(axes, orders, strict=True):
        mark = "′" if order else ""
        curves = {_SIGNS[f] + mark: getattr(k, order + f) for f in functions}
        lines = _draw(panel, t, curves)
        _scale(panel)
        style.name_axes(panel, title="derivatives, per unit of time" if order else name)
        style.time_axis(panel, ends=ends)
        label_lines(panel, lines, list(curves), size=12)
    return style.finish(figure, to)


def log_snr(paths: Paths, *, points: int = 401, to: style.To | None = None) -> Figure:
    """Log-SNR, 2 (log beta - log sigma) in nats, over time.

    Example:
        plot.log_snr([schedules.linear(), schedules.variance_preserving()], to="log_snr.png")

    Args:
        paths: a path, several, or a mapping of names to paths.
        points: times on [0, 1].
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: no paths, or something else than paths.
    """
    named = names_of(paths)
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    figure, (axes,) = style.figure(size=(6.4, 4.2))
    with torch.no_grad():
        curves = {name: path.log_snr(t) for name, path in named.items()}
    lines = _draw(axes, t, curves)
    low, high = limits(_drawn(axes))
    axes.set_ylim(max(low, -_FAR), min(high, _FAR))
    axes.axhline(0.0, color=style.HAIR, linewidth=0.8, zorder=0)
    style.name_axes(axes, y="log-SNR λ(t), nats")
    style.time_axis(axes, ends=all(map(_to_data, named.values())))
    label_lines(axes, lines, list(curves))
    return style.finish(figure, to)


def names_of(paths: Paths) -> dict[str, Interpolant]:
    """Each path by a name: its own, or with its options or a number where two have the same.

    Raises:
        OptionError: no paths, or something else than paths.
    """
    if isinstance(paths, Mapping):
        named = dict(paths)
    else:
        given = [paths] if isinstance(paths, Interpolant) else list(paths)
        short = [_name(path) for path in given]
        twice = {name for name in short if short.count(name) > 1}
        long = [
            repr(p) if n in twice and len(repr(p)) <= _LONG else n
            for p, n in zip(given, short, strict=True)
        ]
        named = {}
        for name, path in zip(long, given, strict=True):
            named[name if name not in named else f"{name} ({len(named) + 1})"] = path
    if not named:
        raise OptionError("there are no paths to draw. Give at least one.")
    for name, path in named.items():
        if not isinstance(path, Interpolant):
            raise OptionError(
                f"{name} is a {type(path).__name__}, not a path. Give an Interpolant, "
                "e.g. schedules.linear()."
            )
    return named


def _to_data(path: Interpolant) -> bool:
    """Whether a path runs from noise to data, as a reversed one does not."""
    return bool((path.log_snr(1.0) > path.log_snr(0.0)).all())


def _name(path: object) -> str:
    config = getattr(path, "config", None)
    return str(config["name"]).replace("_", " ") if config else type(path).__name__


def _shown(paths: list[Interpolant]) -> list[str]:
    """The functions worth a panel: gamma where there is one, sigma where it is not alpha."""
    latent = any(path.gamma is not None for path in paths)
    return ["alpha", "beta", *(("gamma", "sigma") if latent else ())]


def _draw(axes: Axes, t: Tensor, curves: Mapping[str, Tensor | None]) -> list[Line2D]:
    """The curves (None leaves one out) and the line of each that stands for it.

    Later ones are thinner, so that two that coincide are seen. A path with a schedule for each
    element has a line for some of them, evenly chosen.
    """
    chosen = []
    for k, values in enumerate(curves.values()):
        if values is None:
            continue
        columns = values.reshape(len(t), -1)
        some = torch.linspace(0, columns.shape[1] - 1, min(_ELEMENTS, columns.shape[1])).long()
        width = 2.3 - 0.8 * k / max(1, len(curves) - 1) if len(some) == 1 else 1.0
        look = style.line_style(k) | {"linewidth": width}
        lines = axes.plot(t.numpy(), columns[:, some].numpy(), **look)
        chosen.append(lines[len(lines) // 2])
    return chosen


def _scale(axes: Axes) -> None:
    """Limits for all lines; linear up to 1 and logarithmic from there where they reach far (EDM)."""
    curves = _drawn(axes)
    low, high = limits(curves)
    if max(-low, high) > _LARGE:
        low, high = style.compress(axes, limits([np.arcsinh(c) for c in curves]))
    axes.set_ylim(low, high)


def _drawn(axes: Axes) -> list[NDArray[np.float64]]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]


def limits(curves: Sequence[NDArray[np.float64]], margin: float = 0.05) -> tuple[float, float]:
    """The range of finite values, short of what only the outer 2 % of a curve reach for."""
    lows, highs = [], []
    for values in curves:
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        inner_low, inner_high = np.quantile(finite, [0.02, 0.98])
        reach = 0.4 * (inner_high - inner_low)
        lows.append(max(finite.min(), inner_low - reach))
        highs.append(min(finite.max(), inner_high + reach))
    if not lows:
        return 0.0, 1.0
    low, high = float(min(lows)), float(max(highs))
    room = margin * (high - low or 1.0)
    return low - room, high + room
