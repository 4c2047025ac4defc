"""Events: zeros of a function of the state, on the dense output."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import FieldError, OptionError, Unsupported

F64 = torch.float64
METHODS = [m.name for m in interp.methods("ode") if m.adaptive]
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def oscillator(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -x[:, 0]], 1)


def phases(*angles: float) -> Tensor:
    """cos(t + angle) and its slope."""
    return torch.tensor([[math.cos(a), -math.sin(a)] for a in angles], dtype=F64)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("bosh3", "kvaerno3")])
def test_zeros_of_a_cosine_and_their_directions(method: str) -> None:
    def zero(t: Tensor, x: Tensor) -> Tensor:
        return x[:, 0]

    x = phases(0.0, 0.4, 1.0)
    sol = interp.solve(
        oscillator, x, (0.0, 8.0), method, rtol=1e-8, atol=1e-8,
        events=[zero, interp.Event(zero, direction=1), interp.Event(zero, direction=-1)],
    )  # fmt: skip
    both, rising, falling = sol.events
    assert both.rows is not None
    assert rising.rows is not None
    for row, angle in enumerate((0.0, 0.4, 1.0)):
        every = [(k + 0.5) * math.pi - angle for k in range(3)]
        # The tolerance times the eight radians of the run and the dense output's lower order.
        truth = [t for t in every if t < 8]
        assert both.t[both.rows == row].tolist() == pytest.approx(truth, abs=1e-5)
        assert rising.t[rising.rows == row].tolist() == pytest.approx(truth[1::2], abs=1e-5)
    assert len(falling.t) + len(rising.t) == len(both.t)
    assert float(both.x[:, 0].abs().max()) < 1e-12  # a zero of the dense output itself
    plain = interp.solve(oscillator, x, (0.0, 8.0), method, rtol=1e-8, atol=1e-8)
    assert torch.equal(sol.x, plain.x)


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.0)])
def test_a_terminal_event_ends_the_run(ends: tuple[float, float], backend: str) -> None:
    def halved(t: Tensor, x: Tensor) -> Tensor:
        return x.max() - math.e

    sign = 1 if ends[1] > ends[0] else -1
    x = torch.tensor([[1.0], [0.5]], dtype=F64)
    sol = interp.solve(
        lambda t, x: sign * x, x, ends, backend=backend, events=interp.Event(halved, terminal=True),
        save_at=[ends[0], ends[0] + sign * 0.5, ends[0] + sign * 2.0, ends[1]], **TIGHT,
    )  # fmt: skip
    assert sol.stats.status == "stopped"
    assert float(sol.events[0].t[0]) == pytest.approx(ends[0] + sign * 1.0, abs=1e-8)
    assert sol.events[0].rows is None
    assert sol.x.flatten().tolist() == pytest.approx([math.e, math.e / 2], abs=1e-8)
    assert sol.ts.tolist() == [ends[0], ends[0] + sign * 0.5]
    alone = interp.solve(
        lambda t, x: sign * x, x, ends, backend=backend, events=interp.Event(halved, terminal=True)
    )
    assert torch.equal(alone.xs, alone.x[None])
    assert torch.equal(alone.ts, alone.events[0].t)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_each_row_ends_at_its_own_event(backend: str) -> None:
    event = interp.Event(lambda t, x: x[:, 0], terminal=True)
    angles = (0.0, 0.4, -2.0)
    sol = interp.solve(
        oscillator, phases(*angles), (0.0, 2.0), backend=backend, per_row=True, events=event,
        save_at=[0.5, 1.3], **TIGHT,
    )  # fmt: skip
    rows = sol.stats.rows
    assert rows is not None
    truth = [math.pi / 2, math.pi / 2 - 0.4, 2 - math.pi / 2]
    assert rows.t.tolist() == pytest.approx(truth, abs=1e-7)
    assert rows.status == ("stopped",) * 3
    assert float(sol.x[:, 0].abs().max()) < 1e-12
    assert sol.xs[:, 0].isfinite().all()
    assert sol.xs[1, 1:].isnan().all()
    late = interp.solve(
        oscillator, phases(0.0, 0.4), (0.0, 1.3), backend=backend, per_row=True, events=event,
        **TIGHT,
    )  # fmt: skip
    assert late.stats.rows is not None
    assert late.stats.rows.status == ("done", "stopped")
    assert torch.equal(late.xs[0], late.x)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_each_row_ends_at_its_own_event_on_a_grid_that_all_share(backend: str) -> None:
    """A row that has ended is asked about no more: here it would be infinite soon after."""
    asked = []

    def squared(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        asked.append(len(x))
        return rate[:, None] * x.square()  # x = 1 / (1 - rate t)

    rate = torch.tensor([1.0, 0.0, 0.49], dtype=F64)
    event = interp.Event(lambda t, x: x[:, 0] - 4.0, terminal=True)
    sol = interp.solve(
        squared, torch.ones(3, 1, dtype=F64), (0.0, 3.0), "rk4", backend, steps=300, per_row=True,
        cond={"rate": rate}, events=event, save_at=[0.7, 1.2, 3.0],
    )  # fmt: skip
    rows = sol.stats.rows
    assert rows is not None
    assert rows.t.tolist() == pytest.approx([0.75, 3.0, 0.75 / 0.49], abs=1e-6)
    assert rows.status == ("stopped", "done", "stopped")
    assert rows.accepted.tolist() == [76, 300, 154]
    assert rows.nfe.tolist() == [4 * 76 + 1, 4 * 300, 4 * 154 + 1]  # one for the step to come
    assert asked[0] == 3
    assert asked[-1] == 1
    assert sol.x.flatten().tolist() == pytest.approx([4.0, 1.0, 4.0], abs=1e-9)
    truth = [[1 / 0.3, 1.0, 1 / 0.657], [math.nan, 1.0, 1 / 0.412], [math.nan, 1.0, math.nan]]
    torch.testing.assert_close(
        sol.xs[..., 0], torch.tensor(truth, dtype=F64), rtol=0, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("view", ["velocity", "noise"])
def test_events_on_the_term_of_a_path(view: str) -> None:
    path = interp.schedules.linear()
    law = interp.exact.Gaussian(torch.tensor([2.0], dtype=F64), torch.eye(1, dtype=F64) * 0.25)
    velocity = law.velocity(path)

    def model(t: Tensor, x: Tensor) -> Tensor:
        return path.convert(velocity(t, x), "velocity", view, x, t)

    x = torch.tensor([[0.1], [-0.3]], dtype=F64)
    sol = interp.solve(
        path.ode(model, view=view), x, (0.1, 0.9), events=lambda t, x: x[:, 0] - 1.0, rtol=1e-9,
        atol=1e-9,
    )  # fmt: skip
    assert sol.events[0].rows is not None
    assert sorted(sol.events[0].rows.tolist()) == [0, 1]
    for t, row in zip(sol.events[0].t.tolist(), sol.events[0].rows.tolist(), strict=True):
        there = law.flow(path)(0.1, t, x[row : row + 1])
        assert float(there) == pytest.approx(1.0, abs=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    x = phases(0.0)
    with pytest.raises(OptionError, match="not a function"):
        interp.solve(oscillator, x, events=3)
    with pytest.raises(OptionError, match="direction"):
        interp.Event(lambda t, x: x[:, 0], direction=2)
    with pytest.raises(FieldError, match="one number a row"):
        interp.solve(oscillator, x, events=lambda t, x: x)
    with pytest.raises(Unsupported, match="Runge-Kutta"):
        interp.solve(oscillator, x, backend="torchdiffeq", events=lambda t, x: x[:, 0])
