"""DiffFlow's table over lambda: from the particles of a GAN to Langevin's, on a normal law.

    dX = [B grad log(q / p) + (g^2 / 2) grad log p] dt + sqrt(g^2 - L^2) dW,   q = N(m, s^2)

The weights of the two scores and the noise change from row to row; the law of the particles is to change with
B and L alone, and with them by a closed form (`interp.exact.particle_law`). The score of p and the logit
of data against particles are exact, so that what is left is the sampling error and that of the steps.

    python benchmarks/diffflow.py --rows 20000 --steps 200
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import report
import torch

import interp
from interp.exact import Gaussian, particle_law

SEED = 0
START, TARGET, TIME = Gaussian(1.5, 0.3), Gaussian(0.0, 0.64), 0.8
ENDS = {
    (0.0, 0.0): "GAN particles",
    (math.sqrt(2), 0.0): "Langevin",
    (math.sqrt(2), math.sqrt(2)): "flow to the mode",
}


def one(drift: float, g: float, noise: float, rows: int, steps: int) -> dict[str, object]:
    """Mean and variance at TIME, by particles and in closed form."""

    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        p = particle_law(START, float(t), TARGET, drift, noise) if t > 0 else START
        of_p, of_q = (-(x - law.mean) / law.cov[0] for law in (p, TARGET))
        return drift * (of_q - of_p) + g * g / 2 * of_p

    term = interp.SDE(field, math.sqrt(max(g * g - noise * noise, 0.0)))
    x = START.sample(rows, seed=SEED, dtype=torch.float64)
    x = interp.solve(term, x, t=(0.0, TIME), method="euler_maruyama", steps=steps, seed=SEED + 1).x
    law = particle_law(START, TIME, TARGET, drift, noise)
    return {
        "B": drift, "g": g, "L": noise, "score of q": g * g / 2, "logit": drift - g * g / 2,
        "noise": term.diffusion, "end": ENDS.get((g, noise), "") if drift == 1 else "",
        "mean": x.mean().item(), "exact mean": law.mean.item(),
        "variance": x.var().item(), "exact variance": law.cov.item(),
        "variance at last": max(0.0, TARGET.cov.item() * (1 - noise**2 / (2 * drift))),
    }  # fmt: skip


def cases() -> Iterator[tuple[float, float, float]]:
    """(B, g, L): for each L every share of the score, from none to all."""
    for noise in (0.0, 0.7, 1.0, math.sqrt(2)):
        for g in (0.0, 0.7, 1.0, 1.2, math.sqrt(2)):
            if g >= noise:
                yield 1.0, g, noise


def table(rows: list[dict[str, object]]) -> str:
    """As Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    rows = [one(*case, args.rows, args.steps) for case in cases()]
    print(table(rows))
    content = {"rows": rows, "table": table(rows), "steps": args.steps, "particles": args.rows}
    print(f"written to {report.write('diffflow', ('interp', 'torch'), SEED, **content)}")


if __name__ == "__main__":
    main()
