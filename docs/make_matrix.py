"""The matrix of all pairs of families: docs/equivalences.md and docs/equivalences.png.

    python docs/make_matrix.py

Every family that is installed is compared with every other, and with its own perturbed twin, by
`interp.equivalence.compare`; a family that is added is in the matrix from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp import families
from interp.equivalence import RELATIONS, FamilyReport, compare
from interp.plot import style
from interp.testing import perturbed

HERE = Path(__file__).parent
SHORT = {
    "one": "one", "overlap": "ends", "map": "map", "maps": "maps", "space": "space",
    "pairs": "pairs", "curve": "curve", "base": "base",
    "none": "",
}  # fmt: skip
COLOURS = {
    "one": "#0072b2", "overlap": "#8fc1e3", "map": "#cc79a7", "maps": "#8f4f78", "space": "#dfe3e6",
    "pairs": "#e69f00", "curve": "#b9bec5",
    "base": "#d5b99a", "none": "#f1f3f5",
}  # fmt: skip

#: Families that become one under other options than their own: (a, its options, b, its options, why).
MADE_ONE: Sequence[tuple[str, dict[str, Any], str, dict[str, Any], str]] = (
    (
        "flow_matching", {"path": "trigonometric"}, "flow_matching", {},
        "sigma / beta = tan(pi (1 - t) / 2) and (1 - t) / t",
    ),
    (
        "flow_matching", {"path": "variance_preserving"}, "vp_sde", {},
        "velocity against noise of one path",
    ),
    (
        "edm", {"sigma_min": 0.01, "sigma_max": 50.0}, "ve_sde", {},
        "sigma falls as a power of t and as an exponential, from 50 to 0.01",
    ),
    (
        "flow_matching", {"path": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0}}, "edm", {},
        "velocity against a preconditioned denoiser of one path",
    ),
    (
        "ddpm", {"prediction": "v_prediction"}, "ddim", {},
        "v = beta n - sigma D against n",
    ),
    (
        "schroedinger_bridge", {"method": "dsbm"}, "schroedinger_bridge", {},
        "where the iterative fitting stops is the bridge of the entropic plan",
    ),
    (
        "flow_matching", {"variant": "sb_cfm"}, "schroedinger_bridge", {},
        "the flow of the same bridge, of which one learns the score too",
    ),
    (
        "latent_diffusion", {"prior": "rectified_flow"}, "latent_diffusion", {},
        "priors that are one, in the latents of one autoencoder",
    ),
)  # fmt: skip


def made(name: str, **options: Any) -> Any:
    """A family of two dimensions with a network as small as it can be."""
    known = families.options(families.load(name)) or ()
    small = {"width": 8} if "width" in known else {}
    return families.create(name, (2,), **{**small, **options})


def compared(names: Sequence[str]) -> tuple[dict[tuple[str, str], FamilyReport], dict[str, Any]]:
    """The report of each pair (a at or before b), and of each family with its twin."""
    members = {name: made(name) for name in names}
    pairs, twins = {}, {}
    for i, a in enumerate(names):
        for b in names[i:]:
            pairs[a, b] = compare(members[a], members[b])
        twins[a] = compare(members[a], perturbed(members[a]))
    return pairs, twins


def ordered(names: Sequence[str]) -> list[str]:
    """Those of a path first, by what their bases and pairs are; so that blocks are seen."""
    members = {name: made(name) for name in names}

    def key(name: str) -> tuple[bool, bool, bool, str, bool, str]:
        alike = compare(members[name], members["flow_matching"])
        exact = alike.models[0]
        if exact is None:
            return True, False, False, "", False, name
        paired = "" if exact.pairs == "independent" else exact.pairs
        other, base = exact.space != "data", not exact.path.gaussian_base
        return False, other, base, paired, alike.relation == "map", name

    return sorted(names, key=key)


# The picture


def draw(names: Sequence[str], pairs: Any, twins: Any, to: Path) -> None:
    """Above the diagonal how they are related and the angle; below it the losses' weights."""
    n = len(names)
    figure, (axes,) = style.figure(1, 1, (1.8 + 0.4 * (n + 1), 1.9 + 0.3 * n))
    axes.set_xlim(-0.5, n + 0.7)
    axes.set_ylim(n - 0.5, -0.5)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            report = pairs[(a, b) if i <= j else (b, a)]
            _cell(axes, j, i, report, below=i > j)
        _cell(axes, n + 0.2, i, twins[a], below=False)
    axes.set_xticks([*range(n), n + 0.2], [*names, "its perturbed twin"], rotation=45, ha="left")
    axes.set_yticks(range(n), names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=7.5)
    axes.spines[:].set_visible(False)
    from matplotlib.patches import Patch

    used = {r.relation for r in (*pairs.values(), *twins.values())}
    handles = [Patch(color=COLOURS[r], label=RELATIONS[r]) for r in RELATIONS if r in used]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=7.5,
        title="above the diagonal: largest angle between the paths, radians; below: how far the weights "
        "of the losses differ, as a factor",
        title_fontsize=7.5,
    )  # fmt: skip
    style.finish(figure, to, colours=96)


