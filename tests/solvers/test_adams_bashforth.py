"""Adams-Bashforth methods; their observed order on even steps is in test_orders.py."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, Unsupported
from interp.solvers.adams_bashforth import weights

F64 = torch.float64
AB = {"ab2": 2, "ab3": 3, "ab4": 4}
LAW = interp.exact.Gaussian([0.3, -0.2], [0.25, 0.09])
# Evaluations of the steps before there is enough to look back at.
START = {"ab2": 2, "ab3": 6, "ab4": 12}


def logistic(t: Tensor, x: Tensor) -> Tensor:
    return x / 4 * (1 - x / 20) + 0 * t


def exact(t: float) -> float:
    return 20 / (1 + 19 * math.exp(-t / 4))


ONE = torch.ones(1, 1, dtype=F64)


@pytest.mark.parametrize(
    ("order", "printed"),
    [(2, "3/2 -1/2"), (3, "23/12 -16/12 5/12"), (4, "55/24 -59/24 37/24 -9/24")],
)
def test_the_weights_of_even_steps_are_those_in_print(order: int, printed: str) -> None:
    """Hairer, Norsett, Wanner, III.1, eq. 1.5."""
    wanted = [float(Fraction(w)) for w in printed.split()]
    found = weights([float(-j) for j in range(order)])
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-14  # of a few roundings


def test_the_weights_of_two_uneven_steps() -> None:
    """1 + r / 2 and -r / 2 with r the ratio of the step to the one before."""
    for r in (0.1, 0.7, 1.0, 3.0):
        a, b = weights([0.0, -1 / r])
        assert abs(a - (1 + r / 2)) + abs(b + r / 2) < 1e-14


def uneven(n: int, start: float, stop: float) -> list[float]:
    """Steps whose lengths differ up to fivefold, smoothly and from one to the next."""
    inside = [(k + 0.2 * (k % 2)) / n for k in range(1, n)]
    return [start, *(start + (stop - start) * s * (1 + 2 * s) / 3 for s in inside), stop]


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", AB)
def test_observed_order_on_uneven_steps(method: str, backend: str) -> None:
    errors = []
    for n in (40, 80):
        grid = uneven(n, 0.0, 8.0)
        sol = interp.solve(logistic, ONE, (0.0, 8.0), method, backend, grid=grid, save_at=grid)
        truth = torch.tensor([exact(t) for t in grid], dtype=F64)
        errors.append(float((sol.xs.flatten() - truth).abs().max()))
        assert sol.stats.nfe == START[method] + n - (AB[method] - 1)
    # The next term of the error is some multiple of h of the leading one.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(AB[method], abs=0.4)


@pytest.mark.parametrize("method", AB)
def test_polynomials_are_integrated_exactly(method: str) -> None:
    """Those of t up to degree p - 1 on any grid, and the one of degree p is not."""
    p, grid = AB[method], uneven(9, -1.0, 1.0)
    zero = torch.zeros(1, 1, dtype=F64)
    for degree in range(p + 1):
        sol = interp.solve(
            lambda t, x, k=degree: t**k + 0 * x, zero, (-1.0, 1.0), method, grid=grid
        )
        error = abs(float(sol.x) - (1 - (-1) ** (degree + 1)) / (degree + 1))
        assert error < 1e-14 if degree < p else error > 1e-5


@pytest.mark.parametrize("method", AB)
@pytest.mark.parametrize("view", ["velocity", "noise", "data", "v_prediction"])
def test_a_path_is_run_where_its_view_is_regular(view: str, method: str) -> None:
    """Both backends, to clean data, and part of the way to the order of the method."""
    path = schedules.variance_preserving()
    x = interp.noise.normal((4, 2), seed=0, dtype=F64)
    data = LAW.data(path)
    models = {
        "velocity": LAW.velocity(path), "noise": LAW.noise(path), "data": data,
        "v_prediction": lambda t, x: path.convert(data(t, x), "data", "v_prediction", x, t),
    }  # fmt: skip
    term = path.ode(models[view], view=view)
    ends = {
        backend: interp.solve(
            term, x, (0.01, 1.0), method, backend, steps=20, save_at=[0.01, 0.505, 1.0]
        )
        for backend in ("rust", "torch")
    }
    # Twenty steps' rounding, and extrapolation's weights of a few.
    assert float((ends["rust"].xs - ends["torch"].xs).abs().max()) < 1e-12
    assert torch.equal(ends["rust"].xs[-1], ends["rust"].x)
    truth = LAW.flow(path)(0.2, 0.9, x)
    errors = [
        float((interp.solve(term, x, (0.2, 0.9), method, steps=n).x - truth).abs().max())
        for n in (40, 80)
    ]
    assert AB[method] - 0.4 < math.log2(errors[0] / errors[1]) < AB[method] + 1.1


@pytest.mark.parametrize("method", AB)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_short_runs_are_of_the_starting_method(method: str, steps: int) -> None:
    start = {"ab2": "heun", "ab3": "ssprk3", "ab4": "rk4"}[method]
    x = torch.linspace(0.5, 3, 6, dtype=F64).reshape(3, 2)
    ours = interp.solve(logistic, x, method=method, steps=steps)
    theirs = interp.solve(logistic, x, method=start, steps=steps)
    same = float((ours.x - theirs.x).abs().max()) < 1e-14
    assert same == (steps < AB[method])


@pytest.mark.parametrize(("order", "steps"), [(2, 40), (3, 40), (4, 40), (3, 2), (2, 1)])
def test_states_between_two_steps(order: int, steps: int) -> None:
    """Of a path, on the way to clean data and in its last step as well, and the run is the same."""
    path = schedules.linear()
    term = path.ode(LAW.data(path), view="data")
    x, asked = torch.ones(1, 2, dtype=F64), [0.0, 0.31, 0.5, 0.777, 0.99, 1.0]
    run = {"method": f"ab{order}", "steps": steps}
    sol = interp.solve(term, x, save_at=asked, **run)
    alone = interp.solve(term, x, **run)
    assert torch.equal(sol.x, alone.x)
    assert sol.stats.nfe == alone.stats.nfe
    assert torch.equal(sol.xs[0], x)
    assert torch.equal(sol.xs[-1], sol.x)
    if steps > 2:
        for t, state in zip(asked, sol.xs, strict=True):
            # The last step but one ends at a rough t, from where the first-order one goes on.
            assert float((state - LAW.flow(path)(0.0, t, x)).abs().max()) < 1e-2


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_gradients(gradient: str) -> None:
    x = torch.full((2, 1), 1.5, dtype=F64, requires_grad=True)

    def end(x: Tensor) -> Tensor:
        return interp.solve(logistic, x, method="ab3", steps=6, gradient=gradient).x

    assert torch.autograd.gradcheck(end, x)


def test_what_a_grid_cannot_do_is_refused() -> None:
    with pytest.raises(OptionError, match="does not choose its own steps"):
        interp.solve(logistic, ONE, method="ab2")
    with pytest.raises(Unsupported, match="steps all rows together"):
        interp.solve(logistic, ONE, method="ab2", steps=4, per_row=True)
