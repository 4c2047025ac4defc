"""Rows with steps of their own: each as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import FieldError, OptionError, SolveError, StiffWarning, Unsupported
from interp.solvers.stiffness import ITERATIONS

F64 = torch.float64
BACKENDS = ["rust", "torch"]
ADAPTIVE = [m.name for m in interp.methods("ode") if m.adaptive and m.per_row]


def stiffer(t: Tensor, x: Tensor) -> Tensor:
    """A field whose last column is a rate of the row: elementwise, so that rows cannot mix."""
    rate = x[:, -1:]
    moved = -rate * (x - torch.cos(t)[:, None].to(x.dtype))
    return torch.cat([moved[:, :-1], torch.zeros_like(rate)], 1)


def rates(*values: float, width: int = 3, dtype: torch.dtype = F64) -> Tensor:
    x = torch.linspace(-1, 2, len(values) * (width + 1), dtype=dtype).reshape(len(values), -1)
    x[:, -1] = torch.tensor(values, dtype=dtype)
    return x


SAVES = [0.0, 0.1, 0.55, 0.9, 1.0]


@pytest.mark.parametrize(("backend", "norm"), [("rust", "rms"), ("rust", "max"), ("torch", "rms")])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_row_is_what_it_is_alone(
    method: str, backend: str, dtype: torch.dtype, norm: str
) -> None:
    x = rates(1.0, 100.0, 0.1, 40.0, dtype=dtype)
    options: dict[str, Any] = {
        "method": method, "backend": backend, "save_at": SAVES, "per_row": True, "norm": norm,
        "rtol": 1e-5, "atol": 1e-5,
    }  # fmt: skip
    together = interp.solve(stiffer, x, **options)
    rows = together.stats.rows
    assert rows is not None
    for r in range(len(x)):
        alone = interp.solve(stiffer, x[r : r + 1], **options)
        assert torch.equal(together.x[r], alone.x[0])
        assert torch.equal(together.xs[:, r], alone.xs[:, 0])
        mine = (int(rows.accepted[r]), int(rows.rejected[r]), int(rows.nfe[r]))
        assert mine == (alone.stats.accepted, alone.stats.rejected, alone.stats.nfe)
        # A batch of one row takes the same steps when it shares them with itself.
        shared = interp.solve(
            lambda t, x: stiffer(t.expand(len(x)), x), x[r : r + 1],
            **{**options, "per_row": False},
        )  # fmt: skip
        assert mine == (shared.stats.accepted, shared.stats.rejected, shared.stats.nfe)
        assert torch.equal(shared.xs[:, 0], alone.xs[:, 0]) or backend == "torch"
        assert float((shared.xs[:, 0] - alone.xs[:, 0]).abs().max()) < 1e-6
    assert together.stats.accepted == int(rows.accepted.sum())
    # The batch is asked as often as the row that asks most, and a few extra stages more.
    assert int(rows.nfe.max()) <= together.stats.nfe < int(rows.nfe.max()) + 60
    assert rows.t.tolist() == [1.0] * 4
    assert set(rows.status) == {"done"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stiff_neighbour_costs_an_easy_row_nothing(backend: str) -> None:
    seen: dict[float, int] = {}

    def field(t: Tensor, x: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        for rate in map(round, x[:, -1].tolist()):
            seen[rate] = seen.get(rate, 0) + 1
        return stiffer(t, x)

    x = rates(1.0, 1000.0, 2.0)
    with pytest.warns(StiffWarning, match="row 1"):
        sol = interp.solve(field, x, per_row=True, backend=backend)
    rows = sol.stats.rows
    assert rows is not None
    seen[1000.0] -= 1 + ITERATIONS  # by which the row was found to be stiff, after the run
    assert seen == dict(zip([1.0, 1000.0, 2.0], rows.nfe.tolist(), strict=True))
    assert seen[1000.0] > 20 * seen[1.0]
    assert sol.stats.nfe == seen[1000.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_and_runs_go_backwards(backend: str) -> None:
    x = rates(1.0, 3.0, 0.3)
    options: dict[str, Any] = {"per_row": True, "rtol": 1e-10, "atol": 1e-10}
    there = interp.solve(stiffer, x, (0.0, 1.0), backend=backend, **options)
    other = interp.solve(stiffer, x, (0.0, 1.0), backend="torch", **options)
    assert float((there.x - other.x).abs().max()) < 1e-13
    back = interp.solve(stiffer, there.x, (1.0, 0.0), backend=backend, **options)
    assert float((back.x - x).abs().max()) < 1e-7  # e^3 times some 1e-10 a step


@pytest.mark.parametrize(
    ("view", "backend"),
    [("velocity", "rust"), ("noise", "rust"), ("data", "rust"), ("data", "torch")],
)
def test_terms_of_paths_with_conditions(view: str, backend: str) -> None:
    path = interp.schedules.linear()
    law = interp.exact.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64) * 0.3)
    velocity = law.velocity(path)

    def model(t: Tensor, x: Tensor, shift: Tensor, name: str) -> Tensor:
        """The law moved by a shift of each row."""
        assert name == "kept"
        assert shift.shape == x.shape
        k = path.coefficients(t)
        moved = x - k.beta.reshape(-1, 1) * shift
        b = velocity(t, moved) + k.dbeta.reshape(-1, 1) * shift
        return path.convert(b, "velocity", view, x, t)

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, dtype=F64, generator=generator)
    shift = torch.arange(6, dtype=F64).reshape(3, 2)
    ends = (0.0, 1.0) if view == "velocity" else (0.02, 0.98)
    term = path.ode(model, view=view)
    cond = {"shift": shift, "name": "kept"}
    options: dict[str, Any] = {
        "rtol": 1e-7,
        "atol": 1e-7,
        "save_at": [0.5, 1.0],
        "backend": backend,
    }
    if view in ("noise", "score", "data"):
        ends = (0.02, 0.98)
        options["save_at"] = [0.5, 0.98]
    each = interp.solve(term, x, ends, cond=cond, per_row=True, **options)
    alike = interp.solve(term, x, ends, cond=cond, **options)
    assert float((each.xs - alike.xs).abs().max()) < 1e-5  # a hundred times the tolerance
    for r in range(3):
        alone = interp.solve(
            term, x[r : r + 1], ends, cond={"shift": shift[r : r + 1], "name": "kept"},
            per_row=True, **options,
        )  # fmt: skip
        assert float((each.xs[:, r] - alone.xs[:, 0]).abs().max()) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_fails_leaves_the_others_alone(backend: str) -> None:
    def field(t: Tensor, x: Tensor) -> Tensor:
        late = (t > 0.5) & (x[:, -1] == 2.0)
        return torch.where(late[:, None], torch.nan, stiffer(t, x))

    x = rates(1.0, 2.0, 3.0)
    good = interp.solve(stiffer, x, per_row=True, backend=backend, save_at=SAVES)
    sol = interp.solve(field, x, per_row=True, backend=backend, save_at=SAVES, on_failure="partial")
    rows = sol.stats.rows
    assert rows is not None
    assert rows.status == ("done", "non_finite", "done")
    assert sol.stats.status == "non_finite"
    assert torch.equal(sol.x[[0, 2]], good.x[[0, 2]])
    assert torch.equal(sol.xs[:, [0, 2]], good.xs[:, [0, 2]])
    assert 0.4 < float(rows.t[1]) <= 0.5
    assert sol.xs[:2, 1].isfinite().all()
    assert sol.xs[2:, 1].isnan().all()
    with pytest.raises(SolveError, match="row 1") as caught:
        interp.solve(field, x, per_row=True, backend=backend)
    assert (caught.value.rows, caught.value.reason) == ([1], "non_finite")
    assert torch.equal(caught.value.last, interp.solve(
        field, x, per_row=True, backend=backend, on_failure="partial"
    ).x)  # fmt: skip
    with pytest.raises(SolveError, match="Raise max_steps") as caught:
        interp.solve(stiffer, rates(1.0, 1e4), per_row=True, backend=backend, max_steps=50)
    assert caught.value.rows == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callback_sees_every_row(backend: str) -> None:
    x, seen = rates(1.0, 30.0), []
    sol = interp.solve(
        stiffer, x, per_row=True, backend=backend,
        callback=lambda s: seen.append((s.t.clone(), s.x.clone())),
    )  # fmt: skip
    times = torch.stack([t for t, _ in seen])
    assert times.shape == (len(seen), 2)
    assert bool((times.diff(dim=0) >= 0).all())
    assert times[-1].tolist() == [1.0, 1.0]
    assert torch.equal(seen[-1][1], sol.x)


def test_gradients_reach_the_start() -> None:
    x = rates(1.0, 4.0).requires_grad_()
    sol = interp.solve(stiffer, x, per_row=True, save_at=[0.3, 1.0])
    (slope,) = torch.autograd.grad(sol.xs[0].sum() + sol.x.sum(), x)
    step = torch.zeros_like(x)
    step[0, 0] = 1e-4
    ends = [
        interp.solve(stiffer, (x + s * step).detach(), per_row=True, save_at=[0.3, 1.0])
        for s in (1, -1)
    ]
    change = sum(float(e.xs[0].sum() + e.x.sum()) * s for e, s in zip(ends, (1, -1), strict=True))
    # The steps of the neighbouring runs differ: 1e-5 of tolerance over 2e-4.
    assert float(slope[0, 0]) == pytest.approx(change / 2e-4, rel=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_shapes_at_the_edge(shape: tuple[int, ...], backend: str) -> None:
    sol = interp.solve(
        lambda t, x: -x, torch.ones(shape, dtype=F64), per_row=True, backend=backend,
        save_at=[0.5, 1.0],
    )  # fmt: skip
    assert sol.xs.shape == (2, *shape)
    assert sol.stats.rows is not None
    assert len(sol.stats.rows.t) == shape[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grid_tells_the_time_of_each_row(backend: str) -> None:
    x = rates(1.0, 30.0)
    sol = interp.solve(stiffer, x, method="rk4", steps=50, per_row=True, backend=backend)
    plain = interp.solve(
        lambda t, x: stiffer(t.expand(2), x), x, method="rk4", steps=50, backend=backend
    )
    assert torch.equal(sol.x, plain.x)
    assert sol.stats.rows is not None
    assert sol.stats.rows.nfe.tolist() == [200, 200]


def test_what_makes_no_sense_is_refused() -> None:
    x = rates(1.0, 2.0)
    with pytest.raises(Unsupported, match="steps all rows together"):
        interp.solve(interp.SDE(stiffer, 1.0), x, method="euler_maruyama", steps=3, per_row=True)
    with pytest.raises(Unsupported, match="torchdiffeq steps all rows together"):
        interp.solve(stiffer, x, per_row=True, backend="torchdiffeq")
    with pytest.raises(OptionError, match="no rows"):
        interp.solve(stiffer, x[0, 0], per_row=True)
    for backend in BACKENDS:
        with pytest.raises(FieldError, match="shape"):
            interp.solve(lambda t, x: x[:1], x, per_row=True, backend=backend)
        with pytest.raises(FieldError, match="wrote into the state"):
            interp.solve(lambda t, x: x.mul_(2), x, per_row=True, backend=backend)
