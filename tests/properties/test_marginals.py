"""The SDEs of a path leave the law that its ODE leaves: on a mixture, for every path and several eps."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import exact, schedules
from interp.errors import Unsupported
from interp.testing import assert_same_marginals

PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "vp": schedules.variance_preserving(),
    "sub_vp": schedules.sub_variance_preserving(),
    "ve": schedules.variance_exploding(0.01, 20.0),
    "edm": schedules.edm(0.002, 80.0),
    "polynomial": schedules.polynomial(2),
    "table": schedules.from_betas("linear", 200),
}
TARGET = exact.Mixture([0.6, 0.4], [[-0.8, 0.3], [0.9, -0.4]], [[[0.1, 0.05], [0.05, 0.2]], 0.08])
START = 0.01  # where G is finite on every path


def terms(name: str, eps: float | str) -> tuple[interp.terms.PathODE, interp.terms.PathSDE]:
    path = PATHS[name]
    model = TARGET.data(path)
    return path.ode(model, view="data"), path.sde(model, view="data", diffusion=eps)


@pytest.mark.parametrize("eps", [0.4, 1.0, "reverse"])
@pytest.mark.parametrize("method", ["euler_maruyama", "srk", "heun_stratonovich"])
@pytest.mark.parametrize("name", PATHS)
def test_sde_and_ode_leave_one_law(name: str, method: str, eps: float | str) -> None:
    ode, sde = terms(name, eps)
    start = TARGET.marginal(PATHS[name], START)
    # euler_maruyama is of weak order 1, and of 1/2 with an eps that stays where sigma vanishes.
    tol = 0.1 if method == "euler_maruyama" else 0.04
    assert_same_marginals(
        ode, sde, start, t=(START, 1.0), n=2048, tol=tol,
        solver_b={"method": method, "steps": 150, "rtol": 1e-5, "atol": 1e-5},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
def test_a_drift_without_its_score_leaves_another_law(name: str) -> None:
    ode, _ = terms(name, 1.0)
    bare = interp.SDE(lambda t, x: TARGET.velocity(PATHS[name])(t.double(), x), 1.0)
    start = TARGET.marginal(PATHS[name], START)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_marginals(
            ode, bare, start, t=(START, 0.95), n=2048, tol=0.1,
            solver_b={"method": "euler_maruyama", "steps": 150},
        )  # fmt: skip


@pytest.mark.parametrize("method", ["milstein", "srk", "heun_stratonovich"])
def test_where_g_is_infinite_only_exponential_steps_begin(method: str) -> None:
    _, sde = terms("linear", "reverse")
    x = torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(Unsupported, match="infinite at t = 0"):
        interp.solve(sde, x, method=method, steps=10)
    assert interp.solve(sde, x, (START, 1.0), method=method, steps=10).stats.status == "done"


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("view", ["data", "velocity"])
def test_the_last_step_to_clean_data_asks_for_no_score_there(view: str, backend: str) -> None:
    path = PATHS["linear"]
    sde = path.sde(getattr(TARGET, view)(path), view=view, diffusion=0.5)
    x = TARGET.marginal(path, 0.5).sample(3, 0).double()
    grid = [0.5, 0.75, 0.9, 1.0]
    sol = interp.solve(
        sde, x, (0.5, 1.0), "heun_stratonovich", backend, grid=grid, save_at=grid, seed=1
    )
    assert torch.equal(sol.ts, torch.tensor(grid, dtype=torch.float64))
    assert torch.equal(sol.xs[-1], sol.x)
    data = TARGET.data(path)(torch.tensor(0.9, dtype=torch.float64), sol.xs[2])
    torch.testing.assert_close(sol.x, data, rtol=1e-12, atol=1e-12)
    assert (sol.stats.nfe, sol.stats.steps) == (5, 3)
