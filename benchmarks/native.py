"""Whole runs of compiled networks beside torch, eager and compiled.

    python benchmarks/native.py [--nets mlp64 mlp256 mlp784 unet dit] [--batches 1 16 256 4096]
                                [--methods euler dopri5] [--repeats 9] [--no-compile] [--kernels]

`native` is `interp.solve` on `interp.compile(net)`, `solve` the same call on the net itself, `loop` a
plain torch loop on the same steps without a solver's checks, `compiled` the same call on
torch.compile(net), `diffrax` the same MLP in JAX by diffrax, where it is installed, the whole run compiled
(its dopri5 chooses its own steps to the same tolerance). All others run the same steps to the same numbers
(checked). Engines take turns, as many calls a turn as take 5 ms, and each figure is a median of processor
time of all threads, on one (OMP_NUM_THREADS=1) the wall time of a machine that nobody else uses. `x` is how
many times faster native is than the faster of solve and loop (beside its goal), than compiled, and than
diffrax; `share` the part of its wall time that native spends in the field. --kernels
times the steps in place beside the same in torch and the memory bandwidth, and latents decoded to images.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable

import torch
from peers import drift_in_jax
from report import interleaved, median, write
from report import processor_seconds as seconds
from torch import Tensor, nn

import interp
from adapters.networks import DiT, UNet
from interp.native import Decoder, ddpm_step, flow_matching_step
from interp.solvers.catalogue import METHODS

SEED = 0
STEPS = {"unet": 50, "dit": 50}  # of euler; 100 for an MLP, 10 where a run would take a minute
TURN = 0.005  # seconds
TOLERANCE = 1e-4


class MLP(nn.Module):
    """Three layers on (x, t), all as wide."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, features),
        )  # fmt: skip

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(len(x), 1)], dim=1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp64": (lambda: MLP(2, 64), (2,)),
    "mlp256": (lambda: MLP(784, 256), (784,)),
    "mlp784": (lambda: MLP(784, 784), (784,)),
    "unet": (lambda: UNet((1, 8, 8)), (1, 8, 8)),
    "dit": (lambda: DiT((1, 8, 8)), (1, 8, 8)),
}


def by_loop(
    field: Callable[[Tensor, Tensor], Tensor], x: Tensor, method: str, times: list[float]
) -> Tensor:
    """The method by hand on given times."""
    numbers, first, y = METHODS[method].numbers, None, x
    stamps = {t: torch.tensor(t) for t in times}
    for t, end in itertools.pairwise(times):
        h = end - t
        slopes = [field(stamps[t], y) if first is None else first]
        for row, c in zip(numbers.a[1:], numbers.c[1:], strict=True):
            stage = y
            for weight, slope in zip(row, slopes, strict=False):
                if weight:
                    stage = stage + (h * weight) * slope
            slopes.append(field(torch.tensor(t + c * h), stage))
        if method == "dopri5":
            y, first = stage, slopes[-1]
        else:
            for weight, slope in zip(numbers.b, slopes, strict=True):
                if weight:
                    y = y + (h * weight) * slope
    return y


def by_diffrax(net: nn.Module, x: Tensor, method: str, steps: int) -> Callable[[], object] | None:
    """The whole run compiled by JAX; None of another network than an MLP, or without diffrax."""
    if not isinstance(net, MLP):
        return None
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    field = drift_in_jax(net.net)

    fixed = method == "euler"
    solver = diffrax.Euler() if fixed else diffrax.Dopri5()
    adaptive = diffrax.PIDController(TOLERANCE, TOLERANCE)
    control = diffrax.ConstantStepSize() if fixed else adaptive

    @jax.jit
    def run(y: object) -> object:
        term, first = diffrax.ODETerm(field), 1 / steps if fixed else None
        return diffrax.diffeqsolve(
            term, solver, 0.0, 1.0, first, y, stepsize_controller=control
        ).ys  # fmt: skip

    y = jnp.asarray(x.numpy())
    return lambda: run(y).block_until_ready()


