"""Methods of SDEs: their orders, calculus and noise, adaptive steps, and both backends."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import FieldError, InterpError, OptionError, SolveError, Unsupported
from interp.noise import BrownianPath
from interp.solvers import stochastic_tableaus as tableaus

F64 = torch.float64
MU, S = 0.3, 0.8
BACKENDS = ("rust", "torch")


def geometric(calculus: str = "ito") -> interp.SDE:
    """dX = mu X dt + s X dW, whose solution is X exp((mu - s^2 / 2) t + s W)."""
    drift = MU if calculus == "ito" else MU - S * S / 2
    return interp.SDE(lambda t, x: drift * x, lambda t, x: S * x, calculus)


def nonlinear_additive() -> interp.SDE:
    return interp.SDE(lambda t, x: -x - torch.sin(3 * x) + t, lambda t: 0.7 * (1 + t))


def solve(term: interp.SDE, x: Tensor, method: str, **options: Any) -> interp.solvers.Solution:
    return interp.solve(term, x, method=method, **options)


# Orders


def slope(steps: list[int], errors: Tensor) -> tuple[float, float]:
    """The order and its 95 % interval's half width: errors (steps, groups), a slope of each group."""
    logs = torch.tensor(steps, dtype=F64).log2()
    centred = logs - logs.mean()
    slopes = -(centred[:, None] * errors.log2()).sum(0) / centred.square().sum()
    return float(slopes.mean()), 2.1 * float(slopes.std()) / math.sqrt(len(slopes))


