"""The views against their definition in 60 digits, at both ends and between."""

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import Interpolant, schedules
from interp.errors import UndeterminedView, UnknownName
from interp.views import VIEWS

EPS = 2.0**-52
MEAN, STD, POINT = 0.7, 0.6, 0.8  # of the Gaussian target, and where it is looked at


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


def log_beta(t):
    u, low = 1 - t, mp.mpf(0.1)
    return -u * u * (20 - low) / 4 - u * low / 2


def none(t):
    return mp.mpf(0)


# Each path and its alpha, beta, gamma by definition, for mpmath.
PATHS = {
    "linear": (schedules.linear(), (lambda t: 1 - t, lambda t: t, none)),
    "trigonometric": (
        schedules.trigonometric(),
        (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.sin(mp.pi * t / 2), none),
    ),
    "variance_preserving": (
        schedules.variance_preserving(),
        (lambda t: mp.sqrt(1 - mp.exp(2 * log_beta(t))), lambda t: mp.exp(log_beta(t)), none),
    ),
    "custom": (
        Interpolant(lambda t: torch.cos(math.pi * t / 2), lambda t: torch.expm1(t) / math.expm1(1)),
        (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.expm1(t) / mp.expm1(1), none),
    ),
    "custom root": (
        Interpolant(lambda t: torch.sqrt((1 - t) * (1 + t)), lambda t: t),
        (lambda t: mp.sqrt(1 - t * t), lambda t: t, none),
    ),
    "custom latent": (
        Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t))),
        (lambda t: 1 - t, lambda t: t, lambda t: mp.sqrt(t * (1 - t))),
    ),
    "straight latent": (
        Interpolant(lambda t: 1 - t, lambda t: t, lambda t: t * (1 - t)),
        (lambda t: 1 - t, lambda t: t, lambda t: t * (1 - t)),
    ),
    "constant latent": (
        Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.25),
        (lambda t: 1 - t, lambda t: t, lambda t: mp.mpf(0.25)),
    ),
}


def views_of_gaussian(definitions, t, x):
    """The views of N(MEAN, STD^2) at x, and alpha, ..., from the definition in 60 digits.

    (I_t, dI/dt, x0, x1) is jointly normal; each view is the mean of its variable given I_t = x.
    """
    t, m, s = mp.mpf(t), mp.mpf(MEAN), mp.mpf(STD)
    a, b, g = (f(t) for f in definitions)
    da, db, dg = (mp.diff(f, t, h=mp.mpf(10) ** -30) for f in definitions)
    variance = a * a + b * b * s * s + g * g
    r = (mp.mpf(x) - b * m) / variance
    sigma = mp.sqrt(a * a + g * g)
    found = {
        "velocity": db * m + (a * da + b * db * s * s + g * dg) * r,
        "score": -r,
        "noise": sigma * r,
        "data": m + b * s * s * r,
        "base": a * r,
        "energy_gradient": r,
        "v_prediction": b * sigma * r - sigma * (m + b * s * s * r),
        "flow_prediction": sigma * r - (m + b * s * s * r),
    }
    return found, (b, sigma, db, (a * da + g * dg) / sigma, a / sigma)


def slope_in_source(source, target, b, sigma, db, dsigma, share):
    """d target / d source at fixed x, by x = b D + sigma n: what a rounding of it is times."""
    per_noise = {
        "velocity": dsigma - db * sigma / b,
        "score": -1 / sigma,
        "noise": mp.mpf(1),
        "data": -sigma / b,
        "base": share,
        "energy_gradient": 1 / sigma,
        "v_prediction": b + sigma * sigma / b,
        "flow_prediction": 1 + sigma / b,
    }
    return per_noise[target] / per_noise[source]


