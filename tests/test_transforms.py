"""Paths made from a path: the law is carried along exactly, whatever the clock and the scale."""

import copy
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interp import Interpolant, exact, schedules, testing
from interp.errors import OptionError, ScheduleError, UndeterminedView, Unsupported
from interp.scalar import Schedule

F64 = torch.float64
LAW = exact.Gaussian(
    torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
)
X = torch.tensor([[0.0, 0.3], [-1.0, 1.0], [2.0, -0.5]], dtype=F64)

# Time changes with their inverses, and scales.
TAUS = {
    "square": (lambda t: t * t, lambda s: s.sqrt()),
    "smoothstep": (lambda t: t * t * (3 - 2 * t), None),
    "late": (lambda t: 1 - (1 - t) ** 2, lambda s: 1 - (1 - s).sqrt()),
    "middle": (lambda t: 0.2 + 0.5 * t, lambda s: (s - 0.2) / 0.5),
    "sine": (lambda t: torch.sin(math.pi * t / 2) ** 2, None),
}
SCALES = {
    "two": 2.0,
    "growing": lambda t: 1 + t,
    "waving": lambda t: 1.5 + torch.sin(5 * t),
    "exponential": lambda t: torch.exp(-t),
}
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
    "latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t))),
}


def at(t):
    return torch.tensor(t, dtype=F64)


def changed(path, kind, which):
    if kind == "warp":
        return path.warp(TAUS[which][0])
    if kind == "rescale":
        return path.rescale(SCALES[which])
    return path.reverse()


CHANGES = [("warp", n) for n in TAUS] + [("rescale", n) for n in SCALES] + [("reverse", None)]


# What the points are


@given(path=testing.paths(), t=st.floats(0, 1), which=st.sampled_from(sorted(TAUS)))
@settings(deadline=None, max_examples=60)
def test_a_warped_point_is_the_point_at_the_warped_time(path, t, which):
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    tau = TAUS[which][0]
    points = path.warp(tau).at(t, x0, x1, z), path.at(tau(at(t)).clamp(0, 1), x0, x1, z)
    # The ends are exact on a warped path: 4 roundings under a square root are 1e-7 elsewhere.
    torch.testing.assert_close(*points, rtol=1e-14, atol=1e-14 if 0 < t < 1 else 1e-7)


@given(path=testing.paths(), t=st.floats(0, 1), which=st.sampled_from(sorted(SCALES)))
@settings(deadline=None, max_examples=60)
def test_a_rescaled_point_is_the_point_times_c(path, t, which):
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    c = SCALES[which] if which == "two" else SCALES[which](at(t))
    points = path.rescale(SCALES[which]).at(t, x0, x1, z), c * path.at(t, x0, x1, z)
    torch.testing.assert_close(*points, rtol=1e-14, atol=1e-14)


