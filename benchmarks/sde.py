"""SDE runs beside the peers: the noise, and Euler-Maruyama.

    python benchmarks/sde.py [--repeats 9] [--sizes 1x2 256x784]

Euler-Maruyama in 100 steps on an Ornstein-Uhlenbeck-like drift, a 3-layer MLP in float32: ours, torchsde
with its default Brownian interval, diffrax with its virtual Brownian tree where it is installed, and a
plain torch loop with torch.randn. Engines take turns; figures are medians of processor time. Overhead is
what a run takes beyond its calls of the drift; its goal is a fiftieth of torchsde's, that of a run 1.03
of the loop's. A normal is timed on one thread beside torch.randn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from report import interleaved, median, write
from report import processor_seconds as seconds
from solvers import MLP
from torch import Tensor

import interp
from interp import noise


class Timed:
    """A drift and the processor time that its calls take."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.seconds = field, 0.0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        start = time.process_time()
        result = self.field(t, x)
        self.seconds += time.process_time() - start
        return result


SIZES = ("1x2", "256x2", "256x64", "256x784")
STEPS, SIZE, SEED = 100, 0.3, 0


def by_interp(x: Tensor) -> Callable[[Timed], object]:
    return lambda drift: interp.solve(
        interp.SDE(drift, SIZE), x, method="euler_maruyama", steps=STEPS, seed=SEED
    )


def by_loop(x: Tensor) -> Callable[[Timed], object]:
    """What one would write by hand."""
    times = [k / STEPS for k in range(STEPS + 1)]

    def run(drift: Timed) -> Tensor:
        y = x
        for t, end in itertools.pairwise(times):
            h = end - t
            y = y + h * drift(torch.tensor(t), y) + SIZE * h**0.5 * torch.randn_like(y)
        return y

    return run


def by_torchsde(x: Tensor) -> Callable[[Timed], object] | None:
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


def by_diffrax(field: MLP, x: Tensor, repeats: int) -> float | None:
    """The whole run compiled, in ms; None where diffrax is not installed."""
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
    def run(y: object, key: object) -> object:
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=1e-3, shape=shape, key=key)
        noise = diffrax.WeaklyDiagonalControlTerm(lambda t, y, args: SIZE * jnp.ones_like(y), path)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), noise)
        return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 1 / STEPS, y).ys

    y, key = jnp.asarray(x.numpy()), jax.random.PRNGKey(SEED)
    run(y, key).block_until_ready()
    return 1e3 * median([seconds(lambda: run(y, key).block_until_ready()) for _ in range(repeats)])


def one_size(size: str, repeats: int) -> dict[str, object]:
    """The figures of one size."""
    rows, features = map(int, size.split("x"))
    torch.manual_seed(SEED)
    field, x = MLP(features).eval(), torch.randn(rows, features)
    engines = {"interp": by_interp(x), "torchsde": by_torchsde(x), "loop": by_loop(x)}

    def timed(run: Callable[[Timed], object]) -> dict[str, float]:
        drift = Timed(field)
        with torch.no_grad():
            spent = seconds(lambda: run(drift))
        return {"run": spent, "field": drift.seconds}

    runs = {n: (lambda run=run: timed(run)) for n, run in engines.items() if run is not None}
    figures: dict[str, object] = {"size": size}
    for name, values in interleaved(runs, repeats).items():
        figures[name] = {
            "run_ms": 1e3 * median([v["run"] for v in values]),
            "overhead_ms": 1e3 * median([v["run"] - v["field"] for v in values]),
        }
    figures["diffrax_ms"] = by_diffrax(field, x, repeats)
    return figures


def normals(repeats: int) -> dict[str, float]:
    """Nanoseconds a normal on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, generator = torch.empty(256, 784), torch.Generator().manual_seed(SEED)
    steps = [(k / STEPS, (k + 1) / STEPS) for k in range(16)]
    dyadic = [(k / 128, (k + 1) / 128) for k in range(16)]
    path = noise.BrownianPath(256, 784, SEED)
    runs = {
        "interp": lambda: seconds(lambda: noise.normal_like(x, generator)),
        "torch.randn": lambda: seconds(lambda: torch.randn(x.shape, generator=generator)),
        "increment of the tree": lambda: (
            seconds(lambda: [w for w, _ in path.increments(steps)]) / len(steps)
        ),
        "increment, 128 steps": lambda: (
            seconds(lambda: [w for w, _ in path.increments(dyadic)]) / len(dyadic)
        ),
        "increment and area": lambda: (
            seconds(lambda: [w for w, _ in path.increments(steps, area=True)]) / len(steps)
        ),
    }
    found = interleaved(runs, 5 * repeats)
    torch.set_num_threads(threads)
    return {name: 1e9 * median(values) / x.numel() for name, values in found.items()}


def table(rows: list[dict[str, object]]) -> str:
    """Times and overheads, one size a line."""
    lines = [
        "| size | interp | loop | torchsde | diffrax | overhead interp | torchsde | ratio | interp / loop |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        ours, loop, peer = row["interp"], row["loop"], row.get("torchsde")
        jax = row["diffrax_ms"]
        cells = [row["size"], f"{ours['run_ms']:.2f} ms", f"{loop['run_ms']:.2f} ms"]
        cells += [f"{peer['run_ms']:.1f} ms" if peer else "-", f"{jax:.1f} ms" if jax else "-"]
        cells += [f"{ours['overhead_ms']:.2f} ms"]
        cells += [f"{peer['overhead_ms']:.1f} ms" if peer else "-"]
        cells += [f"{peer['overhead_ms'] / ours['overhead_ms']:.0f}" if peer else "-"]
        cells += [f"{ours['run_ms'] / loop['run_ms']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


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
