"""The strategies draw what they say, and the assertions fail where they should."""

import math

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import interp
from interp import schedules as closed
from interp import testing
from interp.errors import OptionError
from interp.exact import Gaussian, Mixture
from interp.testing import (
    assert_equivalent,
    assert_order,
    assert_same_marginals,
    paths,
    schedules,
    solvers,
    targets,
    times,
)

SOME = settings(deadline=None, max_examples=25)
UNSHRUNK = settings(deadline=None, phases=[Phase.generate], max_examples=3000)


def first(strategy, condition=lambda value: True):
    """The first example that meets the condition."""
    return find(strategy, condition, settings=UNSHRUNK)


# Strategies


@SOME
@given(schedules(), times())
def test_a_schedule_has_a_gaussian_base_and_rising_log_snr(path, t):
    assert path.gaussian_base
    assert path.gamma is None
    assert path.monotone
    low, high = path.log_snr(0.0), path.log_snr(1.0)
    assert low < path.log_snr(t) < high


@pytest.mark.parametrize("name", closed.names())
def test_every_named_path_is_drawn(name):
    if name == "with_gamma":
        assert first(paths(two_sided=False), lambda path: path.gamma is not None)
    elif name in ("brownian_bridge", "foellmer", "mirror", "encode_decode"):
        assert first(paths(), lambda path: (path.config or {}).get("name") == name)
    else:
        assert first(schedules([name])).config["name"] == name


def test_unknown_names_of_schedules_are_refused():
    with pytest.raises(OptionError, match="linear"):
        schedules(["nothing"])
    with pytest.raises(OptionError):
        schedules([])


@SOME
@given(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5), st.floats(-1, 1), times())
def test_a_monotone_path_is_what_its_docstring_says(rises, tilt, t):
    """To 1e-13: a polynomial of degree 5 of positive terms, and a square root of its sigmoid."""
    T = torch.tensor(t, dtype=torch.float64)
    finite, pure = testing.monotone(rises, (-8.0, 6.0), tilt), testing.monotone(rises, None, tilt)
    scale = math.exp(tilt * (1 - t))
    k = finite.coefficients(T)
    assert float(k.beta**2 + k.sigma**2) == pytest.approx(scale**2, rel=1e-13)
    tau = float(pure.beta(T)) / scale
    assert float(pure.alpha(T)) / scale == pytest.approx(1 - tau, rel=1e-13)
    assert float(finite.log_snr(T)) == pytest.approx(-8 + 14 * tau, rel=1e-12, abs=1e-12)
    assert float(finite.log_snr(0.0)) == pytest.approx(-8.0, rel=1e-13)
    assert float(finite.log_snr(1.0)) == pytest.approx(6.0, rel=1e-13)
    assert pure.boundary.starts_at_base
    assert pure.boundary.ends_at_data


@SOME
@given(paths(), times())
def test_paths_are_smooth_inside(path, t):
    k = path.coefficients(t)
    assert k.sigma > 0
    for slope in (k.dalpha, k.dbeta, k.dgamma):
        assert slope.isfinite()


def test_paths_are_of_both_kinds():
    assert first(paths(), lambda p: not p.gaussian_base).gamma is not None
    assert first(paths(), lambda p: p.gaussian_base and p.gamma is not None)
    assert first(paths(two_sided=False), lambda p: p.gaussian_base)
    assert not first(paths(two_sided=True)).gaussian_base


@SOME
@given(targets(), targets(dim=2, kinds=["mixture"]), targets(kinds=["empirical", "product"]))
def test_targets_are_laws(target, mixture, other):
    assert 1 <= target.dim <= 3
    assert mixture.dim == 2
    assert len(mixture.weights) > 1
    assert other.sample(3, seed=0).shape == (3, other.dim)
    for law in (target, mixture):
        assert torch.linalg.eigvalsh(law.covs).min() > 0.01
        assert law.log_prob(law.sample(3, seed=0)).isfinite().all()


def test_unknown_kinds_of_target_are_refused():
    with pytest.raises(OptionError, match="gaussian"):
        targets(kinds=["cauchy"])
    with pytest.raises(OptionError, match="2 dimensions"):
        targets(dim=1, kinds=["product"])


