"""The memory of a long Langevin chain.

    python benchmarks/chains.py [--steps 1000000] [--shape 4 8]

One unadjusted Langevin chain on the standard normal. The resident memory of the process is read at every
tenth of it: the chain keeps nothing of its past, so that it stays what it was after the first tenth. The
last state is checked against the law that it should have.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from report import write

import interp
from interp.solvers import StepState

SEED, STEP = 0, 0.1


def resident_kib() -> int:
    """What the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--shape", type=int, nargs="+", default=(4, 8))
    args = parser.parse_args()
    energy = interp.Energy(None, gradient=lambda x: x)
    held, squares, seen = [resident_kib()], torch.zeros(tuple(args.shape)), 0
    each = max(args.steps // 10, 1)
    step = 0

    def watch(state: StepState) -> None:
        nonlocal step, seen
        step += 1
        if step % 10 == 0:
            squares.add_(state.x**2)
            seen += 1
        if step % each == 0:
            held.append(resident_kib())

    start = time.perf_counter()
    interp.solve(
        energy, torch.zeros(tuple(args.shape)), method="langevin", steps=args.steps, step_size=STEP,
        seed=SEED, callback=watch,
    )  # fmt: skip
    us = 1e6 * (time.perf_counter() - start) / args.steps
    variance = float(squares.mean() / seen)
    # x <- (1 - h) x + sqrt(2 h) z leaves a variance of 1 / (1 - h / 2).
    print(f"{args.steps} steps, {us:.0f} us a step, resident KiB at every tenth: {held}")
    print(f"grown by {held[-1] - held[1]} KiB from the first tenth to the last")
    print(f"variance {variance:.4f}, of this chain's own law {1 / (1 - STEP / 2):.4f}")
    content = {"steps": args.steps, "us_a_step": us, "resident_kib": held, "variance": variance}
    print(f"written to {write('chains', ('interp', 'torch'), SEED, **content)}")


if __name__ == "__main__":
    main()
