"""The best schedule: closed forms are found, nothing gets worse, bad input is named."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adapters
import interp
from interp import exact, schedules
from interp.errors import CheckpointError, InterpError, OptionError, UndeterminedView, UnknownName
from interp.tuning import load
from interp.tuning.flows import flow
from interp.tuning.least_squares import minimise
from interp.tuning.moments import moments
from interp.tuning.objectives import fan
from interp.tuning.spaces import Candidate

F64 = torch.float64
WIDTH = 0.2
NARROW = exact.Gaussian([0.0], WIDTH**2)
PEAKS = exact.Mixture([0.3, 0.7], [[-1.5], [1.0]], [0.05, 0.2])
PLANE = exact.Mixture([0.5, 0.5], [[-1.0, 0.5], [1.0, -0.5]], [0.1, 0.2])
OBJECTIVES = ("end_error", "local_error", "kinetic_energy", "lipschitz", "likelihood")


def at(t):
    return torch.tensor(t, dtype=F64)


# Known best ones


@pytest.mark.parametrize("steps", [3, 6])
def test_euler_on_a_gaussian_takes_even_steps_in_the_angle(steps):
    """Sabour, Fidler, Kreis (2404.14507), for normal data of width c: sigma = c tan of even steps.

    One step multiplies the true ratio by cos(delta), so that the least loss is of equal deltas.
    (VE ends with a step to clean data, which is one of the exact run as well.)
    """
    path, c = schedules.variance_exploding(0.05, 20.0), 0.5
    target = exact.Gaussian([0.0], c * c)
    best = interp.best_schedule(target, "euler", steps, path=path, view="noise", rows=8)
    angle = torch.atan2(path.sigma(at(best.grid)), at(c))
    # The search ends when a step gains less than 1e-3 of the cost.
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(steps), rtol=0.01, atol=0)
    lost = 1 - torch.cos(angle.diff()).prod()
    x = flow(target, path, "noise", None, None, None, None, 8, 0).exact[1]
    assert best.error.after == pytest.approx((lost * x.square().mean().sqrt()).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "least", "deviation"),
    [
        ("kinetic_energy", (1 - WIDTH) ** 2, lambda t: 1 + (WIDTH - 1) * t),
        ("lipschitz", math.log(WIDTH) ** 2, lambda t: WIDTH**t),
    ],
)
def test_paths_between_gaussians(objective, least, deviation):
    """Optimal transport moves straight and evenly; the least change of the field is geometric.

    v = (log S)' x / 2 with S = alpha^2 + beta^2 width^2: int E|v|^2 = int (sqrt S)'^2, and int |dv/dx|^2
    = int (log sqrt S)'^2 (Chen, Vanden-Eijnden, Xu, 2509.01629).
    """
    best = interp.best_schedule(NARROW, "euler", 4, objective, "path", rows=8192)
    assert best.grid == (0.0, 0.25, 0.5, 0.75, 1.0)
    # A spline of 6 bins is within 1 %; E|v|^2 of 8192 normal rows has a standard error of 1.6 %.
    assert least * 0.95 < best.value.after < least * 1.06
    t = torch.linspace(0, 1, 9, dtype=F64)
    k = best.path.coefficients(t)
    found = (k.alpha**2 + k.beta**2 * WIDTH**2).sqrt()
    torch.testing.assert_close(found, deviation(t), rtol=0, atol=0.02)


def test_the_kinetic_optimum_needs_one_step_of_euler():
    """Straight and even motion is what Euler integrates exactly."""
    best = interp.best_schedule(NARROW, "euler", 1, optimise="path", rows=16)
    assert best.error.before > 0.1
    assert best.error.after < 1e-6


def test_even_grids_have_steps_of_equal_length():
    """On a grid: N sum (int |v| dt)^2 is least where every step is as long as the next."""
    best = interp.best_schedule(PEAKS, "heun", 5, "kinetic_energy", rows=64)
    path, grid = schedules.linear(), at(best.grid)
    law = moments(flow(PEAKS, None, None, None, None, None, None, 64, 0), 0)
    fine = torch.linspace(0, 1, 2001, dtype=F64)
    speed = law.energy(path.coefficients((fine[1:] + fine[:-1]) / 2)).sqrt() / 2000
    step = torch.bucketize((fine[1:] + fine[:-1]) / 2, grid) - 1
    lengths = torch.zeros(5, dtype=F64).index_add(0, step, speed)
    torch.testing.assert_close(lengths, lengths.mean().expand(5), rtol=0.02, atol=0)
    assert best.value.after == pytest.approx((lengths.sum() ** 2).item(), rel=1e-3)


def test_the_likelihood_bound_is_that_of_the_steps():
    """Against the sum of KL divergences of normal steps, for a mixture by quadrature over samples."""
    grid = [0.0, 0.3, 0.5, 0.75, 1.0]
    best = interp.best_schedule(PEAKS, "heun", 4, "likelihood", start=grid, iterations=0, rows=4096)
    path = schedules.linear()
    x1, z = PEAKS.sample(200_000, seed=1, dtype=F64), torch.randn(200_000, 1, dtype=F64)
    data = PEAKS.data(path)

    def mmse(t):
        x = path.at(t, z, x1)
        return (x1 - data(at(t), x)).square().mean().item() if t > 0 else x1.var().item()

    snr = [math.exp(float(path.log_snr(t))) for t in grid[:-1]]
    bound = sum((snr[k + 1] - snr[k]) * mmse(grid[k]) for k in range(3)) / 2
    decoder = 0.5 * math.log(2 * math.pi * math.e * mmse(0.75))
    # -E log p(x1) <= bound + decoder + KL of the prior (0), and best.value is what it exceeds H by.
    excess = bound + decoder - float(PEAKS.entropy())
    assert excess > 0
    # Two Monte Carlo means, of 4096 and 200 000 rows.
    assert best.value.before == pytest.approx(excess, rel=0.05)


# Errors


@pytest.mark.parametrize("target", [NARROW, PEAKS])
def test_the_exact_ends_are_those_of_the_closed_flow(target):
    given = flow(target, None, None, None, None, None, None, 32, 0)
    closed = target.flow(schedules.linear())(0.0, 1.0, given.halves[1][0])
    torch.testing.assert_close(given.exact[1], closed, rtol=0, atol=1e-7)


@pytest.mark.parametrize("view", ["velocity", "data"])
def test_local_errors_add_up_to_the_error_at_the_end(view):
    given = flow(PLANE, None, view, None, None, None, None, 16, 0)
    grid = torch.linspace(0, 1, 6, dtype=F64).tolist()
    parts = fan(given, "heun", Candidate(given.path, grid))
    assert parts.shape == (5, 16, 2)
    whole = given.error(given.path, "heun", grid, 0)
    # What carries them is rk4 in three steps for each of Heun's.
    torch.testing.assert_close(parts.sum(0), whole, rtol=0, atol=0.02 * whole.abs().max().item())


@pytest.mark.parametrize("path", [schedules.trigonometric(), schedules.variance_preserving()])
def test_moments_are_those_of_the_law_on_every_path(path):
    """Taken along the linear path, they tell the energy and the slope of the field on another."""
    law = moments(flow(PLANE, None, None, None, None, None, None, 4096, 0), 0)
    x1, x0 = PLANE.sample(20_000, seed=3, dtype=F64), torch.randn(20_000, 2, dtype=F64)
    for t in (0.2, 0.5, 0.8):
        k = path.coefficients(at(t))
        x = path.at(t, x0, x1).requires_grad_()
        v = PLANE.velocity(path)(at(t), x)
        slopes = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
        wanted = v.square().mean().item(), torch.stack(slopes).square().sum((0, 2)).mean().item()
        # Monte Carlo of 4096 rows, with one random sign a row for the traces.
        assert law.energy(k).item() == pytest.approx(wanted[0], rel=0.05, abs=1e-3)
        assert law.lipschitz(k).item() == pytest.approx(wanted[1] / 2, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimise", ["grid", "warp", "path"])
def test_it_is_never_worse_than_where_it_started(objective, optimise):
    best = interp.best_schedule(PLANE, "heun", 3, objective, optimise, rows=16, iterations=2)
    assert best.value.after < best.value.before
    assert list(best.history) == sorted(best.history, reverse=True)
    assert best.history[-1] == pytest.approx(best.value.after, rel=1e-9)
    grid = at(best.grid)
    assert (grid[0], grid[-1]) == (0.0, 1.0)
    assert (grid.diff() > 0).all()
    assert (best.warp is not None) == (optimise == "warp")
    x = best.path.base.sample((4, 2), seed=0, dtype=F64)
    assert interp.solve(best.term, x, **best.options).stats.nfe == 6


@given(
    solver=st.sampled_from(["euler", "midpoint", "heun", "rk4"]),
    steps=st.integers(1, 12),
    optimise=st.sampled_from(["grid", "warp"]),
    width=st.floats(0.05, 3.0),
)
@settings(deadline=None, max_examples=8)
def test_on_a_centred_gaussian_what_is_not_seen_gains_as_much(solver, steps, optimise, width):
    """There every run multiplies by one number, the same for all starts."""
    best = interp.best_schedule(
        exact.Gaussian([0.0], width**2), solver, steps, optimise=optimise, rows=8, iterations=2,
        path="trigonometric",
    )  # fmt: skip
    assert best.value.after <= best.value.before
    assert len(best.grid) == steps + 1
    share = best.value.after / best.value.before if best.value.before else 1.0
    # The exact ends are right to about 1e-9, relative to states of up to 3 times 3.
    assert best.error.after <= share * best.error.before + 1e-7


def test_held_out_starts_gain_too():
    best = interp.best_schedule(PLANE, "heun", 6, rows=512)
    assert best.error.gain > 1.5
    assert "RMS error at the end, held out" in str(best)
    assert f"{best.error.gain:.2f}x" in str(best)


def test_the_same_seed_gives_the_same_schedule():
    one, same, other = (
        interp.best_schedule(PEAKS, "heun", 4, rows=32, seed=seed) for seed in (0, 0, 1)
    )
    assert one.grid == same.grid
    assert one.error == same.error
    assert one.grid != other.grid


def test_several_flows_have_one_schedule():
    shifted = exact.Mixture([0.5, 0.5], [[-1.0, -1.0], [1.0, 0.5]], [0.1, 0.05])
    best = interp.best_schedule([PLANE, shifted], "heun", 4, rows=64)
    assert len(best.terms) == 2
    assert best.error.gain > 1
    with pytest.raises(OptionError, match="made for 2 flows"):
        best.term


def test_a_field_by_hand_and_a_model_on_another_path():
    x = torch.randn(32, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    field = interp.ODE(lambda t, x: -8 * torch.exp(-4 * t) * x)
    best = interp.best_schedule(field, "euler", 5, x=x, t=(0.0, 2.0))
    assert best.grid[-1] == 2.0
    assert best.error.gain > 1.5
    model, path = PLANE.velocity(schedules.linear()), schedules.linear()
    x = path.base.sample((64, 2), seed=0, dtype=F64)
    best = interp.best_schedule(model, "heun", 3, optimise="path", path=path, x=x, iterations=3)
    assert best.error.gain > 1
    # The adapted model leads where the exact field of the new path leads.
    own = best.path.ode(PLANE.velocity(best.path))
    ends = [interp.solve(term, x, **best.options).x for term in (best.term, own)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


def test_a_family_and_its_file(tmp_path):
    torch.manual_seed(0)
    family = adapters.create("flow_matching", shape=(3,), network="mlp", width=16)
    for weight in family.parameters():  # the last layer begins at 0
        nn.init.normal_(weight, std=0.3)
    best = interp.best_schedule(family, "heun", 3, rows=32, iterations=2)
    assert best.value.after < best.value.before
    best.save(tmp_path / "grid.json")
    again = load(tmp_path / "grid.json")
    assert again.options == best.options
    assert again.path.config == family.path.config
    a, b = (family.sample(4, seed=0, **options) for options in (best.options, again.options))
    assert torch.equal(a, b)
    (tmp_path / "grid.json").write_text(json.dumps({"schema": 99, "grid": [0, 1]}))
    with pytest.raises(CheckpointError, match="is not a schedule"):
        load(tmp_path / "grid.json")
    with pytest.raises(CheckpointError, match="is not a schedule"):
        load(tmp_path / "none.json")


def test_the_path_of_a_result_comes_back_from_its_config(tmp_path):
    for optimise in ("warp", "path"):
        best = interp.best_schedule(NARROW, "heun", 3, optimise=optimise, rows=8, iterations=1)
        best.save(tmp_path / "path.json")
        again, t = load(tmp_path / "path.json").path, torch.linspace(0, 1, 7, dtype=F64)
        assert torch.equal(again.beta(t), best.path.beta(t))
        assert torch.equal(again.alpha(t), best.path.alpha(t))


def test_the_picture(tmp_path):
    best = interp.best_schedule(NARROW, "heun", 3, rows=8, iterations=1)
    best.plot(tmp_path / "best.png")
    assert (tmp_path / "best.png").stat().st_size > 5000


# The search itself


def test_least_squares_finds_what_is_known():
    """Rosenbrock's valley to its bottom; and a problem whose residuals stay, in a few steps."""

    def valley(v):
        return torch.stack([10 * (v[1] - v[0] ** 2), 1 - v[0]])

    fit = minimise(valley, at([-1.2, 1.0]), 1e-7, 60)
    torch.testing.assert_close(fit.parameters, at([1.0, 1.0]), rtol=0, atol=1e-4)

    def far(v):  # cost 2 + 2 v^4 + ...: J vanishes at the minimum and r does not
        return torch.stack([1 + (v[0] - 0.3) ** 2, 1 + (v[0] - 0.5) ** 2])

    fit = minimise(far, at([2.0]), 1e-6, 30)
    assert fit.parameters.item() == pytest.approx(0.4, abs=0.01)
    assert list(fit.history) == sorted(fit.history, reverse=True)


