"""What a training step costs beyond its network, beside the peers; and what importing costs.

    python benchmarks/core.py [--repeats 30] [--turn 20] [--imports 7]

A step is the network, the loss, the backward pass and the optimiser; `fixed` takes it on a point and a
target that lie ready. A library adds drawing t and x0, making the point and the target, and its own
loss: overhead is (step - fixed) / fixed. The network is an MLP 785-256-256-784 on (x, t) in float32, the
batch 256. All take turns of 20 steps in one run, and each figure is the median over the turns, each
against the `fixed` of its own round. "ahead" couples batches in a thread, begun and ended within its
turn; all is timed with torch on all cores and on one less, which leaves that thread a core of its own.
`plain` is what one would write by hand in torch. Peers are timed as their own examples use them, each
for a loss that it has (velocity: flow_matching, torchcfm; noise: diffusers; denoiser: azula,
k-diffusion), and left out with a message where they cannot be imported.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from report import interleaved, median, seconds, without_init, write
from torch import Tensor, nn

from interp import couplings, schedules
from interp.losses import Regression
from interp.noise import normal_like

BATCH, FEATURES, WIDTH = 256, 784, 256
SEED = 0
PEERS = ("diffusers", "k-diffusion", "flow_matching", "azula", "torchcfm")

Loss = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """784 + 1 -> 256 -> 256 -> 784."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES + 1, WIDTH), nn.SiLU(),
            nn.Linear(WIDTH, WIDTH), nn.SiLU(),
            nn.Linear(WIDTH, FEATURES),
        )  # fmt: skip

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], 1))


