"""A path that keeps some noise at t = 1 ends with one first-order step to clean data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, SolveError
from interp.solvers.result import StepState

F64 = torch.float64
LAW = interp.exact.Gaussian(0.5, 0.3)
PATH = schedules.variance_exploding(0.1, 10.0)
X = torch.tensor([[8.0], [-5.0], [0.1]], dtype=F64)


def clean(start: float = 0.0) -> Tensor:
    """The exact flow to t = 1, and E[x1 | x] there."""
    return LAW.data(PATH)(1.0, LAW.flow(PATH)(start, 1.0, X))


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("view", ["velocity", "noise", "data", "score"])
def test_a_run_ends_with_the_data_estimate(view: str, backend: str) -> None:
    term = PATH.ode(getattr(LAW, view)(PATH), view=view)
    seen: list[StepState] = []
    sol = interp.solve(
        term,
        X,
        rtol=1e-8,
        atol=1e-8,
        save_at=[0.0, 0.5, 1.0],
        backend=backend,
        callback=seen.append,
    )
    # Dozens of steps of such a local error.
    torch.testing.assert_close(sol.x, clean(), rtol=0, atol=1e-6)
    assert torch.equal(sol.xs[-1], sol.x)
    torch.testing.assert_close(sol.xs[1], LAW.flow(PATH)(0.0, 0.5, X), rtol=0, atol=1e-6)
    assert seen[-1].t == 1.0
    assert torch.equal(seen[-1].x, sol.x)
    assert (sol.stats.nfe, sol.stats.steps) == (seen[-1].nfe, len(seen))
    left = interp.solve(term, X, rtol=1e-8, atol=1e-8, backend=backend, denoise=False)
    torch.testing.assert_close(left.x, LAW.flow(PATH)(0.0, 1.0, X), rtol=0, atol=1e-6)
    assert left.stats.nfe == sol.stats.nfe - 1


def test_only_a_run_forward_to_the_end_does() -> None:
    term = PATH.ode(LAW.velocity(PATH))
    for ends in ((0.2, 0.9), (1.0, 0.4)):
        sol = interp.solve(term, X, ends, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sol.x, LAW.flow(PATH)(*ends, X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("view", ["velocity", "data"])
@pytest.mark.parametrize("method", ["dopri5", "ddim"])
@pytest.mark.parametrize("name", ["linear", "variance_preserving", "variance_exploding"])
def test_the_base_of_a_reversed_path_is_no_noise_to_remove(
    name: str, method: str, view: str
) -> None:
    path = schedules.from_config(name).reverse()
    steps = {"steps": 300} if method == "ddim" else {"rtol": 1e-8, "atol": 1e-8}
    points = LAW.sample(5, seed=0, dtype=F64)
    start = 0.02
    sol = interp.solve(
        path.ode(getattr(LAW, view)(path), view=view), points, (start, 1.0), method=method, **steps
    )
    exact = LAW.flow(path)(start, 1.0, points)
    # First-order steps at 300 to the size of the state, and dozens of such a local error.
    close = 0.05 if method == "ddim" else 1e-6
    assert (sol.x - exact).abs().max() < close * exact.abs().max()


@pytest.mark.parametrize("pair", [False, True])
def test_an_sde_ends_with_it_too(pair: bool) -> None:
    """With eps = 0 the steps are exact for a constant data estimate, and the end is the ODE's."""
    velocity, score = LAW.velocity(PATH), LAW.score(PATH)
    if pair:
        term = PATH.sde(
            lambda t, x: (velocity(t, x), score(t, x)), view=("velocity", "score"), diffusion=0.0
        )
    else:
        term = PATH.sde(LAW.noise(PATH), view="noise", diffusion=0.0)
    n = 400
    sol = interp.solve(term, X, method="euler_maruyama", steps=n)
    # First order: the flow bends by log(100)^2 / 2 a unit of time.
    torch.testing.assert_close(sol.x, clean(), rtol=0, atol=10 * math.log(100) ** 2 / 2 / n)
    assert sol.stats.nfe == n + 1


def test_a_latent_that_stays_is_noise_too() -> None:
    path = interp.Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.2)
    sol = interp.solve(path.ode(LAW.velocity(path)), X, rtol=1e-8, atol=1e-8)
    wanted = LAW.data(path)(1.0, LAW.flow(path)(0.0, 1.0, X))
    torch.testing.assert_close(sol.x, wanted, rtol=0, atol=1e-6)


def test_a_model_that_fails_in_the_last_step_is_named() -> None:
    def broken(t: Tensor, x: Tensor) -> Tensor:
        return x if t < 1 else x * torch.tensor([[1.0], [math.nan], [1.0]], dtype=F64)

    def run(**options: Any) -> interp.solvers.Solution:
        return interp.solve(
            PATH.ode(broken, view="noise"), X, method="euler", steps=3, backend="torch", **options
        )

    with pytest.raises(SolveError, match=r"rows \[1\].*denoise=False") as caught:
        run()
    before = run(denoise=False)
    assert torch.equal(caught.value.last, before.x)
    partial = run(on_failure="partial")
    assert partial.stats.status == "non_finite"
    assert torch.equal(partial.x, before.x)


def test_denoise_is_yes_or_no() -> None:
    with pytest.raises(OptionError, match="denoise='no'"):
        interp.solve(PATH.ode(LAW.velocity(PATH)), X, denoise="no")
