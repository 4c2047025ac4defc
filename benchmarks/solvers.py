"""What an adaptive solve costs beyond its field, beside the peers; and how it grows, its memory, a profile.

    python benchmarks/solvers.py [overhead] [growth] [memory] [profile] [--repeats 15] [--sizes 1x2 ...]

overhead: (wall - field) / field, what a solver adds to the time spent in the model, a 3-layer MLP in
float32. Every engine integrates the same field at the same tolerances, by dopri5 and ours by tsit5 too;
engines take turns, and each figure is a median. `loop` is a plain torch loop of dopri5 on the steps that
our run took, without error control: what one would write by hand. The floor is the memory traffic of the
formulas, 40 N numbers a step, at the bandwidth measured beside it, in caches as the field leaves them;
`/ floor` is how many times that our dopri5 takes, and `/ hot` how many times the same in a loop that
does nothing else. It moves 52 N: each of the six results of the field is copied when it comes, so that
the field may use or free its memory as it likes; `moved` is at how many GB/s, of those measured.
diffrax is timed where it is installed, with the same network in JAX, the whole run compiled; its field
time is that of as many calls of the network in one compiled loop.

growth: nanoseconds an element and step beyond the field, from 1e3 to 1e7 elements, and the floor's.

memory: the growth of a fresh process during a solve, in states, the caller's x included; the field
writes into a buffer of its own. Goal: stages + 3.

profile: a solve's time in its field, in the native engine around it, and in Python before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import drift_in_jax
from report import interleaved, median, seconds, write
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

SIZES = ("1x2", "256x2", "256x64", "256x784", "4096x784")
SECTIONS = ("overhead", "growth", "memory", "profile")
GROWTH = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
MEASURED = ("euler", "heun", "rk4", "bosh3", "dopri5", "tsit5", "dop853")
TOLERANCE = 1e-5
SEED = 0
FORMULAS, MOVED = 40, 52  # numbers that a step of dopri5 reads and writes, for each of the state's


class MLP(torch.nn.Module):
    """Three layers on (x, t); the width is 64 for small states and 256 for images."""

    def __init__(self, features: int) -> None:
        super().__init__()
        width = 64 if features < 64 else 256
        self.net = torch.nn.Sequential(
            torch.nn.Linear(features + 1, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, features),
        )

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(len(x), 1)], dim=1))


class Timed:
    """A field that counts and times its own calls, the same for every engine."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.seconds, self.calls = field, 0.0, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        start = time.perf_counter()
        result = self.field(t, x)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result


def overhead(integrate: Callable[[Timed], object], field: MLP) -> dict[str, float]:
    """Wall, field time and calls of one run."""
    timed = Timed(field)
    with torch.no_grad():
        wall = seconds(lambda: integrate(timed))
    return {"wall_s": wall, "field_s": timed.seconds, "calls": timed.calls}


def by_interp(x: Tensor, method: str = "dopri5") -> Callable[[Timed], object]:
    return lambda field: interp.solve(field, x, method=method, rtol=TOLERANCE, atol=TOLERANCE)


