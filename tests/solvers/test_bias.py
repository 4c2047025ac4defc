"""The table of what stochastic samplers leave: exact, and what their runs leave."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError
from interp.solvers.bias import BiasTable

F64 = torch.float64
MEAN, VARIANCE = 0.3, 0.25


def table(**options: Any) -> BiasTable:
    return interp.methods(bias=True, **options)


def data(path: interp.Interpolant) -> Any:
    exact = interp.exact.Gaussian(MEAN, VARIANCE).data(path)

    def model(t: Tensor, x: Tensor) -> Tensor:
        return exact(t, x.reshape(-1, 1)).reshape(x.shape)

    return model


def test_the_table_is_what_runs_leave() -> None:
    path, n = schedules.linear(), 50_000
    found = table(steps=(10,))
    assert len(found.rows) >= 6
    x = path.base.sample((n // 100, 100), seed=1, dtype=F64)
    for row in found.rows:
        options: dict[str, Any] = {}
        term: Any = path.ode(data(path), view="data")
        if row.noise.startswith("eps="):
            eps = row.noise.removeprefix("eps=")
            diffusion: Any = eps if eps == "reverse" else float(eps)
            term = path.sde(data(path), view="data", diffusion=diffusion)
        else:
            name, value = row.noise.split("=")
            options[name] = float(value)
        sol = interp.solve(term, x, method=row.name, steps=10, seed=2, **options)
        # Five standard errors of so many normals.
        assert float(sol.x.mean()) == pytest.approx(
            row.means[0], abs=5 * row.stds[0] / math.sqrt(n)
        )
        assert float(sol.x.std()) == pytest.approx(row.stds[0], rel=5 / math.sqrt(2 * n))


def cosine_table(n: int) -> interp.Interpolant:
    """The betas of Nichol and Dhariwal (2102.09672), at most 0.999: sigma / beta begins at 2e4."""
    abar = torch.cos((torch.arange(n + 1, dtype=F64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
    return schedules.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))


STEEP = {
    "table": cosine_table(1000),
    "variance_exploding": schedules.variance_exploding(0.002, 2e4),
    "edm": schedules.edm(0.002, 2e4),
}


@pytest.mark.parametrize("name", STEEP)
def test_even_steps_from_much_noise_do_not_end_far_off(name: str) -> None:
    """Of 20 steps each divides sigma / beta by 2 or more: in x, or by a noise estimate, some end at 1000.

    Few steps leave a bias, 0.22 of ddpm's 20 (milstein is Euler's method, for additive noise); 200 a small
    one, but for a bounded eps whose last step forgets all but its data estimate (order one half).
    """
    some = ("euler_maruyama", "milstein", "srk", "heun_stratonovich", "reversible_heun", "ddpm")
    for row in table(path=STEEP[name]).rows:
        if row.name in some or "s_sde" in row.name or "seeds" in row.name:
            errors = [abs(s - 0.5) for s in row.stds]
            assert errors[0] < 0.25, (row.name, row.noise, row.stds)
            assert errors[1] < 0.125, (row.name, row.noise, row.stds)
            assert errors[2] < 0.04, (row.name, row.noise, row.stds)


@pytest.mark.parametrize("eps", [0.5, 1.0, "reverse"])
@pytest.mark.parametrize("steps", [3, 20])
def test_a_step_of_the_carried_law_is_exact(steps: int, eps: float | str) -> None:
    """Data N(0, 1/16) from much noise: milstein has no drift there, and the noise of its steps is whole."""
    path = STEEP["variance_exploding"]
    (row,) = [
        row
        for row in table(path=path, steps=(steps,), mean=0.0, variance=1 / 16).rows
        if row.name == "milstein" and row.noise == f"eps={eps}"
    ]
    assert row.stds[0] == pytest.approx(math.hypot(0.25, 0.002), rel=1e-9)  # with sigma(1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["milstein", "srk", "heun_stratonovich"])
def test_coordinates_do_not_overflow(method: str, dtype: torch.dtype) -> None:
    """All of eps = 10 would be carried over exp(800): a bounded share of it is."""
    path, law = schedules.linear(), interp.exact.Gaussian([0.3], [0.25])
    x = path.base.sample((4000, 1), seed=0, dtype=dtype)
    term = path.sde(law.data(path), view="data", diffusion=10.0)
    # With 500 steps some are too long for x alone, 800 / 500 at the end.
    sol = interp.solve(term, x, method=method, steps=500, seed=1)
    assert float(sol.x.std()) == pytest.approx(0.5, rel=0.2)


def test_short_steps_are_steps_in_x() -> None:
    """On a path from unit noise: those of the same SDE made by hand."""
    path, law = schedules.linear(), interp.exact.Gaussian([0.3], [0.25])
    velocity, score = law.velocity(path), law.score(path)
    by_hand = interp.SDE(lambda t, x: velocity(t, x) + 0.125 * score(t, x), 0.5)
    x = path.base.sample((50, 1), seed=0, dtype=F64)
    for method in ("milstein", "srk"):
        run: dict[str, Any] = {"t": (0.0, 0.9), "method": method, "steps": 20, "seed": 1}
        ours = interp.solve(path.sde(law.data(path), view="data", diffusion=0.5), x, **run)
        theirs = interp.solve(by_hand, x, span=(0.0, 1.0), **run)
        assert float((ours.x - theirs.x).abs().max()) < 1e-12


def test_more_steps_leave_less() -> None:
    for row in table(steps=(25, 50, 150)).rows:
        errors = [abs(s - 0.5) for s in row.stds]
        assert errors[2] < 0.04, row.name  # 0.031 for a bounded eps, of order one half
        assert errors[2] <= errors[0] + 1e-12, row.name
        assert abs(row.means[2] - MEAN) < 0.02, row.name


def test_a_point_stays_a_point() -> None:
    """Data without variance: a constant estimate, for which exponential steps are exact."""
    for row in table(steps=(7,), variance=0.0).rows:
        if row.name in ("euler_maruyama", "ddpm", "ddim"):
            assert row.means[0] == pytest.approx(MEAN, abs=1e-12)
            assert row.stds[0] == pytest.approx(0.0, abs=1e-7)


def test_it_prints_and_refuses() -> None:
    shown = str(table(steps=(20, 50), path=schedules.variance_preserving()))
    assert "standard deviation left on N(0.3, 0.25), true 0.5" in shown
    assert "20 steps" in shown
    assert "euler_maruyama" in shown
    assert str(interp.methods("chain")).count("\n") == 5
    with pytest.raises(OptionError, match="Gaussian base"):
        table(path=schedules.brownian_bridge(0.5))
    with pytest.raises(OptionError, match="variance="):
        table(variance=-1.0)
