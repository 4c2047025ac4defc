"""Write docs/noise.png and docs/bias.png: one noise at four step sizes, and what samplers leave.

python docs/noise.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import interp
from interp.plot import style

HERE = Path(__file__).parent
END, SEED = 4.0, 0


def noise() -> None:
    """A particle in a double well, at four step sizes, on one Brownian path."""
    term = interp.SDE(lambda t, x: x - x**3, 0.8)
    x = torch.zeros(1, 1, dtype=torch.float64)
    figure, (axes,) = style.figure(size=(7.2, 3.0))
    counts = (1024, 128, 32, 16)
    lines = []
    for k, steps in enumerate(counts):
        times = torch.linspace(0, END, steps + 1, dtype=torch.float64)
        run = interp.solve(
            term, x, t=(0.0, END), method="milstein", steps=steps, save_at=times, seed=SEED
        )
        look = style.line_style(k) | {"linewidth": 0.7 + 0.3 * k}
        lines += axes.plot(run.ts.numpy(), run.xs[:, 0, 0].numpy(), **look)
    style.name_axes(axes, x="time t", y="x")
    style.header(figure, lines[::-1], [f"{n} steps" for n in counts[::-1]])
    style.finish(figure, HERE / "noise.png", colours=64)


def bias() -> None:
    """What every stochastic sampler leaves on the linear path."""
    figure = interp.plot.bias(interp.methods(bias=True))
    style.finish(figure, HERE / "bias.png", colours=64)


if __name__ == "__main__":
    noise()
    bias()