@SOME
@given(solvers())
def test_a_solver_solves(solver):
    """exp(-1) to 4 %: half a step of the first-order method at 20 steps is 2.5 %."""
    sol = interp.solve(lambda t, x: -x, torch.ones(2, 1, dtype=torch.float64), **solver)
    assert sol.x.flatten().tolist() == pytest.approx([math.exp(-1)] * 2, rel=0.04)


@SOME
@given(solvers(kind="sde", steps=(2, 5)))
def test_an_sde_solver_solves(solver):
    sol = interp.solve(interp.SDE(lambda t, x: -x, 0.1), torch.ones(2, 1), **solver)
    assert sol.x.isfinite().all()
    assert sol.stats.seed == solver["seed"]


@SOME
@given(testing.couplings(), st.integers(2, 6))
def test_a_coupling_pairs(coupling, n):
    x0, x1 = torch.randn(2, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    paired = coupling(x0, x1, generator=torch.Generator().manual_seed(1))
    assert [p.shape[1:] for p in paired] == [(2,), (2,)]
    assert len(paired[0]) == len(paired[1])
    for one, rows in zip(paired, (x0, x1), strict=True):  # rows of the batch, and no others
        assert (torch.cdist(one, rows).min(1).values < 1e-12).all()


def test_unknown_names_of_couplings_and_families_are_refused():
    with pytest.raises(OptionError, match="optimal_transport"):
        testing.couplings(["conditional"])
    with pytest.raises(OptionError, match="Ask for less"):
        testing.families(["flow_matching"], sigma_max=st.just(1.0))


def test_families_are_drawn_with_their_options():
    strategy = testing.families(verbs=["log_prob"], sigma_max=st.floats(10.0, 20.0))
    assert 10 <= first(strategy).config["sigma_max"] <= 20


# Twins


@settings(deadline=None, max_examples=15)
@given(paths() | st.just(closed.mirror()) | st.just(closed.encode_decode()))
def test_the_twin_of_a_path_is_refused(path):
    testing.assert_equivalent(path, path)
    testing.assert_different(path, testing.perturbed(path))


def test_a_twin_is_asked_of_what_has_one():
    with pytest.raises(OptionError, match="share"):
        testing.perturbed(closed.linear(), by=0.0)


# Paths of one's own


def test_a_path_that_turns_back_is_found_out():
    def turns(t):
        return t + 2 * torch.sin(2 * math.pi * t) / (2 * math.pi)

    with pytest.raises(AssertionError, match=r"log-SNR falls from .* at t = .*turns back"):
        testing.assert_path(interp.Interpolant(lambda t: 1 - turns(t), turns))


def test_a_slope_that_is_wrong_is_found_out():
    """One that the check on building lets pass: right at its grid, wrong between."""
    path = closed.linear()
    path.beta._derivative = lambda t: torch.full_like(t, 1.001)
    with pytest.raises(AssertionError, match=r"beta' is 1\.001 at t = [0-9.]+, and .* show 1"):
        testing.assert_path(path)


@settings(deadline=None, max_examples=8)
@given(schedules())
def test_the_paths_of_the_strategies_are_paths(path):
    """A table's spline has slopes in it that differences of 1e-5 see to 1e-4."""
    testing.assert_path(path, tol=1e-4 if path.table or path.config is None else 1e-6)


# Orders


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_order_of_the_published_methods(backend):
    assert 3.7 < assert_order("rk4", backend=backend) < 4.5
    assert_order("euler", "riccati", backend=backend)


def test_another_order_is_found_out():
    with pytest.raises(AssertionError, match=r"heun shows order [\d.]+ .*not 3"):
        assert_order("heun", order=3)
    with pytest.raises(AssertionError, match="rounding"):
        assert_order("dopri5", steps=2000)
    with pytest.raises(OptionError, match="random number"):
        assert_order("euler_maruyama")
    with pytest.raises(OptionError, match="logistic"):
        assert_order("heun", "nothing")


def test_order_on_a_problem_of_ones_own():
    problem = testing.Problem(
        lambda t, x: -x * x, torch.ones(1, 1).double(), (0.0, 1.0), torch.full((1, 1), 0.5).double()
    )
    assert assert_order("ralston", problem) == pytest.approx(2, abs=0.3)


# Equivalence


def test_paths_that_differ_in_speed_and_scale_are_one():
    """To 1e-9, by the inverse of the log-SNR; linear and trigonometric both cover all of it."""
    for other in (closed.trigonometric(), closed.linear().warp(lambda t: t * t).rescale(3.0)):
        assert assert_equivalent(closed.linear(), other) < 1e-9
    bridge = closed.brownian_bridge(0.7)
    assert assert_equivalent(bridge, bridge.warp(lambda t: t * (1 + t) / 2)) < 1e-6


def test_paths_that_are_merely_close_are_not():
    """VP starts at beta / sigma = 6.57e-3, an angle of that from the linear path's start."""
    with pytest.raises(AssertionError, match=r"0\.00657 rad, where 1e-06"):
        assert_equivalent(closed.linear(), closed.variance_preserving())
    assert_equivalent(closed.linear(), closed.variance_preserving(), tol=0.01)
    with pytest.raises(AssertionError, match="different curves"):
        assert_equivalent(closed.brownian_bridge(0.7), closed.brownian_bridge(0.8))
    with pytest.raises(AssertionError, match="the base of one is"):
        assert_equivalent(closed.linear(), closed.brownian_bridge(0.7))


# Marginals

TWO = Gaussian([0.5, -0.3], torch.tensor([[0.5, 0.2], [0.2, 0.7]]))
MIXTURE = Mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.3])


