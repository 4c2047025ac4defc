"""Runs that cannot go on: NaN, steps that shrink without end, too many of them."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import SolveError

F64 = torch.float64
BACKENDS = ["rust", "torch", "torchdiffeq"]
DECAY = math.exp(-1)


def column(size: int) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=F64).reshape(-1, 2)


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "dopri5"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_from_step_50_on(bad: float, method: str, backend: str) -> None:
    x, rows = column(12), [1, 4]

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        if t >= 0.5:
            result[rows, 1] = bad
        return result

    options: dict[str, Any] = {"method": method, "backend": backend}
    with pytest.raises(SolveError, match=r"NaN or infinite at t = .*rows 1, 4.*\.last") as caught:
        interp.solve(field, x, steps=100, **options)
    error = caught.value
    # heun, rk4 and dopri5 have a stage at the end of a step: it is the 50th that fails there.
    steps = 50 if method == "euler" else 49
    assert (error.step, error.rows, error.reason) == (steps, rows, "non_finite")
    assert error.time == pytest.approx(steps / 100, abs=1e-15)
    good = interp.solve(lambda t, x: -x, x, (0.0, error.time), steps=steps, **options)
    assert float((error.last - good.x).abs().max()) < 1e-14  # the same steps, to rounding of t
    partial = interp.solve(
        field, x, steps=100, on_failure="partial", save_at=[0.1, 0.3, 0.7, 1.0], **options
    )
    assert partial.stats.status == "non_finite"
    assert torch.equal(partial.x, error.last)
    assert partial.ts.tolist() == [0.1, 0.3]
    assert partial.xs.shape == (2, 6, 2)
    assert partial.xs.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_an_adaptive_run(backend: str) -> None:
    x = column(6)

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        if t > 0.3:
            result[2] = math.nan
        return result

    with pytest.raises(SolveError) as caught:
        interp.solve(field, x, backend=backend)
    assert caught.value.last.isfinite().all()
    if backend != "torchdiffeq":  # which does not say where
        assert caught.value.reason == "non_finite"
        assert caught.value.rows == [2]
        # It halves its way towards 0.3 and stops where steps no longer move t.
        assert 0.29 < caught.value.time <= 0.3
        truth = x * math.exp(-caught.value.time)
        assert float((caught.value.last - truth).abs().max()) < 1e-4


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_nan_in_an_sde(backend: str) -> None:
    x = column(12)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.where((t > 0.55) & (torch.arange(len(x)) == 3)[:, None], math.nan, -x)

    for term in (interp.SDE(drift, 0.1), interp.SDE(lambda t, x: -x, drift)):
        with pytest.raises(SolveError, match=r"at t = 0\.6, after 6 steps, in row 3\.") as caught:
            interp.solve(term, x, method="euler_maruyama", backend=backend, steps=10, seed=0)
        assert (caught.value.step, caught.value.rows) == (6, [3])
        assert caught.value.last.isfinite().all()


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_partial_runs_backwards_from_the_first_step(backend: str) -> None:
    x = column(6)
    for ends in ((1.0, 0.0), (0.0, 1.0)):
        saves = [ends[0], 0.5, ends[1]]
        sol = interp.solve(
            lambda t, x: x * math.nan, x, ends, "euler", backend, steps=4, save_at=saves,
            on_failure="partial",
        )  # fmt: skip
        assert sol.stats.status == "non_finite"
        assert sol.ts.tolist() == [ends[0]]
        assert torch.equal(sol.xs, x[None])
        assert torch.equal(sol.x, x)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_other_ways_to_fail(backend: str) -> None:
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(SolveError, match=r"all the steps it may.*Raise max_steps") as caught:
        interp.solve(lambda t, x: -100 * x, x, backend=backend, max_steps=3)
    assert caught.value.reason == "too_many_steps"

    def jump(t: Tensor, x: Tensor) -> Tensor:  # dx/dt = x^2 from 1: infinite at t = 1
        return x * x

    with pytest.raises(SolveError) as caught:
        interp.solve(jump, x, (0.0, 2.0), backend=backend)
    assert caught.value.reason in ("step_underflow", "too_many_steps", "non_finite")
    assert caught.value.time == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_a_field_too_large_for_a_first_step(backend: str) -> None:
    """Its norm overflows, and the step that it allows is 0."""
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(SolveError) as caught:
        interp.solve(lambda t, x: x * 1e300, x, backend=backend)
    assert caught.value.reason in ("step_underflow", "non_finite")
    assert torch.equal(caught.value.last, x)
    far = interp.solve(lambda t, x: torch.full_like(x, 1e307), x, backend=backend)
    assert float(far.x[0, 0]) == pytest.approx(1e307, rel=1e-12)  # straight, so exact to rounding


def test_the_error_travels_between_processes() -> None:
    with pytest.raises(SolveError) as caught:
        interp.solve(lambda t, x: x * math.nan, column(6))
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert str(again) == str(caught.value)
        assert torch.equal(again.last, caught.value.last)
        assert (again.time, again.step, again.rows, again.reason) == (
            0.0,
            0,
            [0, 1, 2],
            "non_finite",
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_that_stay_zero_without_an_absolute_tolerance(backend: str) -> None:
    """Padding: its error of 0 is measured against 0."""
    if backend == "torchdiffeq":
        pytest.skip("its error norm is its own")
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64)
    sol = interp.solve(lambda t, x: -x, x, backend=backend, rtol=1e-8, atol=0.0)
    assert float((sol.x - x * DECAY).abs().max()) < 1e-7
