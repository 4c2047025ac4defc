"""Overhead of an adaptive solve beyond its field, beside the peers.

    python benchmarks/solvers.py [--repeats 15] [--sizes 1x2 256x784]

Overhead is (wall - field) / field: what a solver adds to the time spent in the model, a 3-layer MLP
in float32. Every engine integrates the same field by dopri5 at the same tolerances; engines take
turns, and each figure is a median. `loop` is a plain torch loop of dopri5 on the steps that our run
took, without error control: what one would write by hand. The floor is the memory traffic of the
formulas, 40 N numbers a step, at the bandwidth measured beside it. diffrax is timed where it is
installed, with the same network in JAX, the whole run compiled; its field time is that of as many
calls of the network in one compiled loop.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from report import interleaved, median, seconds, write
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

SIZES = ("1x2", "256x2", "256x64", "256x784")
TOLERANCE = 1e-5
SEED = 0


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


def by_interp(x: Tensor) -> Callable[[Timed], object]:
    return lambda field: interp.solve(field, x, rtol=TOLERANCE, atol=TOLERANCE)


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


def bandwidth(elements: int, repeats: int = 50) -> float:
    """Bytes a second of z = x + y, over as many float32 arrays as a step of dopri5 works on."""
    arrays = [torch.zeros(elements) for _ in range(12)]

    def passes() -> None:
        for x, y, z in zip(*[iter(arrays)] * 3, strict=True):
            torch.add(x, y, out=z)

    passes()
    best = median([seconds(passes) for _ in range(repeats)])
    return 4 * 12 * elements / best


def one_size(size: str, repeats: int) -> dict[str, object]:
    """The figures of one size."""
    rows, features = map(int, size.split("x"))
    torch.manual_seed(SEED)
    field, x = MLP(features).eval(), torch.randn(rows, features)
    # Weights as after some training: a field that takes tens of steps, not two.
    for layer in field.net:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.orthogonal_(layer.weight, gain=2.0)
    engines = {"interp": by_interp(x), "torchdiffeq": by_torchdiffeq(x), "loop": by_loop(x, field)}
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
    traffic = 40 * 4 * x.numel() * tries / bandwidth(x.numel())
    figures["floor"] = traffic / (figures["interp"]["field_ms"] / 1e3)
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
    layers = [
        (jnp.asarray(m.weight.detach().numpy()), jnp.asarray(m.bias.detach().numpy()))
        for m in field.net
        if isinstance(m, torch.nn.Linear)
    ]

    def drift(t: object, y: object, args: object) -> object:
        h = jnp.concatenate([y, jnp.full((y.shape[0], 1), t, y.dtype)], axis=1)
        for i, (weight, bias) in enumerate(layers):
            h = h @ weight.T + bias
            h = jax.nn.silu(h) if i + 1 < len(layers) else h
        return h

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
    names = [n for n in ("interp", "torchdiffeq", "loop", "diffrax") if n in rows[0]]
    head = ["size", "field call", *names, "floor", "torchdiffeq / interp"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ours, peer = row["interp"], row["torchdiffeq"]
        call = 1e3 * ours["field_ms"] / ours["calls"]
        cells = [row["size"], f"{call:.0f} us"]
        cells += [f"{100 * row[n]['overhead']:.1f} %" for n in names]
        cells += [f"{100 * row['floor']:.1f} %", f"{peer['overhead'] / ours['overhead']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="ROWSxFEATURES")
    args = parser.parse_args()
    rows = [one_size(size, args.repeats) for size in args.sizes]
    print(table(rows))
    packages = ("interp", "torch", "torchdiffeq", "diffrax", "numpy")
    print(f"written to {write('solvers', packages, SEED, rows=rows, table=table(rows))}")


if __name__ == "__main__":
    main()
