"""The law of I_t over time, from the closed forms of `interp.exact`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..exact import Mixture
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..exact import Target
    from ..interpolant import Interpolant

_DEPTH = 7.0  # nats below the densest point at which the picture is white
_REACH = {1: 3.2, 2: 2.6}  # standard deviations around each component that a picture shows
_SAMPLES = 4096  # of a law that is no mixture, to see how far it reaches
_VARIES = 4.0  # a spread that varies more than this over time is divided out
PANELS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = torch.linspace(0, 1, 241, dtype=torch.float64)


@dataclass(frozen=True)
class Laws:
    """The laws of I_t at some times, in one or two dimensions, and how to look at them.

    Attributes:
        t: (m,), increasing.
        laws: the law at each.
        scale: (m,), what x is divided by at each.
        low, high: (d,), the corner points of what is shown, in scaled x.
        spread: (m,), the standard deviations; where one is 0 the law is a point and has no density.
        ends: what the laws at t = 0 and t = 1 are called.
    """

    t: Tensor
    laws: list[Target]
    scale: Tensor
    low: Tensor
    high: Tensor
    spread: Tensor
    ends: tuple[str, str]

    @property
    def dim(self) -> int:
        return self.laws[0].dim

    @property
    def scaled(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def name(self) -> str:
        """Of the axis along which x is shown."""
        return "x / standard deviation of $I_t$" if self.scaled else "x"

    def grid(self, size: int) -> tuple[Tensor, ...]:
        """``size`` points along each dimension."""
        ends = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return tuple(torch.linspace(a, b, size, dtype=torch.float64) for a, b in ends)

    def log_density(self, k: int, points: Tensor) -> Tensor:
        """Of scaled x (n, d) at the k-th time: (n,), nats; NaN where the law is a point."""
        if self.spread[k] == 0:
            return torch.full_like(points[:, 0], torch.nan)
        scale = self.scale[k]
        return self.laws[k].log_prob(points * scale) + self.dim * scale.log()

    def table(self, size: int) -> Tensor:
        """Log density at ``size`` points and all times, one dimension: (size, m)."""
        points = self.grid(size)[0][:, None]
        return torch.stack([self.log_density(k, points) for k in range(len(self.t))], dim=1)

    def image(self, k: int, size: int) -> Tensor:
        """Density at the k-th time over its own maximum, two dimensions: (size, size), y by x."""
        xs, ys = self.grid(size)
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        log = self.log_density(k, torch.stack([x.flatten(), y.flatten()], dim=1))
        return (log - log.max()).exp().reshape(size, size)

    def point(self, k: int) -> Tensor | None:
        """Where all of the k-th law is, (d,), if that is one point."""
        return None if self.spread[k] else self.laws[k].sample(1, seed=0, dtype=torch.float64)[0]


@torch.no_grad()
def laws_of(
    target: Target, path: Interpolant, base: Target | None, t: Tensor, scaled: bool | None
) -> Laws:
    """The laws at times ``t``; x is divided by the spread of I_t where ``scaled`` is true, or None
    and the spread varies more than fourfold.

    Raises:
        OptionError: a target of three dimensions or more.
    """
    if target.dim > 2:
        raise OptionError(
            f"the target has {target.dim} dimensions. Give one of one or two, or look at samples by "
            "plot.grid and plot.strip."
        )
    laws = [target.marginal(path, time, base) for time in t]
    spread, low, high = (torch.stack(part) for part in zip(*map(_extent, laws), strict=True))
    wide = bool(spread.max() > _VARIES * spread.min() > 0)
    scale = spread if (wide if scaled is None else scaled) else torch.ones_like(spread)
    low, high = low / scale[:, None], high / scale[:, None]
    return Laws(t, laws, scale, low.amin(0), high.amax(0), spread, _names_of_ends(path))


def _names_of_ends(path: Interpolant) -> tuple[str, str]:
    """Base and data, where the path has these at its ends and nothing else."""
    at = path.boundary
    return "base" if at.starts_at_base else "t = 0", "data" if at.ends_clean else "t = 1"


def _extent(law: Target) -> tuple[Tensor, Tensor, Tensor]:
    """The standard deviation of a law, the mean over dimensions, and the corners of what to show.

    Of a mixture the box around all components, of another law that of many samples.
    """
    if not isinstance(law, Mixture):
        x = law.sample(_SAMPLES, seed=0, dtype=torch.float64)
        return x.var(0).mean().sqrt(), x.amin(0), x.amax(0)
    w, variances = law.weights[:, None], law.covs.diagonal(dim1=1, dim2=2)
    mean = (w * law.means).sum(0)
    spread = (w * (variances + (law.means - mean) ** 2)).sum(0).mean().sqrt()
    wide = _REACH[law.dim] * variances.sqrt()
    return spread, (law.means - wide).amin(0), (law.means + wide).amax(0)


def density(
    target: Target, path: Interpolant, base: Target | None = None, *,
    times: Sequence[float] = PANELS, scaled: bool | None = None, to: style.To | None = None,
) -> Figure:  # fmt: skip
    """The law of I_t: one dimension as log density over (t, x), two as a panel for each time.

    In one dimension the curves on both sides are the densities at t = 0 and t = 1. In two, each
    panel is the density over its own maximum.

    Example:
        target = interp.exact.Mixture([0.3, 0.7], [-2.0, 1.0], [0.1, 0.2])
        plot.density(target, schedules.trigonometric(), to="density.png")

    Args:
        target: the law of the data, of one or two dimensions.
        path: the path.
        base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
        times: of the panels in two dimensions.
        scaled: divide x by the standard deviation of I_t; None does so where that varies more than
            fourfold (VE, EDM).
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: a target of three dimensions or more, or no times.
        TimeError: times outside [0, 1].
    """
    if target.dim == 2:
        return style.finish(
            style.fit(_panels(laws_of(target, path, base, panel_times(times), scaled))), to
        )
    laws = laws_of(target, path, base, COLUMNS, scaled)
    figure, axes = sided(laws)
    backdrop(figure, axes, laws)
    return style.finish(figure, to)


def panel_times(times: Sequence[float]) -> Tensor:
    """Increasing times as a tensor, (m,) float64.

    Raises:
        OptionError: anything else.
    """
    t = torch.as_tensor(times, dtype=torch.float64)
    if t.ndim != 1 or len(t) == 0 or not (t.diff() > 0).all():
        raise OptionError(
            f"times={times!r} do not fit. Give increasing times, e.g. {list(PANELS)}."
        )
    return t


def sided(laws: Laws) -> tuple[Figure, list[Axes]]:
    """Three axes that share x: the density at t = 0, the picture over time, the one at t = 1."""
    figure, axes = style.figure(1, 3, (8.4, 3.7), sharey=True, width_ratios=(1, 7, 1))
    x = laws.grid(400)[0]
    for panel, k, color in ((axes[0], 0, style.BASE), (axes[2], -1, style.DATA)):
        point = laws.point(k)
        if point is None:
            height = laws.log_density(k, x[:, None]).exp()
            panel.fill_betweenx(x.numpy(), height.numpy(), color=color, alpha=0.18, linewidth=0)
            panel.plot(height.numpy(), x.numpy(), color=color, linewidth=1.5)
            panel.set_xlim(0, 1.06 * float(height.max()))
        else:
            panel.plot([0.05], point.numpy(), "o", color=color, markersize=5)
            panel.set_xlim(0, 1)
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.tick_params(left=False, bottom=False, labelbottom=False, labelleft=False)
    axes[0].invert_xaxis()
    style.name_axes(axes[0], y=laws.name)
    axes[0].tick_params(labelleft=True)
    axes[0].set_title(laws.ends[0], color=style.BASE, fontsize=10)
    axes[2].set_title(laws.ends[1], color=style.DATA, fontsize=10)
    axes[1].tick_params(labelleft=False, left=False)
    axes[1].set_ylim(float(laws.low[0]), float(laws.high[0]))
    style.time_axis(axes[1], ends=False)
    axes[1].set_xlim(0.0, 1.0)
    return figure, axes


def backdrop(
    figure: Figure, axes: list[Axes], laws: Laws, bar: bool = True, pale: bool = False
) -> None:
    """Log density over (t, x), the darker the denser, in the middle one of three axes."""
    table = laws.table(300)
    peaks = table.amax(0)  # at each time; the highest of them are those of a law close to a point
    top = float(peaks[peaks.isfinite()].quantile(0.97))
    image = axes[1].imshow(
        table.numpy(), extent=(0.0, 1.0, float(laws.low[0]), float(laws.high[0])), origin="lower",
        cmap=style.density_colors(pale), vmin=top - _DEPTH, vmax=top, aspect="auto",
        interpolation="bilinear", interpolation_stage="data", zorder=0,
    )  # fmt: skip
    if bar:
        style.scale_bar(figure, image, axes, "log density, nats")


def _panels(laws: Laws) -> Figure:
    m = len(laws.t)
    shape = float((laws.high - laws.low)[1] / (laws.high - laws.low)[0])
    width = 10.0 / max(m, 4)
    figure, axes = style.figure(1, m, (width * m, width * shape + 0.32), sharex=True, sharey=True)
    for k, panel in enumerate(axes):
        plane(panel, laws, k)
        style.name_axes(panel, title=f"t = {float(laws.t[k]):g}")
    if laws.scaled:
        axes[0].set_ylabel(laws.name, color=style.INK, fontsize=9)
    return figure


def plane(axes: Axes, laws: Laws, k: int, pale: bool = False) -> None:
    """The density at the k-th time over its own maximum, in two dimensions, on bare axes."""
    (left, bottom), (right, top) = laws.low.tolist(), laws.high.tolist()
    point = laws.point(k)
    if point is not None:
        axes.plot(*point[:, None].numpy(), "o", color=style.BASE, markersize=5)
    axes.imshow(
        np.zeros((1, 1)) if point is not None else laws.image(k, 240).numpy(),
        extent=(left, right, bottom, top), origin="lower", cmap=style.density_colors(pale), vmin=0.0,
        vmax=1.0, interpolation="bilinear", interpolation_stage="data", aspect="equal", zorder=0,
    )  # fmt: skip
    bare(axes)


def bare(axes: Axes) -> None:
    """A hairline frame and no ticks: the two coordinates of a point mean nothing by themselves."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.HAIR, linewidth=0.8)


def check_finite(name: str, values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """As numpy, on the host.

    Raises:
        OptionError: nothing in it, NaN or infinity.
    """
    if values.numel() == 0:
        raise OptionError(f"{name} has shape {tuple(values.shape)}. Give at least one.")
    array = values.detach().double().cpu().numpy()
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise OptionError(f"{name} holds {bad} numbers that are not finite. Leave those out.")
    return array
