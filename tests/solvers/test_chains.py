"""Chains on an energy: their stationary laws, acceptance, independence of neighbours, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
import rust_solvers
from interp.errors import FieldError, OptionError, SolveError, UnknownName, Unsupported
from interp.solvers.chains import CHAINS
from interp.solvers.effective import Effective

F64 = torch.float64


def quadratic(stiffness: float = 2.0) -> interp.Energy:
    return interp.Energy(lambda x: 0.5 * stiffness * x.square().sum(1), temperature=0.7)


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(1)


def chain(energy: interp.Energy, x: Tensor, method: str, **options: Any) -> interp.solvers.Solution:
    return interp.solve(energy, x, method=method, **options)


# Stationary laws


STATIONARY = {  # of U = k x^2 / 2 at temperature T, step h, exactly
    "langevin": lambda k, t, h: t / (k * (1 - h * k / 2)),
    "mala": lambda k, t, h: t / k,
    "hmc": lambda k, t, h: t / k,
    "underdamped": lambda k, t, h: t / k,  # BAOAB: no bias of x in a harmonic well
}


@pytest.mark.parametrize("method", STATIONARY)
def test_stationary_variance_of_a_harmonic_well(method: str) -> None:
    k, t, h, rows = 2.0, 0.7, 0.25, 20_000
    x = math.sqrt(t / k) * interp.noise.normal((rows, 1), seed=1, dtype=F64)
    sol = chain(quadratic(k), x, method, steps=60, step_size=h, seed=2)
    variance = STATIONARY[method](k, t, h)
    # 60 steps forget the start by exp(-2 h k 60); 5 standard errors of so many rows.
    assert float(sol.x.var()) == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / rows))
    assert abs(float(sol.x.mean())) < 5 * math.sqrt(variance / rows)


@pytest.mark.parametrize(("method", "step"), [("mala", 0.08), ("hmc", 0.15), ("underdamped", 0.05)])
def test_stationary_law_of_a_double_well(method: str, step: float) -> None:
    """Kolmogorov-Smirnov against the law by quadrature."""
    rows = 4000
    grid = torch.linspace(-4, 4, 16_001, dtype=F64)
    weights = torch.exp(-double_well(grid[:, None]))
    cdf = weights.cumsum(0) / weights.sum()
    u = torch.special.ndtr(interp.noise.normal((rows,), seed=5, dtype=F64))
    x = grid[torch.searchsorted(cdf, u).clamp(max=len(grid) - 1)][:, None]  # already stationary
    sol = chain(interp.Energy(double_well), x, method, steps=80, step_size=step, seed=3)
    at = torch.searchsorted(grid, sol.x.flatten().sort().values)
    ranks = torch.arange(rows, dtype=F64) / rows
    gap = (cdf[at.clamp(max=len(grid) - 1)] - ranks).abs().max()
    # sqrt(n) D > 2.2 has probability 1e-4; BAOAB at h = 0.05 is biased by less than 2e-3.
    assert float(gap) < 2.2 / math.sqrt(rows) + (2e-3 if method == "underdamped" else 0)


def test_annealed_levels_end_at_the_smallest() -> None:
    """U(x, s) of data N(1, 0.25) with noise of size s: the variance at the end is 0.25 + s^2."""
    levels = [4.0, 2.0, 1.0, 0.5]
    energy = interp.Energy(lambda x, s: 0.5 * ((x - 1).square() / (0.25 + s * s)).sum(1))
    x = 4 * interp.noise.normal((20_000, 1), seed=1, dtype=F64)
    sol = chain(energy, x, "annealed", steps=60, step_size=0.05, levels=levels, seed=2)
    variance = 0.5 / (1 - 0.05 / 2 / 0.5)  # the bias of the last level's step
    assert float(sol.x.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(variance / 20_000))
    assert float(sol.x.var()) == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / 20_000))
    assert sol.stats.steps == 240


def test_langevin_is_its_formula() -> None:
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    sol = chain(quadratic(), x, "langevin", steps=1, step_size=0.1, seed=4)
    key = interp.noise.stream_key(4, interp.noise.STREAMS["chain"])
    z = interp.noise.node_normals(3, 2, 0, key, 0, torch.device("cpu"))
    expected = x - 0.1 * 2 * x + math.sqrt(2 * 0.1 * 0.7) * z
    assert float((sol.x - expected).abs().max()) < 1e-15


# What a chain tells


def test_the_acceptance_rate_of_hmc_is_that_of_its_energy_error() -> None:
    """For a Gaussian, min(1, exp(-dH)) averages to erfc(sqrt(E dH) / 2) (Neal, 1206.1901, 5.4.4)."""
    d = 200
    x = interp.noise.normal((2000, d), seed=1, dtype=F64)
    energy = interp.Energy(lambda x: 0.5 * x.square().sum(1))
    sol = chain(energy, x, "hmc", steps=4, step_size=0.3, leapfrog=5, seed=2)
    # One leapfrog run of the harmonic oscillator, exactly: dH has the mean d (a + b - 2) / 2, with
    # a, b the squared norms of the columns of the map of (x, v).
    step = torch.tensor([[1 - 0.045, 0.3], [-0.3 * (1 - 0.0225), 1 - 0.045]], dtype=F64)
    columns = torch.linalg.matrix_power(step, 5).square().sum(0)
    mean = d * float(columns.sum() - 2) / 2
    expected = math.erfc(math.sqrt(mean) / 2)
    assert sol.stats.acceptance == pytest.approx(expected, abs=0.02)  # corrections of order 1 / d


@pytest.mark.parametrize(("method", "target"), [("mala", 0.574), ("hmc", 0.8)])
def test_dual_averaging_finds_the_target(method: str, target: float) -> None:
    x = interp.noise.normal((200, 20), seed=1, dtype=F64)
    energy = interp.Energy(lambda x: 0.5 * x.square().sum(1))
    sol = chain(energy, x, method, steps=50, step_size=5.0, adapt=300, seed=2)
    assert sol.stats.acceptance == pytest.approx(target, abs=0.06)
    assert sol.stats.step_size is not None
    assert sol.stats.step_size < 5.0


@pytest.mark.parametrize("method", ["mala", "hmc"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_search_does_not_ask_where_to_begin(method: str, scale: float) -> None:
    """In units of the energy's own scale the step found is one, whatever the variance."""
    x = math.sqrt(scale) * interp.noise.normal((200, 20), seed=1, dtype=F64)
    energy = interp.Energy(lambda x: 0.5 * x.square().sum(1) / scale)
    found = {
        "nowhere": chain(energy, x, method, steps=50, adapt=300, seed=2).stats,
        "far off": chain(energy, x, method, steps=50, adapt=300, seed=2, step_size=1e-6).stats,
    }
    sizes = [stats.step_size for stats in found.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
    unit = scale if method == "mala" else math.sqrt(scale)
    reference = chain(
        interp.Energy(lambda x: 0.5 * x.square().sum(1)), x / math.sqrt(scale), method, steps=50,
        adapt=300, seed=2,
    )  # fmt: skip
    assert sizes[0] / unit == pytest.approx(reference.stats.step_size, rel=0.15)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression(correlation: float) -> None:
    """n (1 - a) / (1 + a); 48 batches of 50 rows tell it to a few percent."""
    n, rows = 3000, 50
    z = interp.noise.normal((n, rows), seed=1, dtype=F64)
    x, effective = z[0], Effective(z[0][:, None])
    for k in range(n):
        x = correlation * x + math.sqrt(1 - correlation**2) * z[k]
        effective.add(x[:, None])
    expected = n * rows * (1 - correlation) / (1 + correlation)
    assert effective.size() == pytest.approx(expected, rel=0.15)


def test_effective_size_of_a_chain_of_few_steps() -> None:
    """Of x' = 0.8 x + noise, 60 steps: seven batches of eight, whose means' variance is a closed form."""
    a, n, rows, b = 0.8, 60, 1000, 8
    start = interp.noise.normal((rows, 1), seed=3, dtype=F64) / math.sqrt(1 - 0.2 / 2)
    energy = interp.Energy(lambda x: 0.5 * x.square().sum(1))
    sol = chain(energy, start, "langevin", steps=n, step_size=1 - a, seed=2)
    inflated = (1 + a) / (1 - a) - 2 * a * (1 - a**b) / (b * (1 - a) ** 2)
    # 7000 means: 2 % is chance, and the variance of correlated states about as much.
    assert sol.stats.ess == pytest.approx(n * rows / inflated, rel=0.1)


def test_memory_of_a_long_chain_does_not_grow() -> None:
    effective = Effective(torch.zeros(2, 3))
    held = effective._sums.numel()
    for _ in range(10_000):
        effective.add(torch.zeros(2, 3))
    assert effective._sums.numel() == held
    assert 32 <= effective._full < 64


def test_states_on_the_way() -> None:
    seen: list[float] = []
    sol = chain(
        quadratic(), torch.zeros(3, 2), "underdamped", steps=10, step_size=0.1, seed=1, save_every=4,
        callback=lambda s: seen.append(s.t),
    )  # fmt: skip
    assert sol.ts.tolist() == [4.0, 8.0]
    assert sol.xs.shape == (2, 3, 2)
    assert seen == [float(k) for k in range(1, 11)]


# One noise


@pytest.mark.parametrize("method", CHAINS)
def test_rows_do_not_know_their_neighbours(method: str) -> None:
    options: dict[str, Any] = {"steps": 6, "step_size": 0.02, "seed": 5}
    energy = interp.Energy(lambda x, s=1.0: (x.square() - s).square().sum(1))
    if method == "annealed":
        options["levels"] = [2.0, 1.0]
    x = torch.linspace(-1, 1, 10 * 7, dtype=F64).reshape(10, 7)
    whole = chain(energy, x, method, first_row=40, **options).x
    parts = [
        chain(energy, x[a:b], method, first_row=40 + a, **options).x for a, b in ((0, 3), (3, 10))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("method", "adapt"), [*((m, 0) for m in CHAINS), ("mala", 12), ("hmc", 12)]
)
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 4), (1, 1), (0, 2), (2, 0)])
def test_the_engines_make_one_chain(method: str, shape: tuple[int, ...], adapt: int) -> None:
    """Rust and torch, in double precision: states on the way, what is counted, what is told."""
    options: dict[str, Any] = {"steps": 9, "step_size": 0.02, "seed": 5, "save_every": 2}
    options |= {"leapfrog": 3} if method == "hmc" else {}
    options |= {"levels": [2.0, 1.0]} if method == "annealed" else {}
    options |= {"adapt": adapt} if adapt else {}
    energy = interp.Energy(lambda x, s=1.0: (x.square() - s).square().flatten(1).sum(1), 0.7)
    x = interp.noise.normal(shape, seed=1, dtype=F64)
    seen: dict[str, list[tuple[float, int]]] = {"rust": [], "torch": [], "moved": []}
    rust, torch_, moved = (
        interp.solve(
            energy, x * (1 + 2**-50) if b == "moved" else x, method=method,
            backend="rust" if b == "rust" else "torch", first_row=7,
            callback=lambda s, b=b: seen[b].append((s.t, s.nfe)), **options,
        )
        for b in seen
    )  # fmt: skip
    assert (rust.stats.backend, torch_.stats.backend) == ("rust", "torch")
    assert torch.equal(rust.ts, torch_.ts)
    assert seen["rust"] == seen["torch"]
    # A step adds a few roundings, which a stable chain passes on. Where its steps are adapted they are
    # longer, and a start that is a few roundings off shows by how much they grow.
    grown = float((moved.xs - torch_.xs).abs().max()) if x.numel() else 0.0
    near = {"rtol": 1e-12, "atol": 1e-13 + (10 * grown if adapt else 0.0)}
    torch.testing.assert_close(rust.xs, torch_.xs, **near)
    torch.testing.assert_close(rust.x, torch_.x, **near)
    for name in ("nfe", "steps", "status", "seed"):
        assert getattr(rust.stats, name) == getattr(torch_.stats, name)
    for name in ("acceptance", "step_size", "ess"):
        a, b = getattr(rust.stats, name), getattr(torch_.stats, name)
        assert a == (b if b is None else pytest.approx(b, rel=1e-9, nan_ok=True)), name