# What makes no sense


def test_bad_arguments_are_named():
    with pytest.raises(OptionError, match="steps=0"):
        interp.best_schedule(PEAKS, "heun", 0)
    with pytest.raises(UnknownName, match="kinetic_energy"):
        interp.best_schedule(PEAKS, objective="kinetic")
    with pytest.raises(UnknownName, match="warp"):
        interp.best_schedule(PEAKS, optimise="wrap")
    with pytest.raises(UnknownName, match="heun"):
        interp.best_schedule(PEAKS, "huen")
    with pytest.raises(UnknownName, match="data"):
        interp.best_schedule(PEAKS, view="dat")
    with pytest.raises(OptionError, match="is a method for SDEs"):
        interp.best_schedule(PEAKS, "euler_maruyama")
    with pytest.raises(OptionError, match="rows=0"):
        interp.best_schedule(PEAKS, rows=0)
    with pytest.raises(OptionError, match="3 times, from 0 to 1, and 4 steps"):
        interp.best_schedule(PEAKS, "heun", 4, start=[0, 0.5, 1])
    with pytest.raises(OptionError, match="nothing to schedule"):
        interp.best_schedule([])


def test_what_has_no_flow_is_named():
    for thing in (None, 3.0, nn.Linear(2, 2), PEAKS.sample):
        with pytest.raises(OptionError, match="has no flow to schedule"):
            interp.best_schedule(thing)
    field = interp.ODE(lambda t, x: -x)
    with pytest.raises(OptionError, match="nothing of where it starts"):
        interp.best_schedule(field)
    x = torch.zeros(4, 1)
    with pytest.raises(OptionError, match="no path to optimise"):
        interp.best_schedule(field, optimise="path", x=x)
    with pytest.raises(UndeterminedView, match="end_error"):
        interp.best_schedule(field, objective="lipschitz", x=x)
    with pytest.raises(OptionError, match="shape of its states"):
        interp.best_schedule(lambda t, x: x, path=schedules.linear())
    with pytest.raises(OptionError, match="has its own path"):
        interp.best_schedule(schedules.linear().ode(lambda t, x: x), path="linear", x=x)
    path = schedules.brownian_bridge()
    with pytest.raises(InterpError, match="a clock of alpha and one of beta"):
        interp.best_schedule(lambda t, x: x, path=path, optimise="path", x=x)
    with pytest.raises(InterpError, match="says nothing of the data at t = 0"):
        interp.best_schedule(PEAKS, view="noise")
    with pytest.raises(InterpError, match="NaN or infinite"):
        interp.best_schedule(interp.ODE(lambda t, x: x / 0), x=x + 1)
