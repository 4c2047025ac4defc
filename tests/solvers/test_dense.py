"""States between two steps, and at them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

F64 = torch.float64
ODES = [m.name for m in interp.methods("ode") if m.tableau and "rust" in m.backends]


def field(t: Tensor, x: Tensor) -> Tensor:
    """x = 1 / (1/x0 + sin t)."""
    return -t.cos() * x * x


def exact(t: float) -> float:
    return 1 / (1 + math.sin(t))


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ODES)
def test_observed_order_of_the_dense_output(method: str, backend: str) -> None:
    """Inside the first step the only errors are its own: of order p + 1 in its length."""
    # The error of the interpolant, h^(q+1), and of the step's end, h^(p+1).
    order = {"dopri5": 4, "tsit5": 4, "dop853": 7}.get(method, min(METHODS[method].order, 3))
    errors = []
    for h in (0.1, 0.05) if order == 7 else (0.05, 0.025):
        inside = [h * f for f in (0.15, 0.4, 0.6, 0.85)]
        x = torch.ones(1, 1, dtype=F64)
        sol = interp.solve(field, x, (0.0, h), method, backend, steps=1, save_at=inside)
        truth = torch.tensor([exact(t) for t in inside], dtype=F64)
        errors.append(float((sol.xs.flatten() - truth).abs().max()))
    # The next term moves the slope by a few tenths at these h.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
def test_saving_changes_nothing(backend: str) -> None:
    x = torch.linspace(0.5, 2, 6, dtype=F64).reshape(3, 2)
    for steps, method in ((7, "rk38"), (None, "dopri5")):
        plain = interp.solve(field, x, (0.0, 1.0), method, backend, steps=steps)
        saves = [0.0, 0.1, 0.100001, 0.37, 0.9999, 1.0]
        saved = interp.solve(field, x, (0.0, 1.0), method, backend, steps=steps, save_at=saves)
        assert torch.equal(plain.x, saved.x)
        assert torch.equal(saved.xs[0], x)
        assert torch.equal(saved.xs[-1], saved.x)
        assert plain.ts.tolist() == [1.0]
        assert torch.equal(plain.xs, plain.x[None])


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ODES)
def test_a_save_on_the_grid_is_the_state_itself(method: str, backend: str) -> None:
    x = torch.ones(2, 1, dtype=F64)
    grid = [0.0, 0.3, 0.35, 0.8, 1.0]
    states = [x]
    whole = interp.solve(
        field, x, (0.0, 1.0), method, backend, grid=grid, save_at=grid,
        callback=lambda s: states.append(s.x.clone()),
    )  # fmt: skip
    assert torch.equal(whole.xs, torch.stack(states))


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
def test_nothing_saved(backend: str) -> None:
    sol = interp.solve(field, torch.ones(2, 1), method="rk38", backend=backend, steps=2, save_at=[])
    assert sol.ts.shape == (0,)
    assert sol.xs.shape == (0, 2, 1)
    assert float(sol.x[0, 0]) == pytest.approx(exact(1.0), abs=1e-2)  # two steps


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_dense_output_that_is_not_finite_is_an_error(backend: str) -> None:
    """Only a save inside the last step asks for the slope at the end, which is infinite here."""
    x = torch.ones(2, 3, dtype=F64)

    def singular(t: Tensor, x: Tensor) -> Tensor:
        return -x / (1 - t)

    end = interp.solve(singular, x, method="euler", backend=backend, steps=10)
    assert end.stats.status == "done"
    with pytest.raises(interp.errors.SolveError) as caught:
        interp.solve(singular, x, method="euler", backend=backend, steps=10, save_at=[0.95, 1.0])
    assert caught.value.reason == "non_finite"
    assert caught.value.last.isfinite().all()


def test_saves_within_rounding_of_a_step_are_that_step() -> None:
    # linspace(0, 1, 11)[3] is 0.30000000000000004, and 0.3 is another number in float32.
    path = interp.schedules.linear()
    law = interp.exact.Gaussian(0.5, 0.3)
    term = path.sde(law.velocity(path), diffusion=1.0)
    saves = [0.1, 0.2, 0.3, 0.6, 0.7, 0.9]
    for asked in (saves, torch.tensor(saves), torch.tensor(saves).numpy()):
        sol = interp.solve(
            term, torch.ones(2, 1), method="euler_maruyama", steps=10, seed=0, save_at=asked
        )
        assert sol.ts.tolist() == [float(t) for t in asked]
        assert sol.xs.isfinite().all()
    with pytest.raises(interp.errors.OptionError, match="between two steps"):
        interp.solve(
            term, torch.ones(2, 1), method="euler_maruyama", steps=10, seed=0, save_at=[0.3 + 1e-7]
        )


# Samplers, and Adams and Bashforth's, which have no dense output of their own

LAW = interp.exact.Gaussian(torch.tensor([0.5], dtype=F64), torch.eye(1, dtype=F64) * 0.3)
PATHS = [interp.schedules.linear(), interp.schedules.variance_exploding(0.01, 50.0)]
INSIDE = [0.113, 0.2501, 0.5012, 0.777, 0.993]


def noisy_states(path: interp.Interpolant) -> Tensor:
    return path.coefficients(0.0).sigma * torch.tensor([[1.3], [-0.4], [2.0]], dtype=F64)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "ve"])
@pytest.mark.parametrize("method", [m.name for m in interp.methods("path") if not m.noisy])
def test_states_between_the_steps_of_samplers(method: str, path: interp.Interpolant) -> None:
    """They cost nothing, change nothing, and miss the flow by no more than the steps' ends do."""
    if method == "restart":
        pytest.skip("draws noise")
    term, x, flow = path.ode(LAW.data(path), view="data"), noisy_states(path), LAW.flow(path)
    misses = []
    for steps in (40, 80):
        sol = interp.solve(term, x, method=method, steps=steps, save_at=INSIDE)
        alone = interp.solve(term, x, method=method, steps=steps)
        assert torch.equal(sol.x, alone.x)
        assert sol.stats.nfe == alone.stats.nfe
        assert sol.ts.tolist() == INSIDE
        errors = [
            float((v - flow(0.0, t, x)).abs().max()) for t, v in zip(INSIDE, sol.xs, strict=True)
        ]
        misses.append(max(errors))
        ends = [i / steps for i in range(1, steps)]
        at_ends = interp.solve(term, x, method=method, steps=steps, save_at=ends).xs
        worst = max(
            float((v - flow(0.0, t, x)).abs().max()) for t, v in zip(ends, at_ends, strict=True)
        )
        # Near clean data, where such a step halves sigma, the fourth difference of the flow is thousands.
        assert misses[-1] < 1.5 * worst + 5000 / steps**4
    assert misses[1] < misses[0] / 1.7


