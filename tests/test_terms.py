"""Terms by themselves: coordinates, what a model is told, recurrences, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, TimeError
from interp.terms import (
    ODE,
    SDE,
    AngleClock,
    Coordinates,
    DataClock,
    NoiseClock,
    PathODE,
    PathSDE,
    told,
)

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
    "custom": interp.Interpolant(lambda t: (1 - t) ** 2, lambda t: t * (2 - t)),
}
LAW = interp.exact.Gaussian(
    torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
)
X = torch.tensor([[0.0, 0.3], [-1.0, 1.0], [2.0, -0.5]], dtype=F64)
Exact = Callable[[Tensor, Tensor], Tensor]


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def model(path: interp.Interpolant, view: str) -> Exact:
    exact: Exact = {
        "velocity": LAW.velocity,
        "score": LAW.score,
        "noise": LAW.noise,
        "data": LAW.data,
        "base": LAW.noise,  # without a gamma x0 is the noise
    }[view](path)
    return exact


# Coordinates


@pytest.mark.parametrize("clock", [NoiseClock, DataClock, AngleClock])
@pytest.mark.parametrize("name", PATHS)
def test_a_clock_and_its_inverse(name: str, clock: Callable[..., Coordinates]) -> None:
    coordinates = clock(PATHS[name])
    inside = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=F64)
    back = coordinates.time(coordinates.tau(inside))
    # t moves by a rounding of its own, or of the clock's logarithm over dlambda/dt >= 1.
    assert float((back - inside).abs().max()) < 1e-12
    for end in (0.0, 1.0):
        tau = coordinates.tau(at(end))
        assert float(coordinates.time(tau)) == pytest.approx(end, abs=1e-15)


@pytest.mark.parametrize("name", PATHS)
def test_what_the_clocks_show(name: str) -> None:
    path, t = PATHS[name], torch.tensor([0.05, 0.4, 0.95], dtype=F64)
    k = path.coefficients(t)
    noise, data = NoiseClock(path), DataClock(path)
    for found, expected in (
        (noise.tau(t), k.sigma / k.beta), (noise.scale(t), k.beta),
        (data.tau(t), k.beta / k.sigma), (data.scale(t), k.sigma),
    ):  # fmt: skip
        assert float((found / expected - 1).abs().max()) < 1e-14


@pytest.mark.parametrize("view", ["velocity", "score", "noise", "data", "base"])
@pytest.mark.parametrize("name", PATHS)
def test_the_slope_is_the_flow_in_the_coordinates(name: str, view: str) -> None:
    """dy/dtau by central differences of the exact flow."""
    path, t, h = PATHS[name], 0.4, 1e-5
    term = PathODE(path, model(path, view), view=view)
    flow, clock = LAW.flow(path), term.coordinates

    def y(s: float) -> Tensor:
        x = flow(t, s, X)
        return x if clock is None else x / clock.scale(at(s))

    def tau(s: float) -> float:
        return s if clock is None else float(clock.tau(at(s)))

    slope = (y(t + h) - y(t - h)) / (tau(t + h) - tau(t - h))
    found = term.slope({})(at(t), y(t))
    # h^2 of a third derivative of some tens, against values of some tens.
    assert float((found - slope).abs().max()) < 1e-6 * (1 + float(slope.abs().max()))
    velocity = term.bind({})(at(t), X)
    assert float((velocity - LAW.velocity(path)(at(t), X)).abs().max()) < 1e-12


@pytest.mark.parametrize("view", ["velocity", "score", "noise", "data", "base"])
@pytest.mark.parametrize("name", PATHS)
def test_the_data_estimate_of_any_view(name: str, view: str) -> None:
    path = PATHS[name]
    term = PathODE(path, model(path, view), view=view)
    for t in (0.1, 0.5, 0.9):
        exact = LAW.data(path)(at(t), X)
        assert (
            float((term.data(t, X, {}) - exact).abs().max()) < 1e-11
        )  # 1 / beta^2 < 1e4 roundings


@settings(deadline=None, max_examples=50)
@given(t=st.floats(0, 0.99), r=st.floats(0, 1), name=st.sampled_from(list(PATHS)))
def test_a_first_order_step_is_exact_for_constant_data(t: float, r: float, name: str) -> None:
    """x = beta D + sigma n with D and n fixed is where the points lie."""
    path = PATHS[name]
    D, n = torch.tensor([[0.3, -2.0]], dtype=F64), torch.tensor([[1.5, 0.2]], dtype=F64)
    k, k_r = path.coefficients(t), path.coefficients(r)
    term = PathODE(path, lambda t, x: D, view="data")
    x = k.beta * D + k.sigma * n
    moved = term.first_order(at(t), at(r), x, D)
    # sigma(t) may be small: n is known from x to rounding over it.
    bound = 1e-14 * (1 + float(k_r.sigma / k.sigma))
    assert float((moved - (k_r.beta * D + k_r.sigma * n)).abs().max()) < bound


# What a model is told


@pytest.mark.parametrize("name", PATHS)
def test_told(name: str) -> None:
    path, t = PATHS[name], torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64)
    k = path.coefficients(t)
    assert told(path, "t", t) is t
    assert told(path, "noise", t).tolist() == [1.0, 0.75, 0.5, 0.0]
    inner = slice(1, 3)
    sigma, log_snr = told(path, "sigma", t), told(path, "log_snr", t)
    assert float((sigma / (k.sigma / k.beta) - 1)[inner].abs().max()) < 1e-14
    assert float((log_snr - 2 * (k.beta / k.sigma).log())[inner].abs().max()) < 1e-13
    assert sigma[3] == 0
    assert log_snr[3] == math.inf
    assert told(path, ("index", 4), t).tolist() == [3.0, 2.0, 1.0, -1.0]


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 5000), data=st.data())
def test_indices_are_integers_at_every_node(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n - 1))
    t = at(1 - (k + 1) / n)
    assert float(told(PATHS["linear"], ("index", n), t)) == k
    between = at(1 - (k + 0.5) / n)
    assert float(told(PATHS["linear"], ("index", n), between)) == pytest.approx(k - 0.5, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("view", ["velocity", "noise", "data"])
def test_a_model_gets_its_time_in_the_dtype_of_the_state(view: str, dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def network(t: Tensor, x: Tensor, **cond: Tensor) -> Tensor:
        seen.append(t)
        assert cond == {"label": 3}
        return x

    for convention in ("t", "noise", "sigma", "log_snr"):
        term = PathODE(PATHS["linear"], network, view=view, time=convention)
        term.slope({"label": 3})(at(0.4), X.to(dtype))
    assert all(t.dtype == dtype and t.ndim == 0 for t in seen[1 if view == "velocity" else 0 :])


# Terms by hand


def test_a_field_without_conditions_is_called_as_it_is() -> None:
    """No frame of ours between the engine and the field."""

    def field(t: Tensor, x: Tensor, **cond: float) -> Tensor:
        return x * cond.get("rate", 1.0)

    assert ODE(field).bind({}) is field
    assert SDE(field, 1.0).drift_field({}) is field
    assert PathODE(PATHS["linear"], field).bind({}) is field
    assert torch.equal(ODE(field).bind({"rate": 2.0})(at(0.0), X), 2 * X)


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
def test_conditions_reach_a_field_by_hand(backend: str) -> None:
    def field(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return -rate[:, None] * x

    rate = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    x = torch.ones(3, 2, dtype=F64)
    sol = interp.solve(field, x, backend=backend, cond={"rate": rate})
    assert float((sol.x - torch.exp(-rate)[:, None]).abs().max()) < 1e-4
    if backend != "torchdiffeq":
        noisy = interp.SDE(field, lambda t, x, rate: 0 * x * rate[:, None])
        end = interp.solve(
            noisy, x, method="euler_maruyama", backend=backend, steps=100, cond={"rate": rate}
        )
        assert (
            float((end.x - torch.exp(-rate)[:, None]).abs().max()) < 1e-2
        )  # h / 2 e^-1, and twice that


# Recurrences


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.full_like(t, value)


@pytest.mark.parametrize("eps", [0.3, 1.7])
def test_damping_of_a_constant_eps(eps: float) -> None:
    """Linear: K = int eps^2 / (2 (1-t)^2) dt = (eps^2 / 2) (1 / (1-r) - 1 / (1-t))."""
    grid = [0.0, 0.2, 0.5, 0.8, 0.95]
    steps = PathSDE(PATHS["linear"], model(PATHS["linear"], "data"), "data", diffusion=eps).steps(
        grid
    )
    for i, (t, r) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        K = eps**2 / 2 * (1 / (1 - r) - 1 / (1 - t))
        A = (1 - r) / (1 - t) * math.exp(-K)
        # The quadrature, of degree 31, is exact to 1e-10 over steps that quarter 1 - t.
        assert steps.a[i] == pytest.approx(A, rel=1e-9)
        assert steps.b[i] == pytest.approx(r - A * t, rel=1e-9)
        variance = (1 - r) ** 2 * -math.expm1(-2 * K)
        assert steps.s[i] ** 2 * (r - t) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("eps", [0.0, 0.8, "reverse"])
def test_the_recurrence_keeps_the_variance_of_noise(name: str, eps: float | str) -> None:
    """With constant data the noise stays of scale sigma: a^2 sigma_t^2 + s^2 h = sigma_r^2."""
    path = PATHS[name]
    term = PathSDE(path, model(path, "data"), "data", diffusion=eps)
    for grid in ([0.05, 0.3, 0.7, 0.9, 1.0], [0.95, 0.6, 0.2, 0.05]):
        steps, k = term.steps(grid), path.coefficients(torch.tensor(grid, dtype=F64))
        for i in range(len(grid) - 1):
            h = abs(grid[i + 1] - grid[i])
            variance = (steps.a[i] * k.sigma[i]) ** 2 + steps.s[i] ** 2 * h
            assert float(variance) == pytest.approx(float(k.sigma[i + 1]) ** 2, abs=1e-12)
            moved = steps.a[i] * k.beta[i] + steps.b[i]
            assert float(moved) == pytest.approx(float(k.beta[i + 1]), abs=1e-12)


@pytest.mark.parametrize("view", ["velocity", "score", "noise", "base"])
@pytest.mark.parametrize("name", PATHS)
def test_the_recurrence_is_one_in_every_view(name: str, view: str) -> None:
    path, grid = PATHS[name], [0.1, 0.35, 0.8]
    ways = []
    for name_of_view in ("data", view):
        exact = model(path, name_of_view)
        steps = PathSDE(path, exact, name_of_view, diffusion=0.7).steps(grid)
        ways.append([steps.a[i] * X + steps.b[i] * exact(at(grid[i]), X) for i in range(2)])
        noise = steps.s
    for data, other in zip(*ways, strict=True):
        assert float((data - other).abs().max()) < 1e-12
    assert noise == PathSDE(path, model(path, "data"), "data", diffusion=0.7).steps(grid).s


@pytest.mark.parametrize("name", ["linear", "trigonometric", "custom"])
def test_reverse_is_regular_where_its_eps_is_infinite(name: str) -> None:
    """G is infinite at t = 0; the first step forgets all of x but its data estimate."""
    path = PATHS[name]
    term = PathSDE(path, model(path, "data"), "data", diffusion="reverse")
    assert float(term.eps(at(0.0))) == math.inf
    steps = term.steps([0.0, 0.5])
    assert math.isfinite(steps.a[0] + steps.b[0] + steps.s[0])
    k = path.coefficients(0.5)
    # K is infinite: nothing of x is kept.
    assert steps.a[0] == pytest.approx(0.0, abs=1e-15)
    assert steps.b[0] == pytest.approx(float(k.beta), rel=1e-14)
    assert steps.s[0] ** 2 * 0.5 == pytest.approx(float(k.sigma) ** 2, rel=1e-14)


def test_reverse_is_the_g_of_the_noising_sde() -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    linear = PathSDE(PATHS["linear"], model(PATHS["linear"], "data"), "data", diffusion="reverse")
    assert float((linear.eps(t) ** 2 - 2 * (1 - t) / t).abs().max()) < 1e-13
    vp = PATHS["variance_preserving"]
    term = PathSDE(vp, model(vp, "data"), "data", diffusion="reverse")
    # G^2 = B(u) = 0.1 + 19.9 u (Song et al., arXiv 2011.13456).
    assert float((term.eps(t) ** 2 / (0.1 + 19.9 * (1 - t)) - 1).abs().max()) < 1e-12


# What they refuse


def test_first_usable_times() -> None:
    path = PATHS["linear"]
    for view in ("noise", "score", "base"):
        term = PathODE(path, model(path, view), view=view)
        term.check(1e-9, 1.0)
        with pytest.raises(TimeError, match="beta is 0"):
            term.check(0.0, 1.0)
        # Where beta(0) is not 0 the view is told everywhere.
        vp = PATHS["variance_preserving"]
        PathODE(vp, model(vp, view), view=view).check(0.0, 1.0)
    for t in (-0.001, 1.001, math.nan):
        with pytest.raises(TimeError, match=r"outside \[0, 1\]"):
            PathODE(path, model(path, "velocity")).check(0.5, t)
    ODE(lambda t, x: x).check(-5.0, 7.0)
    data = PathODE(path, model(path, "data"), view="data")
    data.check(0.0, 1.0)
    data.check(0.999, 0.0)
    with pytest.raises(TimeError, match="sigma is 0"):
        data.check(1.0, 0.0)


def test_a_model_that_says_its_path_is_refused_on_another() -> None:
    cosine, linear = schedules.cosine(), schedules.linear()
    x, law = torch.randn(3, 2), interp.exact.Gaussian([0.0, 0.0], 1.0)
    adapted = cosine.adapt(law.data(linear), trained_on=linear, view="data")
    scaled = interp.precondition(lambda t, x: x, cosine)
    for model in (adapted, scaled):
        for use in (
            lambda model=model: linear.ode(model),
            lambda model=model: linear.sde(model, diffusion=1.0),
            lambda model=model: linear.adapt(model, trained_on=schedules.edm()),
            lambda model=model: interp.losses.Regression(linear, "data")(model, x),
        ):
            with pytest.raises(OptionError, match=r"one on cosine\(.*not on \w+\("):
                use()
        schedules.cosine().ode(model)  # the same path, built again