@pytest.mark.parametrize("name", PATHS)
def test_sigma_is_one_gaussian_of_base_and_latent(name):
    """To 1e-12 and one eps, a few roundings, over the definitions in 60 digits."""
    path, definitions = PATHS[name]
    for t in (1e-6, 0.3, 0.9):
        with mp.workdps(60):
            _, (b, sigma, db, dsigma, _) = views_of_gaussian(definitions, t, POINT)
        k = path.coefficients(t)
        found = (k.beta, k.sigma, k.dbeta, k.dsigma, k.sigma_dsigma, path.noise_scale(t))
        for one, exact in zip(
            found, (b, sigma, db, dsigma, sigma * dsigma, sigma / b), strict=True
        ):
            assert abs(one.item() - exact) <= 1e-12 * abs(exact) + EPS
        assert path.log_snr(t).item() == pytest.approx(float(2 * mp.log(b / sigma)), abs=1e-13)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [1e-6, 0.3, 1 - 1e-6])
def test_every_conversion_is_the_closed_form(name, t):
    """Relative 1e-6 or the floor that the input's own rounding sets, whichever is larger.

    The source reaches `convert` rounded to float64: its error of up to 2^-53 |source| comes out
    times |d target / d source|, whatever the formula. Where x and the source nearly cancel the sum
    of two rounded products errs by as much again a few times: 8 halves of eps in all. The floor
    passes 1e-6 from data at 1 - 1e-6 alone, where x - beta D is sigma^2 = 1e-12 and all digits but
    four are gone from D before it arrives (linear to noise: 5e-5).
    """
    path, definitions = PATHS[name]
    x = at([POINT])
    with mp.workdps(60):
        exact, numbers = views_of_gaussian(definitions, t, POINT)
        for source in VIEWS:
            for target in VIEWS:
                value = at([float(exact[source])])
                error = abs(path.convert(value, source, target, x, t).item() - exact[target])
                condition = abs(slope_in_source(source, target, *numbers) * exact[source])
                floor = 4 * EPS * condition
                allowed = 1e-6 * abs(exact[target])
                assert error <= max(allowed, floor), (source, target)
                assert floor <= allowed or (source == "data" and t > 0.5), (source, target)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.3, 0.9, 1 - 1e-3, 1 - 1e-6])
def test_in_float32_little_is_lost_beyond_the_rounding_of_the_inputs(name, t):
    """Within 4 times what rounding x and the source to float32 makes unavoidable.

    Both roundings, of up to half an ulp, come out times |d target / dx| and |d target / d source|,
    and the result is rounded once more. Taken over 64 points, so that both are met at their worst.
    """
    path, definitions = PATHS[name]
    half = 2.0**-24
    with mp.workdps(40):
        b, sigma, db, dsigma, share = views_of_gaussian(definitions, t, POINT)[1]
        table = {
            "velocity": (db, dsigma, 1), "data": (1, 0, 1), "noise": (0, 1, 1),
            "base": (0, share, 1), "score": (0, -1, sigma), "energy_gradient": (0, 1, sigma),
            "v_prediction": (-sigma, b, 1), "flow_prediction": (-1, 1, 1),
        }  # fmt: skip
        rows = {view: [float(v) for v in row] for view, row in table.items()}
        shares = {}
        for source, (a_s, c_s, w_s) in table.items():
            for target, (a_t, c_t, w_t) in table.items():
                delta_s, delta_t = b * c_s - sigma * a_s, b * c_t - sigma * a_t
                p, q = (a_t * c_s - c_t * a_s) / delta_s / w_t, delta_t * w_s / delta_s / w_t
                shares[source, target] = float(p), float(q)
        b, sigma = float(b), float(sigma)
    points = torch.linspace(-2, 3, 64, dtype=torch.float64)
    r = (points - b * MEAN) / (b * b * STD**2 + sigma**2)
    data, noise = MEAN + b * STD**2 * r, sigma * r
    exact = {view: (a * data + c * noise) / w for view, (a, c, w) in rows.items()}
    for (source, target), (p, q) in shares.items():
        if source == target:
            continue
        x, value = points.float(), exact[source].float()
        truth = p * x.double() + q * value.double()  # of the rounded inputs: no luck in these
        error = (path.convert(value, source, target, x, t).double() - truth).abs()
        floor = half * ((p * points).abs() + (q * exact[source]).abs() + exact[target].abs())
        assert (error / floor).max() <= 4 - 1, (source, target)  # 1 of the 4 is the inputs' own