def a_turn(run: Callable[[], object]) -> Callable[[], float]:
    """The time of a call, of as many as make a turn."""
    run()
    calls = max(1, round(TURN / max(min(seconds(run), seconds(run)), 1e-6)))
    return lambda: seconds(lambda: [run() for _ in range(calls)]) / calls


def steps_of(name: str, batch: int) -> int:
    """Steps of euler."""
    return 10 if name == "mlp784" and batch > 1000 else STEPS.get(name, 100)


def goal(name: str, batch: int) -> float:
    """How many times faster than torch eager native is to be."""
    small = name == "mlp64" and batch <= 16
    return 10.0 if small else 1.5 if (name, batch) == ("mlp784", 1) else 1.0


def row(name: str, batch: int, method: str, repeats: int, compile_too: bool) -> dict[str, object]:
    """One line of the table."""
    torch.manual_seed(SEED)
    make, shape = NETS[name]
    net = make().requires_grad_(False)
    for p in net.parameters():
        if not p.any():
            p.normal_(0, 0.05)
    x = torch.randn(batch, *shape)
    native = interp.compile(net)
    run = {
        "method": method,
        **(
            {"steps": steps_of(name, batch)}
            if method == "euler"
            else {"rtol": TOLERANCE, "atol": TOLERANCE}
        ),
    }
    times = [0.0]
    sol = interp.solve(net, x, callback=lambda s: times.append(s.t), **run)
    runs: dict[str, Callable[[], object]] = {
        "native": lambda: interp.solve(native, x, **run),
        "solve": lambda: interp.solve(net, x, **run),
        "loop": lambda: by_loop(net, x, method, times),
    }
    if compile_too:
        compiled = torch.compile(net)
        runs["compiled"] = lambda: interp.solve(compiled, x, **run)
    jax = by_diffrax(net, x, method, steps_of(name, batch))
    if jax is not None:
        runs["diffrax"] = jax
    ours = interp.solve(native, x, **run)
    gap = float((ours.x - sol.x).abs().max() / sol.x.abs().max())
    if gap > 1e-3:
        raise SystemExit(f"{name} at {batch} differs by {gap}")
    timed = {key: a_turn(r) for key, r in runs.items()}
    found = {key: median(v) for key, v in interleaved(timed, repeats).items()}
    calls = (interp.solve(native, x, **run).stats for _ in range(2 * repeats + 1))
    stats = min(calls, key=lambda stats: stats.wall_s)
    eager = min(found["solve"], found["loop"])
    return {
        "net": name, "batch": batch, "method": method, "nfe": ours.stats.nfe, "processor_s": found,
        "times_eager": eager / found["native"], "goal_eager": goal(name, batch),
        "times_compiled": found["compiled"] / found["native"] if compile_too else None,
        "times_diffrax": found["diffrax"] / found["native"] if jax is not None else None,
        "share": stats.field_s / stats.wall_s, "uncompiled": native.uncompiled, "gap": gap,
    }  # fmt: skip


def kernels(repeats: int) -> list[dict[str, object]]:
    """Steps in place beside torch's, and the traffic that they need at the measured bandwidth."""
    print("steps in place, microseconds (torch's, the roofline's)")
    return [of_size(n, repeats) for n in (1_000, 100_000, 10_000_000)]