STRONG = [
    ("euler_maruyama", "ito", {}, 0.5), ("milstein", "ito", {}, 1.0),
    ("milstein", "ito", {"derivative_free": True}, 1.0), ("milstein", "stratonovich", {}, 1.0),
    ("milstein", "stratonovich", {"derivative_free": True}, 1.0), ("srk", "ito", {}, 1.5),
    ("heun_stratonovich", "stratonovich", {}, 1.0), ("reversible_heun", "stratonovich", {}, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("method", "calculus", "options", "order"), STRONG, ids=str)
def test_strong_order_of_multiplicative_noise(
    method: str, calculus: str, options: dict[str, Any], order: float
) -> None:
    """Root mean square distance to the exact solution on the same path."""
    steps, groups, width = [32, 64, 128, 256], 20, 400
    x = torch.ones(groups, width, dtype=F64)
    exact = torch.exp((MU - S * S / 2) + S * BrownianPath(groups, width, 9).at(1.0))
    errors = torch.stack([
        (solve(geometric(calculus), x, method, steps=n, seed=9, **options).x - exact)
        .square().mean(1).sqrt()
        for n in steps
    ])  # fmt: skip
    found, half = slope(steps, errors)
    # The interval of the mean slope, and 0.12 for the next term of the expansion at 32 steps.
    assert abs(found - order) < half + 0.12


@pytest.mark.parametrize(
    ("method", "order"),
    [("euler_maruyama", 1.0), ("milstein", 1.0), ("srk", 1.5), ("heun_stratonovich", 1.0),
     ("reversible_heun", 1.0)],
)  # fmt: skip
def test_strong_order_of_additive_noise(method: str, order: float) -> None:
    steps, groups = [16, 32, 64, 128], 20
    x = torch.ones(groups, 100, dtype=F64)
    fine = solve(nonlinear_additive(), x, "srk", steps=2048, seed=5, depth=12).x
    errors = torch.stack([
        (solve(nonlinear_additive(), x, method, steps=n, seed=5, depth=12).x - fine)
        .square().mean(1).sqrt()
        for n in steps
    ])  # fmt: skip
    found, half = slope(steps, errors)
    assert abs(found - order) < half + 0.12


@pytest.mark.parametrize(
    ("method", "calculus", "order"),
    [("euler_maruyama", "ito", 1.0), ("milstein", "ito", 1.0), ("srk", "ito", 2.0),
     ("heun_stratonovich", "stratonovich", 1.0)],
)  # fmt: skip
def test_weak_order(method: str, calculus: str, order: float) -> None:
    """E X of geometric motion, the same path for every step, less what the exact X has on it.

    The difference of means over the same noise has the bias as its mean and the strong error as its
    spread, so that 200000 paths tell a bias of 1e-5.
    """
    steps, groups, width = [4, 8, 16], 20, 10_000
    x = torch.ones(groups, width, dtype=F64)
    exact = torch.exp((MU - S * S / 2) + S * BrownianPath(groups, width, 3).at(1.0))
    bias = torch.stack([
        (solve(geometric(calculus), x, method, steps=n, seed=3).x - exact).mean(1) for n in steps
    ])  # fmt: skip
    mean, error = bias.mean(1), bias.std(1) / math.sqrt(groups)
    for coarse, fine, a, b in zip(mean[:-1], mean[1:], error[:-1], error[1:], strict=True):
        # 2^order times the finer bias is the coarser one, to four standard errors and 0.35 of a
        # power for the next term; an order more than claimed is no failure.
        limit = abs(float(coarse)) * 2 ** -(order - 0.35) + 4 * float(a + b)
        assert abs(float(fine)) < limit
    assert abs(float(mean[0])) > 4 * float(error[0]) or order == 2  # there is a bias to see


@pytest.mark.parametrize(
    "method", ["euler_maruyama", "heun_stratonovich", "reversible_heun", "srk"]
)
def test_without_noise_a_method_is_that_of_an_ode(method: str) -> None:
    errors = []
    for n in (20, 40):
        term = interp.SDE(lambda t, x: x * torch.cos(t), 0.0)
        sol = solve(term, torch.ones(1, 1, dtype=F64), method, steps=n, seed=0)
        errors.append(abs(float(sol.x) - math.exp(math.sin(1))))
    order = {"euler_maruyama": 1, "srk": 2}.get(method, 2)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_the_conditions_of_roessler() -> None:
    """What the weights have to add up to (2010, theorems 4.1 and 5.1), and the bases of each."""
    for scheme in (tableaus.SRIW1, tableaus.SRA1):
        sums: dict[str, float] = {}
        for slot, basis, weight in scheme.end:
            kind = scheme.stages[slot][1]
            sums[kind + basis] = sums.get(kind + basis, 0.0) + weight
        assert sums.pop("drifth") == pytest.approx(1)
        assert sums.pop("diffusionW") == pytest.approx(1)
        assert list(sums.values()) == pytest.approx([0.0] * len(sums), abs=1e-15)


# Backends, calculus and noise


def fields() -> dict[str, tuple[interp.SDE, tuple[str, ...]]]:
    """An SDE of each kind of noise, and the methods for it."""
    matrix = torch.tensor([[0.5, 0.2, 0.0], [0.1, -0.4, 0.3]], dtype=F64)
    drift = lambda t, x: -x + torch.cos(t)  # noqa: E731
    strong = ("heun_stratonovich", "reversible_heun")
    return {
        "scalar, stratonovich": (
            interp.SDE(drift, lambda t, x: (0.3 * x.cos())[..., None], "stratonovich"), strong,
        ),
        "number": (interp.SDE(drift, 0.6), (*strong, "milstein", "srk")),
        "of t": (interp.SDE(drift, lambda t: 0.5 + t), (*strong, "milstein", "srk")),
        "diagonal": (interp.SDE(drift, lambda t, x: 0.3 + 0.2 * x.sin() + t), ("milstein", "srk")),
        "diagonal, stratonovich": (
            interp.SDE(drift, lambda t, x: 0.3 + 0.2 * x.sin(), "stratonovich"),
            (*strong, "milstein"),
        ),
        "scalar": (interp.SDE(drift, lambda t, x: (0.3 * x.cos())[..., None]), ("milstein", "srk")),
        "general": (
            interp.SDE(drift, lambda t, x: (1 + x.square())[..., None] * matrix.to(x)),
            ("euler_maruyama",),
        ),
        "general, stratonovich": (
            interp.SDE(drift, lambda t, x: x.cos()[..., None] * matrix.to(x), "stratonovich"),
            strong,
        ),
        "general, additive": (interp.SDE(drift, lambda t: matrix.expand(4, 2, 3)), strong),
    }  # fmt: skip


CASES = [(kind, method) for kind, (_, some) in fields().items() for method in some]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_rust_and_torch_are_equal(kind: str, method: str) -> None:
    term = fields()[kind][0]
    x = torch.linspace(-1, 1, 8, dtype=F64).reshape(4, 2)
    grid = [0.2, 0.31, 0.5, 0.9, 1.3]
    options: dict[str, Any] = {"grid": grid, "seed": 7, "save_at": grid, "t": (0.2, 1.3)}
    forms = [{}] if method != "milstein" else [{}, {"derivative_free": True}]
    for form in forms:
        ours, theirs = (solve(term, x, method, backend=b, **options, **form) for b in BACKENDS)
        assert float((ours.xs - theirs.xs).abs().max()) < 1e-14  # tens of roundings of size 2e-16
        parts = [
            solve(term, x[a:b], method, first_row=a, **options, **form).x
            for a, b in ((0, 1), (1, 4))
            if kind != "general, additive"
        ]
        assert not parts or torch.equal(torch.cat(parts), ours.x)


def test_a_large_state_on_threads() -> None:
    x = torch.linspace(-1, 1, 300 * 333, dtype=F64).reshape(300, 333)
    term = interp.SDE(lambda t, x: -x, lambda t, x: 0.3 + 0.1 * x.sin())
    ours, theirs = (solve(term, x, "srk", backend=b, steps=3, seed=1).x for b in BACKENDS)
    assert float((ours - theirs).abs().max()) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_scalar_noise_has_one_motion(backend: str) -> None:
    zero = lambda t, x: torch.zeros_like(x)  # noqa: E731
    term = interp.SDE(zero, lambda t, x: torch.ones_like(x)[..., None])
    x = torch.zeros(3, 5, dtype=F64)
    w = BrownianPath(3, 1, 4).at(1.0)
    for method in ("euler_maruyama", "milstein", "srk"):
        sol = solve(term, x, method, steps=6, seed=4, backend=backend)
        assert float((sol.x - w).abs().max()) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_general_noise_has_its_covariance(backend: str) -> None:
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 0.3]], dtype=F64)
    term = interp.SDE(lambda t, x: torch.zeros_like(x), lambda t, x: matrix.expand(len(x), 2, 3))
    x = torch.zeros(40_000, 2, dtype=F64)
    sol = solve(term, x, "euler_maruyama", steps=2, seed=2, backend=backend)
    found = sol.x.mT @ sol.x / len(x)
    assert float((found - matrix @ matrix.mT).abs().max()) < 5 * 1.25 * math.sqrt(2 / 40_000)


