"""What a solve gives back: statistics, callbacks, gradients, and runs that compose."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.solvers import StepState
from interp.solvers.catalogue import METHODS

F64 = torch.float64
ODES = [m.name for m in interp.methods("ode") if m.tableau and "rust" in m.backends]
BACKENDS = ["rust", "torch", "torchdiffeq"]
LAW = interp.exact.Gaussian(0.5, 0.3)


class Counted:
    """A field that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return -x - torch.sin(3 * t) * x * x / 4


def state(rows: int = 4) -> Tensor:
    return torch.linspace(-0.8, 1.0, 3 * rows, dtype=F64).reshape(rows, 3)


# Statistics


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ODES)
def test_evaluations_are_those_of_the_field(method: str, backend: str) -> None:
    if backend == "torchdiffeq" and METHODS[method].peer is None:
        pytest.skip("not a method there")
    kinds: list[dict[str, Any]] = [
        {"steps": 6}, {"steps": 6, "save_at": [0.2, 0.95, 1.0]}, {"rtol": 1e-6},
    ]  # fmt: skip
    for options in kinds:
        if "rtol" in options and not METHODS[method].adaptive:
            continue
        if backend == "torchdiffeq" and METHODS[method].adaptive and "steps" in options:
            continue
        field, seen = Counted(), list[StepState]()
        sol = interp.solve(
            field, state(), method=method, backend=backend,
            callback=seen.append, **options,
        )  # fmt: skip
        stats = sol.stats
        assert stats.nfe == field.calls
        assert (stats.method, stats.backend, stats.status) == (method, backend, "done")
        assert stats.steps == stats.accepted > 0
        assert stats.seed is None
        assert 0 < stats.field_s <= stats.wall_s
        if "steps" in options:
            assert (stats.steps, stats.rejected) == (6, 0)
        if backend != "torchdiffeq":
            assert len(seen) == stats.steps
            assert [s.step for s in seen] == list(range(1, stats.steps + 1))
            assert [s.nfe for s in seen] == sorted(s.nfe for s in seen)
            assert seen[-1].nfe == stats.nfe


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ODES)
def test_the_price_of_a_run(method: str, backend: str) -> None:
    """Stages times steps; the stage at a step's end is the next step's first."""
    tableau = METHODS[method].tableau
    assert tableau is not None
    stages = len(tableau.b) - tableau.fsal
    for steps in (1, 7):
        plain = interp.solve(Counted(), state(), method=method, backend=backend, steps=steps)
        assert plain.stats.nfe == steps * stages
        # Dense output in the last step asks for the slope at its end, and nothing else does.
        dense = interp.solve(
            Counted(), state(), method=method, backend=backend, steps=steps, save_at=[0.01, 0.999]
        )
        inside = 1 if steps == 1 else 2  # steps in which a time to save at falls
        assert dense.stats.nfe == steps * stages + 1 + inside * len(tableau.extra)
    if tableau.b_hat:
        late = tableau.error[0][-1] == 0  # the slope at the end waits for the step to be accepted
        sol = interp.solve(
            Counted(), state().double(), method=method, backend=backend, first_step=0.9, rtol=1e-9,
            atol=1e-9,
        )  # fmt: skip
        tried = sol.stats.accepted + sol.stats.rejected
        # One for the start; a refused step is dropped at the end of its stages.
        ends = sol.stats.accepted - 1 if late else tried
        assert sol.stats.nfe == 1 + tried * (stages - 1) + ends
        assert sol.stats.rejected >= 1  # 0.9 is too much for such a tolerance


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_statistics_of_an_sde(backend: str) -> None:
    drift, diffusion = Counted(), Counted()
    sol = interp.solve(
        interp.SDE(drift, diffusion), state(), method="euler_maruyama", backend=backend, steps=5,
        seed=17,
    )  # fmt: skip
    assert sol.stats.nfe == drift.calls == diffusion.calls == 5
    assert (sol.stats.seed, sol.stats.depth, sol.stats.steps) == (17, 10, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_in_the_field(backend: str) -> None:
    def slow(t: Tensor, x: Tensor) -> Tensor:
        time.sleep(0.002)
        return -x

    began = time.perf_counter()
    stats = interp.solve(slow, state(), method="euler", backend=backend, steps=10).stats
    elapsed = time.perf_counter() - began
    assert 0.02 <= stats.field_s <= stats.wall_s <= elapsed


def test_accepted_and_rejected_are_plausible() -> None:
    def bump(t: Tensor, x: Tensor) -> Tensor:
        return 40 * torch.exp(-((t - 0.5) ** 2) * 200) * torch.ones_like(x)

    smooth = interp.solve(lambda t, x: -x, state(), rtol=1e-6, atol=1e-6).stats
    rough = interp.solve(bump, state(), rtol=1e-6, atol=1e-6).stats
    finer = interp.solve(lambda t, x: -x, state(), rtol=1e-9, atol=1e-9).stats
    assert 2 <= smooth.accepted < 12
    assert smooth.rejected <= 2
    assert rough.rejected >= 1
    assert rough.accepted > smooth.accepted
    # A step of order five: a thousandth of the error costs 4 times the steps.
    assert 2 < finer.accepted / smooth.accepted < 6


def test_statistics_read_well() -> None:
    text = str(interp.solve(Counted(), state()).stats)
    assert "dopri5 on rust: done" in text
    assert "evaluations" in text


# Callbacks


@pytest.mark.parametrize("view", ["velocity", "noise", "data"])
@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_the_callback_sees_each_step(backend: str, view: str) -> None:
    path = schedules.trigonometric()
    models: dict[str, Any] = {
        "velocity": LAW.velocity(path), "noise": LAW.noise(path), "data": LAW.data(path),
    }  # fmt: skip
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    grid = [0.1, 0.3, 0.6, 0.8, 0.95]
    seen: list[tuple[float, Tensor, Tensor, int]] = []

    def callback(s: StepState) -> None:
        assert s.data is not None
        assert s.data is s.data  # asked of the model once
        seen.append((s.t, s.x, s.data, s.nfe))

    sol = interp.solve(
        path.ode(models[view], view=view), x, (0.1, 0.95), "heun", backend, grid=grid, save_at=grid,
        callback=callback,
    )  # fmt: skip
    # The clocks invert to a few roundings.
    assert [t for t, *_ in seen] == pytest.approx(grid[1:], abs=1e-14)
    assert torch.equal(torch.stack([x for _, x, *_ in seen]), sol.xs[1:])
    for t, x, data, _ in seen:
        assert float((data - LAW.data(path)(t, x)).abs().max()) < 1e-12  # converted in float64
    assert [nfe for *_, nfe in seen][-1] == sol.stats.nfe  # the callback's own calls do not count


def test_the_callback_of_an_sde_and_of_a_field_by_hand() -> None:
    path, seen = schedules.linear(), list[StepState]()
    x = torch.zeros(3, 1, dtype=F64)
    sol = interp.solve(
        path.sde(LAW.data(path), view="data", diffusion=1.0), x, method="euler_maruyama", steps=4,
        seed=0, callback=seen.append,
    )  # fmt: skip
    assert [s.t for s in seen] == [0.25, 0.5, 0.75, 1.0]
    assert torch.equal(seen[-1].x, sol.x)
    assert seen[0].data is not None
    interp.solve(lambda t, x: -x, x, method="euler", steps=1, callback=seen.append)
    assert seen[-1].data is None


def test_a_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for ends in ((0.0, 1.0), (0.9, 0.2), (-1.0, 2.3)):
        for options in (dict[str, Any](steps=7), dict[str, Any]()):
            plain = interp.solve(Counted(), state(), ends, **options)
            shown = interp.solve(Counted(), state(), ends, progress=True, **options)
            assert torch.equal(plain.x, shown.x)
            assert plain.stats.nfe == shown.stats.nfe
    assert "100%" in capsys.readouterr().err


# Runs that compose


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ODES)
def test_two_runs_are_one(method: str, backend: str) -> None:
    grid, cut = [0.0, 0.1, 0.4, 0.7, 1.0], 2
    x, field = state(), Counted()
    whole = interp.solve(field, x, method=method, backend=backend, grid=grid)
    first = interp.solve(field, x, (0.0, 0.4), method, backend, grid=grid[: cut + 1])
    second = interp.solve(field, first.x, (0.4, 1.0), method, backend, grid=grid[cut:])
    assert torch.equal(second.x, whole.x)
    assert first.stats.nfe + second.stats.nfe == whole.stats.nfe


