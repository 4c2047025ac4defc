"""Paths composed of paths: what each composition promises, and that it comes back from its config."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import Interpolant, schedules, testing
from interp.errors import OptionError, ScheduleError, UnknownName
from interp.schedules import warps

F64 = torch.float64
T = torch.linspace(0.01, 0.99, 25, dtype=F64)
LINEAR, TRIG = schedules.linear(), schedules.trigonometric()
VP, VE = schedules.variance_preserving(), schedules.variance_exploding()
LATENT = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t)))
BRIDGE = schedules.brownian_bridge()

COMPOSED = {
    "ensemble": schedules.ensemble([LINEAR, TRIG, VP], [0.5, 0.3, 0.2]),
    "weighted_sum": schedules.weighted_sum([LINEAR, TRIG, VP], [0.5, 0.3, 0.2]),
    "product": schedules.product([LINEAR, TRIG]),
    "piecewise": schedules.piecewise(
        [TRIG, schedules.trigonometric(1.0).rescale(math.sqrt(2) * math.cos(0.5))], [0.5]
    ),
    "shifted": schedules.shifted(VP, 2.0),
    "warped": LINEAR.warp(warps.kumaraswamy(1.5, 0.7)),
    "clocked": schedules.clocked(TRIG, warps.sine(), warps.spline([0, 0.4, 1], [2.0, 0.5, 1.5])),
    "nested": schedules.ensemble([LINEAR.warp(warps.shift(3.0)), schedules.shifted(TRIG, 0.5)]),
    "two-sided": schedules.weighted_sum([BRIDGE, schedules.brownian_bridge(0.5)]),
}
WARPS = {
    "shift": warps.shift(3.0),
    "shift down": warps.shift(0.25),
    "power": warps.power(2.5),
    "root": warps.power(0.6),
    "kumaraswamy": warps.kumaraswamy(2.0, 1.5),
    "exponential": warps.exponential(3.0),
    "exponential down": warps.exponential(-2.0),
    "sine": warps.sine(),
    "smoothstep": warps.smoothstep(),
    "spline": warps.spline([0.0, 0.1, 0.6, 1.0], [0.2, 1.0, 2.0, 0.5]),
}


def at(t):
    return torch.tensor(t, dtype=F64)


# All of them


@pytest.mark.parametrize("name", COMPOSED)
def test_slopes_are_derivatives(name):
    """Central differences of step 1e-6 away from the knot: h^2 of third derivatives, 1e-16 / h."""
    path, h = COMPOSED[name], 1e-6
    k, after, before = (path.coefficients(t) for t in (T + 1e-4, T + 1e-4 + h, T + 1e-4 - h))
    for f in ("alpha", "beta", "gamma", "sigma"):
        difference = (getattr(after, f) - getattr(before, f)) / (2 * h)
        torch.testing.assert_close(getattr(k, f"d{f}"), difference, rtol=1e-6, atol=1e-7)
        bend = (getattr(after, f"d{f}") - getattr(before, f"d{f}")) / (2 * h)
        torch.testing.assert_close(getattr(k, f"dd{f}"), bend, rtol=1e-6, atol=1e-5)
        if f != "sigma":
            product = getattr(k, f) * getattr(k, f"d{f}")
            torch.testing.assert_close(getattr(k, f"{f}_d{f}"), product, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_path_comes_back_from_json(name):
    path = COMPOSED[name]
    again = schedules.from_config(json.loads(json.dumps(path.config)))
    assert again.config == path.config
    t = torch.linspace(0, 1, 17, dtype=F64)
    for f in ("alpha", "beta", "gamma", "dalpha", "beta_dbeta"):
        found, wanted = (getattr(p.coefficients(t), f) for p in (again, path))
        assert torch.equal(found, wanted), f


def test_parts_of_ones_own_cannot_be_stored():
    own = Interpolant(lambda t: 1 - t, lambda t: t)
    for path in (
        schedules.ensemble([LINEAR, own]), schedules.shifted(own, 2.0), own.warp(warps.sine()),
    ):  # fmt: skip
        assert path.config is None


# Ensembles


@given(
    paths=st.lists(testing.schedules(), min_size=1, max_size=3),
    shares=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3),
    t=testing.times(),
)
@settings(deadline=None, max_examples=60)
def test_log_snr_of_an_ensemble_is_the_weighted_mean(paths, shares, t):
    shares = shares[: len(paths)]
    weights = [s / math.fsum(shares) for s in shares]
    path = schedules.ensemble(paths, weights)
    wanted = sum(w * p.log_snr(t) for w, p in zip(weights, paths, strict=True))
    torch.testing.assert_close(path.log_snr(t), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [LINEAR, VP, VE, LATENT, BRIDGE], ids=repr)
def test_an_ensemble_of_one_path_is_itself(path):
    t = torch.linspace(0, 1, 9, dtype=F64)
    wanted = path.coefficients(t)
    for again in (
        schedules.ensemble([path]),
        schedules.ensemble([path, path], [1.0, 0.0]),
        schedules.ensemble([path, path], [0.3, 0.7]),
    ):
        k = again.coefficients(t)
        for f in ("beta", "sigma", "dbeta", "dsigma", "sigma_dsigma"):
            # An end may be a limit by differences: 1e-9 there, and 1e-16 over a root's 1e-5.
            torch.testing.assert_close(getattr(k, f), getattr(wanted, f), rtol=1e-7, atol=1e-9)


def test_a_latent_goes_into_sigma():
    path = schedules.ensemble([LINEAR, LATENT])
    wanted = (LINEAR.log_snr(T) + LATENT.log_snr(T)) / 2
    torch.testing.assert_close(path.log_snr(T), wanted, rtol=1e-13, atol=1e-13)
    assert path.gamma is None


def test_an_end_that_only_some_paths_reach_is_a_steep_one():
    """beta ~ t^0.3 c^0.7 at t = 0: pure base, and beta beta' ~ t^-0.4 is infinite."""
    path = schedules.ensemble([LINEAR, VP], [0.3, 0.7])
    k = path.coefficients(0.0)
    assert (k.beta.item(), k.dbeta.item(), k.beta_dbeta.item()) == (0.0, math.inf, math.inf)
    assert path.boundary.starts_at_base
    assert not path.boundary.finite_rate0