def test_both_calculi_meet_when_the_drift_is_converted() -> None:
    """dX = f dt + g o dW is dX = (f + g g'/2) dt + g dW: one solution on one path."""
    g = lambda t, x: 0.4 + 0.3 * x.sin()  # noqa: E731
    half = lambda x: 0.5 * (0.4 + 0.3 * x.sin()) * 0.3 * x.cos()  # noqa: E731
    x = torch.linspace(-1, 1, 200, dtype=F64)[:, None]
    ito = interp.SDE(lambda t, x: -x + half(x), g)
    strato = interp.SDE(lambda t, x: -x, g, "stratonovich")
    a = solve(ito, x, "srk", steps=1000, seed=3).x
    for method in ("heun_stratonovich", "milstein", "reversible_heun"):
        b = solve(strato, x, method, steps=1000, seed=3).x
        assert (
            float((a - b).square().mean().sqrt()) < 1e-3
        )  # order 1 at h = 1e-3, constants below one


@pytest.mark.parametrize("name", ["linear", "trigonometric"])
@pytest.mark.parametrize("method", ["srk", "heun_stratonovich", "euler_maruyama"])
def test_the_sde_of_a_path(name: str, method: str) -> None:
    """Velocity + (eps^2 / 2) score, additive noise: the marginal of the path, inside (0, 1)."""
    path = getattr(schedules, name)()
    law = interp.exact.Gaussian(0.7, 0.36)
    term = path.sde(lambda t, x: law.velocity(path)(t, x), diffusion=0.8)
    k = path.coefficients(0.1)
    mean, std = 0.7 * float(k.beta), math.sqrt(0.36 * float(k.beta) ** 2 + float(k.sigma) ** 2)
    x = mean + std * interp.noise.normal((40_000, 1), seed=1, dtype=F64)
    sol = interp.solve(term, x, (0.1, 0.8), method, steps=60, seed=2)
    k = path.coefficients(0.8)
    mean, std = 0.7 * float(k.beta), math.sqrt(0.36 * float(k.beta) ** 2 + float(k.sigma) ** 2)
    n, bias = len(x), 2e-2 if method == "euler_maruyama" else 2e-3
    assert float(sol.x.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(n) + bias)
    assert float(sol.x.std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * n) + bias)