def _cell(axes: Any, x: float, y: float, report: FamilyReport, below: bool) -> None:
    from matplotlib.patches import Rectangle

    colour = COLOURS[report.relation]
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=colour, linewidth=0))
    if report.relation in ("none", "space"):
        return
    if below:
        text = "" if math.isnan(report.loss_ratio) else f"×{short(report.loss_ratio)}"
    elif report.equivalent:
        text = "yes"
    else:
        text = angle(report.max_error)
    dark = report.relation in ("one", "maps")
    axes.text(
        x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else style.INK
    )


def short(value: float) -> str:
    """Two digits, or a power of ten."""
    if value < 1000:
        return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
    return f"1e{math.log10(value):.0f}"


def angle(value: float) -> str:
    """An angle as it is read: pi/2, one digit, or 0 where rounding is all there is."""
    if value < 1e-12:
        return "0"
    if math.isnan(value):
        return "?"
    return "π/2" if abs(value - math.pi / 2) < 1e-9 else f"{value:.1g}"


# The page

INTRO = """# Which families are one model

Made by `python docs/make_matrix.py`, from `interp.equivalence.compare` of every installed family with
every other, as `create(name, shape=(2,))` makes it; `interp compare ddpm vp_sde` prints one of them in
full. What is compared are families, not their training: the network is replaced by the exact view of a
target.

![The matrix of all pairs](equivalences.png)

Two families are **one** where a change of time t → s(t), of scale x → c(t) x and of view
(`Interpolant.convert`) makes the exact model of each that of the other, for every law of the data: where
the ratios alpha : beta : gamma run through one curve (with a Gaussian base, through one range of log-SNR),
noise and data are paired alike, in one space, and both networks are fields or both are maps to as many times.
It says no to what is merely close: what it allows is an angle of 1e-6. The last column of the picture is
each family against its twin: itself on a path that begins at t = 0.01, or with one of its numbers a
hundredth off.
"""