@pytest.mark.parametrize("grid", ["uniform", "karras", "cosine"])
def test_states_along_what_a_first_order_step_keeps(grid: str) -> None:
    """One point and noise: D and n do not change, so that a state at any time is exact, from one step on."""
    path = PATHS[0]
    term = path.ode(lambda t, x: torch.full_like(x, 2.0), view="data")
    for steps in (1, 2, 3, 7):
        for ends in ((0.0, 1.0), (0.0, 0.6), (0.7, 0.1)):
            x = path.at(ends[0], torch.ones(1, 1, dtype=F64), torch.full((1, 1), 2.0, dtype=F64))
            asked = [ends[0] + f * (ends[1] - ends[0]) for f in (0.001, 0.21, 0.5, 0.83, 0.9999)]
            sol = interp.solve(term, x, ends, "ddim", steps=steps, grid=grid, save_at=asked)
            truth = [path.at(t, 1.0 + 0 * x, 2.0 + 0 * x) for t in asked]
            assert float((sol.xs - torch.stack(truth)).abs().max()) < 1e-12


def test_states_between_steps_whose_ends_nearly_meet() -> None:
    """The differences of answers so close are rounding, which no state is to magnify."""
    path = PATHS[0]
    term, x = path.ode(LAW.data(path), view="data"), noisy_states(path).float()
    grid = [0.0, 0.2, 0.5, 0.5 + 1e-6, 0.8, 1.0]
    single, double = (
        interp.solve(term, x, method="ddim", grid=grid, save_at=[0.4, 0.65]).xs
        for x in (x, x.double())
    )
    assert float((single - double).abs().max()) < 2e-6  # through four nodes 4e-3


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_states_between_the_steps_of_a_run_that_fails(backend: str) -> None:
    path = PATHS[0]
    data = LAW.data(path)

    def ends(t: Tensor, x: Tensor) -> Tensor:
        return data(t, x) if float(t) < 0.55 else data(t, x) * math.nan

    sol = interp.solve(
        path.ode(ends, view="data"), noisy_states(path), method="dpm++2m", backend=backend, steps=10,
        save_at=[0.05, 0.33, 0.58, 0.72, 0.9], on_failure="partial",
    )  # fmt: skip
    assert sol.stats.status == "non_finite"
    assert sol.ts.tolist() == [0.05, 0.33]
    assert sol.xs.shape == (2, 3, 1)
    assert sol.xs.isfinite().all()


def test_states_between_steps_have_gradients() -> None:
    path, x = PATHS[0], noisy_states(PATHS[0]).requires_grad_()
    term = path.ode(LAW.data(path), view="data")

    def states(x: Tensor) -> Tensor:
        return interp.solve(term, x, method="dpm++2m", steps=5, save_at=[0.23, 0.71]).xs

    assert torch.autograd.gradcheck(states, x)
