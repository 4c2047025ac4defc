"""Fields with a component that decays at once: implicit methods, and what explicit ones say."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import interp
from interp.errors import SolveError, StiffWarning, Unsupported

F64 = torch.float64
IMPLICIT = [m.name for m in interp.methods("ode") if m.implicit]
RATE = 1e5


def prothero_robinson(t: Tensor, x: Tensor) -> Tensor:
    """x = cos t, to which everything else decays at the rate 1e5 (Prothero and Robinson 1974)."""
    return -RATE * (x - t.cos()) - t.sin()


def robertson(t: Tensor, x: Tensor) -> Tensor:
    """Three reactions at rates from 0.04 to 3e7 (Robertson 1966)."""
    a, b, c = x.unbind(-1)
    slow, fast, fastest = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([fastest - slow, slow - fastest - fast, fast], -1)


@pytest.mark.parametrize("method", IMPLICIT)
def test_the_work_does_not_grow_with_the_stiffness(method: str) -> None:
    x = torch.ones(3, 1, dtype=F64)
    sol = interp.solve(prothero_robinson, x, (0.0, 1.0), method, rtol=1e-6, atol=1e-6)
    assert float((sol.x - math.cos(1.0)).abs().max()) < 1e-5
    assert sol.stats.steps < 100
    assert sol.stats.backend == "torch"


@pytest.mark.parametrize("method", IMPLICIT)
def test_robertson_against_radau(method: str) -> None:
    start = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.0, 0.1]], dtype=F64)
    sol = interp.solve(
        robertson, start, (0.0, 40.0), method, rtol=1e-5, atol=1e-10, save_at=[0.4, 4.0, 40.0]
    )
    for r in range(2):

        def field(t: float, y: list[float]) -> list[float]:
            return [
                -0.04 * y[0] + 1e4 * y[1] * y[2],
                0.04 * y[0] - 1e4 * y[1] * y[2] - 3e7 * y[1] ** 2,
                3e7 * y[1] ** 2,
            ]

        peer = solve_ivp(
            field, (0.0, 40.0), start[r].tolist(), "Radau", t_eval=[0.4, 4.0, 40.0], rtol=1e-10,
            atol=1e-14,
        )  # fmt: skip
        truth = torch.tensor(peer.y.T, dtype=F64)
        # A hundred times the relative tolerance; the second reactant is of the size 1e-5.
        assert float(((sol.xs[:, r] - truth) / truth).abs().max()) < 1e-3
    assert float((sol.x.sum(-1) - 1).abs().max()) < 1e-9  # mass is conserved
    assert sol.stats.steps < 300


@pytest.mark.parametrize("method", IMPLICIT)
def test_one_step_forgets_a_component_that_decays_at_once(method: str) -> None:
    start = torch.tensor([[1.0, 1.0]], dtype=F64)
    rates = torch.tensor([1e8, 1.0], dtype=F64)
    end = interp.solve(lambda t, x: -rates * x, start, (0.0, 0.1), method, steps=1).x
    assert abs(float(end[0, 0])) < 1e-6
    assert float(end[0, 1]) == pytest.approx(math.exp(-0.1), abs=1e-4)


def test_an_explicit_method_says_that_the_field_is_stiff() -> None:
    x = torch.ones(3, 1, dtype=F64)
    for backend in ("rust", "torch"):
        for method in ("bosh3", "dopri5", "tsit5", "dop853"):
            with pytest.warns(StiffWarning, match=r"rate 1\.0e\+05.*kencarp4"):
                sol = interp.solve(
                    prothero_robinson, x, (0.0, 0.03), method, backend, rtol=1e-4, atol=1e-4
                )
            assert sol.stats.status == "done"
            with pytest.raises(SolveError, match=r'stiff.*method="kencarp4"\. ') as caught:
                interp.solve(
                    prothero_robinson, x, (0.0, 0.03), method, backend, rtol=1e-4, atol=1e-4,
                    max_steps=250,
                )  # fmt: skip
            assert caught.value.reason == "too_many_steps"


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_the_row_that_is_stiff_is_named(backend: str) -> None:
    rate = torch.tensor([1.0, 1e5, 2.0], dtype=F64)

    def field(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return -rate[:, None] * (x - t.cos()[:, None])

    x = torch.ones(3, 1, dtype=F64)
    with pytest.warns(StiffWarning, match=r"row 1 decays at the rate 1\.0e\+05.*kencarp4"):
        interp.solve(
            field, x, (0.0, 0.03), "dopri5", backend, per_row=True, cond={"rate": rate}, rtol=1e-4,
            atol=1e-4,
        )  # fmt: skip


def test_a_run_of_many_steps_that_is_not_stiff_says_nothing() -> None:
    def oscillator(t: Tensor, x: Tensor) -> Tensor:
        return 500 * torch.stack([x[:, 1], -x[:, 0]], 1)

    def growth(t: Tensor, x: Tensor) -> Tensor:
        return x * (300 * t).cos()

    x = torch.ones(2, 2, dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interp.solve(oscillator, x, (0.0, 10.0), rtol=1e-3, atol=1e-3).stats.steps > 1000
        assert interp.solve(growth, x, (0.0, 5.0), rtol=1e-9, atol=1e-9).stats.steps > 500


def test_what_implicit_methods_refuse() -> None:
    x = torch.ones(2, 600, dtype=F64)
    with pytest.raises(Unsupported, match="here 600; 512 are the most"):
        interp.solve(lambda t, x: -x, x, method="kencarp4")
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(Unsupported, match="derivatives of the field"):
        interp.solve(lambda t, x: -x, x, method="kencarp4", backend="rust")
    with pytest.raises(Unsupported, match="no gradients"):
        interp.solve(lambda t, x: -x, x.clone().requires_grad_(), method="kencarp4")
    with pytest.raises(Unsupported, match="steps all rows together"):
        interp.solve(lambda t, x: -x, x, method="kencarp4", per_row=True)
    # A jump, from one side of which the iteration goes to the other and back.
    with pytest.raises(SolveError, match="Newton") as caught:
        interp.solve(lambda t, x: -1e6 * (x - 0.5).sign(), x, method="kencarp4", steps=1)
    assert caught.value.reason == "no_convergence"


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize("method", ["kvaerno3", "kencarp4"])
def test_rows_that_are_not_finite_are_named(method: str, steps: int | None) -> None:
    """Though no stage is found there, what is wrong is the field."""

    def breaks(t: Tensor, x: Tensor) -> Tensor:
        bad = (torch.arange(len(x)) == 1)[:, None] & (t > 0.5)
        return torch.where(bad, math.nan, -x)

    with pytest.raises(SolveError, match="NaN or infinite at t = 0.5, .* in row 1") as caught:
        interp.solve(breaks, torch.ones(3, 2, dtype=F64), method=method, steps=steps)
    assert caught.value.rows == [1]
    assert caught.value.reason == "non_finite"
    assert caught.value.last.isfinite().all()
