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