class Backward(nn.Module):
    """The same network, called (x, t) as most peers do."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(t, x)


def fixed(net: MLP) -> Loss:
    """The network and the mean squared error, on a point and a target that lie ready."""
    t, x0 = torch.rand(BATCH), torch.randn(BATCH, FEATURES)
    return lambda x1: nn.functional.mse_loss(net(t, x1), x0)


def plain(net: MLP) -> Loss:
    """Flow matching in four lines."""

    def loss(x1: Tensor) -> Tensor:
        x0 = torch.randn_like(x1)
        t = torch.rand(len(x1))
        x = (1 - t[:, None]) * x0 + t[:, None] * x1
        return nn.functional.mse_loss(net(t, x), x1 - x0)

    return loss


def by_interp(net: MLP, **options: object) -> Loss:
    """Our regression of the velocity on the linear path."""
    loss = Regression(schedules.linear(), **options)
    return lambda x1: loss(net, x1)


def by_torchcfm(net: MLP, exact_transport: bool = False) -> Loss:
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
    )

    kind = (
        ExactOptimalTransportConditionalFlowMatcher if exact_transport else ConditionalFlowMatcher
    )
    matcher = kind(sigma=0.0)

    def loss(x1: Tensor) -> Tensor:
        t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return torch.mean((net(t, x) - velocity) ** 2)

    return loss


def by_flow_matching(net: MLP) -> Loss:
    from flow_matching.path import CondOTProbPath

    path = CondOTProbPath()

    def loss(x1: Tensor) -> Tensor:
        sample = path.sample(x_0=torch.randn_like(x1), x_1=x1, t=torch.rand(len(x1)))
        return torch.pow(net(sample.t, sample.x_t) - sample.dx_t, 2).mean()

    return loss


def by_diffusers(net: MLP) -> Loss:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss(x1: Tensor) -> Tensor:
        noise = torch.randn_like(x1)
        k = torch.randint(0, 1000, (len(x1),))
        return nn.functional.mse_loss(net(k, scheduler.add_noise(x1, noise, k)), noise)

    return loss


def by_azula(net: MLP) -> Loss:
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    denoiser = KarrasDenoiser(Backward(net), VPSchedule())
    return lambda x1: denoiser.loss(x1, torch.rand(len(x1)))


def by_k_diffusion(net: MLP) -> Loss:
    layers, utils = without_init("k_diffusion", "layers", "utils")
    denoiser = layers.Denoiser(Backward(net), sigma_data=0.5)

    def loss(x1: Tensor) -> Tensor:
        sigma = utils.rand_log_normal([len(x1)], -1.2, 1.2)
        return denoiser.loss(x1, torch.randn_like(x1), sigma).mean()

    return loss


ENGINES: dict[str, Callable[[MLP], Loss]] = {
    "fixed": fixed,
    "plain": plain,
    "interp": by_interp,
    "diffusers": by_diffusers,
    "k-diffusion": by_k_diffusion,
    "flow_matching": by_flow_matching,
    "azula": by_azula,
    "torchcfm": by_torchcfm,
    "interp, exact OT": lambda net: by_interp(net, coupling="optimal_transport"),
    "torchcfm, exact OT": lambda net: by_torchcfm(net, exact_transport=True),
}


def engines(net: MLP) -> dict[str, Loss]:
    """Those that can be made here; the others are named with the reason."""
    made: dict[str, Loss] = {}
    for name, make in ENGINES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = make(net)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return made


def steps(repeats: int, length: int) -> list[dict[str, object]]:
    """The step of every engine: medians in milliseconds and overheads."""
    torch.manual_seed(SEED)
    net, x1 = MLP(), 0.5 * torch.randn(BATCH, FEATURES)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def update(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def turn(loss: Loss) -> None:
        for _ in range(length):
            update(loss(x1))

    def turn_ahead() -> None:
        loss = Regression(schedules.linear())
        batches = couplings.ahead("optimal_transport", itertools.repeat(x1, length))
        for batch in batches:
            update(loss(net, batch["x"], batch["x0"], paired=True))

    turns = {name: (lambda f=f: turn(f)) for name, f in engines(net).items()}
    turns["interp, exact OT ahead"] = turn_ahead
    runs = {name: (lambda f=f: seconds(f) / length) for name, f in turns.items()}
    times = interleaved(runs, repeats)
    base = times["fixed"]
    return [
        {
            "engine": name,
            "step_ms": 1e3 * median(own),
            "overhead": median([(o - b) / b for o, b in zip(own, base, strict=True)]),
        }
        for name, own in times.items()
    ]


def parts(repeats: int) -> dict[str, float]:
    """What our part of a step is made of, in microseconds: each piece alone."""
    x1, path = 0.5 * torch.randn(BATCH, FEATURES), schedules.linear()
    loss, x0 = Regression(path), torch.randn(BATCH, FEATURES)
    t = loss.times.draw(BATCH)
    zero = torch.zeros_like(x1)
    pieces: dict[str, Callable[[], object]] = {
        "normals": lambda: normal_like(x1),
        "normals of torch.randn": lambda: torch.randn(BATCH, FEATURES),
        "times": lambda: loss.times.draw(BATCH),
        "coefficients": lambda: path.coefficients(t),
        "point and target": lambda: loss.target(t, x0, x1),
        "all but the network": lambda: loss(lambda t, x: zero, x1),
    }
    times = interleaved({name: (lambda f=f: seconds(f)) for name, f in pieces.items()}, repeats, 5)
    return {name: 1e6 * median(own) for name, own in times.items()}


IMPORTS = {
    "torch": "import torch",
    "interp": "import interp",
    "interp, all of a training step": (
        "import interp; interp.schedules, interp.losses, interp.times, interp.Interpolant"
    ),
    "interp, and the solvers": "import interp; interp.losses, interp.solve, interp.exact",
}


def imports(repeats: int) -> list[dict[str, object]]:
    """Import times, each in a fresh interpreter, in turn."""

    def run(code: str) -> float:
        clock = "import time; a = time.perf_counter()"
        script = f"{clock}\n{code}\nprint(time.perf_counter() - a)"
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        return float(found.stdout)

    times = interleaved({name: (lambda c=c: run(c)) for name, c in IMPORTS.items()}, repeats)
    base = statistics.median(times["torch"])
    return [
        {"import": name, "seconds": median(own), "of_torch": median(own) / base}
        for name, own in times.items()
    ]


def table(
    rows: dict[int, list[dict[str, object]]], pieces: dict[str, float], loads: list[dict]
) -> str:
    counts = list(rows)
    names = " | ".join(f"step, {n} threads | beyond fixed" for n in counts)
    lines = [f"| engine | {names} |", "|" + "---|" * (1 + 2 * len(counts))]
    for same in zip(*rows.values(), strict=True):
        cells = [f"{r['step_ms']:.2f} ms | {100 * r['overhead']:.1f} %" for r in same]
        lines.append(f"| {same[0]['engine']} | {' | '.join(cells)} |")
    lines += ["", "| part of interp's step | alone |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} us |" for name, value in pieces.items()]
    lines += ["", "| import | time | of torch |", "|---|---|---|"]
    lines += [f"| {r['import']} | {r['seconds']:.2f} s | {r['of_torch']:.2f} |" for r in loads]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--turn", type=int, default=20, help="steps of an engine in a row")
    parser.add_argument("--imports", type=int, default=7)
    args = parser.parse_args()
    start = time.perf_counter()
    loads = imports(args.imports)
    rows: dict[int, list[dict[str, object]]] = {}
    pieces: dict[str, float] = {}
    for threads in sorted({torch.get_num_threads(), max(1, torch.get_num_threads() - 1)}):
        torch.set_num_threads(threads)
        rows[threads], pieces = steps(args.repeats, args.turn), parts(200)
    text = table(rows, pieces, loads)
    print(text)
    packages = ("interp", "torch", "numpy", "scipy", "pot", *PEERS)
    path = write(
        "core", packages, SEED, rows=rows, parts_us=pieces, imports=loads, table=text,
        wall_s=round(time.perf_counter() - start),
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