# Adaptive steps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["srk", "heun_stratonovich"])
def test_adaptive_steps_follow_the_path(method: str, backend: str) -> None:
    calculus = "ito" if method == "srk" else "stratonovich"
    x = torch.ones(10, 4, dtype=F64)
    exact = torch.exp((MU - S * S / 2) + S * BrownianPath(10, 4, 9, depth=24).at(1.0))
    errors, rejected = [], 0
    for tol in (1e-1, 1e-2, 1e-3):
        sol = solve(geometric(calculus), x, method, rtol=tol, atol=tol, seed=9, backend=backend)
        errors.append(float((sol.x - exact).square().mean().sqrt()))
        rejected += sol.stats.rejected
    assert rejected > 0
    assert errors[2] < errors[0] / 8
    assert errors[2] < 1e-2


@pytest.mark.parametrize("method", ["srk", "heun_stratonovich"])
def test_adaptive_steps_are_those_of_torch(method: str) -> None:
    calculus = "ito" if method == "srk" else "stratonovich"
    x = torch.linspace(0.5, 1, 6, dtype=F64).reshape(3, 2)
    seen: list[list[float]] = []
    for backend in BACKENDS:
        times: list[float] = []
        sol = solve(
            geometric(calculus), x, method, rtol=1e-2, atol=1e-2, seed=4, backend=backend,
            save_at=[0.3, 1.0], callback=lambda s: times.append(s.t),  # noqa: B023
        )  # fmt: skip
        seen.append(times)
        assert 0.3 in times
        assert sol.ts.tolist() == [0.3, 1.0]
    assert seen[0] == seen[1]


def test_an_adaptive_run_that_cannot_go_on() -> None:
    term = interp.SDE(lambda t, x: x**3, lambda t, x: 5 * x)
    with pytest.raises(SolveError):
        solve(term, torch.full((2, 1), 3.0, dtype=F64), "srk", seed=0, max_steps=2000)


# Gradients


