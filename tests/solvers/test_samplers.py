"""Semi-linear samplers: published numbers, closed forms, and one sampler against another."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, TimeError, UnknownName, Unsupported
from interp.solvers.ancestral import ddpm
from interp.solvers.exponential import Levels
from interp.solvers.programme import Move
from interp.testing import assert_order

F64 = torch.float64
TABLE = schedules.from_betas("linear")
LAW = interp.exact.Gaussian([0.3, -0.2], [0.25, 0.09])
MIXTURE = interp.exact.Mixture([0.4, 0.6], [[-1.0, 0.0], [0.7, 0.5]], [0.1, 0.3])
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
    "edm": schedules.edm(sigma_min=0.0),
    "table": TABLE,
}
SAMPLERS = [m.name for m in interp.methods("path")]
# Samplers of the SDE with stages.
STAGED = ("dpm++2s_sde", "dpm++3s_sde", "seeds1", "seeds2", "seeds3")
Model = Callable[[Tensor, Tensor], Tensor]


def exact(law: interp.exact.Target, path: interp.Interpolant, view: str) -> Model:
    """The exact model of any view."""
    if view in ("data", "noise", "velocity"):
        model: Model = getattr(law, view)(path)
        return model
    data = law.data(path)
    return lambda t, x: path.convert(data(t, x), "data", view, x, t)


def start(n: int = 4, seed: int = 0) -> Tensor:
    return interp.noise.normal((n, 2), seed=seed, dtype=F64)


# Published numbers


@pytest.mark.parametrize(("n", "std"), [(10, 0.36161), (50, 0.47192), (1000, 0.49850)])
@pytest.mark.parametrize("view", ["noise", "data", "v_prediction"])
@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_ddim_on_the_table_of_ddpm(n: int, std: float, view: str, backend: str) -> None:
    """On round(linspace(999, 0, n)) from N(0, 1) to N(0, 0.5^2): what a slope of the flow must be."""
    law = interp.exact.Gaussian([0.0], 0.25)
    indices = torch.linspace(999, 0, n, dtype=F64).round().tolist()
    sol = interp.solve(
        TABLE.ode(exact(law, TABLE, view), view=view), torch.ones(1, 1, dtype=F64),
        method="ddim", grid=("timesteps", indices), backend=backend,
    )  # fmt: skip
    assert float(sol.x) == pytest.approx(std, abs=5e-6)  # printed to five digits
    assert sol.stats.nfe == n


def variance_after(
    moves: list[Move], path: interp.Interpolant, variance: float, law: float
) -> float:
    """The variance at the end of a one-step sampler with the exact D of N(0, law), from ``variance``."""
    for i, move in enumerate(moves):
        assert move.at is not None
        assert move.kind == "data"
        k = path.coefficients(move.at)
        data = float(k.beta * law / (k.beta**2 * law + k.sigma**2))
        variance *= (move.here + move.slopes[i] * data) ** 2
        variance += sum(s * s * abs(r - t) for s, t, r, _ in move.noise if r is not None)
    return variance


@pytest.mark.parametrize(("choice", "std"), [("small", 0.49611), ("large", 0.50075)])
def test_ddpm_in_a_thousand_steps(choice: str, std: float) -> None:
    """From N(0, 1) to N(0, 0.5^2): what is left of the difference is the table's own."""
    levels = Levels.of(TABLE, [(999 - k) / 1000 for k in range(999, -1, -1)] + [1.0])
    moves = ddpm(levels, {"variance": choice})
    assert math.sqrt(variance_after(moves, TABLE, 1.0, 0.25)) == pytest.approx(std, abs=5e-6)


# One sampler against another


