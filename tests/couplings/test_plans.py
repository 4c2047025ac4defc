"""Plans against linear programmes, closed forms and another library."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import couplings
from interp.couplings.assignment import assign
from interp.couplings.cost import products, squared_distances
from interp.couplings.sinkhorn import TOLERANCE, log_plan
from interp.errors import OptionError

quick = settings(deadline=None, max_examples=25)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(rows, features=2, seed=0, dtype=torch.float64):
    gen = seeded(seed)
    x0, x1 = (torch.randn(rows, features, generator=gen, dtype=torch.float64) for _ in range(2))
    return x0.to(dtype), (1.5 * x1 + 1).to(dtype)


def quantiles(rows, mean, variance):
    """The points of N(mean, variance) at the middles of ``rows`` equal shares."""
    share = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return (mean + math.sqrt(variance) * torch.special.ndtri(share))[:, None]


def total(x0, x1):
    return (x0.double() - x1.double()).square().sum().item()


# The cost


@quick
@given(st.integers(1, 20), st.integers(1, 50), st.floats(-1e4, 1e4), st.integers(0, 1000))
def test_squared_distances_are_those_of_a_sum_of_squares(rows, features, offset, seed):
    x0, x1 = (x + offset for x in points(rows, features, seed, torch.float32))
    direct = (x0.double()[:, None] - x1.double()).square().sum(2)
    norms = (x0.double() - x1.double().mean(0)).square().sum(1).max() + direct.max()
    # float64 rounding of norms around the centre, features additions each; the centre itself is
    # rounded to offset 2^-53 in each.
    bound = 4 * (features + 2) * 2.0**-53 * (norms + features + abs(offset) * norms.sqrt())
    assert (squared_distances(x0, x1) - direct).abs().max() <= bound


@quick
@given(st.integers(1, 20), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 1000))
def test_products_are_half_the_distances_but_for_rows_and_columns(rows, shift0, shift1, seed):
    x0, x1 = points(rows, 5, seed)
    x0, x1 = x0 + shift0, x1 + shift1
    rest = products(x0, x1) - 0.5 * squared_distances(x0, x1)
    rest = rest - rest.mean(1, keepdim=True)
    rest = rest - rest.mean(0, keepdim=True)
    # Distances up to shift^2 = 4e6 rounded to 1e-15 of it.
    assert rest.abs().max() < 1e-8


# Exact


@quick
@given(st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 1000))
def test_the_exact_plan_is_the_best_of_all_permutations(rows, dtype, seed):
    x0, x1 = points(rows, 3, seed, dtype)
    best = min(total(x0[list(p)], x1) for p in itertools.permutations(range(rows)))
    # float32 products of points of size 5 are off by 1e-6 a pair, 30 in all at most.
    assert total(*couplings.optimal_transport()(x0, x1)) <= best + 1e-4


@quick
@given(
    st.integers(2, 64), st.sampled_from([1, 7, 784]), st.floats(-100, 100),
    st.sampled_from([torch.float32, torch.float64]), st.integers(0, 1000),
)  # fmt: skip
def test_no_random_permutation_costs_less(rows, features, offset, dtype, seed):
    x0, x1 = (x + offset for x in points(rows, features, seed, dtype))
    cost = total(*couplings.optimal_transport()(x0, x1))
    gen = seeded(seed)
    for _ in range(20):
        order = torch.randperm(rows, generator=gen)
        assert cost <= total(x0[order], x1) * (1 + 1e-6)
    exact = total(*couplings.optimal_transport()(x0.double(), x1.double()))
    # float32: each product is off by 2^-24 sqrt(features) of the norms, whose sum the cost is of.
    assert cost <= exact * (1 + 1e-6)


@quick
@given(st.integers(2, 30), st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(rows, seed):
    x0, x1 = points(rows, 3, seed)
    labels = torch.arange(rows)
    a, b, c = couplings.optimal_transport()(x0, x1, labels)
    first, second = torch.randperm(rows), torch.randperm(rows)
    a2, b2, c2 = couplings.optimal_transport()(x0[first], x1[second], labels[second])
    back = torch.argsort(second)  # the optimum of points in general position is unique
    assert torch.equal(a2[back], a)
    assert torch.equal(b2[back], b)
    assert torch.equal(c2[back], c)


@quick
@given(
    st.integers(1, 40), st.integers(-12, 12), st.sampled_from(["normal", "few", "wide"]),
    st.integers(0, 1000),
)  # fmt: skip
def test_the_assignment_is_the_best_for_any_costs(rows, exponent, kind, seed):
    from scipy.optimize import linear_sum_assignment

    cost = torch.randn(rows, rows, dtype=torch.float64, generator=seeded(seed))
    if kind == "few":
        cost = cost.round()  # many ties
    elif kind == "wide":
        cost = torch.exp(8 * cost)
    cost = cost * 10.0**exponent
    best = cost[linear_sum_assignment(cost.numpy())].sum().item()
    order = assign(cost)
    assert sorted(order.tolist()) == list(range(rows))
    # Potentials of the size of the largest cost are subtracted in float64.
    slack = rows * 2.0**-50 * cost.abs().max().item()
    assert cost[order, torch.arange(rows)].sum().item() <= best + slack


def test_small_costs_beside_large_ones_count_in_single_precision():
    from scipy.optimize import linear_sum_assignment

    cost = torch.exp(8 * torch.randn(60, 60, generator=seeded(0)))
    exact = cost.double()
    best = exact[linear_sum_assignment(exact.numpy())].sum().item()
    found = exact[assign(cost), torch.arange(60)].sum().item()
    assert found == pytest.approx(
        best, rel=1e-5
    )  # in float32 the largest cost is told to 1e10 times this


def test_in_one_dimension_the_exact_plan_sorts():
    x0, x1 = points(200, 1)
    a, b = couplings.optimal_transport()(x0, x1)
    assert torch.equal(a.flatten().argsort(), b.flatten().argsort())


def test_equal_rows_and_far_away_data_are_no_trouble():
    ones = torch.ones(5, 3)
    a, b = couplings.optimal_transport()(ones, ones)
    assert torch.equal(a, ones)
    assert torch.equal(b, ones)
    x0, x1 = points(50, 2, dtype=torch.float32)
    near = couplings.optimal_transport()(x0, x1)[0]
    far = couplings.optimal_transport()(x0, (x1.double() + 512).float())[0]
    # x1 + 512 keeps 15 bits of x1 or so, and the plan is the nearby one's to that.
    assert total(far, x1) == pytest.approx(total(near, x1), rel=1e-4)


def test_a_cost_of_ones_own():
    x0, x1 = points(30, 1)
    a, b = couplings.optimal_transport(cost=lambda x, y: -squared_distances(x, y))(x0, x1)
    assert torch.equal(a.flatten().argsort(), (-b).flatten().argsort())  # as far apart as can be


@quick
@given(st.integers(2, 25), st.floats(0.1, 0.95), st.integers(0, 1000))
def test_the_partial_plan_is_the_linear_programmes(rows, mass, seed):
    ot = pytest.importorskip("ot")
    x0, x1 = points(rows, 2, seed)
    kept = max(1, round(mass * rows))
    cost = squared_distances(x0, x1).numpy()
    unit = np.full(rows, 1 / rows)
    plan = ot.partial.partial_wasserstein(unit, unit, cost, m=min(kept / rows, unit.sum()))
    a, b = couplings.partial(mass)(x0, x1, generator=seeded())
    pairs = torch.unique(torch.cat([a, b], 1), dim=0)
    assert len(pairs) == kept
    # The vertices are the same; both sum 25 float64 numbers.
    assert total(pairs[:, :2], pairs[:, 2:]) / rows == pytest.approx((plan * cost).sum(), rel=1e-9)


# Entropic


def marginal_errors(plan):
    return [(len(plan) * plan.sum(axis) - 1).abs().mean().item() for axis in (0, 1)]


@quick
@given(st.integers(1, 30), st.floats(-5, 2), st.integers(0, 1000))
def test_entropic_plans_have_their_marginals_at_any_reg(rows, log_reg, seed):
    cost = squared_distances(*points(rows, 2, seed))
    plan = log_plan(cost, 10.0**log_reg).exp()
    data, base = marginal_errors(plan)
    assert data < 1e-7  # made so by the last update; rounding of costs over reg, 30 / 1e-5 2^-53
    assert base < TOLERANCE


def test_the_entropic_plan_goes_from_independent_to_exact():
    x0, x1 = points(40, 2)
    cost = squared_distances(x0, x1)
    order = assign(cost)
    least = cost[order, torch.arange(40)].mean().item()
    costs = [(log_plan(cost, reg).exp() * cost).sum().item() for reg in (1e6, 10.0, 1.0, 0.1, 1e-4)]
    assert costs == sorted(costs, reverse=True)
    # exp(-cost / 1e6) is flat to 1e-4; at reg = 1e-4 what is left of the entropy costs reg log(40).
    assert costs[0] == pytest.approx(cost.mean().item(), rel=1e-4)
    assert costs[-1] == pytest.approx(least, abs=4e-4 + TOLERANCE * cost.max().item())


@pytest.mark.parametrize("reg", [0.5, 3.0])
@pytest.mark.parametrize("tau", [(math.inf, math.inf), (1.0, 1.0), (5.0, math.inf), (0.3, 2.0)])
def test_plans_are_those_of_another_library(reg, tau):
    ot = pytest.importorskip("ot")
    cost = squared_distances(*points(25, 2))
    unit = np.full(25, 1 / 25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = ot.unbalanced.sinkhorn_unbalanced(
            unit, unit, cost.numpy(), reg, tau, stopThr=1e-13, numItermax=20000
        )
    plan = log_plan(cost, reg, tau).exp()
    # In total variation, ours being settled to TOLERANCE a sweep and theirs further.
    assert (plan - torch.from_numpy(other)).abs().sum() < 3 * TOLERANCE * plan.sum()


def test_the_schroedinger_plan_between_normals_has_the_published_covariance():
    # c = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2: Bunne, Hsieh, Cuturi, Krause (2202.05722).
    v0, v1, sigma = 1.0, 2.25, 0.8
    x0, x1 = quantiles(400, 0.0, v0), quantiles(400, 1.0, v1)
    plan = log_plan(squared_distances(x0, x1), couplings.schroedinger_bridge(sigma).reg).exp()
    covariance = (x0 * (x1.T - 1.0) * plan).sum().item()
    wanted = (math.sqrt(4 * v0 * v1 + sigma**4) - sigma**2) / 2
    # 400 quantiles have the variance of the normal to 0.5 %.
    assert covariance == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("tau", [3.0, 20.0])
def test_the_unbalanced_plan_between_normals_has_the_closed_forms(tau):
    # Without entropy: the map is y = m1 + r (x - m0) between re-weighted ends N(m0, w0), N(m1, w1).
    a, p, b, q = 0.0, 1.0, 1.5, 1.44
    x0, x1 = quantiles(500, a, p), quantiles(500, b, q)
    plan = torch.softmax(couplings.unbalanced(tau, reg=0.02).plan(x0, x1).flatten(), 0)
    plan = plan.reshape(500, 500)
    r = math.sqrt((1 / p + 2 / tau) / (1 / q + 2 / tau))
    shift = (a - b) / (1 + 2 * (p + q) / tau)
    w0 = 1 / (1 / p + 2 * (1 - r) / tau)
    for x, weight, mean, variance in (
        (x0, plan.sum(1), a - 2 * p * shift / tau, w0),
        (x1, plan.sum(0), b + 2 * q * shift / tau, r * r * w0),
    ):
        got = (weight * x[:, 0]).sum()
        # Entropy adds terms of the order of reg = 0.02, the ends of 500 quantiles 0.5 %.
        assert got.item() == pytest.approx(mean, abs=0.02)
        assert (weight * (x[:, 0] - got).square()).sum().item() == pytest.approx(variance, abs=0.03)


@pytest.mark.parametrize("distance", [0.5, 3.0])
def test_the_unbalanced_mass_between_two_points(distance):
    # sqrt(A B) exp(-d^2 / (2 tau)), reg being no matter between single points up to its own share:
    # minimise P c + 2 tau KL(P) + reg KL(P), so P = exp(-d^2 / (2 tau + reg)).
    x0, x1, tau, reg = torch.zeros(1, 1), torch.full((1, 1), distance), 2.0, 0.1
    mass = couplings.unbalanced(tau, reg=reg).plan(x0, x1).exp().item()
    assert mass == pytest.approx(math.exp(-(distance**2) / (2 * tau + reg)), rel=2 * TOLERANCE)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("ends", [(1.0, math.inf), (math.inf, 1.0), (1.0, 1.0)])
def test_an_end_that_is_all_but_kept_settles(ends, rows):
    """One scaling leaves 1 / (1 + reg / tau) of a common factor: 2000 of them 0.67 of it here."""
    cost = squared_distances(*points(rows, 2))
    reg = 0.05 * cost.mean().item()
    plan = log_plan(cost, reg, (ends[0] * 5000 * reg, ends[1] * 5000 * reg)).exp()
    # Mass costs <P, c> and spares tau KL: what is missing is at most the mean cost over tau.
    missing = 0.0 if math.inf in ends else cost.mean().item() / (5000 * reg)
    assert plan.sum().item() == pytest.approx(1.0, abs=TOLERANCE + missing)


def test_far_rows_are_left_behind_by_unbalanced_and_partial():
    x0, x1 = points(40, 2)
    x1[7] = 30.0
    for coupling in (couplings.unbalanced(1.0, reg=0.1), couplings.partial(0.95)):
        for seed in range(5):
            _, b = coupling(x0, x1, generator=seeded(seed))
            assert b.max() < 10
    assert couplings.optimal_transport()(x0, x1)[1].max() == 30


# Regularisations that are too small


def test_a_reg_too_small_names_one_that_works():
    x0, x1 = points(200, 2, dtype=torch.float32)
    for make, option in (
        (lambda v: couplings.optimal_transport(reg=v), "reg"),
        (lambda v: couplings.unbalanced(reg=v), "reg"),
        (couplings.schroedinger_bridge, "sigma"),
    ):
        with pytest.raises(
            OptionError, match=rf"{option}=1e-20 is too small.*Give {option}="
        ) as info:
            make(1e-20)(x0, x1)
        usable = float(str(info.value).split(f"Give {option}=")[1].split(" or more")[0])
        a, _ = make(usable * 1.01)(x0, x1, generator=seeded())
        assert len(torch.unique(a, dim=0)) > 50  # a plan, neither one point nor uniform nonsense


def test_a_tau_whose_mass_underflows_names_one_that_works():
    x0, x1 = points(20, 784)
    with pytest.raises(OptionError, match=r"tau=0\.01 is too small.*Give a tau near the mean cost"):
        couplings.unbalanced(0.01, reg=1.0)(x0, x1)
