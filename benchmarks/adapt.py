"""One trained model, sampled on schedules that it was not trained on.

    python benchmarks/adapt.py [--run RUN] [--rows 64] [--tol 1e-6]

An MLP learns the velocity of the linear path on the digits (the same run as in schedules.py, or
--run, of `interp train flow_matching --data digits`). It is then sampled on other paths by `adapt`,
without training, by dopri5 at --tol. Two columns say how far the images are from those of the linear
path:

    same point  started where the linear path's own solution is at the matched time: one flow, so that
                only the solver's tolerance is left
    own base    started from N(0, sigma(0)^2) of the path, with the same normals, as one samples: where
                the data leak into I_0, that start is off by the prior gap, in nats per dimension
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from report import write
from schedules import train
from torch import Tensor

import interp
from interp import schedules
from interp.training import load

OTHERS = {
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "variance preserving": schedules.variance_preserving(),
    "EDM 0.002 to 80": schedules.edm(0.002, 80.0),
    "cosine table, 1000": schedules.from_betas("cosine"),
}
SEED = 0


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@torch.no_grad()
def measure(run: Path, rows: int, tol: float) -> list[dict[str, object]]:
    """Distances from the images of the path that the model was trained on, for each other path."""
    family, _ = load(run, "cpu")
    term = family.term()
    trained, model = family.path, term.model
    z = trained.base.sample((rows, *family.shape), seed=SEED)
    options = {"rtol": tol, "atol": tol}
    own = interp.solve(term, z, **options)
    found: list[dict[str, object]] = [
        {"path": "linear, trained on", "nfe": own.stats.nfe, "rms": rms(own.x)}
    ]
    for name, path in OTHERS.items():
        change = path.between(trained)
        other = path.ode(path.adapt(model, trained_on=trained))
        low, _ = other.interval
        there, scale = (v.item() for v in change.both(low))
        begun = z if there == 0 else interp.solve(term, z, t=(0.0, there), **options).x
        same = interp.solve(other, begun / scale, **options)
        base = interp.solve(other, path.sigma(low).item() * z, **options)
        found.append(
            {
                "path": name,
                "nfe": same.stats.nfe,
                "rms": rms(same.x),
                "same_point": rms(same.x - own.x),
                "own_base": rms(base.x - own.x),
                "prior_gap": path.prior_gap(0.0, rms(own.x)),
            }
        )
    return found


def table(found: list[dict[str, object]]) -> str:
    lines = [
        "| path | evaluations | rms of images | distance, same point | distance, own base | prior gap |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [f"{row['path']}", f"{row['nfe']}", f"{row['rms']:.4f}"]
        rest = [row.get(key) for key in ("same_point", "own_base", "prior_gap")]
        lines.append(f"| {' | '.join(cells + ['' if v is None else f'{v:.1e}' for v in rest])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="of interp train flow_matching --data digits")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tol", type=float, default=1e-6)
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.run or train(Path(folder)), args.rows, args.tol)
    text = table(found)
    print(text)
    path = write(
        "adapt", ("interp", "torch", "numpy"), SEED, rows=found, table=text,
        wall_s=round(time.perf_counter() - start),
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