# What is not determined at t = 0 and t = 1 by (source, target); all else is.
SCORES = ("score", "energy_gradient")
NOISE_LIKE = ("noise", "base", *SCORES)
MIXED = ("v_prediction", "flow_prediction")
FROM_NOISE = {(s, T) for s in NOISE_LIKE for T in ("data", "velocity", *MIXED)}
FROM_DATA = {("data", T) for T in (*NOISE_LIKE, "velocity", *MIXED)}
TO_SCORE = {(s, T) for s in ("noise", "base", "data", "velocity", *MIXED) for T in SCORES}
LOST = {
    ("linear", 0.0): FROM_NOISE,
    ("linear", 1.0): FROM_DATA | TO_SCORE,
    ("trigonometric", 0.0): FROM_NOISE,
    ("trigonometric", 1.0): FROM_DATA | TO_SCORE,
    ("custom", 0.0): FROM_NOISE,
    ("custom", 1.0): FROM_DATA | TO_SCORE,
    ("variance_preserving", 0.0): set(),
    # sigma' is infinite: velocity and score hold the same, noise = -sigma score is 0 and tells
    # nothing, and v is the noise.
    ("variance_preserving", 1.0): {
        *((s, T) for s in ("noise", "base", "data", *MIXED) for T in ("velocity", *SCORES)),
        *(("data", T) for T in ("noise", "base", *MIXED)),
    },
    ("custom root", 0.0): FROM_NOISE,
    ("straight latent", 0.0): FROM_NOISE,
    ("straight latent", 1.0): FROM_DATA | TO_SCORE,
    ("constant latent", 0.0): FROM_NOISE,
    # base = alpha / sigma noise is 0 at t = 1 and tells nothing.
    ("constant latent", 1.0): {("base", T) for T in VIEWS if T != "base"},
}


def exact_at_the_end(path, t):
    """The views at an end from the coefficients and their finite products."""
    k = path.coefficients(t)
    a, b, sigma, db, s_ds = (v.item() for v in (k.alpha, k.beta, k.sigma, k.dbeta, k.sigma_dsigma))
    r = (POINT - b * MEAN) / (b * b * STD**2 + sigma**2)
    return {
        "velocity": db * MEAN + (b * db * STD**2 + s_ds) * r,
        "score": -r,
        "noise": sigma * r,
        "data": MEAN + b * STD**2 * r,
        "base": a * r,
        "energy_gradient": r,
        "v_prediction": b * sigma * r - sigma * (MEAN + b * STD**2 * r),
        "flow_prediction": sigma * r - (MEAN + b * STD**2 * r),
    }


@pytest.mark.parametrize(("name", "t"), LOST)
@pytest.mark.parametrize("batched", [False, True])
def test_at_the_ends_a_conversion_is_exact_or_refused(name, t, batched):
    """Never infinity or noise: 1e-7 is what the one-sided limit of alpha alpha' allows."""
    path = PATHS[name][0]
    exact = exact_at_the_end(path, t)
    x, time = at([POINT, POINT]), at([t, 0.5]) if batched else t
    for source in VIEWS:
        value = at([exact[source]] * 2)
        for target in VIEWS:
            if (source, target) in LOST[name, t]:
                with pytest.raises(UndeterminedView, match=f"t = {t}.*{source}.*{target}"):
                    path.convert(value, source, target, x, time)
            else:
                found = path.convert(value, source, target, x, time)[0].item()
                assert found == pytest.approx(exact[target], rel=1e-7, abs=1e-12), (source, target)


def test_a_data_share_that_starts_flat_still_has_a_score():
    """beta = t^2: at t = 0 the velocity says nothing, but the score is the base's, -x / sigma^2."""
    path = Interpolant(lambda t: 2 - 2 * t, lambda t: t * t)
    x = at([0.8, -2.0])
    velocity = path.convert(x / 2, "noise", "velocity", x, 0.0)
    torch.testing.assert_close(velocity, -x, rtol=1e-15, atol=0)  # v = sigma' n, n = x / 2
    torch.testing.assert_close(path.convert(velocity, "velocity", "score", x, 0.0), -x / 4)
    with pytest.raises(UndeterminedView, match="beta is 0"):
        path.convert(velocity, "velocity", "data", x, 0.0)


