"""What a coupling of a batch costs, beside torchcfm's.

    python benchmarks/couplings.py [--repeats 30] [--sizes 256x2 256x784]

Base points are normal; data are the handwritten digits of scikit-learn, enlarged to 28 x 28, or
eight clusters in the plane. Couplings and peers take turns on the same batches, a new one each
turn, and each figure is the median in milliseconds. `cost` is the mean squared distance of the pairs:
a plan drawn with replacement, as torchcfm does it, loses rows and pays with others. The training
step is an MLP's of 785-256-256-784: without a coupling, with the plan in the loop, and with the plan
made ahead by a thread, which saves time where torch's own threads leave a core free. torchcfm is left
out where it is not installed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from report import interleaved, median, seconds, write
from torch import Tensor, nn

from interp import couplings

SIZES = ("256x2", "256x784")
SEED = 0
Pair = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def data(features: int, rows: int, generator: torch.Generator) -> Tensor:
    """Digits where there are 784 features, else eight clusters around a circle."""
    if features == 784:
        from sklearn.datasets import load_digits

        images = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
        pick = torch.randint(len(images), (rows,), generator=generator)
        return nn.functional.interpolate(images[pick], (28, 28), mode="bilinear").flatten(1)
    angle = torch.randint(8, (rows,), generator=generator) * (math.pi / 4)
    centres = torch.zeros(rows, features)
    centres[:, 0], centres[:, 1] = 4 * angle.cos(), 4 * angle.sin()
    return centres + 0.3 * torch.randn(rows, features, generator=generator)


def batches(size: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (x0, x1), the same for the same seed."""
    rows, features = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(rows, features, generator=generator), data(features, rows, generator)


def ours(scale: float) -> dict[str, Pair]:
    """Our couplings, those with a scale at the one of the costs."""
    return {
        "independent": couplings.independent(),
        "exact": couplings.optimal_transport(),
        "sinkhorn": couplings.optimal_transport(reg=0.05 * scale),
        "unbalanced": couplings.unbalanced(),
        "partial": couplings.partial(),
        "bridge": couplings.schroedinger_bridge(math.sqrt(0.025 * scale)),
        "within labels": lambda x0, x1: couplings.conditional()(x0, x1, torch.arange(len(x1)) % 10),
    }


def peers(scale: float) -> dict[str, Pair]:
    """torchcfm's samplers of plans; nothing where it is not installed."""
    try:
        from torchcfm.optimal_transport import OTPlanSampler
    except ImportError:
        return {}
    return {
        "torchcfm exact": OTPlanSampler("exact").sample_plan,
        "torchcfm sinkhorn": OTPlanSampler("sinkhorn", reg=0.05 * scale).sample_plan,
    }


def one_size(size: str, repeats: int) -> dict[str, object]:
    """Medians of one size: milliseconds, and mean squared distance of the pairs."""
    scale = torch.cat([torch.cdist(*b).square() for b in itertools.islice(batches(size, 1), 2)])
    scale = scale.mean().item()

    def timed(pair: Pair) -> Callable[[], tuple[float, float]]:
        stream = batches(size, SEED)

        def run() -> tuple[float, float]:
            x0, x1 = next(stream)
            found: list[tuple[Tensor, ...]] = []
            wall = seconds(lambda: found.append(pair(x0, x1)))
            return wall, (found[0][0] - found[0][1]).square().sum(1).mean().item()

        return run

    collected = interleaved(
        {name: timed(pair) for name, pair in {**ours(scale), **peers(scale)}.items()}, repeats, 2
    )
    return {
        "size": size,
        **{
            name: {"ms": 1e3 * median([v[0] for v in found]), "cost": median([v[1] for v in found])}
            for name, found in collected.items()
        },
    }


class Step:
    """One training step of flow matching on an MLP."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.net = nn.Sequential(
            nn.Linear(785, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 784)
        )
        self.optimizer = torch.optim.Adam(self.net.parameters())

    def __call__(self, x0: Tensor, x1: Tensor) -> None:
        t = torch.rand(len(x1), 1)
        found = self.net(torch.cat([x0 + t * (x1 - x0), t], 1))
        loss = (found - (x1 - x0)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training(repeats: int, steps: int = 20) -> dict[str, float]:
    """Milliseconds of a step with a plan, in the loop and ahead, and without any."""
    exact, kept = (
        couplings.optimal_transport(),
        list(itertools.islice(batches("256x784", 2), steps)),
    )

    def run(take: Callable[[], Iterator[tuple[Tensor, ...]]]) -> Callable[[], float]:
        step = Step()

        def walk() -> None:
            for x0, x1 in take():
                step(x0, x1)

        return lambda: seconds(walk) / steps

    def ahead(coupling: str) -> Iterator[tuple[Tensor, ...]]:
        columns = ({"x0": x0, "x": x1} for x0, x1 in kept)
        for batch in couplings.ahead(coupling, columns):
            yield batch["x0"], batch["x"]

    runs = {
        "no coupling": run(lambda: iter(kept)),
        "exact, in the loop": run(lambda: (exact(x0, x1) for x0, x1 in kept)),
        "exact, ahead": run(lambda: ahead("optimal_transport")),
    }
    for name, pair in peers(1.0).items():
        if name == "torchcfm exact":
            runs[name] = run(lambda pair=pair: (pair(x0, x1) for x0, x1 in kept))
    found = interleaved(runs, max(3, repeats // 3))
    return {name: 1e3 * median(values) for name, values in found.items()}


def by_threads(repeats: int) -> dict[str, dict[str, float]]:
    """The training step with torch on one thread, and on as many as it takes by itself."""
    usual, found = torch.get_num_threads(), {}
    for threads in sorted({1, usual}):
        torch.set_num_threads(threads)
        found[f"{threads} thread{'s' if threads > 1 else ''}"] = training(repeats)
    torch.set_num_threads(usual)
    return found


def tables(rows: list[dict[str, object]], steps: dict[str, dict[str, float]]) -> str:
    """Couplings by size, and the training step."""
    names = [name for name in rows[0] if name != "size"]
    head = ["coupling", *(f"{row['size']} {what}" for row in rows for what in ("ms", "cost"))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in names:
        cells = [f"{row[name]['ms']:.2f} | {row[name]['cost']:.4g}" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "torchcfm exact" in names:
        ratios = [row["torchcfm exact"]["ms"] / row["exact"]["ms"] for row in rows]
        lines.append(
            "| torchcfm exact / exact | " + " | ".join(f"{r:.1f} | " for r in ratios) + "|"
        )
    for threads, step in steps.items():
        lines += ["", f"| training step on {threads} | ms | beyond no coupling |", "|---|---|---|"]
        bare = step["no coupling"]
        for name, ms in step.items():
            lines.append(f"| {name} | {ms:.2f} | {100 * (ms / bare - 1):.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="ROWSxFEATURES")
    args = parser.parse_args()
    rows = [one_size(size, args.repeats) for size in args.sizes]
    steps = by_threads(args.repeats)
    print(tables(rows, steps))
    packages = ("interp", "torch", "scipy", "numpy", "torchcfm", "POT")
    content = {"rows": rows, "training_step_ms": steps, "table": tables(rows, steps)}
    print(f"written to {write('couplings', packages, SEED, **content)}")


if __name__ == "__main__":
    main()
