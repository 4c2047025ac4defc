"""How every picture looks, and how it is written. No pyplot, and no setting of the user's touched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, UnknownName
from ..files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

To = str | Path | io.BytesIO
"""Where a picture goes: a path that ends in .png, .svg or .pdf, or an open binary file (PNG)."""

INK, GREY, HAIR, PALE = "#22303f", "#6b7785", "#e3e7ec", "#b9cfe4"

#: Lines, in order. Told apart with any colour vision: Okabe, Ito, "Color Universal Design" (2008),
#: its yellow, too pale for a line on white, left out.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))

#: What belongs to the base (t = 0) and what to the data (t = 1), in every picture.
BASE, DATA = PALETTE[0], PALETTE[1]

FORMATS = ("png", "svg", "pdf")
DPI = 150
_MARGIN = 0.05  # inches


def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of its own, in inches, and its axes row by row; no pyplot knows of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    grid = made.subplots(rows, columns, squeeze=False, **options)
    axes = [dress(a) for a in grid.flat]
    return made, axes


def dress(axes: Axes) -> Axes:
    """Thin spines on two sides, small grey ticks, ink for what is read."""
    axes.set_facecolor("white")
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=GREY, linewidth=0.7)
    axes.tick_params(which="both", color=GREY, labelcolor=GREY, labelsize=9, width=0.7, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(visible=False)
    axes.set_axisbelow(True)
    return axes


def name_axes(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """The names of both axes and, on the left above them, of the whole."""
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=7)


def time_axis(axes: Axes, named: bool = True, ends: bool = True) -> None:
    """[0, 1] along x, said at its ``ends`` to run from base to data."""
    axes.set_xlim(-0.01, 1.01)
    first, last = ("0\nbase", "1\ndata") if ends else ("0", "1")
    marks = (first, "0.25", "0.5", "0.75", last) if named else ("",) * 5
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], marks)
    if named:
        axes.set_xlabel("time t", color=INK, fontsize=10, labelpad=-8 if ends else None)


def compress(axes: Axes, limits: tuple[float, float]) -> tuple[float, float]:
    """Let y be linear up to 1 and logarithmic from there; ``limits`` are of arcsinh y."""
    low, high = (float(np.sinh(v)) for v in limits)
    axes.set_yscale("asinh", linear_width=1.0)
    powers = [10.0**k for k in range(int(np.log10(max(-low, high))) + 1)]
    step = 1 + len(powers) // 5  # numbers that do not touch
    marks = [-p for p in reversed(powers[::step])] + [0.0] + powers[::step]
    axes.set_yticks([m for m in marks if low <= m <= high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return low, high


def line_style(k: int) -> dict[str, Any]:
    """Colour and dashes of the k-th line: the colours first, then dashes of the same."""
    turn = k // len(PALETTE)
    return {"color": PALETTE[k % len(PALETTE)], "linestyle": DASHES[turn % len(DASHES)]}


def header(
    figure: Figure,
    handles: Sequence[Any],
    names: Sequence[str],
    colors: Sequence[str] | None = None,
) -> None:
    """What the colours mean, above all panels, each name in its colour."""
    entries = [0.62 + 0.085 * len(name) for name in names]  # inches, at this size of letters
    width = figure.get_figwidth()
    one_line = sum(entries) < width
    columns = len(names) if one_line else max(1, int(width / max(entries)))
    figure.legend(
        handles, names, loc="outside upper left", ncols=columns, frameon=False,
        labelcolor=colors or "linecolor", fontsize=10, handlelength=1.6, columnspacing=1.8, borderaxespad=0.2,
    )  # fmt: skip


_BLUES = ("#ffffff", "#dbe7f2", "#9cc1de", "#4a8fc2", "#17568d", "#0b2f57")


def fit(figure: Figure) -> Figure:
    """Cut what is blank above and below panels whose aspect is fixed."""
    figure.draw_without_rendering()
    canvas: Any = figure.canvas
    box = figure.get_tightbbox(canvas.get_renderer())
    figure.set_size_inches(figure.get_figwidth(), box.height + 2 * _MARGIN)
    return figure


def density_colors(pale: bool = False) -> Colormap:
    """White to ink through blue, the darker the denser; ``pale`` where something is drawn on it."""
    return _ramp("interp_density", _BLUES[:4] if pale else _BLUES)


def signed_colors() -> Colormap:
    """Blue below zero, white at it, vermillion above."""
    return _ramp("interp_signed", ("#0b4f86", "#5b9fd0", "#ffffff", "#ef9a5b", "#b34700"))


def time_colors() -> Colormap:
    """From the base's colour to the data's, through grey."""
    return _ramp("interp_time", (BASE, "#8f8a86", DATA))


def _ramp(name: str, colors: tuple[str, ...]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(name, colors)


def scale_bar(figure: Figure, image: Any, axes: Axes | list[Axes], name: str) -> None:
    """A thin bar beside ``axes`` that says what the colours of ``image`` are worth."""
    bar = figure.colorbar(image, ax=axes, aspect=45, pad=0.015, fraction=0.02)
    bar.ax.spines["outline"].set_visible(False)
    bar.ax.tick_params(color=GREY, labelcolor=GREY, labelsize=8, width=0.6, length=2)
    bar.set_label(name, color=INK, fontsize=9)


def finish(figure: Figure, to: To | None, colours: int | None = None) -> Figure:
    """Write the figure where ``to`` says, whole or not at all, and return it.

    Args:
        figure: what to write.
        to: a path or a buffer; None writes nothing.
        colours: how many a PNG may have, at most 256: with few it takes half the bytes.

    Raises:
        UnknownName: a path with another suffix than .png, .svg or .pdf.
        OptionError: a folder that is not there.
    """
    if to is None:
        return figure
    kind = "png" if isinstance(to, io.BytesIO) else suffix(to, FORMATS)
    content = io.BytesIO()
    figure.savefig(content, format=kind, facecolor="white")
    if colours is not None and kind == "png":
        content = _with_few(colours, content)
    write(to, content.getvalue())
    return figure


def _with_few(colours: int, png: io.BytesIO) -> io.BytesIO:
    from PIL import Image

    small = io.BytesIO()
    with Image.open(png) as image:
        image.convert("RGB").quantize(colours).save(small, format="PNG", optimize=True)
    return small


def suffix(to: str | Path, known: tuple[str, ...]) -> str:
    """The suffix of a path, without its dot.

    Raises:
        UnknownName: one that is not ``known``.
    """
    found = Path(to).suffix.lower().lstrip(".")
    if found not in known:
        ends = " or ".join(f".{name}" for name in known)
        raise UnknownName(f"{Path(to).name!r} does not say what to write. End it in {ends}.")
    return found


def write(to: To, content: bytes) -> None:
    """Put ``content`` where ``to`` says; a file is there whole or not at all."""
    if isinstance(to, io.BytesIO):
        to.write(content)
        return
    path = Path(to)
    check_folder(path)
    write_bytes(path, content)


def check_folder(path: Path) -> None:
    """Refuse a path whose folder is not there, with an `OptionError`."""
    if not path.parent.is_dir():
        raise OptionError(f"there is no folder {path.parent} for {path.name}. Make it first.")


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure as (height, width, 3) bytes."""
    canvas: Any = figure.canvas
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.array(drawn, dtype=np.uint8)