def test_a_vertical_tangent_away_from_zero_leaves_the_rest_determined():
    """alpha = 2 (1 - sqrt(t)): at t = 0 sigma is 2 and sigma' infinite; the noise is x / 2."""
    path = Interpolant(lambda t: 2 * (1 - torch.sqrt(t)), lambda t: t)
    x = at([0.8, -2.0])
    torch.testing.assert_close(path.convert(x, "data", "noise", x, 0.0), x / 2, rtol=1e-15, atol=0)
    torch.testing.assert_close(path.convert(x, "data", "score", x, 0.0), -x / 4, rtol=1e-15, atol=0)
    with pytest.raises(UndeterminedView, match="vertical tangent"):
        path.convert(x, "data", "velocity", x, 0.0)


@given(
    t=st.floats(0.01, 0.99),
    name=st.sampled_from(sorted(PATHS)),
    source=st.sampled_from(VIEWS),
    target=st.sampled_from(VIEWS),
    value=st.floats(-3, 3),
)
@settings(deadline=None, max_examples=150)
def test_there_and_back_is_the_same(t, name, source, target, value):
    """To 1e-9: a condition of up to 1e4 each way (sigma' / sigma, 1 / beta), times 1e-16."""
    path, x, v = PATHS[name][0], at([POINT]), at([value])
    there = path.convert(v, source, target, x, t)
    back = path.convert(there, target, source, x, t)
    assert back.item() == pytest.approx(value, abs=1e-9 * (1 + abs(there.item())))


def test_a_conversion_is_linear_in_the_model_so_guidance_commutes():
    path, x = schedules.trigonometric(), torch.randn(5, 3, dtype=torch.float64)
    u, c = torch.randn(2, 5, 3, dtype=torch.float64)
    guided = path.convert(u + 2.5 * (c - u), "velocity", "data", x, 0.4)
    u, c = (path.convert(v, "velocity", "data", x, 0.4) for v in (u, c))
    torch.testing.assert_close(guided, u + 2.5 * (c - u), rtol=1e-13, atol=1e-13)  # 3-digit sums


def test_the_same_view_comes_back_untouched():
    x = torch.randn(3, 2)
    bridge = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.1, gaussian_base=False)
    for path in (schedules.linear(), bridge):
        for view in VIEWS:
            assert path.convert(x, view, view, x, 1.0) is x


# Two-sided: the base is not Gaussian, and may depend on the data


TWO_SIDED = (lambda t: 1 - t, lambda t: t * (2 - t), lambda t: torch.sqrt(2 * t * (1 - t)))


def views_of_pair(path, t, x, latent=True):
    """Every view of jointly normal (x0, x1) of correlation 0.6, from the covariance with I_t."""
    k = path.coefficients(t)
    m0, m1, s0, s1, c = -0.4, 0.7, 0.8, 0.6, 0.6 * 0.8 * 0.6
    variance = k.alpha**2 * s0**2 + k.beta**2 * s1**2 + 2 * k.alpha * k.beta * c + k.gamma**2
    r = (x - k.alpha * m0 - k.beta * m1) / variance
    base = m0 + (k.alpha * s0**2 + k.beta * c) * r
    data = m1 + (k.beta * s1**2 + k.alpha * c) * r
    noise = k.gamma * r
    velocity = k.dalpha * base + k.dbeta * data + (k.dgamma * noise if latent else 0.0)
    return {
        "velocity": velocity, "score": -r, "noise": noise, "data": data, "base": base,
        "energy_gradient": r,
    }  # fmt: skip


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("t", [1e-6, 0.3, 1 - 1e-6])
def test_two_sided_what_is_determined_is_exact_for_a_dependent_base(latent, t):
    """To 1e-9: a condition of 1e6 at the ends (1 / gamma^2; the velocity alone at 1e-6)."""
    path = Interpolant(*TWO_SIDED[: 3 if latent else 2], gaussian_base=False)
    x = at([POINT, -1.0])
    exact = views_of_pair(path, t, x, latent)
    ends, latents = {"velocity", "data", "base"}, {"score", "noise", "energy_gradient"}
    for source in exact:
        for target in exact:
            kinds = (latents,) if latent else (ends, {"score", "energy_gradient"})
            if source == target or any({source, target} <= kind for kind in kinds):
                found = path.convert(exact[source], source, target, x, t)
                torch.testing.assert_close(found, exact[target], rtol=1e-9, atol=1e-9)
            else:
                why = "a second function is missing" if latent else "no gamma"
                with pytest.raises(UndeterminedView, match=f"{source}.*{target}.*{why}"):
                    path.convert(exact[source], source, target, x, t)


