"""SDE runs beside the peers: the noise, and Euler-Maruyama.

    python benchmarks/sde.py [--repeats 9] [--sizes 1x2 256x784]

Euler-Maruyama in 100 steps on an Ornstein-Uhlenbeck-like drift, a 3-layer MLP in float32: ours, once
more with a tree only as deep as 100 steps need (depth=7), a plain torch loop with torch.randn, torchsde
with its default Brownian interval, and diffrax with its virtual Brownian tree, where they are installed.
Engines take turns, each with an untimed run first, since what ran before has taken the caches and the
memory; figures are medians, of wall time and of the processor time of all threads: torch's
normals are made on one thread, ours on all. Overhead is what a run takes beyond its calls of the drift;
its goal is a fiftieth of torchsde's, that of a run 1.03 of the loop's and a tenth of diffrax's. A normal
is timed on one thread beside torch.randn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator

import torch
from peers import drift_in_jax
from report import interleaved, median, write
from report import processor_seconds as seconds
from solvers import MLP
from torch import Tensor

import interp
from interp import noise


class Clock:
    """Wall time and processor time, in milliseconds, since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        wall, processor = self.start
        return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)


class Timed:
    """A drift and the time that its calls take."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.wall, self.processor = field, 0.0, 0.0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        clock = Clock()
        result = self.field(t, x)
        wall, processor = clock()
        self.wall, self.processor = self.wall + wall, self.processor + processor
        return result


Run = Callable[[Timed], object]
SIZES = ("1x2", "256x2", "256x64", "256x784")
STEPS, SIZE, SEED = 100, 0.3, 0
SHALLOW = "interp, depth 7"
ENGINES = ("interp", SHALLOW, "loop", "torchsde", "diffrax")


def by_interp(x: Tensor, **options: object) -> Run:
    return lambda drift: interp.solve(
        interp.SDE(drift, SIZE), x, method="euler_maruyama", steps=STEPS, seed=SEED, **options
    )


def by_loop(x: Tensor) -> Run:
    """What one would write by hand."""
    times = [k / STEPS for k in range(STEPS + 1)]

    def run(drift: Timed) -> Tensor:
        y = x
        for t, end in itertools.pairwise(times):
            h = end - t
            y = y + h * drift(torch.tensor(t), y) + SIZE * h**0.5 * torch.randn_like(y)
        return y

    return run


def by_torchsde(x: Tensor) -> Run | None:
    try:
        import torchsde
    except ImportError:
        return None
    ends = torch.tensor([0.0, 1.0])

    def run(drift: Timed) -> object:
        class Equation(torch.nn.Module):
            noise_type, sde_type = "diagonal", "ito"

            def f(self, t: Tensor, y: Tensor) -> Tensor:
                return drift(t, y)

            def g(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.full_like(y, SIZE)

        return torchsde.sdeint(Equation(), x, ends, method="euler", dt=1 / STEPS)

    return run


def by_diffrax(field: MLP, x: Tensor) -> Run | None:
    """The whole run compiled, the drift with it: that is not timed alone."""
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    drift = drift_in_jax(field.net)

    @jax.jit
    def run(y: object, key: object) -> object:
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=1e-3, shape=shape, key=key)
        noise = diffrax.WeaklyDiagonalControlTerm(lambda t, y, args: SIZE * jnp.ones_like(y), path)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), noise)
        return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 1 / STEPS, y).ys

    y, key = jnp.asarray(x.numpy()), jax.random.PRNGKey(SEED)
    return lambda drift: run(y, key).block_until_ready()


def one_size(size: str, repeats: int) -> dict[str, object]:
    """The figures of one size."""
    rows, features = map(int, size.split("x"))
    torch.manual_seed(SEED)
    field, x = MLP(features).eval(), torch.randn(rows, features)
    engines = {
        "interp": by_interp(x),
        SHALLOW: by_interp(x, depth=7),
        "loop": by_loop(x),
        "torchsde": by_torchsde(x),
        "diffrax": by_diffrax(field, x),
    }

    def timed(run: Run) -> dict[str, float]:
        drift = Timed(field)
        with torch.no_grad():
            run(Timed(field))
            clock = Clock()
            run(drift)
            wall, processor = clock()
        found = {"wall_ms": wall, "processor_ms": processor}
        if drift.wall:
            found |= {"wall_overhead_ms": wall - drift.wall}
            found |= {"processor_overhead_ms": processor - drift.processor}
        return found

    runs = {n: (lambda run=run: timed(run)) for n, run in engines.items() if run is not None}
    figures: dict[str, object] = {"size": size}
    for name, values in interleaved(runs, repeats).items():
        figures[name] = {key: median([v[key] for v in values]) for key in values[0]}
    return figures


def normals(repeats: int) -> dict[str, float]:
    """Nanoseconds a normal on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, generator = torch.empty(256, 784), torch.Generator().manual_seed(SEED)
    steps = [(k / STEPS, (k + 1) / STEPS) for k in range(16)]
    dyadic = [(k / 128, (k + 1) / 128) for k in range(16)]
    path = noise.BrownianPath(256, 784, SEED)
    makers: dict[str, tuple[Callable[[], object], int]] = {
        "interp": (lambda: noise.normal_like(x, generator), 1),
        "torch.randn": (lambda: torch.randn(x.shape, generator=generator), 1),
        "W(t)": (lambda: path.values([r for _, r in steps], area=False), len(steps)),
        "W(t), 128 steps": (lambda: path.values([r for _, r in dyadic], area=False), len(dyadic)),
        "W(t) and its integral": (lambda: path.values([r for _, r in steps]), len(steps)),
    }

    def timed(make: Callable[[], object], count: int) -> float:
        make()
        return seconds(make) / count

    runs = {name: (lambda maker=maker: timed(*maker)) for name, maker in makers.items()}
    found = interleaved(runs, 5 * repeats)
    torch.set_num_threads(threads)
    return {name: 1e9 * median(values) / x.numel() for name, values in found.items()}