def test_affine_flows_are_compared_without_chance():
    path = closed.linear()
    velocity, data = path.ode(TWO.velocity(path)), path.ode(TWO.data(path), view="data")
    found = assert_same_marginals(velocity, data, shape=(2,), tol=1e-5)
    assert found.exact
    shifted = path.ode(lambda t, x: TWO.velocity(path)(t, x) + 0.01)
    with pytest.raises(AssertionError, match="the mean by 0.01"):
        assert_same_marginals(velocity, shifted, shape=(2,), tol=1e-4)
    wider = path.ode(lambda t, x: TWO.velocity(path)(t, x) + 0.01 * (x - t * TWO.mean))
    with pytest.raises(AssertionError, match=r"covariance.*exactly"):
        assert_same_marginals(velocity, wider, shape=(2,), tol=1e-4)


def test_other_flows_are_compared_by_moments():
    path, other = closed.linear(), closed.trigonometric()
    a, b = path.ode(MIXTURE.velocity(path)), other.ode(MIXTURE.velocity(other))
    assert not assert_same_marginals(a, b, shape=(2,)).exact
    shifted = Mixture(MIXTURE.weights, MIXTURE.means + 0.1, MIXTURE.covs)
    with pytest.raises(AssertionError, match="false-alarm rate of 1e-06"):
        assert_same_marginals(a, path.ode(shifted.velocity(path)), shape=(2,))


def test_an_sde_has_the_marginals_of_its_ode():
    """tol = 0.02: the weak error of 200 first-order steps, K h with K of a few."""
    path = closed.linear()
    ode = path.ode(MIXTURE.velocity(path))
    sde = path.sde(MIXTURE.velocity(path), diffusion=lambda t: 1 - t)
    assert not assert_same_marginals(ode, sde, shape=(2,), tol=0.02).exact
    # The same with the noise left out of the drift is another law.
    wrong = interp.SDE(lambda t, x: MIXTURE.velocity(path)(t, x), lambda t: 1 - t)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_marginals(ode, wrong, Gaussian([0.0, 0.0], 1.0), tol=0.02)


def test_moments_raise_the_alarm_as_seldom_as_they_say():
    """Two samples of one law, 200 times, at a rate of 0.05 together: P(more than 25) is 1e-5."""
    stay = interp.ODE(lambda t, x: torch.zeros_like(x))
    alarms = 0
    for seed in range(200):
        x, y = (torch.randn(500, 2, generator=torch.Generator().manual_seed(s)).exp()
                for s in (2 * seed, 2 * seed + 1))  # fmt: skip
        try:
            assert_same_marginals(
                stay, stay, x, y, tol=0.0, false_alarm=0.05, method="euler", steps=1
            )
        except AssertionError:
            alarms += 1
    assert alarms <= 25


def test_a_start_is_asked_for():
    stay = interp.ODE(lambda t, x: torch.zeros_like(x))
    with pytest.raises(OptionError, match="start="):
        assert_same_marginals(stay, stay)
