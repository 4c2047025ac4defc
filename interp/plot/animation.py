"""A solution as a film: particles over the density that carries them, images out of noise."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..errors import OptionError
from . import style
from .images import Pixels, images_of, is_images, shown_images, tiled
from .marginals import COLUMNS, backdrop, bare, laws_of, sided
from .runs import check_pair, states

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ..exact import Target
    from ..interpolant import Interpolant
    from ..solvers.result import Solution

_HOLD = 1.0  # seconds that the last frame stays before the film begins again
_COLORS = 64  # of one palette for all frames: small files, and no flicker
_DPI = 100


def animate(
    solution: Solution, target: Target | None = None, path: Interpolant | None = None,
    base: Target | None = None, *, seconds: float = 4.0, to: style.To | None = None,
) -> list[Image]:  # fmt: skip
    """A solution as a film with a frame for each saved time.

    Points of the plane move over the density of I_t; on the line, curves grow over (t, x); images
    come out of noise.

    Example:
        x = path.base.sample((400, 2), seed=0)
        times = torch.linspace(0, 1, 31)
        flow = interp.solve(path.ode(target.data(path), view="data"), x, save_at=times)
        plot.animate(flow, target, path, to="flow.gif")

    Args:
        solution: what `interp.solve` returned, with ``save_at``; states (rows, 1), (rows, 2) or
            images (rows, 1 or 3, h, w).
        target: the law of the data, to draw the density below; with it its path.
        path: the path that the solution follows.
        base: the law of x0; None is N(0, 1), for a path with a Gaussian base.
        seconds: how long it runs; the last frame stays for one more.
        to: a path that ends in .gif, or a BytesIO, to write to.

    Returns:
        The frames, as PIL images.

    Raises:
        OptionError: as in `trajectories` and `strip`, or a length that is not positive.
        UnknownName: a path with another suffix than .gif.
    """
    if not 0 < seconds < 3600:
        raise OptionError(f"seconds={seconds!r}. Give a positive number.")
    if to is not None and not isinstance(to, io.BytesIO):
        style.suffix(to, ("gif",))
    if solution.xs.ndim == 5 and is_images(solution.xs[0]):
        frames = list(_images(solution))
    else:
        t, x = states(solution)
        check_pair(target, path, x.shape[2])
        draw = _on_the_line if x.shape[2] == 1 else _in_the_plane
        frames = list(draw(t, x, target, path, base))
    film = _one_palette(frames)
    if to is not None:
        content = io.BytesIO()
        each = max(20, round(1000 * seconds / len(film)))
        film[0].save(
            content, format="GIF", save_all=True, append_images=film[1:], loop=0, optimize=True,
            duration=[each] * (len(film) - 1) + [each + round(1000 * _HOLD)],
        )  # fmt: skip
        style.write(to, content.getvalue())
    return film


def _bytes(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def _one_palette(frames: list[Pixels]) -> list[Image]:
    """The frames in the nearest of one set of colours, in which the page and the dots keep theirs."""
    from PIL import Image

    few = frames[:: max(1, len(frames) // 6)] + frames[-1:]
    own = np.array([(255, 255, 255), *map(_bytes, (style.DATA, style.BASE, style.INK, style.GREY))])
    mixed = Image.fromarray(np.concatenate(few)).quantize(_COLORS - len(own))
    palette = np.concatenate([own, np.array(mixed.getpalette() or [], dtype=int).reshape(-1, 3)])
    place = np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    numbers = [frame.astype(np.int32) @ place for frame in frames]
    seen = np.zeros(1 << 24, dtype=bool)
    for number in numbers:
        seen[number] = True
    found = np.flatnonzero(seen)
    parts = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    nearest = np.zeros(1 << 24, dtype=np.uint8)
    for rows in np.array_split(np.arange(len(found)), 1 + len(found) // 10_000):
        away = ((parts[rows, None] - palette) ** 2).sum(2)
        nearest[found[rows]] = away.argmin(1)
    pictures = [Image.fromarray(nearest[number]) for number in numbers]
    for picture in pictures:
        picture.putpalette(palette.flatten().tolist())
    return pictures


def _in_the_plane(
    t: Tensor, x: Tensor, target: Target | None, path: Interpolant | None, base: Target | None
) -> Iterator[Pixels]:
    """Points, with the density of each time below; both divided by the spread where it varies."""
    laws = None
    if target is not None and path is not None:
        laws = laws_of(target, path, base, t, None)
        x = x / laws.scale[:, None, None]
        low, high = laws.low, laws.high
    else:
        low, high = x.flatten(0, 1).amin(0), x.flatten(0, 1).amax(0)
    shape = float((high - low)[1] / (high - low)[0])
    figure, (axes,) = style.figure(size=(4.0, 4.0 * shape + 0.35))
    axes.set_xlim(float(low[0]), float(high[0]))
    axes.set_ylim(float(low[1]), float(high[1]))
    axes.set_aspect("equal")
    bare(axes)
    image = None
    if laws is not None:
        extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        image = axes.imshow(
            laws.image(0, 120).numpy(), extent=extent, origin="lower", interpolation="bilinear",
            cmap=style.density_colors(pale=True), vmin=0.0, vmax=1.0, zorder=0,
        )  # fmt: skip
    points = axes.scatter(
        x[0, :, 0].numpy(),
        x[0, :, 1].numpy(),
        s=9,
        color=style.DATA,
        linewidths=0.3,
        edgecolors="white",
        zorder=2,
    )
    title = axes.set_title("t = 0.00", loc="left", color=style.INK, fontsize=10.5)
    for k, time in enumerate(t.tolist()):
        points.set_offsets(x[k].numpy())
        title.set_text(f"t = {time:.2f}")
        if image is not None and laws is not None:
            image.set_data(laws.image(k, 120).numpy())
        yield _frame(figure)


def _on_the_line(
    t: Tensor, x: Tensor, target: Target | None, path: Interpolant | None, base: Target | None
) -> Iterator[Pixels]:
    """Curves that grow over (t, x), each with a point at its head."""
    if target is not None and path is not None:
        laws = laws_of(target, path, base, COLUMNS, None)
        figure, axes = sided(laws)
        backdrop(figure, axes, laws, bar=False, pale=True)
        panel = axes[1]
        if laws.scaled:
            x = x / laws_of(target, path, base, t, True).scale[:, None, None]
    else:
        figure, (panel,) = style.figure(size=(7.2, 3.9))
        style.name_axes(panel, x="time t", y="x")
        panel.set_ylim(float(x.min()), float(x.max()))
        panel.set_xlim(float(t.min()), float(t.max()))
    figure.set_size_inches(6.4, 3.2)
    curves, values = x[..., 0].numpy(), t.numpy()
    lines = panel.plot(values[:1], curves[:1], color=style.DATA, linewidth=0.9, alpha=0.85)
    heads = panel.scatter(
        values[:1].repeat(curves.shape[1]), curves[0], s=10, color=style.DATA, linewidths=0.3,
        edgecolors="white", zorder=3, clip_on=False,
    )  # fmt: skip
    for k in range(len(t)):
        for r, line in enumerate(lines):
            line.set_data(values[: k + 1], curves[: k + 1, r])
        heads.set_offsets(np.stack([np.full(curves.shape[1], values[k]), curves[k]], axis=1))
        yield _frame(figure)


def _images(solution: Solution) -> Iterator[Pixels]:
    """The samples side by side, with a bar below that says how far t is."""
    t, x = images_of(solution)
    first, last = float(t[0]), float(t[-1])
    for time, state in zip(t.tolist(), x, strict=True):
        tiles = tiled(shown_images(state), size=360)
        bar = np.full((10, tiles.shape[1], 3), 255, dtype=np.uint8)
        done = round((time - first) / (last - first) * (tiles.shape[1] - 8))
        bar[3:7, 4:-4] = (227, 231, 236)
        bar[3:7, 4 : 4 + done] = (0, 114, 178)
        yield np.concatenate([tiles, bar])


def _frame(figure: Figure) -> Pixels:
    figure.set_dpi(_DPI)
    return style.pixels(figure)
