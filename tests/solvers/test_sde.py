"""SDEs: weak order, exact laws, the marginals of a path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, TimeError, Unsupported
from interp.noise import BrownianPath
from interp.terms import PathSDE

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
}
MEAN, VARIANCE = 0.7, 0.36
LAW = interp.exact.Gaussian(MEAN, VARIANCE)
DIFFUSIONS: dict[str, float | str | Callable[[Tensor], Tensor]] = {
    "0": 0.0, "0.5": 0.5, "1.5": 1.5, "1 - t^2": lambda t: 1 - t**2, "reverse": "reverse",
}  # fmt: skip

# Ornstein-Uhlenbeck: dX = -RATE (X - LEVEL) dt + SIZE dW.
RATE, LEVEL, SIZE = 1.5, 0.4, 0.8


def ornstein_uhlenbeck(t: Tensor, x: Tensor) -> Tensor:
    return -RATE * (x - LEVEL)


def increments(x: Tensor, grid: list[float], seed: int, span: tuple[float, float]) -> list[Tensor]:
    """dW of every step, by `interp.noise` alone."""
    path = BrownianPath(len(x), x[0].numel(), seed, span=span)
    w = [path.at(t) for t in grid]
    return [(b - a).reshape(x.shape) for a, b in zip(w[:-1], w[1:], strict=True)]


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 3.5)])
def test_euler_maruyama_is_its_recursion(
    ends: tuple[float, float], dtype: torch.dtype, backend: str
) -> None:
    """X + h f(X) + g dW, step by step, with the W of `interp.noise`."""
    x = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)
    n, (start, stop) = 7, ends
    grid = [start + (stop - start) * k / n for k in range(n)] + [stop]
    term = interp.SDE(ornstein_uhlenbeck, SIZE)
    sol = interp.solve(term, x, ends, "euler_maruyama", backend, grid=grid, seed=3, save_at=grid)
    y = x.double()
    for k, dw in enumerate(increments(x, grid, 3, ends)):
        y = y + (grid[k + 1] - grid[k]) * ornstein_uhlenbeck(y, y) + SIZE * dw
        # A handful of roundings a step, damped by the drift.
        assert float((sol.xs[k + 1] - y).abs().max()) < 30 * torch.finfo(dtype).eps


def moments(steps: int, time: float) -> tuple[float, float]:
    """Mean and variance of the recursion above from X = 1, exactly."""
    h, mean, variance = time / steps, 1.0, 0.0
    for _ in range(steps):
        mean = mean - RATE * h * (mean - LEVEL)
        variance = (1 - RATE * h) ** 2 * variance + SIZE**2 * h
    return mean, variance


def test_weak_order_one() -> None:
    """The engine is the recursion (above), whose moments approach the exact ones like h."""
    time = 1.0
    mean = LEVEL + (1 - LEVEL) * math.exp(-RATE * time)
    variance = SIZE**2 / (2 * RATE) * -math.expm1(-2 * RATE * time)
    errors = [(abs(m - mean), abs(v - variance)) for m, v in (moments(n, time) for n in (50, 100))]
    for coarse, fine in zip(*errors, strict=True):
        # The next term is of relative size RATE h = 0.03.
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)
    # And the engine's sample has these moments: 5 standard errors of 40000 normals.
    x, n = torch.ones(400, 100, dtype=F64), 50
    sol = interp.solve(
        interp.SDE(ornstein_uhlenbeck, SIZE), x, (0.0, time), "euler_maruyama", steps=n, seed=1
    )
    m, v = moments(n, time)
    assert float(sol.x.mean()) == pytest.approx(m, abs=5 * math.sqrt(v / x.numel()))
    assert float(sol.x.var()) == pytest.approx(v, abs=5 * v * math.sqrt(2 / x.numel()))


def test_strong_order_one_for_additive_noise() -> None:
    """One Brownian path for every step size: the difference to fine steps falls like h."""
    x = torch.ones(5, 100, dtype=F64)
    term = interp.SDE(lambda t, x: -x - torch.sin(3 * x), 0.7)
    ends = [
        interp.solve(term, x, method="euler_maruyama", steps=n, seed=5).x for n in (32, 64, 1024)
    ]
    coarse, fine = ((end - ends[2]).square().mean().sqrt() for end in ends[:2])
    # 32/1024 and 64/1024 of the fine run's own error tilt the slope by 0.05.
    assert math.log2(float(coarse / fine)) == pytest.approx(1, abs=0.25)


def test_geometric_brownian_motion_path_by_path() -> None:
    """Multiplicative noise: strong order 1/2 to X exp((mu - s^2/2) t + s W_t), same W."""
    mu, s = 0.3, 0.5
    x = torch.ones(40, 100, dtype=F64)
    w = BrownianPath(40, 100, 9).at(1.0)
    exact = torch.exp((mu - s * s / 2) + s * w)
    errors = []
    for n in (64, 256):
        sol = interp.solve(
            interp.SDE(lambda t, x: mu * x, lambda t, x: s * x),
            x, method="euler_maruyama", steps=n, seed=9,
        )  # fmt: skip
        errors.append(float((sol.x - exact).square().mean().sqrt()))
    # The mean square over 4000 paths is known to a few percent.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.2)
    assert errors[1] < 0.03


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_all_forms_of_one_diffusion(backend: str) -> None:
    x = torch.linspace(-1, 1, 15, dtype=F64).reshape(5, 3)
    forms: list[Any] = [
        0.3, torch.tensor(0.3), torch.full_like(x, 0.3),
        lambda t: 0.3, lambda t, x: 0.3, lambda t, x: torch.full_like(x, 0.3),
        lambda t, x: torch.full((5, 1), 0.3, dtype=F64), lambda *both: torch.tensor(0.3),
    ]  # fmt: skip
    results = [
        interp.solve(
            interp.SDE(lambda t, x: -x, form), x, method="euler_maruyama", steps=4, seed=2,
            backend=backend,
        ).x
        for form in forms
    ]  # fmt: skip
    for result in results[1:]:
        assert float((result - results[0]).abs().max()) < 1e-7  # 0.3 was rounded to float32 in some


# The SDE of a path


def moments_of(
    term: PathSDE, grid: list[float], gain: Callable[[float], tuple[float, float]],
    mean: float, variance: float,
) -> tuple[float, float]:  # fmt: skip
    """Mean and variance after the recurrence x a + b (p x + q) + s dW, exactly."""
    steps = term.steps(grid)
    for k, (t, r) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        p, q = gain(t)
        a, b, s = steps.a[k], steps.b[k], steps.s[k]
        mean = a * mean + b * (p * mean + q)
        variance = (a + b * p) ** 2 * variance + s * s * abs(r - t)
    return mean, variance


def exact_model(path: interp.Interpolant, view: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact model of one dimension, for every element of x."""
    exact = {
        "velocity": LAW.velocity,
        "score": LAW.score,
        "noise": LAW.noise,
        "data": LAW.data,
        "base": LAW.noise,
    }[view](path)
    return lambda t, x: exact(t, x.reshape(-1, 1)).reshape(x.shape)


