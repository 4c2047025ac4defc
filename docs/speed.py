"""Write docs/speed.md and docs/speed.png: what interp costs beside its peers, by the results of benchmarks/.

python docs/speed.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.plot import style

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
HEAD = """# What it costs

Made by `python docs/speed.py` from the files in `benchmarks/results`, each of which carries its command,
versions, machine and date. All engines of a line took turns in one run; the figures are medians.
"""
Overheads = dict[str, float]
"""Time beyond the network over time in the network, by engine."""


def result(name: str) -> dict[str, Any]:
    """The file of one benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def where(found: Mapping[str, Any]) -> str:
    """The command of a result, its machine and its day."""
    machine = found["machine"]
    return f"`{found['command']}`, {machine['processor']}, {machine['cores']} cores, {found['date'][:10]}"


def training() -> dict[str, Overheads]:
    """A training step on one thread, without and with exact transport."""
    rows = {r["engine"]: r["overhead"] for r in result("core")["rows"]["1"]}
    plain = {n: v for n, v in rows.items() if "OT" not in n and n != "fixed"}
    coupled = {n.replace(", exact OT", ""): v for n, v in rows.items() if "OT" in n}
    return {"training step": _by_hand(plain, "plain"), "training step, exact OT": coupled}


def solving() -> dict[str, Overheads]:
    """dopri5 on an MLP, by size of the state."""
    engines = ("interp", "torchdiffeq", "loop", "diffrax")
    return {
        f"dopri5, {row['size']}": _by_hand(
            {n: row[n]["overhead"] for n in engines if n in row}, "loop"
        )
        for row in result("solvers")["rows"]
    }


def sampling() -> dict[str, Overheads]:
    """50 steps of a sampler."""
    return {
        f"{what.split()[1]}, {what.split()[0]}": _by_hand(
            {n: v["overhead"] for n, v in row.items()}, "loop"
        )
        for what, row in result("samplers_overhead")["rows"].items()
    }


def stochastic() -> dict[str, Overheads]:
    """100 steps of Euler and Maruyama."""
    found = {}
    for row in result("sde")["rows"]:
        field = row["interp"]["wall_ms"] - row["interp"]["wall_overhead_ms"]
        beyond = {n: v.get("wall_overhead_ms") for n, v in row.items() if isinstance(v, dict)}
        shares = {n: ms / field for n, ms in beyond.items() if ms is not None}
        found[f"Euler-Maruyama, {row['size']}"] = _by_hand(shares, "loop")
    return found


def _by_hand(shares: Overheads, name: str) -> Overheads:
    return {"by hand" if n == name else n: v for n, v in shares.items()}


def table(rows: Mapping[str, Overheads]) -> str:
    """One task a line, one engine a column, in percent of the network's own time."""
    engines = list(dict.fromkeys(n for row in rows.values() for n in row))
    lines = [
        "| beyond the network | " + " | ".join(engines) + " |",
        "|---" * (len(engines) + 1) + "|",
    ]
    for what, row in rows.items():
        cells = [f"{100 * row[n]:.1f} %" if n in row else "" for n in engines]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


NATIVE = ("native", "native_mlp784", "native_images")


def native() -> str:
    """Whole runs of compiled networks beside torch and diffrax."""
    lines = [
        "| network, batch, method | than torch eager | torch.compile | diffrax | time in the network |",
        "|---|---|---|---|---|",
    ]
    for r in (r for name in NATIVE for r in result(name)["rows"]):
        others = (r["times_compiled"], r["times_diffrax"])
        compiled, jax = ("" if times is None else f"{times:.2f} x" for times in others)
        lines.append(
            f"| {r['net']}, {r['batch']}, {r['method']} | {r['times_eager']:.2f} x | {compiled} | {jax} | "
            f"{100 * r['share']:.0f} % |"
        )
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD, "![Time beyond the network, of the network's own](speed.png)\n"]
    for title, text, *names in (
        ("A training step", table(training()), "core"),
        ("Adaptive solves", table(solving()), "solvers"),
        ("Samplers, 50 steps", table(sampling()), "samplers_overhead"),
        ("SDEs, 100 steps", table(stochastic()), "sde"),
        ("Compiled networks: how many times faster", native(), *NATIVE),
    ):
        sources = "\n".join(f"- {where(result(name))}" for name in names)
        parts.append(f"## {title}\n\n{text}\n\n{sources}\n")
    return "\n".join(parts)


SHOWN = (
    "training step", "dopri5, 256x64", "dopri5, 256x784", "dpm++2m, 256x784", "dpm++2m, 1x784",
    "Euler-Maruyama, 256x64",
)  # fmt: skip


def picture() -> None:
    """The overheads as points on one logarithmic axis, a task a row."""
    rows = {**training(), **solving(), **sampling(), **stochastic()}
    figure, (axes,) = style.figure(size=(7.2, 4.2))
    for i, what in enumerate(SHOWN):
        others = rows[what].items()
        peers = {n: v for n, v in others if n != "by hand" and not n.startswith("interp")}
        axes.plot([*peers.values()], [i] * len(peers), "|", color=style.GREY, ms=9, mew=1.6)
        for k, (name, share) in enumerate(sorted(peers.items(), key=lambda peer: peer[1])):
            # Above and below in turns, two deep where they are many: they may lie close.
            away = (7 if k % 4 < 2 or len(peers) < 4 else 16) * (1 if k % 2 == 0 else -1)
            axes.annotate(
                name, (share, i), (0, away), textcoords="offset points", ha="center",
                va="bottom" if away > 0 else "top", fontsize=7.5, color=style.GREY,
            )  # fmt: skip
        axes.plot(rows[what]["by hand"], i, "o", color=style.PALETTE[4], ms=5)
        axes.plot(rows[what]["interp"], i, "o", color=style.PALETTE[0], ms=8)
    axes.plot([], [], "o", color=style.PALETTE[0], ms=8, label="interp")
    axes.plot([], [], "o", color=style.PALETTE[4], ms=5, label="a loop by hand")
    axes.plot([], [], "|", color=style.GREY, ms=9, mew=1.6, label="a peer")
    figure.legend(
        frameon=False, fontsize=8.5, loc="outside upper right", ncols=3, labelcolor=style.INK
    )
    axes.set_xscale("log")
    axes.set_yticks(range(len(SHOWN)), SHOWN)
    axes.set_ylim(len(SHOWN) - 0.5, -0.7)
    ticks = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    axes.set_xticks(ticks, [f"{100 * v:g} %" for v in ticks])
    style.name_axes(axes, x="time beyond the network, of the network's own")
    style.finish(figure, HERE / "speed.png")


if __name__ == "__main__":
    (HERE / "speed.md").write_text(page())
    picture()
