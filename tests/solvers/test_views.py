"""Every view of every path from end to end, against the exact flow of a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import TimeError

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "trigonometric(1)": schedules.trigonometric(1.0),
    "variance_preserving": schedules.variance_preserving(),
    "cosine": schedules.cosine(),
    "sub_variance_preserving": schedules.sub_variance_preserving(),
    "variance_exploding": schedules.variance_exploding(),
    "edm": schedules.edm(),
    "table": schedules.from_betas("linear"),
    "custom": interp.Interpolant(lambda t: (1 - t) ** 2, lambda t: t * (2 - t)),
    "with gamma": interp.Interpolant(
        lambda t: 1 - t, lambda t: t, lambda t: 0.5 * (t * (1 - t)).sqrt()
    ),
}
CLOSED = ("linear", "trigonometric", "trigonometric(1)", "variance_preserving")
DIFFUSIONS = ("cosine", "sub_variance_preserving", "variance_exploding", "edm", "table")
LAW = interp.exact.Gaussian(
    torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
)
POINTS = torch.tensor([[0.0, 0.3], [-1.0, 1.0], [2.0, -0.5]], dtype=F64)
NOISE_LIKE = ("noise", "score", "base", "energy_gradient")


def model(path: interp.Interpolant, view: str) -> Callable[[Tensor, Tensor], Tensor]:
    if view == "base":  # E[x0 | x] = alpha / sigma E[noise | x], from the score, which is exact
        score = LAW.score(path)
        return lambda t, x: -path.coefficients(t).alpha * score(t, x)
    if view == "energy_gradient":
        score = LAW.score(path)
        return lambda t, x: -score(t, x)
    if view in ("v_prediction", "flow_prediction"):
        noise, data = LAW.noise(path), LAW.data(path)

        def v(t: Tensor, x: Tensor) -> Tensor:
            k, flow = path.coefficients(t), view == "flow_prediction"
            beta, sigma = (1.0, 1.0) if flow else (k.beta, k.sigma)
            return beta * noise(t, x) - sigma * data(t, x)

        return v
    exact: Callable[[Tensor, Tensor], Tensor] = {
        "velocity": LAW.velocity,
        "score": LAW.score,
        "noise": LAW.noise,
        "data": LAW.data,
    }[view](path)
    return exact


def start_of(path: interp.Interpolant, view: str) -> float:
    """Where a run may start: at 0, but where beta is 0 there and the view tells the noise alone."""
    return 0.01 if view in NOISE_LIKE and path.boundary.beta0 == 0 else 0.0


def end(path: interp.Interpolant, start: float, t: float, x: Tensor) -> Tensor:
    """The exact flow, and at t = 1 the step from what noise is left there to clean data."""
    there = LAW.flow(path)(start, t, x)
    if t == 1 and start < 1 and not path.boundary.ends_clean:
        return LAW.data(path)(1.0, there)
    return there


def runs(name: str, view: str) -> list[tuple[float, float]]:
    """Intervals on which the view tells the flow, the ends as near to 0 and 1 as it allows."""
    first = start_of(PATHS[name], view)
    last = 1.0 if view != "data" else 0.8 if name == "edm" else 0.999  # sigma is 1e-3 or so there
    both = [(first, 1.0), (0.2, 0.7), (last, first)]
    if name == "with gamma" and view in ("velocity", "base"):
        # gamma' is infinite at both ends, and alpha / sigma vanishes at t = 1
        return [(0.01, 0.99), (0.99, 0.01)]
    inverted = name in (*CLOSED, *DIFFUSIONS)  # else each inversion of a clock is a bisection
    return both if inverted else both[:1]


@pytest.mark.parametrize(
    "view",
    [
        "velocity",
        "score",
        "noise",
        "data",
        "base",
        "energy_gradient",
        "v_prediction",
        "flow_prediction",
    ],
)
@pytest.mark.parametrize("name", PATHS)
def test_adaptive_runs_are_the_exact_flow(name: str, view: str) -> None:
    path = PATHS[name]
    term = path.ode(model(path, view), view=view)
    tolerance = 1e-5
    for start, stop in runs(name, view):
        x = POINTS * path.coefficients(start).sigma.clamp(min=1)  # where the path is wide, its size
        saves = [start + f * (stop - start) for f in (0.0, 0.3, 0.8, 1.0)]
        sol = interp.solve(term, x, (start, stop), rtol=tolerance, atol=tolerance, save_at=saves)
        truth = torch.stack([end(path, start, t, x) for t in saves])
        bound = 30 * tolerance * max(1.0, 0.1 * float(truth.abs().max()))
        # Dozens of steps of such a local error, which the flow damps or, backwards to the unit
        # normal, spreads by 1 / sqrt(0.18) < 3 (the smaller eigenvalue of the covariance).
        # Sizes beyond 10 have the relative tolerance.
        assert float((sol.x - truth[-1]).abs().max()) < bound
        assert float((sol.xs - truth).abs().max()) < bound
        assert sol.ts.tolist() == saves


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
@pytest.mark.parametrize(
    "view", ["velocity", "noise", "data", "score", "v_prediction", "flow_prediction"]
)
@pytest.mark.parametrize("name", CLOSED)
def test_fixed_steps_converge_to_the_exact_flow(name: str, view: str, backend: str) -> None:
    path = PATHS[name]
    term, ends = path.ode(model(path, view), view=view), (0.1, 0.9)
    truth = LAW.flow(path)(*ends, POINTS)
    errors = [
        float((interp.solve(term, POINTS, ends, "heun", backend, steps=n).x - truth).abs().max())
        for n in (20, 40)
    ]
    assert errors[1] < 3e-2
    # Order two, with a step or two still too long where the clock is uneven in t.
    assert errors[1] < errors[0] / 3


EVERY = ("linear", "variance_preserving", *DIFFUSIONS)


# The energy's gradient is the score but for its sign; the adaptive runs above have it.
@pytest.mark.parametrize("view", [v for v in interp.views.VIEWS if v != "energy_gradient"])
@pytest.mark.parametrize("name", EVERY)
def test_every_method_runs_from_end_to_end(name: str, view: str) -> None:
    """From the base to clean data in 12 and 36 even steps of t, whatever the view."""
    path = PATHS[name]
    term, start = path.ode(model(path, view), view=view), start_of(path, view)
    x = POINTS * path.coefficients(start).sigma
    truth = end(path, start, 1.0, x)
    for method in (
        m for m in interp.methods("ode") if not m.implicit
    ):  # their field has derivatives
        few, many = (interp.solve(term, x, (start, 1.0), method.name, steps=n) for n in (12, 36))
        errors = [float((sol.x - truth).abs().max()) for sol in (few, many)]
        # Even steps of t are far from the best for a wide path, the order shows only later, and the
        # velocity of a table jumps at its last node. But no method may stall or leave the scale.
        assert errors[1] < max(0.75 * errors[0], 3e-3), method.name
        assert errors[1] < 1.0, method.name


@pytest.mark.parametrize("view", ["velocity", "score", "noise", "data"])
@pytest.mark.parametrize("name", EVERY)
def test_the_exponential_sde_method_samples_the_data(name: str, view: str) -> None:
    """The reverse SDE, from the exact law at its start: mean and standard deviation of the data."""
    path, law, rows = PATHS[name], interp.exact.Gaussian(0.5, 0.3), 4000
    start = start_of(path, view)
    k = path.coefficients(start)
    z = torch.randn(rows, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
    x = 0.5 * k.beta + (0.3 * k.beta**2 + k.sigma**2).sqrt() * z
    term = path.sde(getattr(law, view)(path), view=view, diffusion="reverse")
    # E[x1 | x] lacks the variance that the noise left at t = 1 hides.
    std = 0.3 / math.sqrt(0.3 + path.boundary.alpha1**2)
    for method in ("euler_maruyama",):  # the others take the drift as it is, for a bounded eps
        few, many = (
            interp.solve(term, x, (start, 1.0), method, steps=n, seed=1).x for n in (25, 50)
        )
        # Of weak order 1: twice one less the other leaves the second order of a bias of .1, .01;
        # and five standard errors of a mean, more than those of a standard deviation.
        noise = 5 * 0.55 / math.sqrt(rows)
        assert abs(float(many.mean()) - 0.5) < noise + 0.01
        assert abs(2 * float(many.std()) - float(few.std()) - std) < noise + 0.01


@pytest.mark.parametrize("name", PATHS)
def test_one_call_of_the_data_is_the_first_order_step(name: str) -> None:
    """x_1 = D(x_0) where sigma(1) = 0: Euler with one step of a data model."""
    path = PATHS[name]
    if not path.boundary.ends_clean:
        pytest.skip("a second call ends a run that keeps some noise at t = 1")
    data = model(path, "data")
    sol = interp.solve(path.ode(data, view="data"), POINTS, method="euler", steps=1, save_at=[0, 1])
    expected = data(torch.tensor(0.0, dtype=F64), POINTS)
    assert float((sol.x - expected).abs().max()) < 1e-12
    torch.testing.assert_close(sol.xs, torch.stack([POINTS, sol.x]), rtol=1e-15, atol=0)
    assert (sol.stats.nfe, sol.stats.steps) == (1, 1)


@pytest.mark.parametrize("view", ["noise", "data", "score"])
def test_a_start_close_to_the_data(view: str) -> None:
    path = PATHS["linear"]
    ends = (1 - 1e-7, 1.0)
    saves = [1 - 1e-8, 1.0]
    sol = interp.solve(path.ode(model(path, view), view=view), POINTS, ends, save_at=saves)
    truth = torch.stack([LAW.flow(path)(ends[0], t, POINTS) for t in saves])
    assert float((sol.xs - truth).abs().max()) < 1e-6  # nothing moves by more than 1e-6 here
    assert torch.equal(sol.xs[-1], sol.x)


def from_convention(
    path: interp.Interpolant, convention: str | tuple[str, int], told: Tensor
) -> Tensor:
    """The t that a model of the convention was told."""
    if convention == "t":
        return told
    if convention == "noise":
        return 1 - told
    if convention == "sigma":
        return path.time_at_log_snr(-2 * told.log())
    if convention == "log_snr":
        return path.time_at_log_snr(told)
    return 1 - (told + 1) / int(convention[1])


CONVENTIONS: list[str | tuple[str, int]] = ["t", "noise", "sigma", "log_snr", ("index", 1000)]


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@pytest.mark.parametrize("view", ["velocity", "noise", "data"])
@pytest.mark.parametrize("name", ["linear", "trigonometric", "variance_preserving"])
def test_what_a_model_is_told(name: str, view: str, convention: str | tuple[str, int]) -> None:
    path = PATHS[name]
    exact, ends = model(path, view), (0.05, 0.95)
    truth = LAW.flow(path)(*ends, POINTS)

    def network(time: Tensor, x: Tensor) -> Tensor:
        assert time.dtype == x.dtype
        t = from_convention(path, convention, time.double()).clamp(0.0, 1.0)
        return exact(t, x)

    right = interp.solve(
        path.ode(network, view=view, time=convention), POINTS, ends, rtol=1e-5, atol=1e-5
    )
    assert float((right.x - truth).abs().max()) < 3e-4  # as above
    if convention == "t":
        return
    # The wrong way round must show, or the test has no power.
    wrong = interp.solve(
        path.ode(exact, view=view, time="t" if convention == "noise" else "noise"),
        POINTS, ends, rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert convention != "noise" or float((wrong.x - truth).abs().max()) < 1e-2
    if convention == "noise":
        swapped = interp.solve(path.ode(network, view=view), POINTS, ends, rtol=1e-4, atol=1e-4)
        assert float((swapped.x - truth).abs().max()) > 0.05


def test_indices_are_exact_integers_at_the_nodes() -> None:
    path, n = PATHS["variance_preserving"], 1000
    seen: list[float] = []

    def network(time: Tensor, x: Tensor) -> Tensor:
        seen.append(float(time))
        return LAW.noise(path)(1 - (time.double() + 1) / n, x.double()).to(x.dtype)

    nodes = [999, 750, 500, 3, 0]
    grid = [1 - (k + 1) / n for k in nodes]
    for dtype in (torch.float32, F64):
        seen.clear()
        term = path.ode(network, view="noise", time=("index", n))
        interp.solve(term, POINTS.to(dtype), (grid[0], grid[-1]), "euler", grid=grid)
        assert seen == nodes[:-1]


@pytest.mark.parametrize("view", NOISE_LIKE)
def test_a_silent_start_is_refused_before_the_first_call(view: str) -> None:
    calls: list[float] = []

    def network(t: Tensor, x: Tensor) -> Tensor:
        calls.append(float(t))
        return x

    for ends in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(TimeError, match=r"beta is 0.*t=\(0\.001, 1\.0\)"):
            interp.solve(PATHS["linear"].ode(network, view=view), POINTS, ends)
    assert calls == []


def test_labels_reach_the_model() -> None:
    """A model of two Gaussians, told which by its label."""
    path = PATHS["linear"]
    laws = [interp.exact.Gaussian(m, 0.2) for m in (-1.0, 2.0)]

    def network(t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        both = torch.stack([law.velocity(path)(t, x) for law in laws])
        return torch.where(label[:, None] == 0, both[0], both[1])

    x, label = torch.zeros(4, 1, dtype=F64), torch.tensor([0, 1, 1, 0])
    for backend in ("rust", "torch", "torchdiffeq"):
        sol = interp.solve(path.ode(network), x, backend=backend, cond={"label": label})
        truth = torch.where(label[:, None] == 0, -1.0, 2.0)  # the mean goes to the mean
        assert float((sol.x - truth).abs().max()) < 1e-4
