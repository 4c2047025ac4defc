"""The loss over the steps of a run, and over the time of the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import whole
from ..errors import OptionError
from . import style
from .labels import label_lines
from .marginals import check_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = tuple[Tensor, Tensor]


Curve = Sequence[tuple[int, float]]


def loss_curve(losses: Curve | Mapping[str, Curve], to: style.To) -> None:
    """Write (step, loss) as a PNG: every step, pale under a running mean where there are many.

    Args:
        losses: in the order of the steps; or a mapping of names to such curves, as an adversarial
            family has them, which need not have the same steps.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO.
    """
    named = dict(losses) if isinstance(losses, Mapping) else {"loss": losses}
    figure, (axes,) = style.figure()
    lines, windows = [], set()
    for k, curve in enumerate(named.values()):
        color = style.PALETTE[k % len(style.PALETTE)]
        steps, values = [float(s) for s, _ in curve], [v for _, v in curve]
        window = max(1, len(values) // 50)
        look: dict[str, Any] = {"color": color, "linewidth": 1.8}
        if window > 1:  # the mean is drawn so, and the steps pale under it
            pale = {"color": style.PALE} if len(named) == 1 else {"color": color, "alpha": 0.2}
            look = {**pale, "linewidth": 0.8}
        (line,) = axes.plot(steps, values, **look)
        if window > 1:
            mean = torch.tensor(values).unfold(0, window, 1).mean(1)
            middle = torch.tensor(steps).unfold(0, window, 1).mean(1)
            (line,) = axes.plot(middle, mean, color=color, linewidth=1.8)
            windows.add(window)
        lines.append(line)
    title = "loss at each step"
    if windows:
        title += f", and its mean over {' or '.join(map(str, sorted(windows)))}"
    everything = [v for curve in named.values() for _, v in curve]
    if everything and min(everything) > 0 and max(everything) / min(everything) > 5:
        axes.set_yscale("log")
    style.name_axes(axes, x="step", title=title)
    if len(named) > 1:
        label_lines(axes, lines, list(named))
    style.finish(figure, to)


def loss_by_time(
    losses: Rows | Mapping[str, Rows], *, bins: int = 20, log: bool = False,
    to: style.To | None = None,
) -> Figure:  # fmt: skip
    """The mean loss in bins of t, with bars of one standard error to both sides.

    Example:
        loss = interp.losses.Regression(path)
        t = torch.rand(len(x1), dtype=torch.float64)
        plot.loss_by_time((t, loss.rows(model, t, x0, x1)), to="loss_by_time.png")

    Args:
        losses: times (n,) and the loss of a row at each (n,); or a mapping of names to such pairs.
        bins: equal bins of [0, 1]; those without a row are left out, and a bin of one row has no bar.
        log: whether the loss is drawn on a logarithmic scale.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: nothing, shapes that do not agree, NaN, or times outside [0, 1].
    """
    named = dict(losses) if isinstance(losses, Mapping) else {"": losses}
    bins = whole("bins", bins, 1)
    if not named:
        raise OptionError("there are no losses to draw. Give (t, loss).")
    figure, (axes,) = style.figure(size=(6.4, 4.0))
    lines = []
    for k, (name, rows) in enumerate(named.items()):
        t, mean, error = binned(name, rows, bins)
        look = style.line_style(k)
        drawn = axes.errorbar(
            t.numpy(), mean.numpy(), yerr=error.numpy(), marker="o", markersize=3.5, linewidth=1.4,
            elinewidth=1.1, capsize=0, **look,
        )  # fmt: skip
        lines.append(drawn.lines[0])
    if log:
        axes.set_yscale("log")
    style.name_axes(axes, title="loss, mean and standard error of each bin of t")
    style.time_axis(axes)
    if any(named):
        style.header(figure, lines, list(named))
    return style.finish(figure, to)


def binned(name: str, rows: Rows, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean time, mean loss and its standard error in each bin that has a row; float64.

    Raises:
        OptionError: as in `loss_by_time`.
    """
    who = f"the losses {name!r}" if name else "the losses"
    if not (isinstance(rows, (tuple, list)) and len(rows) == 2):
        raise OptionError(f"{who} are a {type(rows).__name__}. Give two tensors (t, loss).")
    t, loss = (torch.as_tensor(v).detach().double().cpu() for v in rows)
    if t.ndim != 1 or t.shape != loss.shape:
        raise OptionError(
            f"{who} have times of shape {tuple(t.shape)} and values of shape {tuple(loss.shape)}. "
            "Give one loss for each time."
        )
    check_finite(who, loss)
    check_finite(f"{who}: t", t)
    if t.min() < 0 or t.max() > 1:
        raise OptionError(
            f"{who} have times from {t.min():g} to {t.max():g}. Give times in [0, 1]."
        )
    k = (t * bins).long().clamp(max=bins - 1)
    count = torch.bincount(k, minlength=bins).double()
    mean = torch.bincount(k, loss, bins) / count
    spread = torch.bincount(k, (loss - mean[k]) ** 2, bins) / (count - 1).clamp(min=1)
    error = torch.where(count > 1, (spread / count).sqrt(), 0.0)
    there = count > 0
    return (torch.bincount(k, t, bins) / count)[there], mean[there], error[there]