@pytest.mark.parametrize("view", ["velocity", "noise", "data"])
def test_two_runs_of_a_path_are_one(view: str) -> None:
    path = schedules.variance_preserving()
    models: dict[str, Any] = {
        "velocity": LAW.velocity(path), "noise": LAW.noise(path), "data": LAW.data(path),
    }  # fmt: skip
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    grid, term = [0.0, 0.1, 0.4, 0.7, 1.0], path.ode(models[view], view=view)
    whole = interp.solve(term, x, method="rk4", grid=grid)
    first = interp.solve(term, x, (0.0, 0.4), "rk4", grid=grid[:3])
    second = interp.solve(term, first.x, (0.4, 1.0), "rk4", grid=grid[2:])
    assert float((second.x - whole.x).abs().max()) < 1e-13  # scaled out and in: a few roundings
    sde = path.sde(models[view], view=view, diffusion="reverse")
    grid[-1] = 0.999
    options: dict[str, Any] = {"method": "euler_maruyama", "seed": 3}
    whole = interp.solve(sde, x, (0.0, 0.999), grid=grid, **options)
    first = interp.solve(sde, x, (0.0, 0.4), grid=grid[:3], **options)
    second = interp.solve(sde, first.x, (0.4, 0.999), grid=grid[2:], **options)
    assert torch.equal(second.x, whole.x)