def test_two_sided_the_ends_say_what_has_vanished():
    bridge, x = Interpolant(*TWO_SIDED, gaussian_base=False), at([POINT])
    straight = Interpolant(*TWO_SIDED[:2], gaussian_base=False)
    assert bridge.convert(x, "score", "noise", x, 0.0) == 0
    with pytest.raises(UndeterminedView, match="gamma is 0 there"):
        bridge.convert(x, "noise", "score", x, 1.0)
    assert straight.convert(-x, "velocity", "base", x, 0.0) == x
    with pytest.raises(UndeterminedView, match="alpha is 0 there"):
        straight.convert(x, "data", "base", x, 1.0)


def test_two_sided_the_missing_function_is_named():
    bridge = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.1, gaussian_base=False)
    x = torch.randn(3, 2)
    with pytest.raises(UndeterminedView, match=r"t = 0.5.*velocity.*score.*missing, the score"):
        bridge.convert(x, "velocity", "score", x, 0.5)
    with pytest.raises(UndeterminedView, match="missing, the velocity"):
        bridge.convert(x, "score", "data", x, torch.rand(3))
    with pytest.raises(UndeterminedView, match="missing"):
        bridge.convert(x, "v_prediction", "noise", x, 0.5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("latent", [None, lambda t: torch.sqrt(t * (1 - t))])
def test_what_a_view_determines_is_where_it_converts(t, gaussian, latent):
    path = Interpolant(lambda t: 1 - t, lambda t: t, latent, gaussian_base=gaussian)
    x = torch.ones(2, 2, dtype=torch.float64)
    for source in VIEWS:
        told = path.determined_by(source, t)
        assert source in told
        for target in VIEWS:
            if target in told:
                assert path.convert(x, source, target, x, t).isfinite().all()
            else:
                with pytest.raises(UndeterminedView):
                    path.convert(x, source, target, x, t)


def test_an_unknown_view_gets_the_nearest_names():
    x = torch.randn(3, 2)
    with pytest.raises(UnknownName, match="velocity"):
        schedules.linear().convert(x, "velocty", "score", x, 0.5)


def test_float32_points_keep_their_dtype_under_float64_times():
    """Coefficients are cast last: 1e-6 is float32's rounding, 6e-8, of four terms of size 3."""
    path, (x0, x1) = schedules.trigonometric(), torch.randn(2, 6, 3)
    for t in (0.3, at(0.3), torch.full((6,), 0.3, dtype=torch.float64), torch.full((6, 3), 0.3)):
        point, rate = path.at(t, x0, x1), path.rate(t, x0, x1)
        data = path.convert(rate, "velocity", "data", point, t)
        assert point.dtype == rate.dtype == data.dtype == torch.float32
        torch.testing.assert_close(data, x1, rtol=0, atol=1e-6)
    scalar = torch.tensor(0.5)
    assert path.convert(scalar, "noise", "score", scalar, 0.3).dtype == torch.float32


def test_the_difference_of_nearly_equal_states_is_exact():
    """Near data, noise - data from data: x and D are one float32 number, and nothing is amplified."""
    path, t = schedules.trigonometric(), 1 - 2.0**-20
    x = torch.linspace(-2, 2, 101)
    k = path.coefficients(t)
    noise = (1 - k.beta) / k.sigma * x.double()  # x = beta x + sigma n
    found = path.convert(x, "data", "flow_prediction", x, t)
    torch.testing.assert_close(found.double(), noise - x, rtol=2e-7, atol=0)
    rows = path.convert(x, "data", "flow_prediction", x, torch.full((101,), t, dtype=torch.float64))
    torch.testing.assert_close(rows, found, rtol=2e-7, atol=0)