@pytest.mark.parametrize("name", PATHS)
def test_ddim_with_all_of_the_noise_is_ddpm(name: str) -> None:
    """At any stride, and on a path of its own scale as well: the same normals, the same numbers."""
    path = PATHS[name]
    term = path.ode(exact(MIXTURE, path, "data"), view="data")
    grid = [0.0, 0.05, 0.3, 0.35, 0.8, 1.0]
    x = start() * path.base.scale
    runs = [
        interp.solve(term, x, method=method, grid=grid, seed=7, **options)
        for method, options in (("ddim", {"eta": 1.0}), ("ddpm", {}))
    ]
    reverse = path.sde(exact(MIXTURE, path, "data"), view="data", diffusion="reverse")
    runs.append(interp.solve(reverse, x, method="euler_maruyama", grid=grid, seed=7))
    runs.append(interp.solve(reverse, x, method="ddpm", grid=grid, seed=7))
    for run in runs[1:]:
        assert float((run.x - runs[0].x).abs().max()) < 1e-12
    assert runs[0].stats.seed == 7


@pytest.mark.parametrize("name", PATHS)
def test_ddim_is_euler_in_the_coordinates_of_edm(name: str) -> None:
    """x / beta and sigma / beta (a noise model's), x / sigma and beta / sigma (a data model's)."""
    path, x = PATHS[name], start()
    begin = 0.01  # where beta is not 0
    for view in ("noise", "data"):
        term = path.ode(exact(MIXTURE, path, view), view=view)
        ours = interp.solve(term, x, (begin, 1.0), "ddim", steps=7)
        euler = interp.solve(term, x, (begin, 1.0), "euler", steps=7)
        size = float(x.abs().max()) / path.coefficients(begin).beta.item()  # of x / beta
        assert float((ours.x - euler.x).abs().max()) < 1e-14 * size


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("method", SAMPLERS)
def test_rust_and_torch_agree_whatever_the_view(name: str, method: str) -> None:
    """To the rounding of a few sums of numbers below 100; the views of a model, to that of theirs."""
    path, x = PATHS[name], start() * PATHS[name].base.scale
    ends = {}
    for view in ("data", "v_prediction", "velocity"):
        term = path.ode(exact(MIXTURE, path, view), view=view)
        runs = [
            interp.solve(
                term, x, method=method, steps=6, seed=1, backend=backend, save_at=[0.5, 1.0]
            )
            for backend in ("rust", "torch")
        ]
        assert runs[0].stats.nfe == runs[1].stats.nfe
        scale = max(1.0, float(x.abs().max()))
        assert float((runs[0].xs - runs[1].xs).abs().max()) < 1e-13 * scale
        assert torch.equal(runs[0].xs[-1], runs[0].x)
        ends[view] = runs[0].x
    for view in ("v_prediction", "velocity"):
        assert float((ends[view] - ends["data"]).abs().max()) < 1e-11 * scale


# Grids that are given


def test_timesteps_are_nodes_of_the_table() -> None:
    """The model is told exact indices, x is the state at the first, and the run ends at t = 1."""
    told = []

    def model(k: Tensor, x: Tensor) -> Tensor:
        told.append(float(k))
        return torch.zeros_like(x)

    term = TABLE.ode(model, view="noise", time=("index", 1000))
    sol = interp.solve(term, start(), method="ddim", grid=("timesteps", [972, 500, 3]))
    assert told == [972.0, 500.0, 3.0]
    assert sol.ts.tolist() == [1.0]
    beta = float(TABLE.coefficients((999 - 972) / 1000).beta)
    assert torch.allclose(
        sol.x, start() / beta, rtol=1e-13
    )  # without noise x is beta times the data


def test_sigmas_are_levels_of_any_path() -> None:
    levels = [80.0, 9.0, 1.0, 0.05]
    for path in PATHS.values():
        told: list[float] = []

        def model(s: Tensor, x: Tensor, told: list[float] = told) -> Tensor:
            told.append(float(s))
            return torch.zeros_like(x)

        term = path.ode(model, view="data", time="sigma")
        interp.solve(term, start(), method="ddim", grid=("sigmas", [*levels, 0.0]))
        assert told == pytest.approx(levels, rel=1e-9)  # sigma / beta and back