def marginal(path: interp.Interpolant, t: float) -> tuple[float, float]:
    k = path.coefficients(t)
    return float(k.beta) * MEAN, float(k.beta) ** 2 * VARIANCE + float(k.sigma) ** 2


@pytest.mark.parametrize("eps", DIFFUSIONS)
@pytest.mark.parametrize("view", ["velocity", "score", "noise", "data", "base"])
@pytest.mark.parametrize("name", PATHS)
def test_marginals_without_sampling(name: str, view: str, eps: str) -> None:
    """The recurrence's own moments on a Gaussian target meet the path's, like h."""
    path = PATHS[name]
    model = exact_model(path, view)
    term = path.sde(model, view=view, diffusion=DIFFUSIONS[eps])

    def gain(t: float) -> tuple[float, float]:
        """The model as p x + q."""
        at = torch.tensor(t, dtype=F64)
        q, both = (float(model(at, torch.full((1, 1), v, dtype=F64))) for v in (0.0, 1.0))
        return both - q, q

    def errors(stop: float) -> list[float]:
        found = []
        for n in (64, 128):
            grid = torch.linspace(0.02, stop, n + 1, dtype=F64).tolist()
            m, v = moments_of(term, grid, gain, *marginal(path, grid[0]))
            mean, variance = marginal(path, grid[-1])
            found.append(abs(m - mean) + abs(v - variance))
        return found

    # Where sigma is not yet small against eps sqrt(h).
    coarse, fine = errors(0.7)
    assert fine < 0.05
    assert fine < max(coarse / 1.8, 1e-9)  # order one, or two; the next term tilts it by a tenth
    # Up to the data, where sigma vanishes and a bounded eps renoises every step of the last
    # sqrt(h): order one half there.
    coarse, fine = errors(0.999 if view == "velocity" and name == "variance_preserving" else 1.0)
    assert fine < 0.08  # eps = 1.5 on the linear path leaves 0.072 at 128 steps, 0.030 at 1024
    assert fine < max(coarse / 1.28, 1e-9)  # towards sqrt(2), from below


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("eps", ["0.5", "reverse"])
@pytest.mark.parametrize("view", ["velocity", "noise", "data"])
def test_solve_is_the_recurrence(view: str, eps: str, backend: str) -> None:
    path = PATHS["trigonometric"]
    model = exact_model(path, view)
    term = path.sde(model, view=view, diffusion=DIFFUSIONS[eps])
    grid = torch.linspace(0.1, 1.0, 9, dtype=F64).tolist()
    x = torch.linspace(-1, 1, 6, dtype=F64)[:, None]
    sol = interp.solve(term, x, (0.1, 1.0), "euler_maruyama", backend, grid=grid, seed=4)
    steps, y = term.steps(grid), x
    for k, dw in enumerate(increments(x, grid, 4, (0.0, 1.0))):
        at = torch.tensor(grid[k], dtype=F64)
        y = steps.a[k] * y + steps.b[k] * model(at, y) + steps.s[k] * dw
    assert float((sol.x - y).abs().max()) < 1e-13  # eight steps of a few roundings