def table(rows: list[dict[str, dict[str, float]]]) -> str:
    """Runs in wall and in processor time, one size a line; overheads are those beyond the drift."""
    return "\n\n".join("\n".join(_lines(rows, kind)) for kind in ("wall", "processor"))


def _lines(rows: list[dict[str, dict[str, float]]], kind: str) -> Iterator[str]:
    head = [f"{kind} time, ms", *ENGINES, "interp / loop", "depth 7 / loop", "diffrax / interp"]
    head += ["overheads, torchsde / interp"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        run = {n: row[n][f"{kind}_ms"] for n in ENGINES if n in row}
        beyond = {n: row[n].get(f"{kind}_overhead_ms") for n in run}
        cells = [str(row["size"]), *(f"{run[n]:.4g}" if n in run else "-" for n in ENGINES)]
        cells += [_ratio(run, "interp", "loop"), _ratio(run, SHALLOW, "loop")]
        cells += [_ratio(run, "diffrax", "interp"), _ratio(beyond, "torchsde", "interp")]
        yield "| " + " | ".join(cells) + " |"


def _ratio(values: dict[str, float], a: str, b: str) -> str:
    return f"{values[a] / values[b]:.3g}" if a in values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="ROWSxFEATURES")
    args = parser.parse_args()
    rows = [one_size(size, args.repeats) for size in args.sizes]
    print(table(rows))
    each = normals(args.repeats)
    print("ns a number, one thread: " + ", ".join(f"{k} {v:.2f}" for k, v in each.items()))
    left = str(interp.methods(bias=True))
    print(left)
    packages = ("interp", "torch", "torchsde", "diffrax", "numpy")
    content = {"rows": rows, "table": table(rows), "normals_ns": each, "bias": left}
    print(f"written to {write('sde', packages, SEED, **content)}")


if __name__ == "__main__":
    main()