def test_from_data_to_noise_nothing_is_appended() -> None:
    term = TABLE.ode(lambda t, x: torch.zeros_like(x), view="noise")
    for grid in (("timesteps", [0, 400, 999]), ("sigmas", [0.02, 1.0, 100.0])):
        sol = interp.solve(term, start(), method="ddim", grid=grid)
        assert sol.stats.nfe == 2
        assert sol.ts.item() < 0.4


BAD = [
    ({"grid": ("timesteps", [1000, 0])}, OptionError, "1000 is outside the path's table.*999"),
    ({"grid": ("timesteps", [700, 500, 500])}, OptionError, r"timesteps\[1\].*turn or repeat"),
    ({"grid": ("timesteps", [500, 600, 0])}, OptionError, r"timesteps\[1\].*turn or repeat"),
    ({"grid": ("timesteps", [])}, OptionError, "empty"),
    ({"grid": ("timesteps", ["a"])}, OptionError, "no number"),
    ({"grid": ("sigmas", [math.nan, 0.0])}, OptionError, "NaN"),
    ({"grid": ("sigmas", [500.0, 0.0])}, OptionError, r"= 500 is not on this path.*to 157"),
    ({"grid": ("sigma", [5.0, 0.0])}, UnknownName, "sigmas"),
    ({"grid": ("timesteps", [999, 0]), "t": (0.0, 1.0)}, OptionError, "Leave t out"),
    ({"grid": ("timesteps", [999, 0]), "steps": 2}, OptionError, "Leave steps out"),
    ({"steps": 4, "eta": 2.0}, OptionError, "eta=2.0"),
    ({"steps": 4, "etta": 1.0}, UnknownName, "eta"),
    ({}, OptionError, "steps=N"),
    ({"steps": 4, "eta": 1.0, "save_at": [0.3, 1.0]}, OptionError, "0.3, between two steps"),
    ({"steps": 4, "t": (1.0, 0.5)}, TimeError, "sigma is 0"),
    ({"steps": 4, "t": (0.9, 0.5), "eta": 0.5}, OptionError, "the other way"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_what_makes_no_sense(
    options: dict[str, object], error: type[Exception], match: str
) -> None:
    term = TABLE.ode(lambda t, x: x, view="data")
    with pytest.raises(error, match=match):
        interp.solve(term, start(), **{"method": "ddim", **options})  # type: ignore[arg-type]


def test_terms_that_have_no_log_snr() -> None:
    bridge = schedules.brownian_bridge(0.5)
    with pytest.raises(OptionError, match="log-SNR of a path"):
        interp.solve(lambda t, x: x, start(), method="ddim", steps=3)
    with pytest.raises(Unsupported, match="Gaussian base"):
        interp.solve(bridge.ode(lambda t, x: x), start(), method="ddim", steps=3)
    noisy = TABLE.sde(lambda t, x: x, view="data", diffusion=0.3)
    with pytest.raises(Unsupported, match="eps of its own"):
        interp.solve(noisy, start(), method="ddpm", steps=3)
    reverse = TABLE.sde(lambda t, x: x, view="data", diffusion="reverse")
    with pytest.raises(OptionError, match=r"ddim integrates path.ode\(model\)"):
        interp.solve(reverse, start(), method="ddim", steps=3)
    with pytest.raises(Unsupported, match="made by hand"):
        interp.solve(lambda t, x: x, start(), method="heun", grid=("timesteps", [3, 0]))
    linear = schedules.linear().ode(lambda t, x: x)
    with pytest.raises(Unsupported, match="has none"):
        interp.solve(linear, start(), method="heun", grid=("timesteps", [3, 0]))


def test_runge_kutta_takes_the_same_grids() -> None:
    term = TABLE.ode(exact(LAW, TABLE, "noise"), view="noise")
    heun = interp.solve(term, start(), method="heun", grid=("sigmas", [100.0, 10.0, 1.0, 0.1, 0.0]))
    ddim = interp.solve(term, start(), method="ddim", grid=("sigmas", [100.0, 10.0, 1.0, 0.1, 0.0]))
    assert heun.stats.nfe == 8  # the last slope is told at t = 1 by a noise model
    assert ddim.stats.nfe == 4


# Order and ends


@pytest.mark.parametrize("name", ["linear", "variance_preserving", "edm"])
def test_dpmpp_2m_is_of_order_two(name: str) -> None:
    """On exact Gaussians, on steps that are even in t and so uneven in log-SNR, part of the way."""
    path = PATHS[name]
    term = path.ode(exact(LAW, path, "data"), view="data")
    ends = (0.2, 0.9)
    x = start() * path.coefficients(0.2).sigma.item()
    true = LAW.flow(path)(*ends, x)
    for variant in ("midpoint", "heun"):
        errors = [
            float(
                (interp.solve(term, x, ends, "dpm++2m", steps=n, variant=variant).x - true)
                .abs()
                .max()
            )
            for n in (80, 160)
        ]
        assert 1.7 < math.log2(errors[0] / errors[1]) < 2.5


def test_a_path_that_keeps_noise_ends_at_the_data_estimate() -> None:
    """One more evaluation, at t = 1, whose answer is the end; denoise=False leaves it out."""
    path = schedules.variance_exploding(0.02, 10.0)
    model = exact(MIXTURE, path, "data")
    term = path.ode(model, view="data")
    for method in ("ddim", "ddpm", "dpm++2m", "dpm3", "dpm++2s", "edm_heun"):
        kept = interp.solve(term, start(), method=method, steps=9, seed=3, denoise=False)
        clean = interp.solve(term, start(), method=method, steps=9, seed=3, save_at=[0.0, 1.0])
        assert (kept.stats.steps, clean.stats.steps) == (9, 10)
        if method != "dpm++2m":  # whose last step, of order 1, is another one
            assert torch.allclose(clean.x, model(torch.tensor(1.0).double(), kept.x), atol=1e-14)
        assert torch.equal(clean.xs[-1], clean.x)
        assert torch.equal(clean.xs[0], start())


def test_inversion_from_clean_data_by_a_noise_model() -> None:
    """x says D and nothing of n at sigma = 0; the noise model says n. There and back returns."""
    path = PATHS["linear"]
    term = path.ode(exact(LAW, path, "noise"), view="noise")
    data = LAW.sample(5, seed=1)
    noise = interp.solve(term, data, (1.0, 0.02), "ddim", steps=2000)
    assert float((noise.x - LAW.flow(path)(1.0, 0.02, data)).abs().max()) < 1e-3
    back = interp.solve(term, noise.x, (0.02, 1.0), "ddim", steps=2000)
    assert float((back.x - data).abs().max()) < 1e-3


ORDERS = [
    (m.name, m.order, options)
    for m in interp.methods("path")
    if not m.noisy
    for options in {
        "restart": [{"segments": []}],
        "deis": [{}, {"variant": "t"}, {"variant": "rho"}],
        "unipc": [{}, {"variant": "bh1"}, {"prediction": "noise"}],
    }.get(m.name, [{}])
]


@pytest.mark.parametrize(("method", "order", "options"), ORDERS)
def test_observed_order_on_a_gaussian_and_on_a_mixture(
    method: str, order: int, options: dict[str, object]
) -> None:
    """On steps uneven in log-SNR, whose errors are asymptotic: 0.3 is for the next term."""
    assert_order(method, order=order, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", [{}, {"variant": "bh1"}, {"prediction": "noise"}])
def test_unipc_is_of_one_order_more_where_its_last_step_keeps_its_own(
    order: int, options: dict[str, object]
) -> None:
    """The corrector's (Zhao et al. 2023, section 3); with the usual last step it is 2 whatever p."""
    law, path = MIXTURE, PATHS["variance_preserving"]
    x, ends = start() * path.coefficients(0.2).sigma.item(), (0.2, 0.9)
    term = path.ode(law.data(path), view="data")
    true = interp.solve(term, x, ends, "dop853", rtol=1e-13, atol=1e-13).x

    def observed(falling: bool) -> float:
        errors = [
            (
                interp.solve(
                    term, x, ends, "unipc", steps=n, grid="log_snr", order=order,
                    lower_order_final=falling, **options,
                ).x - true
            ).abs().max().item()
            for n in (80, 160)
        ]  # fmt: skip
        return math.log2(errors[0] / errors[1])

    assert observed(False) == pytest.approx(order + 1, abs=0.5)
    assert observed(True) == pytest.approx(2, abs=0.3)


def test_the_printed_update_is_of_order_two_on_mixtures_too() -> None:
    assert_order("dpm++3m", order=2, published=True)
    with pytest.raises(AssertionError, match="not 3"):
        assert_order("dpm++3m", published=True)


@pytest.mark.parametrize(("method", "order", "options"), ORDERS)
def test_observed_order(method: str, order: int, options: dict[str, object]) -> None:
    """On exact Gaussians, part of the way, on steps even in t (uneven in log-SNR) and even in log-SNR."""
    for name, grid in (("linear", "uniform"), ("variance_preserving", "exponential")):
        path, ends = PATHS[name], (0.2, 0.9)
        x = start() * path.coefficients(0.2).sigma.item()
        true = LAW.flow(path)(*ends, x)
        term = path.ode(LAW.data(path), view="data")
        errors = [
            float(
                (interp.solve(term, x, ends, method, steps=n, grid=grid, **options).x - true)
                .abs()
                .max()
            )  # type: ignore[arg-type]
            for n in (40, 80)
        ]
        # Half an order for the next term; what starts with errors of another kind may do better.
        assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 1.1


def test_the_printed_third_order_update_is_of_order_two() -> None:
    """Its second difference lacks a factor 2; ours, on the same grid, is of order 3."""
    path, ends = PATHS["edm"], (0.2, 0.9)
    x = start() * path.coefficients(0.2).sigma.item()
    true = LAW.flow(path)(*ends, x)
    term = path.ode(LAW.data(path), view="data")
    observed = {}
    for published in (True, False):
        errors = [
            float(
                (interp.solve(term, x, ends, "dpm++3m", steps=n, published=published).x - true)
                .abs()
                .max()
            )
            for n in (160, 320)
        ]
        observed[published] = math.log2(errors[0] / errors[1])
    assert observed[True] < 2.4
    assert 2.7 < observed[False] < 3.5


def test_a_churned_run_keeps_the_law() -> None:
    """Mean and variance of 4000 rows of two, to five standard errors, with churn and with restarts."""
    path = PATHS["edm"]
    term = path.ode(LAW.data(path), view="data")
    x = interp.noise.normal((4000, 2), seed=3, dtype=F64) * path.base.scale
    for method, options in (
        ("edm_heun", {"s_churn": 20.0}),
        ("restart", {}),
        *((name, {}) for name in STAGED),
        ("dpm++2m_sde", {}),
        ("dpm++3m_sde", {}),
    ):
        sol = interp.solve(term, x, method=method, steps=60, grid="karras", seed=1, **options)  # type: ignore[arg-type]
        again = interp.solve(
            term,
            x[1000:1003],
            method=method,
            steps=60,
            grid="karras",
            seed=1,
            first_row=1000,
            **options,  # type: ignore[arg-type]
        )
        assert torch.allclose(sol.x[1000:1003], again.x, atol=1e-12)
        mean, variance = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.25, 0.09]).double()
        assert ((sol.x.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt() + 0.01).all()
        assert ((sol.x.var(0) / variance - 1).abs() < 5 * (2 / 4000) ** 0.5 + 0.05).all()


@pytest.mark.parametrize("method", SAMPLERS)
def test_runs_of_a_few_steps(method: str) -> None:
    """One to four steps from nothing but noise: fewer answers than an order wants, and no finite step."""
    orders = (
        [3, 4] if "order" in next(m.options for m in interp.methods() if m.name == method) else []
    )
    for path in (PATHS["linear"], TABLE, schedules.variance_exploding(0.02, 10.0)):
        term = path.ode(lambda t, x: 0.3 * x, view="data")
        for steps in (1, 2, 3, 4):
            for options in ({}, *({"order": p} for p in orders)):
                run = interp.solve(term, start(), method=method, steps=steps, seed=0, **options)  # type: ignore[arg-type]
                assert run.x.isfinite().all()


@pytest.mark.parametrize(
    "method", ["ddim", "dpm++2m", "dpm++3m", "unipc", "deis", "ipndm", "edm_heun"]
)
def test_a_path_is_asked_once_for_all_nodes(method: str) -> None:
    """Set-up does not grow with the steps: one question for the grid, and those of the two ends."""
    asked: list[int] = []

    def alpha(t: Tensor) -> Tensor:
        asked.append(t.numel())
        return torch.cos(math.pi / 2 * t)

    path = interp.Interpolant(alpha, lambda t: torch.sin(math.pi / 2 * t))
    for view in ("data", "noise", "v_prediction"):
        asked.clear()
        term = path.ode(lambda t, x: 0.3 * x, view=view)
        interp.solve(term, start(), (0.01, 1.0), method, steps=40)
        assert [n for n in asked if n > 1] == [41]
        assert len(asked) <= 4


# Programmes that are kept


def by_hand(path: interp.Interpolant) -> interp.Interpolant:
    """The same functions as a caller's own, of which nobody knows whether they change."""
    return interp.Interpolant(path.alpha, path.beta, time_at_log_snr=path._time_at_log_snr)


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_kept_programme_is_the_one_that_would_be_made(method: str) -> None:
    path = schedules.trigonometric()
    model = exact(LAW, path, "noise")
    assert path.constant
    assert not by_hand(path).constant

    def run(path: interp.Interpolant, **options: object) -> Tensor:
        term, grid = path.ode(model, view="noise"), [0.1, 0.4, 0.7, 1.0]
        return interp.solve(
            term, start(), t=(0.1, 1.0), method=method, grid=grid, seed=3, **options
        ).x

    first = run(path)
    assert torch.equal(run(path), first)
    assert torch.equal(run(by_hand(path)), first)
    assert not torch.equal(run(path, data_hook=interp.hooks.clip(-0.1, 0.1)), first)
    assert torch.equal(run(path), first)


def test_options_that_are_equal_as_numbers_are_still_told_apart() -> None:
    """True == 1, and the one is a choice and the other is none."""
    term = TABLE.ode(exact(LAW, TABLE, "noise"), view="noise")
    interp.solve(term, start(), method="dpm++3m", steps=5, published=True)
    with pytest.raises(OptionError, match="published=1"):
        interp.solve(term, start(), method="dpm++3m", steps=5, published=1)


def test_what_may_change_is_looked_at_anew() -> None:
    """A caller's function with a number beside it, and weights that are trained."""
    power = 1.0

    def end(path: interp.Interpolant) -> Tensor:
        term = path.ode(lambda t, x: x.sin(), view="noise")
        return interp.solve(term, start(), t=(0.1, 1.0), method="dpm++2m", steps=5).x

    path = interp.Interpolant(lambda t: 1 - t, lambda t: t**power)
    before, power = end(path), 2.0
    assert not torch.equal(end(path), before)

    learned = schedules.learned("linear")
    assert learned.config is not None
    assert not learned.constant
    before = end(learned)
    with torch.no_grad():
        for weight in learned.parameters():
            weight += torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)
    assert not torch.equal(end(learned), before)