def check_sample(xs: Tensor, mean: float, variance: float) -> None:
    """Moments within 5 standard errors."""
    n = xs.numel()
    assert float(xs.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(xs.var()) == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / n))


@pytest.mark.parametrize("eps", ["0.5", "1 - t^2", "reverse"])
@pytest.mark.parametrize("name", PATHS)
def test_samples_have_the_moments_of_the_recurrence(name: str, eps: str) -> None:
    """From the base to data and half way; the bias of the steps is in the test above."""
    path, steps = PATHS[name], 50
    data = exact_model(path, "data")
    term = path.sde(data, view="data", diffusion=DIFFUSIONS[eps])
    x = path.base.sample((200, 100), seed=8, dtype=F64)
    sol = interp.solve(term, x, method="euler_maruyama", steps=steps, seed=9, save_at=[0.5, 1.0])

    def gain(t: float) -> tuple[float, float]:
        at = torch.tensor(t, dtype=F64)
        q, both = (float(data(at, torch.full((1, 1), v, dtype=F64))) for v in (0.0, 1.0))
        return both - q, q

    grid = torch.linspace(0, 1, steps + 1, dtype=F64).tolist()
    for stop, xs in zip((steps // 2, steps), sol.xs, strict=True):
        check_sample(xs, *moments_of(term, grid[: stop + 1], gain, 0.0, path.base.scale**2))


@pytest.mark.parametrize(
    ("method", "view"),
    [
        ("euler_maruyama", "data"), ("euler_maruyama", "both"), ("milstein", "data"),
        ("srk", "data"), ("srk", "both"), ("heun_stratonovich", "data"), ("reversible_heun", "data"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", PATHS)
def test_marginals_backwards(name: str, method: str, view: str) -> None:
    """Against time the SDE noises: from data near t = 1 the marginals are the path's as well."""
    path, grid = PATHS[name], torch.linspace(0.99, 0.05, 101, dtype=F64).tolist()
    term = path.sde(exact_model(path, "data"), view="data", diffusion=1.0)
    if view == "both":
        v, s = LAW.velocity(path), LAW.score(path)
        both: Any = lambda t, x: tuple(f(t, x.reshape(-1, 1)).reshape(x.shape) for f in (v, s))  # noqa: E731
        term = path.sde(both, view=("velocity", "score"), diffusion=1.0)
    mean, variance = marginal(path, grid[0])
    x = mean + math.sqrt(variance) * interp.noise.normal((200, 100), seed=1, dtype=F64)
    sol = interp.solve(term, x, (0.99, 0.05), method, grid=grid, seed=2, save_at=[grid[50], 0.05])
    for t, xs in zip(sol.ts.tolist(), sol.xs, strict=True):
        mean, variance = marginal(path, t)
        bias = 0.03  # of first order in h = 0.01, moments below 1, eps^2 / sigma^2 up to 4
        assert float(xs.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / 20_000) + bias)
        assert float(xs.var()) == pytest.approx(variance, abs=0.05 * variance + bias)


@pytest.mark.parametrize("name", PATHS)
def test_without_noise_the_sde_is_the_flow(name: str) -> None:
    """eps = 0 is DDIM, the Euler step of the data view's coordinates: the same numbers."""
    path = PATHS[name]
    data = exact_model(path, "data")
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    sde = interp.solve(
        path.sde(data, view="data", diffusion=0.0), x, method="euler_maruyama", steps=8
    )
    ode = interp.solve(path.ode(data, view="data"), x, method="euler", steps=8)
    assert float((sde.x - ode.x).abs().max()) < 1e-12


def test_reverse_is_the_ancestral_step_of_ddpm() -> None:
    """mean = sqrt(abar_p) bt/(1 - abar_k) D + sqrt(al)(1 - abar_p)/(1 - abar_k) x, var fixedsmall
    (Ho, Jain, Abbeel, arXiv 2006.11239, eq. 7), al = abar_k / abar_p, bt = 1 - al."""
    path = PATHS["variance_preserving"]
    term = path.sde(exact_model(path, "data"), view="data", diffusion="reverse")
    grid = [0.1, 0.4, 0.9]
    steps = term.steps(grid)
    for i in range(2):
        abar_k, abar_p = (
            float(path.beta(torch.tensor(t, dtype=F64))) ** 2 for t in grid[i : i + 2]
        )
        al = abar_k / abar_p
        bt = 1 - al
        assert steps.a[i] == pytest.approx(math.sqrt(al) * (1 - abar_p) / (1 - abar_k), rel=1e-12)
        assert steps.b[i] == pytest.approx(math.sqrt(abar_p) * bt / (1 - abar_k), rel=1e-12)
        variance = steps.s[i] ** 2 * (grid[i + 1] - grid[i])
        assert variance == pytest.approx(bt * (1 - abar_p) / (1 - abar_k), rel=1e-12)


def test_a_pair_of_views_and_a_score_of_its_own() -> None:
    path = PATHS["linear"]
    v, s = LAW.velocity(path), LAW.score(path)
    x = torch.linspace(-1, 1, 6, dtype=F64)[:, None]
    both: Any = lambda t, x: (v(t, x), s(t, x))  # noqa: E731
    pair = path.sde(both, view=("velocity", "score"), diffusion=0.8)
    apart = path.sde(v, diffusion=0.8, score=s)
    hand = interp.SDE(lambda t, x: v(t, x) + 0.32 * s(t, x), 0.8)
    ways: list[tuple[Any, dict[str, Any]]] = [(pair, {}), (apart, {}), (hand, {"span": (0.0, 1.0)})]
    runs = [
        interp.solve(term, x, (0.1, 0.9), "euler_maruyama", steps=8, seed=1, **options).x
        for term, options in ways
    ]
    assert float((runs[0] - runs[1]).abs().max()) < 1e-14
    assert float((runs[0] - runs[2]).abs().max()) < 1e-14


def test_an_eps_that_is_no_diffusion() -> None:
    path, model = PATHS["linear"], exact_model(PATHS["linear"], "data")
    x = torch.zeros(2, 1)
    for eps in (lambda t: t - 0.5, lambda t: torch.full_like(t, math.nan)):
        with pytest.raises(OptionError, match=r"diffusion\(.*finite and not negative"):
            interp.solve(
                path.sde(model, view="data", diffusion=eps), x, method="euler_maruyama", steps=4
            )
    for number in (-1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="diffusion"):
            path.sde(model, view="data", diffusion=number)
    with pytest.raises(TimeError, match=r"sigma is 0.*0\.999"):
        interp.solve(
            path.sde(model, view="data", diffusion=1.0), x, (1.0, 0.0), "euler_maruyama", steps=4
        )


def test_stratonovich_is_not_taken_for_ito() -> None:
    term = interp.SDE(lambda t, x: -x, lambda t, x: x, calculus="stratonovich")
    with pytest.raises(Unsupported, match=r"stratonovich.*\(1/2\) g dg/dx"):
        interp.solve(term, torch.ones(2, 1), method="euler_maruyama", steps=4)