# Sums, products, pieces


def test_sums_and_products_of_each_function():
    k = COMPOSED["weighted_sum"].coefficients(T)
    wanted = 0.5 * (1 - T) + 0.3 * torch.cos(math.pi / 2 * T) + 0.2 * VP.alpha(T)
    torch.testing.assert_close(k.alpha, wanted, rtol=1e-14, atol=0)
    both = COMPOSED["product"]
    torch.testing.assert_close(
        both.log_snr(T), LINEAR.log_snr(T) + TRIG.log_snr(T), rtol=1e-13, atol=1e-13
    )


def test_pieces_are_each_its_own_path():
    path = COMPOSED["piecewise"]
    x0, x1 = torch.randn(2, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(path.at(0.3, x0, x1), TRIG.at(0.3, x0, x1))
    second = schedules.trigonometric(1.0).rescale(math.sqrt(2) * math.cos(0.5))
    assert torch.equal(path.rate(0.7, x0, x1), second.rate(0.7, x0, x1))
    assert torch.equal(path.rate(0.5, x0, x1), second.rate(0.5, x0, x1))
    assert path.monotone


def test_pieces_that_do_not_meet_are_shown():
    with pytest.raises(
        ScheduleError, match=r"alpha\(0.5\) is 0.5 before the knot and 0.7071\d* after"
    ):
        schedules.piecewise([LINEAR, TRIG], [0.5])


# Shifts


@given(path=testing.schedules(), factor=st.floats(0.1, 10.0), t=testing.times())
@settings(deadline=None, max_examples=60)
def test_a_shift_moves_log_snr(path, factor, t):
    moved = schedules.shifted(path, factor)
    wanted = path.log_snr(t) - 2 * math.log(factor)
    torch.testing.assert_close(moved.log_snr(t), wanted, rtol=1e-12, atol=1e-12)
    lam = moved.log_snr(t)
    room = 1e-9 * (1 + moved.log_snr(t).abs().item())
    assert moved.log_snr(moved.time_at_log_snr(lam)).item() == pytest.approx(lam.item(), abs=room)


def test_what_a_shift_keeps():
    linear, vp, ve = (schedules.shifted(p, 3.0) for p in (LINEAR, VP, VE))
    warped = LINEAR.warp(warps.shift(3.0))  # the closed form of Esser et al.
    torch.testing.assert_close(linear.beta(T), warped.beta(T), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(linear.alpha(T), warped.alpha(T), rtol=1e-13, atol=1e-15)
    assert linear.config["keep"] == "sum"
    torch.testing.assert_close(vp.beta(T) ** 2 + vp.sigma(T) ** 2, torch.ones_like(T))
    # Simple diffusion: beta^2 = sigmoid(lambda + 2 log(reference / side)).
    wanted = torch.sigmoid(VP.log_snr(T) + 2 * math.log(1 / 3))
    torch.testing.assert_close(vp.beta(T) ** 2, wanted, rtol=1e-13, atol=0)
    assert torch.equal(ve.beta(T), VE.beta(T))
    assert schedules.shifted(LATENT, 2.0).gamma is not None
    k = vp.coefficients(1.0)
    assert (k.sigma.item(), k.dsigma.item()) == (0.0, -math.inf)
    assert k.sigma_dsigma.item() == pytest.approx(-9 * 0.05, rel=1e-12)


# Time changes


@pytest.mark.parametrize("name", WARPS)
def test_a_time_change_its_slopes_and_its_inverse(name):
    tau, h = WARPS[name], 1e-6
    assert tau(at([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert (tau(T).diff() > 0).all()
    difference = (tau(T + h) - tau(T - h)) / (2 * h)
    torch.testing.assert_close(tau.derivative(T), difference, rtol=1e-7, atol=1e-8)
    bend = (tau.derivative(T + h) - tau.derivative(T - h)) / (2 * h)
    torch.testing.assert_close(tau.second_derivative(T), bend, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(tau.inverse(tau(T)), T, rtol=1e-9, atol=1e-12)
    again = warps.from_config(json.loads(json.dumps(tau.config)))
    assert torch.equal(again(T), tau(T))
    assert LINEAR.warp(tau)._time_at_log_snr is not None


# What makes no sense


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: schedules.ensemble([]), OptionError, "at least one"),
        (lambda: schedules.ensemble([LINEAR, "linear"]), OptionError, "no paths"),
        (lambda: schedules.ensemble([LINEAR, TRIG], [0.5, 0.6]), OptionError, r"0\.6.*sum 1"),
        (lambda: schedules.ensemble([LINEAR, TRIG], [1.5, -0.5]), OptionError, "negative"),
        (lambda: schedules.ensemble([LINEAR, TRIG], [1.0]), OptionError, "2 paths"),
        (lambda: schedules.ensemble([LINEAR, BRIDGE]), OptionError, "one kind"),
        (lambda: schedules.weighted_sum([LINEAR, LATENT]), OptionError, "one kind"),
        (lambda: schedules.piecewise([LINEAR, LINEAR], [0.5, 0.7]), OptionError, "1 rising"),
        (lambda: schedules.piecewise([LINEAR] * 3, [0.7, 0.5]), OptionError, "2 rising"),
        (lambda: schedules.piecewise([LINEAR] * 2, [1.0]), OptionError, "inside"),
        (lambda: schedules.shifted(LINEAR, 0.0), OptionError, "factor"),
        (lambda: schedules.shifted(LINEAR, 2.0, keep="mean"), OptionError, "variance"),
        (lambda: schedules.shifted(BRIDGE, 2.0), OptionError, "not Gaussian"),
        (lambda: warps.power(-1.0), OptionError, "exponent"),
        (lambda: warps.exponential(0.0), OptionError, "rate"),
        (lambda: warps.spline([0.0, 0.6, 0.5, 1.0], [1.0] * 4), OptionError, "rise from 0 to 1"),
        (lambda: warps.spline([0.0, 1.0], [1.0, 0.0]), OptionError, "positive slopes"),
        (lambda: schedules.clocked(BRIDGE, warps.sine(), warps.sine()), OptionError, "a gamma"),
        (lambda: warps.from_config({"warp": "shfit", "factor": 2}), UnknownName, "shift"),
        (lambda: warps.from_config({"warp": "shift", "fctor": 2}), UnknownName, "factor"),
        (lambda: warps.from_config({"warp": "shift"}), OptionError, "needs factor"),
        (lambda: warps.from_config({"factor": 2}), OptionError, '"warp"'),
        (lambda: schedules.from_config({"name": "ensemble"}), OptionError, 'needs "paths"'),
    ],
)
def test_a_composition_that_makes_no_sense_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