@pytest.mark.parametrize("method", ["euler_maruyama", "milstein", "srk", "heun_stratonovich"])
def test_direct_gradients_against_finite_differences(method: str) -> None:
    calculus = "stratonovich" if method == "heun_stratonovich" else "ito"
    theta = torch.tensor([0.4, 0.7], dtype=F64, requires_grad=True)

    def run(theta: Tensor, x: Tensor) -> Tensor:
        term = interp.SDE(
            lambda t, x: theta[0] * torch.sin(x),
            lambda t, x: theta[1] * (1 + x * x).sqrt(),
            calculus,
        )
        return solve(term, x, method, steps=5, seed=1, backend="torch").x.square().sum()

    x = torch.tensor([[0.3, -0.2]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (theta, x), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["diagonal, stratonovich", "general, stratonovich", "number"])
def test_the_reversible_gradient(kind: str) -> None:
    """The same numbers as through every operation, and finite differences; on the same path."""
    theta = torch.tensor([0.4, 0.7], dtype=F64, requires_grad=True)
    matrix = torch.tensor([[0.5, 0.2, 0.0], [0.1, -0.4, 0.3]], dtype=F64)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        g = theta[1] * (1 + x * x).sqrt()
        return g[..., None] * matrix if kind.startswith("general") else g

    noise = 0.6 if kind == "number" else diffusion
    term = interp.SDE(lambda t, x: theta[0] * torch.sin(x) + t, noise, "stratonovich")
    start = torch.tensor([[0.3, -0.2], [0.8, 1.0]], dtype=F64)
    found = []
    for gradient in ("direct", "reversible"):
        x = start.clone().requires_grad_()
        sol = interp.solve(
            term, x, method="reversible_heun", steps=50, seed=1, gradient=gradient,
            save_at=[0.0, 0.4, 1.0],
        )  # fmt: skip
        loss = (sol.xs * torch.tensor([1.0, 2.0, 3.0], dtype=F64)[:, None, None]).square().sum()
        loss = loss + sol.x.sum()
        wanted = [x, theta]
        found.append((loss.detach(), *torch.autograd.grad(loss, wanted)))
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) < 1e-9 * float(a.abs().max())  # 50 steps undone
    h, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            theta[0] += sign * h
            sol = interp.solve(
                term, start, method="reversible_heun", steps=50, seed=1, save_at=[0.0, 0.4, 1.0]
            )
            scale = torch.tensor([1.0, 2.0, 3.0], dtype=F64)[:, None, None]
            ends.append(float((sol.xs * scale).square().sum() + sol.x.sum()))
            theta[0] -= sign * h
    assert float(found[1][2][0]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_the_reversible_gradient_keeps_no_states() -> None:
    """What autograd holds between forward and backward does not grow with the steps."""

    def held(steps: int, gradient: str) -> int:
        theta = torch.tensor(0.4, dtype=F64, requires_grad=True)
        term = interp.SDE(
            lambda t, x: theta * x.sin(), lambda t, x: theta * x.cos(), "stratonovich"
        )
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            interp.solve(
                term, torch.ones(5, 5, dtype=F64), method="reversible_heun", steps=steps, seed=1,
                gradient=gradient,
            )  # fmt: skip
        return total

    assert held(200, "reversible") <= held(10, "reversible") + 1
    assert held(200, "direct") > 10 * held(10, "direct")


# What is refused


@pytest.mark.parametrize(
    ("method", "term", "match"),
    [
        ("srk", geometric("stratonovich"), r"stratonovich.*\(1/2\) g dg/dx"),
        ("heun_stratonovich", geometric("ito"), "is ito.*milstein"),
        ("milstein", fields()["general"][0], "3 columns.*euler_maruyama"),
        ("srk", fields()["general"][0], "3 columns.*euler_maruyama"),
        ("euler_maruyama", fields()["general, stratonovich"][0], "stratonovich"),
    ],
)  # fmt: skip
def test_a_method_for_another_noise_or_calculus(method: str, term: interp.SDE, match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        solve(term, torch.ones(2, 2, dtype=F64), method, steps=4, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["srk", "milstein", "heun_stratonovich", "euler_maruyama"])
@pytest.mark.parametrize(
    "diffusion",
    [lambda t, x: x[:1], lambda t, x: x[:, :1, None].expand(2, 2, 3), lambda t, x: "x",
     lambda t, x: torch.ones(7), lambda t, x: x.to(torch.complex128)],
    ids=["rows", "wide", "str", "shape", "complex"],
)  # fmt: skip
def test_a_diffusion_of_another_shape(
    diffusion: Callable[..., Any], method: str, backend: str
) -> None:
    x = torch.ones(2, 2, dtype=F64)

    def late(t: Tensor, x: Tensor) -> Any:
        """As it should be at first."""
        return diffusion(t, x) if float(t) > 0.4 else torch.ones_like(x)

    calculus = "stratonovich" if method == "heun_stratonovich" else "ito"
    term = interp.SDE(lambda t, x: -x, late, calculus)
    try:
        sol = solve(term, x, method, steps=4, seed=0, backend=backend)
    except InterpError as error:
        assert isinstance(error, (FieldError, OptionError))  # noqa: PT017
    else:
        # A row broadcasts to all of them: that is a diffusion.
        assert sol.x.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["srk", "milstein", "heun_stratonovich", "euler_maruyama"])
def test_a_diffusion_that_becomes_a_matrix(method: str, backend: str) -> None:
    calculus = "stratonovich" if method == "heun_stratonovich" else "ito"
    x = torch.ones(4, 3, dtype=F64)

    def late(t: Tensor, x: Tensor) -> Tensor:
        return torch.ones(4, 3, 2, dtype=F64) if float(t) > 0.4 else x

    term = interp.SDE(lambda t, x: -x, late, calculus)
    with pytest.raises(FieldError, match="the diffusion returned a tensor of shape.*4, 3, 2"):
        solve(term, x, method, steps=4, seed=0, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diffusion_that_is_not_finite(backend: str) -> None:
    term = interp.SDE(lambda t, x: -x, lambda t, x: x / (t - 0.5).clamp(min=0))
    with pytest.raises(
        SolveError, match="the drift, the diffusion or the state became NaN"
    ) as caught:
        solve(term, torch.ones(2, 2, dtype=F64), "milstein", steps=4, seed=0, backend=backend)
    assert caught.value.reason == "non_finite"
    with pytest.raises(OptionError, match="the diffusion holds inf"):
        interp.SDE(lambda t, x: -x, torch.tensor([0.3, math.inf]))


def test_output_times_between_steps() -> None:
    with pytest.raises(OptionError, match=r"save_at holds t = 0\.3"):
        solve(geometric(), torch.ones(2, 1), "srk", steps=4, save_at=[0.3])


# Clean data at a steep end


@pytest.mark.parametrize("method", ["milstein", "srk", "heun_stratonovich", "reversible_heun"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [100, 300])
def test_a_model_of_the_data_where_sigma_is_rounding(
    method: str, dtype: torch.dtype, steps: int
) -> None:
    """sigma = 5 (1 - t)^7 falls below every rounding of x, where s = (D - x) / sigma^2 is rounding alone."""
    path, law = schedules.edm(sigma_max=5.0), interp.exact.Gaussian([0.3, -0.5], [0.5, 0.2])
    assert path.sigma(1.0) == 0
    x = (law.sample(2000, seed=2) + path.base.sample((2000, 2), seed=0)).to(dtype)
    term = path.sde(law.data(path), view="data", diffusion=0.5)
    end = interp.solve(term, x, method=method, steps=steps, seed=1).x.double()
    assert end.mean(0) == pytest.approx(torch.tensor([0.3, -0.5]), abs=0.1)
    assert end.var(0) == pytest.approx(torch.tensor([0.5, 0.2]), abs=0.15)
    half = interp.solve(
        term, x, method=method, steps=steps, seed=1, save_at=[0.5, (steps - 1) / steps, 1.0]
    )
    assert half.xs.isfinite().all()
    assert torch.equal(half.ts, torch.tensor([0.5, (steps - 1) / steps, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("method", ["milstein", "srk", "heun_stratonovich", "reversible_heun"])
@pytest.mark.parametrize("eps", [0.5, "reverse"])
def test_the_noise_and_the_data_are_one_sde(method: str, eps: float | str) -> None:
    """To clean data too, where a noise estimate does not tell the score."""
    path, law = schedules.variance_preserving(), interp.exact.Gaussian([0.3], [0.5])
    x = path.base.sample((50, 1), seed=0, dtype=F64)
    ends = [
        interp.solve(
            path.sde(getattr(law, view)(path), view=view, diffusion=eps),
            x, method=method, steps=40, seed=1,
        ).x
        for view in ("data", "noise")
    ]  # fmt: skip
    assert float((ends[0] - ends[1]).abs().max()) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["srk", "heun_stratonovich", "reversible_heun"])
def test_states_on_the_way_are_those_of_the_path(method: str, backend: str) -> None:
    """What a callback sees and what is saved, in x: each the end of a run that ends there."""
    path, law = schedules.variance_exploding(0.01, 50.0), interp.exact.Gaussian([0.3], [0.5])
    term = path.sde(law.data(path), view="data", diffusion="reverse")
    x = path.base.sample((5, 1), seed=0, dtype=F64)
    seen: dict[float, Tensor] = {}
    grid = [k / 8 for k in range(9)]
    whole = interp.solve(
        term, x, method=method, backend=backend, grid=grid, seed=1, save_at=[0.5, 1.0],
        callback=lambda s: seen.update({s.t: s.x.clone()}), denoise=False,
    )  # fmt: skip
    half = interp.solve(term, x, (0.0, 0.5), method, backend, grid=grid[:5], seed=1, denoise=False)
    assert float((half.x - whole.xs[0]).abs().max()) < 1e-12
    assert float((half.x - seen[0.5]).abs().max()) < 1e-12
    assert torch.equal(whole.x, whole.xs[1])


@pytest.mark.parametrize("method", ["srk", "heun_stratonovich", "reversible_heun"])
@pytest.mark.parametrize(
    ("ends", "inside"), [((0.0, 1.0), "(0.001, 1.0)"), ((0.9, 0.0), "(0.9, 0.001)")]
)
def test_a_run_from_or_to_an_infinite_diffusion(
    method: str, ends: tuple[float, float], inside: str
) -> None:
    term = schedules.linear().sde(lambda t, x: 0 * x, view="data", diffusion="reverse")
    with pytest.raises(Unsupported, match=r"infinite at t = 0 .*" + re.escape(f"t={inside}")):
        interp.solve(term, torch.zeros(2, 1), ends, method, steps=5)