def of_size(n: int, repeats: int) -> dict[str, object]:
    """The steps on n numbers."""
    x, v, z, copy = (torch.randn(n) for _ in range(4))
    bar, later = 0.5, 0.6
    ratio = (later / bar) ** 0.5
    s2 = (1 - later) / (1 - bar) * (1 - bar / later)
    b = (1 - later - s2) ** 0.5 - ratio * (1 - bar) ** 0.5
    runs: dict[str, Callable[[], object]] = {
        "flow": lambda: flow_matching_step(x, v, 0.01),
        "flow_torch": lambda: x.add_(v, alpha=0.01),
        "ddpm": lambda: ddpm_step(x, v, bar, later, z),
        "ddpm_torch": lambda: x.mul_(ratio).add_(v, alpha=b).add_(z, alpha=s2**0.5),
        "copy": lambda: copy.copy_(x),
    }
    loops = max(1, 1_000_000 // n)

    def many(run: Callable[[], object]) -> float:
        return seconds(lambda: [run() for _ in range(loops)]) / loops

    timed = {key: (lambda r=r: many(r)) for key, r in runs.items()}
    found = {key: median(v) for key, v in interleaved(timed, repeats).items()}
    moved = found["copy"] / 2  # seconds for n numbers one way
    roof = {"flow": 3 * moved, "ddpm": 4 * moved}
    shown = (
        f"{key} {found[key] * 1e6:9.1f} ({found[f'{key}_torch'] * 1e6:9.1f}, {roof[key] * 1e6:9.1f})"
        for key in ("flow", "ddpm")
    )
    print(f"n = {n:>9}: {', '.join(shown)}")
    return {"n": n, "seconds": found, "roofline_s": roof}


def decoders(repeats: int) -> list[dict[str, object]]:
    """Latents of 4 x 8 x 8 decoded to images of 3 x 32 x 32, beside the same in torch."""
    print("vae_decode, milliseconds (torch's)")
    torch.manual_seed(SEED)
    body = nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip
    return [decoded(body, rows, repeats) for rows in (1, 16)]


def decoded(body: nn.Module, rows: int, repeats: int) -> dict[str, object]:
    """So many rows."""
    z, scale = torch.randn(rows, 4, 8, 8), 0.18215
    native, out = Decoder(body, z, scale=scale), torch.empty(rows, 3, 32, 32)
    gap = float((native(z, out) - body(z / scale).clamp(-1, 1)).abs().max())
    if gap > 1e-4:
        raise SystemExit(f"decoded images of {rows} differ by {gap}")
    runs: dict[str, Callable[[], float]] = {
        "native": lambda: seconds(lambda: native(z, out)),
        "torch": lambda: seconds(lambda: body(z / scale).clamp_(-1, 1)),
    }
    found = {key: median(v) for key, v in interleaved(runs, 5 * repeats, warmups=2).items()}
    ours, theirs = found["native"], found["torch"]
    print(f"rows = {rows:>3}: {ours * 1e3:8.3f} ({theirs * 1e3:8.3f})")
    return {"rows": rows, "seconds": found, "times_torch": theirs / ours, "gap": gap}


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 256, 4096])
    parser.add_argument("--methods", nargs="+", default=["euler", "dopri5"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--name", default="native")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    lines = []
    columns = ("native", "solve", "loop", "compiled", "diffrax")
    print(
        "net      batch method ",
        *(f"{c:>9}" for c in columns),
        " x eager (goal)  x compiled  x diffrax  share",
    )
    for name, batch, method in itertools.product(given.nets, given.batches, given.methods):
        line = row(name, batch, method, given.repeats, not given.no_compile)
        lines.append(line)
        spent: dict[str, float] = line["processor_s"]  # type: ignore[assignment]
        shown = " ".join(f"{spent.get(c, math.nan) * 1e3:9.3f}" for c in columns)
        compiled = line["times_compiled"] or math.nan
        jax = line["times_diffrax"] or math.nan
        times = f"{line['times_eager']:8.2f} {line['goal_eager']:6.1f} {compiled:11.2f} {jax:10.2f}"
        print(f"{name:8} {batch:>5} {method:7} {shown} {times} {line['share']:6.2f}", flush=True)
    extra = {}
    if given.kernels:
        extra = {"kernels": kernels(given.repeats), "decoders": decoders(given.repeats)}
    path = write(given.name, ["torch", "diffrax", "jax", "interp"], SEED, rows=lines, **extra)
    print(f"milliseconds; written to {path}")


if __name__ == "__main__":
    main()