def by_torchdiffeq(x: Tensor) -> Callable[[Timed], object]:
    from torchdiffeq import odeint

    ends = torch.tensor([0.0, 1.0])
    return lambda field: odeint(field, x, ends, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")


def by_loop(x: Tensor, field: MLP) -> Callable[[Timed], object]:
    """dopri5 by hand on the accepted steps of our own run."""
    times = [0.0]
    with torch.no_grad():
        interp.solve(field, x, rtol=TOLERANCE, atol=TOLERANCE, callback=lambda s: times.append(s.t))
    numbers = METHODS["dopri5"].numbers

    def integrate(field: Timed) -> Tensor:
        y = x
        first = field(torch.tensor(0.0), y)
        for t, end in itertools.pairwise(times):
            h, slopes = end - t, [first]
            for row, c in zip(numbers.a[1:], numbers.c[1:], strict=True):
                stage = y
                for weight, slope in zip(row, slopes, strict=True):
                    if weight:
                        stage = stage + (h * weight) * slope
                slopes.append(field(torch.tensor(t + c * h), stage))
            y, first = stage, slopes[-1]
        return y

    return integrate


def bandwidth(
    field: Callable[[Tensor, Tensor], Tensor] | None, x: Tensor, repeats: int = 50
) -> float:
    """Bytes a second of z = x + y, over float32 arrays as many as a step of dopri5 works on.

    Two such passes, about what the formulas move between two calls of the field, after a call of it:
    what it does to the caches no solver can undo. None: in a loop of passes alone.
    """
    t, n = torch.tensor(0.5), x.numel()
    arrays = [torch.zeros(n) for _ in range(9)]

    def passes(turn: int) -> None:
        for first in (turn, turn + 3):
            a, b, out = (arrays[(first + i) % 9] for i in range(3))
            torch.add(a, b, out=out)

    def after_the_field(turn: int) -> float:
        if field is not None:
            field(t, x)
        return seconds(lambda: passes(turn))

    with torch.no_grad():
        spent = [after_the_field(turn) for turn in range(repeats + 3)][3:]
    return 4 * 6 * n / median(spent)


def one_size(size: str, repeats: int) -> dict[str, object]:
    """The figures of one size."""
    rows, features = map(int, size.split("x"))
    torch.manual_seed(SEED)
    field, x = MLP(features).eval(), torch.randn(rows, features)
    # Weights as after some training: a field that takes tens of steps, not two.
    for layer in field.net:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.orthogonal_(layer.weight, gain=2.0)
    engines = {
        "interp": by_interp(x),
        "tsit5": by_interp(x, "tsit5"),
        "torchdiffeq": by_torchdiffeq(x),
        "loop": by_loop(x, field),
    }
    repeats = max(3, repeats // 3) if x.numel() > 1_000_000 else repeats
    runs = {name: (lambda run=run: overhead(run, field)) for name, run in engines.items()}
    collected = interleaved(runs, repeats)
    figures: dict[str, object] = {"size": size}
    for name, values in collected.items():
        shares = [(v["wall_s"] - v["field_s"]) / v["field_s"] for v in values]
        figures[name] = {
            "overhead": median(shares),
            "wall_ms": 1e3 * median([v["wall_s"] for v in values]),
            "field_ms": 1e3 * median([v["field_s"] for v in values]),
            "calls": values[0]["calls"],
        }
    with torch.no_grad():
        stats = interp.solve(field, x, rtol=TOLERANCE, atol=TOLERANCE).stats
    tries = stats.accepted + stats.rejected
    speed, hot, ours = bandwidth(field, x), bandwidth(None, x), figures["interp"]
    step = 4 * x.numel() * tries
    figures["floor"] = FORMULAS * step / speed / (ours["field_ms"] / 1e3)
    figures["over_floor"] = ours["overhead"] / figures["floor"]
    figures["over_hot"] = figures["over_floor"] * hot / speed
    engine_s = ours["overhead"] * ours["field_ms"] / 1e3
    figures["gb_s"] = {"moved": MOVED * step / engine_s / 1e9, "measured": speed / 1e9}
    jax = by_diffrax(field, x, repeats)
    if jax is not None:
        figures["diffrax"] = jax
    return figures


def by_diffrax(field: MLP, x: Tensor, repeats: int) -> dict[str, float] | None:
    """The same network and tolerances in diffrax, compiled; None where it is not installed."""
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    drift = drift_in_jax(field.net)

    @jax.jit
    def run(y: object) -> object:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(drift), diffrax.Dopri5(), 0.0, 1.0, None, y,
            stepsize_controller=diffrax.PIDController(TOLERANCE, TOLERANCE),
        )  # fmt: skip

    y = jnp.asarray(x.numpy())
    calls = 6 * int(run(y).stats["num_steps"]) + 2
    # The field as often, in one compiled loop too; each call hangs on the one before.
    field_alone = jax.jit(
        lambda y: jax.lax.fori_loop(0, calls, lambda i, y: y + 1e-9 * drift(0.5, y, None), y)
    )
    field_alone(y).block_until_ready()
    timed = {
        "run": lambda: seconds(lambda: run(y).ys.block_until_ready()),
        "field": lambda: seconds(lambda: field_alone(y).block_until_ready()),
    }
    collected = interleaved(timed, repeats)
    wall, spent = median(collected["run"]), median(collected["field"])
    return {
        "overhead": (wall - spent) / spent, "wall_ms": 1e3 * wall, "field_ms": 1e3 * spent,
        "calls": calls,
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """The overheads, one size a line."""
    names = [n for n in ("interp", "tsit5", "torchdiffeq", "loop", "diffrax") if n in rows[0]]
    head = [
        "size",
        "field call",
        *names,
        "floor",
        "/ floor",
        "/ hot",
        "moved",
        "torchdiffeq / interp",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ours, peer = row["interp"], row["torchdiffeq"]
        call = 1e3 * ours["field_ms"] / ours["calls"]
        cells = [row["size"], f"{call:.0f} us"]
        cells += [f"{100 * row[n]['overhead']:.1f} %" for n in names]
        cells += [
            f"{100 * row['floor']:.1f} %",
            f"{row['over_floor']:.1f}",
            f"{row['over_hot']:.1f}",
        ]
        cells += ["{moved:.0f} of {measured:.0f} GB/s".format(**row["gb_s"])]
        cells += [f"{peer['overhead'] / ours['overhead']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Growth, memory, profile


def growth(repeats: int) -> list[dict[str, float]]:
    """The cost of an element and step of dopri5, beyond the field."""
    found = []
    for n in GROWTH:
        x = torch.linspace(0.5, 1.5, n).reshape(-1, 10)
        result = torch.empty_like(x)

        def field(t: Tensor, x: Tensor, result: Tensor = result) -> Tensor:
            return torch.sin(x, out=result)

        costs = []
        for _ in range(max(3, repeats if n < 1_000_000 else repeats // 3)):
            with torch.no_grad():
                stats = interp.solve(field, x, t=(0.0, 4.0), rtol=TOLERANCE, atol=TOLERANCE).stats
            steps = stats.accepted + stats.rejected
            costs.append((stats.wall_s - stats.field_s) / (n * steps))
        floor = FORMULAS * 4 / bandwidth(field, x, max(3, min(50, 10_000_000 // n)))
        found.append({"elements": n, "ns": 1e9 * median(costs), "floor_ns": 1e9 * floor})
    return found


def growth_table(found: list[dict[str, float]]) -> str:
    lines = ["| elements | ns an element and step | floor | / floor |", "|---|---|---|---|"]
    for row in found:
        ratio = row["ns"] / row["floor_ns"]
        lines.append(
            f"| {row['elements']:.0e} | {row['ns']:.2f} | {row['floor_ns']:.2f} | {ratio:.1f} |"
        )
    return "\n".join(lines)


def largest() -> int:
    """The most bytes that this process has held; getrusage's would be its parent's where that is more."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("memory is measured on Linux alone: there is no VmHWM")


def peak(method: str, elements: int = 4_000_000) -> float:
    """The growth of this process during a solve, in states, and one for the caller's x."""
    x = torch.linspace(0.5, 1.5, elements).reshape(-1, 10)
    result = torch.empty_like(x).fill_(0.0)

    def field(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(x, out=result[: len(x)])

    adaptive = METHODS[method].adaptive
    options = {} if adaptive else {"steps": 10}
    interp.solve(field, x[:100], method=method, **options)
    before = largest()
    # Before the run the process is as large as it has ever been: what it holds now.
    with torch.no_grad():
        interp.solve(field, x, method=method, **options)
    return 1 + (largest() - before) / (4 * elements)


def memory() -> list[dict[str, object]]:
    """The peaks, each in a process of its own."""
    found = []
    for method in MEASURED:
        command = [sys.executable, __file__, "--peak", method]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        stages = len(METHODS[method].numbers.b)
        found.append({"method": method, "states": json.loads(made.stdout), "goal": stages + 3})
    return found


def memory_table(found: list[dict[str, object]]) -> str:
    lines = ["| method | states at the peak | goal |", "|---|---|---|"]
    lines += [f"| {r['method']} | {r['states']:.1f} | {r['goal']} |" for r in found]
    return "\n".join(lines)


def profile(sizes: list[str], repeats: int) -> list[dict[str, object]]:
    """Where a solve by dopri5 spends its time, in microseconds."""
    from interp.solvers import runge_kutta

    engines = runge_kutta._ENGINES
    native, spent = engines["rust"], [0.0]

    def timed(*arguments: object) -> object:
        start = time.perf_counter()
        report = native(*arguments)
        spent[0] = time.perf_counter() - start
        return report

    found = []
    engines["rust"] = timed
    try:
        for size in sizes:
            rows, features = map(int, size.split("x"))
            torch.manual_seed(SEED)
            field, x = MLP(features).eval(), torch.randn(rows, features)
            parts = []
            for _ in range(max(3, repeats if x.numel() < 1_000_000 else repeats // 3)):
                with torch.no_grad():
                    stats = interp.solve(field, x, rtol=TOLERANCE, atol=TOLERANCE).stats
                parts.append((stats.field_s, spent[0] - stats.field_s, stats.wall_s - spent[0]))
            field_s, engine_s, python_s = (1e6 * median(list(p)) for p in zip(*parts, strict=True))
            found.append(
                {"size": size, "field": field_s, "engine": engine_s, "python": python_s,
                 "calls": stats.nfe, "steps": stats.accepted + stats.rejected}
            )  # fmt: skip
    finally:
        engines["rust"] = native
    return found


def profile_table(found: list[dict[str, object]]) -> str:
    lines = [
        "| size | calls | field | engine | engine a call | Python |",
        "|---|---|---|---|---|---|",
    ]
    for r in found:
        call = r["engine"] / r["calls"]
        lines.append(
            f"| {r['size']} | {r['calls']} | {r['field']:.0f} us | {r['engine']:.0f} us | "
            f"{call:.1f} us | {r['python']:.0f} us |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="ROWSxFEATURES")
    parser.add_argument("--peak", choices=MEASURED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak is not None:
        print(json.dumps(peak(args.peak)))
        return
    packages = ("interp", "torch", "torchdiffeq", "diffrax", "numpy")
    if "overhead" in args.sections:
        rows = [one_size(size, args.repeats) for size in args.sizes]
        print(table(rows))
        print(f"written to {write('solvers', packages, SEED, rows=rows, table=table(rows))}")
    made = {
        "growth": (lambda: growth(args.repeats), growth_table),
        "memory": (memory, memory_table),
        "profile": (lambda: profile(args.sizes, args.repeats), profile_table),
    }
    for name, (measure, shown) in made.items():
        if name in args.sections:
            found = measure()
            print(f"\n{name}\n{shown(found)}")
            to = write(f"solvers_{name}", packages, SEED, rows=found, table=shown(found))
            print(f"written to {to}")


if __name__ == "__main__":
    main()