def page(names: Sequence[str], pairs: Any, twins: Any) -> str:
    """docs/equivalences.md."""
    path_families = [n for n in names if pairs[n, n].relation != "one" or _has_path(pairs[n, n])]
    others = [n for n in names if n not in path_families]
    lines = [
        INTRO,
        "| | |",
        "|---|---|",
        *(f"| {SHORT[r] or 'none'} | {said} |" for r, said in RELATIONS.items()),
        "",
        "## One",
        "",
        "| | and | angle | time of the first → of the second | scale there | apart: log densities, data "
        "estimates, one step, flow | weights of the losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for (a, b), report in pairs.items():
        if a != b and report.equivalent:
            lines.append(_row(a, b, report))
    for a, of_a, b, of_b, _why in MADE_ONE:
        report = compare(made(a, **of_a), made(b, **of_b))
        if not report.equivalent:
            raise SystemExit(f"{a} {of_a} and {b} {of_b} are not one:\n{report}")
        lines.append(_row(_named(a, of_a), _named(b, of_b), report))
    lines += [
        "",
        "## Not one, and why",
        "",
        "| | and | | angle | on what both have, apart | weights | because |",
        "|---|---|---|---|---|---|---|",
    ]
    for (a, b), report in pairs.items():
        if a != b and not report.equivalent and report.relation != "none":
            lines.append(
                f"| {a} | {b} | {SHORT[report.relation]} | {angle(report.max_error)} | {_apart(report)} | "
                f"{_weights(report)} | {_because(report)} |"
            )
    if others:
        lines += [
            "",
            "## No interpolant",
            "",
            "No time and no scale could carry these onto another family; each is one with itself alone.",
            "",
            "| | why |",
            "|---|---|",
            *(f"| {n} | {_own_reason(n)} |" for n in others),
        ]
    lines += [
        "",
        "## Perturbed twins",
        "",
        "| | refused at an angle of | because |",
        "|---|---|---|",
        *(
            f"| {n} | {'–' if r.relation == 'none' else angle(r.max_error)} | {_because(r)} |"
            for n, r in twins.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _has_path(report: FamilyReport) -> bool:
    return report.models[0] is not None


def _own_reason(name: str) -> str:
    reason = compare(made(name), made("flow_matching")).reason
    return _plain(reason.removeprefix(f"{name} is no interpolant: "))


def _named(name: str, options: dict[str, Any]) -> str:
    shown = ", ".join(f"{k}={v['name'] if isinstance(v, dict) else v}" for k, v in options.items())
    return f"{name}({shown})" if shown else name


def _row(a: str, b: str, report: FamilyReport) -> str:
    if report._change is None:
        return f"| {a} | {b} | | | | | |"
    times = [0.25, 0.5, 0.75]
    there = ", ".join(f"{t:g} → {report.time_map(t).item():.4g}" for t in times)
    scale = ", ".join(f"{report.scale_map(t).item():.4g}" for t in times)
    off = f"{report.max_error:.0e}"
    return f"| {a} | {b} | {off} | {there} | {scale} | {_apart(report)} | {_weights(report)} |"


def _apart(report: FamilyReport) -> str:
    if report.relation == "pairs" and not math.isnan(report.pairs_apart):
        return f"velocities {report.pairs_apart:.2g}"
    if report.relation == "maps" and not math.isnan(report.maps_apart):
        return f"maps {report.maps_apart:.0e}"
    found = [v for v in report.apart if not math.isnan(v)]
    return ", ".join(f"{v:.0e}" if v else "0" for v in found) if found else "–"


def _weights(report: FamilyReport) -> str:
    if math.isnan(report.loss_ratio):
        return "–"
    return "one loss" if report.loss_ratio < 1.01 else f"×{short(report.loss_ratio)}"


def _because(report: FamilyReport) -> str:
    """The reason, without what the kind of relation says already."""
    return _plain(report.reason.split(" Where both have it they are one;")[0])


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Compare, draw and write."""
    torch.set_num_threads(1)
    names = ordered(families.available())
    pairs, twins = compared(names)
    bad = [n for n in names if not pairs[n, n].equivalent or twins[n].equivalent]
    if bad:
        raise SystemExit(f"not one with itself, or one with its twin: {', '.join(bad)}")
    draw(names, pairs, twins, HERE / "equivalences.png")
    (HERE / "equivalences.md").write_text(page(names, pairs, twins), encoding="utf-8")
    print(f"{len(names)} families, {len(pairs)} pairs: docs/equivalences.md, docs/equivalences.png")


if __name__ == "__main__":
    main()
