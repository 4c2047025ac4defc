"""Two paths that were compared: their log-SNR, and the time of the one against that of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import InterpError, OptionError
from ..interpolant import Interpolant
from . import style
from .curves import names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..equivalence import PathReport

_FAR = 20.0  # beyond, all is pure noise or clean data


def equivalence(report: PathReport, *, to: style.To | None = None) -> Figure:
    """Log-SNR (the share of the data, without Gaussian bases) of both, and the time map.

    Example:
        report = interp.equivalence.compare(schedules.linear(), schedules.variance_preserving())
        plot.equivalence(report, to="compared.png")

    Args:
        report: of `interp.equivalence.compare`.
        to: a path that ends in .png, .svg or .pdf, or a BytesIO, to write to.

    Raises:
        OptionError: two families of which neither has a path.
    """
    models = getattr(report, "models", (report.a, report.b))  # of families, or the paths themselves
    pair = [getattr(one, "path", one) for one in models]
    both = report.a, report.b
    if all(isinstance(one, Interpolant) for one in both):
        names = list(names_of(both))
    else:
        names = [getattr(one, "name", "") or repr(one) for one in both]
    drawn = [
        (path, name)
        for path, name in zip(pair, names, strict=True)
        if isinstance(path, Interpolant)
    ]
    if not drawn:
        raise OptionError(
            f"{' and '.join(names)} have no path, so there is nothing to draw. Print the report."
        )
    figure, (left, right) = style.figure(1, 2, (8.4, 3.8))
    t = torch.linspace(0, 1, 801, dtype=torch.float64)
    handles = []
    for i, (path, _) in enumerate(drawn):
        if path.gaussian_base:
            y = path.log_snr(t).clamp(-_FAR, _FAR)
        else:
            k = path.coefficients(t)
            y = torch.atan2(k.beta, k.sigma)
        (line,) = left.plot(t, y, linewidth=1.8, **style.line_style(i))
        handles.append(line)
    gaussian = all(path.gaussian_base for path, _ in drawn)
    style.name_axes(left, title="log-SNR" if gaussian else "angle of data to the rest, radians")
    style.time_axis(left, ends=not drawn[0][0].reversed)
    inside = []
    for s in t.tolist():
        try:
            inside.append((s, report.time_map(s).item()))
        except InterpError:
            continue
    if inside:
        right.plot(*zip(*inside, strict=True), color=style.INK, linewidth=1.8)
    verdict = "one model" if report.equivalent else f"not one: {report.max_error:.2g} rad apart"
    if len(drawn) < 2:
        verdict = f"not one: no path of {next(n for n in names if n != drawn[0][1])}"
    style.name_axes(right, x="time of the first", y="time of the second", title=verdict)
    right.set_xlim(-0.01, 1.01)
    right.set_ylim(-0.01, 1.01)
    style.header(figure, handles, [name for _, name in drawn])
    return style.finish(figure, to)