@given(path=testing.paths(), t=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_a_reversed_point_is_the_point_at_the_other_end(path, t):
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    backwards = path.reverse()
    points = backwards.at(t, x0, x1, z), path.at(1 - t, x0, x1, z)
    torch.testing.assert_close(*points, rtol=1e-14, atol=1e-14)
    assert torch.equal(backwards.reverse().at(t, x0, x1, z), path.at(1 - (1 - t), x0, x1, z))


@pytest.mark.parametrize(("kind", "which"), CHANGES)
@pytest.mark.parametrize("name", PATHS)
def test_the_rate_is_the_derivative_and_the_product_keeps_it_finite(name, kind, which):
    """Central differences of step 1e-5: 1e-7 for third derivatives of up to 1e3."""
    path, t, h = changed(PATHS[name], kind, which), at([0.05, 0.3, 0.6, 0.95]), 1e-5
    k, before, after = (path.coefficients(s) for s in (t, t - h, t + h))
    for f in ("alpha", "beta", "gamma", "sigma"):
        slope = (getattr(after, f) - getattr(before, f)) / (2 * h)
        torch.testing.assert_close(getattr(k, f"d{f}"), slope, rtol=1e-7, atol=1e-7)
    ends = path.coefficients(at([0.0, 1.0]))
    for f in ("alpha", "beta", "gamma"):
        inside = path.coefficients(at([1e-5, 1 - 1e-5]))
        square = getattr(inside, f) ** 2 - getattr(ends, f) ** 2
        product = getattr(ends, f"{f}_d{f}") * at([1e-5, -1e-5])
        # The one-sided difference of f^2 / 2: h times its curvature, some hundreds.
        torch.testing.assert_close(square / 2, product, rtol=0, atol=1e-7)


@given(
    path=testing.paths(two_sided=False),
    law=testing.targets(),
    t=testing.times(),
    change=st.sampled_from(CHANGES),
)
@settings(deadline=None, max_examples=60)
def test_the_continuity_equation_holds_on_the_changed_path(path, law, t, change):
    """d log rho / dt = -div v - v . grad log rho, by differences of step 1e-4 in t and 1e-4 in x."""
    path = changed(path, *change)
    x, h = law.sample(3, seed=1, dtype=F64) * 0.5, 1e-4
    log_rho = [law.marginal(path, at(s)).log_prob(x) for s in (t - h, t + h)]
    v = law.velocity(path)
    shifts = h * torch.eye(law.dim, dtype=F64)
    divergence = sum(
        (v(t, x + e)[:, i] - v(t, x - e)[:, i]) / (2 * h) for i, e in enumerate(shifts)
    )
    transport = divergence + (v(t, x) * law.score(path)(t, x)).sum(1)
    found = (log_rho[1] - log_rho[0]) / (2 * h)
    size = 1 + transport.abs().max()
    # h^2 of third derivatives in units of the slope: up to (1 / 0.02)^2 and the warp's own.
    torch.testing.assert_close(found, -transport, rtol=0, atol=2e-3 * size.item())


@given(
    path=testing.schedules(),
    t=testing.times(),
    law=testing.targets(),
    change=st.sampled_from(CHANGES),
)
@settings(deadline=None, max_examples=60)
def test_views_of_the_exact_law_convert_on_the_changed_path(path, t, law, change):
    path = changed(path, *change)
    x = law.sample(3, seed=1, dtype=F64)
    views = {v: getattr(law, v)(path)(t, x) for v in ("velocity", "score", "noise", "data")}
    k = path.coefficients(t)
    assume(k.beta > 1e-3 and k.sigma > 1e-3)
    condition = 1 + ((1 + k.dbeta.abs() + k.dsigma.abs()) / (k.beta * k.sigma)).item()
    for source, value in views.items():
        for target, wanted in views.items():
            found = path.convert(value, source, target, x, t)
            room = 1e-13 * condition * (1 + wanted.abs().max().item() + value.abs().max().item())
            torch.testing.assert_close(found, wanted, rtol=0, atol=room * (1 + 1 / k.sigma.item()))


# Marginals


@given(
    path=testing.schedules(),
    t=testing.times(),
    law=testing.targets(kinds=["gaussian"]),
    warp=st.sampled_from(sorted(TAUS)),
    scale=st.sampled_from(sorted(SCALES)),
)
@settings(deadline=None, max_examples=40)
def test_marginals_are_kept(path, t, law, warp, scale):
    tau, c = TAUS[warp][0](at(t)), SCALES[scale]
    factor = c if scale == "two" else c(at(t))
    found = law.marginal(path.warp(TAUS[warp][0]).rescale(c), t)
    wanted = law.marginal(path, tau)
    torch.testing.assert_close(found.mean, factor * wanted.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.cov, factor**2 * wanted.cov, rtol=1e-12, atol=1e-12)


# Singular ends


def test_a_warp_takes_the_square_root_out_of_an_end():
    """sigma ~ sqrt(0.1 (1 - t)) becomes straight under tau = 1 - (1 - t)^2, of slope -sqrt(0.1)."""
    path = schedules.variance_preserving().warp(TAUS["late"][0])
    k = path.coefficients(1.0)
    assert (k.alpha.item(), k.alpha_dalpha.item()) == (0.0, 0.0)
    # A difference of step 1e-5, where 1 - tau = 1e-10 is known to 1e-6 of itself.
    assert k.dalpha.item() == pytest.approx(-math.sqrt(0.1), rel=1e-6)
    assert path.boundary.finite_rate


def test_a_warp_may_put_a_square_root_into_an_end():
    k = (
        schedules.linear()
        .warp(Schedule(torch.sqrt, lambda t: 0.5 / torch.sqrt(t)))
        .coefficients(0.0)
    )
    assert (k.beta.item(), k.dbeta.item()) == (0.0, math.inf)
    assert k.beta_dbeta.item() == pytest.approx(0.5, rel=1e-9)


def test_sigma_times_its_slope_stays_finite_where_the_slope_does_not():
    for path in (
        schedules.variance_preserving().rescale(lambda t: 1 + t),
        schedules.variance_preserving().warp(lambda t: t * (1 + t) / 2),
    ):
        k = path.coefficients(1.0)
        assert k.dsigma == -math.inf
        factor = 4.0 if path.boundary.beta1 == 2.0 else 1.5
        assert k.sigma_dsigma.item() == pytest.approx(-0.05 * factor, rel=1e-9)


# Inverses


@given(t=st.floats(1e-6, 1 - 1e-6), name=st.sampled_from(["linear", "trigonometric"]))
@settings(deadline=None, max_examples=40)
def test_the_closed_inverse_is_carried_over(t, name):
    """Against bisection; a rounding of log-SNR over its slope, at least 1, and of t by the warp."""
    for which in ("square", "late", "middle"):
        tau, inverse = TAUS[which]
        known = PATHS[name].warp(tau, inverse)
        searched = PATHS[name].warp(tau)
        assert known._time_at_log_snr is not None
        assert searched._time_at_log_snr is None
        lam = known.log_snr(t)
        room = 1e-14 * (1 + lam.abs().item()) / min(t, 1 - t)
        assert abs(known.time_at_log_snr(lam) - searched.time_at_log_snr(lam)).item() <= room
    lam = PATHS[name].log_snr(t)
    rescaled = PATHS[name].rescale(lambda t: 1 + t)
    assert rescaled._time_at_log_snr is not None
    torch.testing.assert_close(rescaled.time_at_log_snr(lam), at(t), rtol=1e-9, atol=1e-15)


# The base at t = 1


@pytest.mark.parametrize("name", PATHS)
def test_what_needs_the_base_at_the_start_says_that_it_is_at_the_end(name):
    path = PATHS[name].reverse()
    assert path.reversed
    assert not path.monotone
    for call in (lambda: path.base, lambda: path.prior_gap(0.0, 1.0)):
        with pytest.raises(Unsupported, match=r"t = 1.*reverse\(\)"):
            call()
    with pytest.raises(ScheduleError, match="no inverse"):
        path.time_at_log_snr(0.0)
    assert path.reverse().base == PATHS[name].base
    assert not PATHS[name].reversed


def test_a_reversed_path_is_silent_where_the_path_is_at_its_other_end():
    path = schedules.linear().reverse()
    with pytest.raises(UndeterminedView, match="sigma is 0"):
        path.convert(X, "data", "velocity", X, 0.0)
    assert torch.equal(path.convert(X, "velocity", "data", X, 0.0), X)


# What makes no sense


@pytest.mark.parametrize(
    ("tau", "says"),
    [
        (lambda t: 1 - t, r"tau falls from 1 at t = 0 to 0.999999.*reverse\(\)"),
        (lambda t: t + 0.2 * torch.sin(2 * math.pi * t), r"tau falls from .* at t = 0\.\d+"),
        (lambda t: 1.5 * t, r"tau\(0\.6\d*\) is 1\.0\d*, outside"),
        (lambda t: t - 0.25, r"tau\(0\) is -0.25, outside"),
        (lambda t: 1 / t, r"tau\(0\) is inf"),
        (lambda t: t.float(), "tau.*float32"),
        (0.5, "tau is a float"),
    ],
)
def test_a_warp_that_is_none_is_shown(tau, says):
    with pytest.raises(ScheduleError, match=says):
        schedules.linear().warp(tau)


@pytest.mark.parametrize(
    ("c", "says"),
    [
        (0.0, r"c\(0\) is 0,.*positive"),
        (-2, r"c\(0\) is -2"),
        (math.nan, r"c\(0\) is nan"),
        (lambda t: 1 - t, r"c\(1\) is 0"),
        (lambda t: torch.cos(3 * t), r"c\(0.5\d*\) is -0"),
        (lambda t: 1 / t, r"c\(0\) is inf"),
        ("two", "c is a str"),
    ],
)
def test_a_scale_that_is_not_positive_is_shown(c, says):
    with pytest.raises(ScheduleError, match=says):
        schedules.linear().rescale(c)


# Stored


def test_named_changes_are_rebuilt_from_their_config():
    path = schedules.variance_preserving(0.2, 10.0).rescale(3.0).reverse()
    again = schedules.from_config(path.config)
    assert again.config == path.config
    t = torch.linspace(0, 1, 7, dtype=F64)
    assert torch.equal(again.coefficients(t).beta, path.coefficients(t).beta)
    assert schedules.linear().warp(lambda t: t * t).config is None
    with pytest.raises(OptionError, match='needs "path"'):
        schedules.from_config({"name": "rescale", "c": 2.0})


def test_a_copy_is_a_path_of_its_own():
    path = schedules.linear().warp(*TAUS["square"]).rescale(lambda t: 1 + t)
    twin = copy.deepcopy(path)
    assert torch.equal(twin.at(0.3, X, -X), path.at(0.3, X, -X))
    assert torch.equal(twin.time_at_log_snr(at(1.0)), path.time_at_log_snr(at(1.0)))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_points_keep_their_dtype(dtype):
    path = schedules.variance_preserving().warp(TAUS["square"][0]).rescale(2.0).reverse()
    x = X.to(dtype)
    assert path.at(0.3, x, x).dtype == path.rate(0.3, x, x).dtype == dtype