@pytest.mark.parametrize("method", CHAINS)
def test_single_precision_is_the_double_one_rounded(method: str) -> None:
    options: dict[str, Any] = {"steps": 4, "step_size": 0.02, "seed": 5}
    options |= {"levels": [1.0]} if method == "annealed" else {}
    energy = interp.Energy(lambda x, s=1.0: (x.square() - s).square().sum(1))
    x = interp.noise.normal((40, 3), seed=1)
    for backend in ("rust", "torch"):
        single = interp.solve(energy, x, method=method, backend=backend, **options)
        double = interp.solve(energy, x.double(), method=method, backend=backend, **options)
        # Ten roundings of states of size 3, in each of up to 40 leapfrog steps.
        torch.testing.assert_close(single.x.double(), double.x, rtol=0, atol=5e-5)


def test_what_a_callback_does_to_a_chain_in_rust() -> None:
    x = torch.zeros(2, 3)
    kept: list[Tensor] = []
    sol = chain(
        quadratic(), x, "langevin", steps=9, step_size=0.1, seed=1, save_every=1,
        callback=lambda s: kept.append(s.x) or len(kept) == 5,
    )  # fmt: skip
    assert sol.stats.status == "stopped"
    assert torch.equal(torch.stack(kept), sol.xs)  # what is kept is not written to
    with pytest.raises(FieldError, match="callback wrote"):
        chain(
            quadratic(), x, "langevin", steps=9, step_size=0.1, seed=1,
            callback=lambda s: s.x.zero_() is None,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_an_error_in_an_energy_comes_out(backend: str) -> None:
    calls = 0

    def potential(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("mine")
        return x.square().sum(1)

    with pytest.raises(KeyError, match="mine"):
        interp.solve(
            interp.Energy(potential), torch.zeros(2, 3), method="langevin", backend=backend,
            steps=9, step_size=0.1,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_a_chain_that_is_lost_may_give_what_it_has(backend: str) -> None:
    energy = interp.Energy(lambda x: x.pow(4).sum(1))
    x = torch.tensor([[3.0], [0.1]])
    sol = interp.solve(
        energy, x, method="langevin", backend=backend, steps=200, step_size=0.5, seed=0,
        save_every=1, on_failure="partial",
    )  # fmt: skip
    assert sol.stats.status == "non_finite"
    assert len(sol.xs) == sol.stats.steps - 1
    assert torch.equal(sol.x, sol.xs[-1])
    assert sol.x.isfinite().all()


def test_the_uniform_numbers_are_those_of_philox() -> None:
    key = interp.noise.stream_key(4, interp.noise.STREAMS["chain"])
    node = (5 << 32) + 3
    u = interp.noise.node_uniforms(4, 2**32 - 4, key, node, torch.device("cpu"))
    words = [rust_solvers.philox([0, 2**32 - 4 + r, 3, 5], list(key))[0] for r in range(4)]
    assert u.tolist() == [(w + 0.5) / 2**32 for w in words]


# What is refused


@pytest.mark.parametrize("method", ["langevin", "underdamped"])
def test_a_step_that_diverges_is_said(method: str) -> None:
    energy = interp.Energy(lambda x: x.pow(4).sum(1))
    x = torch.full((3, 2), 3.0)
    with pytest.raises(SolveError, match="left every bound.*smaller step_size") as caught:
        chain(energy, x, method, steps=200, step_size=1.0, seed=0)
    assert caught.value.reason == "non_finite"
    assert caught.value.last.isfinite().all()
    if method == "langevin":
        assert "accepted at the rate" in str(caught.value)


@pytest.mark.parametrize("method", ["mala", "hmc"])
def test_a_chain_that_does_not_move_is_said(method: str) -> None:
    energy = interp.Energy(lambda x: 1e4 * x.pow(4).sum(1))
    with pytest.raises(SolveError, match=r"acceptance rate is 0 .*smaller step_size"):
        chain(energy, torch.full((3, 2), 3.0), method, steps=20, step_size=10.0, seed=0)


def test_a_low_acceptance_is_a_warning() -> None:
    energy = interp.Energy(lambda x: 0.5 * x.square().sum(1))
    x = interp.noise.normal((50, 400), seed=0)
    with pytest.warns(UserWarning, match=r"acceptance rate is .*the step is too long"):
        chain(energy, x, "mala", steps=20, step_size=0.6, seed=0)


@pytest.mark.parametrize(
    ("energy", "options", "error", "match"),
    [
        (quadratic(), {"step_size": 0.1}, OptionError, "steps=0"),
        (quadratic(), {"steps": 3}, OptionError, "needs a step size. Give step_size=h"),
        (quadratic(), {"steps": 3, "step_size": 0.0}, OptionError, "step_size=0"),
        (quadratic(), {"steps": 3, "step_size": -1}, OptionError, "step_size=-1"),
        (quadratic(), {"steps": 3, "step_size": 1, "t": (0, 1)}, OptionError, "no time, and t was"),
        (quadratic(), {"steps": 3, "step_size": 1, "leap": 2}, UnknownName, "leapfrog"),
        (quadratic(), {"steps": 3, "step_size": 1, "backend": "torchdiffeq"}, Unsupported, "on rust or"),
        (quadratic(), {"steps": 3, "step_size": 1, "backend": "rusty"}, UnknownName, "rust"),
        (quadratic(), {"steps": 3, "step_size": 1, "leapfrog": 0}, OptionError, "leapfrog=0"),
        (interp.Energy(lambda x: x), {"steps": 3, "step_size": 1}, FieldError, "one number a row"),
        (interp.Energy(lambda x: torch.zeros(2)), {"steps": 3, "step_size": 1}, FieldError, "autograd"),
        (interp.Energy(lambda x: x.sum(1) / 0), {"steps": 3, "step_size": 1}, SolveError, "at the start"),
        (interp.Energy(lambda x: x.abs().sqrt().sum(1)), {"steps": 3, "step_size": 1}, SolveError,
         "gradient is NaN or infinite at the start"),
        (interp.Energy(None, gradient=lambda x: x), {"steps": 3, "step_size": 1}, Unsupported,
         "only a gradient"),
    ],
)  # fmt: skip
def test_bad_input(
    energy: interp.Energy, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        chain(energy, torch.zeros(2, 3), "hmc", **options)


def test_terms_and_methods_that_do_not_fit() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(OptionError, match="this term is an Energy.*langevin"):
        interp.solve(quadratic(), x, method="dopri5", steps=3)
    with pytest.raises(OptionError, match="chain on an energy and this term is an SDE"):
        interp.solve(interp.SDE(lambda t, x: x, 1.0), x, method="langevin", steps=3, step_size=0.1)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(OptionError, match="temperature="):
            interp.Energy(double_well, temperature)
    with pytest.raises(OptionError, match="needs gradient="):
        interp.Energy(None)
    with pytest.raises(OptionError, match="no rows"):
        chain(quadratic(), torch.tensor(1.0), "langevin", steps=2, step_size=0.1)
    with pytest.raises(OptionError, match="needs noise levels"):
        chain(quadratic(), x, "annealed", steps=2, step_size=0.1)


def test_a_gradient_of_its_own() -> None:
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    options: dict[str, Any] = {"steps": 5, "step_size": 0.1, "seed": 1}
    auto = chain(interp.Energy(double_well), x, "langevin", **options)
    given = interp.Energy(None, gradient=lambda x: 4 * x * (x.square() - 1))
    own = chain(given, x, "langevin", **options)
    assert float((auto.x - own.x).abs().max()) < 1e-14
    assert own.stats.acceptance is None
    assert auto.stats.acceptance is not None