def test_there_and_back_again() -> None:
    x = state()
    for method, steps, bound in (("dopri5", None, 1e-8), ("rk4", 40, 1e-6)):
        there = interp.solve(Counted(), x, method=method, steps=steps, rtol=1e-10, atol=1e-10)
        back = interp.solve(
            Counted(), there.x, (1.0, 0.0), method, steps=steps, rtol=1e-10, atol=1e-10
        )
        # Twice the error of a run: tolerance 1e-10 a step, or (1/40)^4 / 120 = 3e-9, grown by e.
        assert float((back.x - x).abs().max()) < bound


# Gradients


def loss(x: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, interp.solvers.Solution]:
    """A scalar of a solve, through its end and what it saved."""
    sol = interp.solve(lambda t, x: -x * weight - torch.sin(x), x, **options)
    return sol.x.square().sum() + sol.xs.sin().sum(), sol


@pytest.mark.parametrize(
    "options",
    [{"method": m, "steps": 4, "save_at": [0.3, 0.5, 1.0]} for m in ODES]
    + [{"method": m, "rtol": 1e-8, "atol": 1e-8} for m in ("bosh3", "dopri5")],
    ids=str,
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    x = state(2).requires_grad_()
    weight = torch.tensor(0.7, dtype=F64, requires_grad=True)
    value, sol = loss(x, weight, **options)
    assert sol.stats.backend == "torch"
    by_x, by_weight = torch.autograd.grad(value, (x, weight))
    h = 1e-5
    with torch.no_grad():
        for k in range(x.numel()):
            step = torch.zeros_like(x).flatten()
            step[k] = h
            step = step.reshape(x.shape)
            ends = [loss(x + s * step, weight, **options)[0] for s in (1, -1)]
            # Central differences: h^2 of the third derivative, and for adaptive steps (whose
            # sizes are constants to the gradient) the tolerance over h.
            slack = 1e-8 if "steps" in options else 1e-5
            assert float((ends[0] - ends[1]) / (2 * h)) == pytest.approx(
                float(by_x.flatten()[k]), abs=slack
            )
        ends = [loss(x, weight + s * h, **options)[0] for s in (1, -1)]
        assert float((ends[0] - ends[1]) / (2 * h)) == pytest.approx(float(by_weight), abs=slack)


@pytest.mark.parametrize("term", ["sde", "path sde", "data", "noise"])
def test_gradients_through_terms(term: str) -> None:
    path = schedules.trigonometric()

    def end(x: Tensor) -> Tensor:
        made: Any = {
            "sde": interp.SDE(lambda t, x: -x.sin(), lambda t, x: 0.3 + 0.1 * x),
            "path sde": path.sde(LAW.data(path), view="data", diffusion=0.5),
            "data": path.ode(LAW.data(path), view="data"),
            "noise": path.ode(LAW.noise(path), view="noise"),
        }[term]
        method = "euler_maruyama" if "sde" in term else "heun"
        sol = interp.solve(made, x, (0.1, 1.0), method, steps=4, seed=1, save_at=[1.0])
        return sol.x.square().sum() + sol.xs.sum()

    x = torch.linspace(-1, 1, 3, dtype=F64)[:, None]
    start = x.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(end(start), start)
    h = 1e-5
    for k in range(3):
        step = torch.zeros_like(x)
        step[k] = h
        slope = (end(x + step) - end(x - step)) / (2 * h)
        assert float(slope) == pytest.approx(float(by_x[k]), abs=1e-8)


# torch's own forward mode still asks for torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_forward_mode_and_transforms(method: str) -> None:
    x, v = state(2), torch.ones(2, 3, dtype=F64)

    def end(x: Tensor) -> Tensor:
        steps = 10 if method == "rk4" else None
        return interp.solve(lambda t, x: -x, x, method=method, steps=steps).x

    truth = v * torch.exp(torch.tensor(-1.0, dtype=F64))
    tangent = torch.func.jvp(end, (x,), (v,))[1]
    assert float((tangent - truth).abs().max()) < 1e-4  # the run's own error
    (gradient,) = torch.func.vjp(end, x)[1](v)
    assert float((gradient - truth).abs().max()) < 1e-4
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)  # type: ignore[no-untyped-call]
        tangent = torch.autograd.forward_ad.unpack_dual(end(dual)).tangent  # type: ignore[no-untyped-call]
    assert tangent is not None
    assert float((tangent - truth).abs().max()) < 1e-4
