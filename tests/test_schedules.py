"""The named paths against their definitions in 60 digits, and what a `Schedule` promises."""

import json
import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import Interpolant, exact, schedules
from interp.errors import OptionError, ScheduleError, UnknownName
from interp.schedules import Schedule

HALF_PI = math.pi / 2


def at(t):
    return torch.tensor(t, dtype=torch.float64)


def sines(theta):
    return (
        lambda t: mp.sin(theta * (1 - t)) / mp.sin(theta),
        lambda t: mp.sin(theta * t) / mp.sin(theta),
    )


def preserving(low, high):
    low, high = mp.mpf(low), mp.mpf(high)

    def beta(t):
        u = 1 - t
        return mp.exp(-u * u * (high - low) / 4 - u * low / 2)

    return lambda t: mp.sqrt(1 - beta(t) ** 2), beta


def cosines(s):
    def beta(t):
        c = mp.pi / 2 / (1 + mp.mpf(s))
        return mp.cos((1 - t + mp.mpf(s)) * c) / mp.cos(mp.mpf(s) * c)

    return lambda t: mp.sqrt(1 - beta(t) ** 2), beta


def karras(low, high, rho):
    low, high, rho = mp.mpf(low), mp.mpf(high), mp.mpf(rho)
    return lambda t: (high ** (1 / rho) * (1 - t) + t * low ** (1 / rho)) ** rho, one


def one(t):
    return mp.mpf(1)


def zero(t):
    return mp.mpf(0)


vp = preserving(0.1, 20.0)
# The path, and alpha, beta (and gamma) by definition, to be evaluated by mpmath.
PATHS = {
    "linear": (schedules.linear(), (lambda t: 1 - t, lambda t: t)),
    "power": (schedules.power(3.0, 1.5), (lambda t: (1 - t) ** 3, lambda t: t ** mp.mpf(1.5))),
    "power(1/2)": (schedules.power(0.5, 0.5), (lambda t: mp.sqrt(1 - t), mp.sqrt)),
    "polynomial": (schedules.polynomial(3.0), (lambda t: 1 - t**3, lambda t: t**3)),
    "trigonometric": (
        schedules.trigonometric(),
        (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.sin(mp.pi * t / 2)),
    ),
    "wide angle": (schedules.trigonometric(2.0), sines(mp.mpf(2))),
    "narrow angle": (schedules.trigonometric(1e-3), sines(mp.mpf(1e-3))),
    "cosine": (schedules.cosine(), cosines(0.008)),
    "cosine(0.2)": (schedules.cosine(0.2), cosines(0.2)),
    "variance_preserving": (schedules.variance_preserving(), vp),
    "constant rate": (schedules.variance_preserving(3.0, 3.0), preserving(3.0, 3.0)),
    "sub_variance_preserving": (
        schedules.sub_variance_preserving(),
        (lambda t: 1 - vp[1](t) ** 2, vp[1]),
    ),
    "variance_exploding": (
        schedules.variance_exploding(),
        (lambda t: mp.mpf(0.01) * (50 / mp.mpf(0.01)) ** (1 - t), one),
    ),
    "edm": (schedules.edm(), karras(0.0, 80.0, 7.0)),
    "edm(.002)": (schedules.edm(0.002), karras(0.002, 80.0, 7.0)),
    "brownian_bridge": (
        schedules.brownian_bridge(0.5),
        (lambda t: 1 - t, lambda t: t, lambda t: mp.sqrt(t * (1 - t)) / 2),
    ),
    "foellmer": (schedules.foellmer(2.0), (lambda t: 2 * mp.sqrt(t * (1 - t)), lambda t: t)),
    "encode_decode": (
        schedules.encode_decode(),
        (
            lambda t: mp.cos(mp.pi * t) ** 2 if t < 0.5 else mp.mpf(0),
            lambda t: mp.cos(mp.pi * t) ** 2 if t > 0.5 else mp.mpf(0),
            lambda t: mp.sin(mp.pi * t) ** 2,
        ),
    ),
    "mirror": (schedules.mirror(), (zero, one, lambda t: mp.sqrt(2 * t * (1 - t)))),
    "parabola": (
        schedules.with_gamma(schedules.polynomial(2.0), "parabola", 0.3),
        (lambda t: 1 - t * t, lambda t: t * t, lambda t: mp.mpf(0.3) * t * (1 - t)),
    ),
}
TIMES = [1e-12, 1e-6, 0.11, 0.5, 0.8, 1 - 1e-6, 1 - 1e-12]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", TIMES)
def test_value_slope_and_product_are_the_definitions(name, t):
    """To 1e-12: a dozen roundings of 1e-16, times up to 1e3 in the narrow angle's slope."""
    path, definitions = PATHS[name]
    with mp.workdps(60):
        parts = (path.alpha, path.beta, *([path.gamma] if path.gamma else []))
        for schedule, f in zip(parts, definitions, strict=True):
            if path.config["name"] == "encode_decode" and t == 0.5:
                continue  # where a second derivative jumps, a central difference says nothing
            value, slope = f(mp.mpf(t)), mp.diff(f, mp.mpf(t), h=mp.mpf(10) ** -30)
            wanted = [value, slope, value * slope]
            time = at(t)
            apart = [schedule(time), schedule.derivative(time), schedule.times_derivative(time)]
            for found in (apart, schedule.jet(time)):
                for one, exact in zip(found, wanted, strict=True):
                    assert abs(one.item() - exact) <= 1e-12 * abs(exact)


PURE = ("linear", "power", "power(1/2)", "polynomial", "trigonometric", "wide angle",
        "narrow angle", "cosine", "cosine(0.2)", "brownian_bridge", "encode_decode")  # fmt: skip
CLEAN = ("variance_preserving", "constant rate", "sub_variance_preserving", "edm", "foellmer")


@pytest.mark.parametrize("name", [*PURE, *CLEAN, "mirror"])
def test_the_ends_are_exact(name):
    b = PATHS[name][0].boundary
    assert (b.alpha1, b.beta1, b.gamma0, b.gamma1) == (0.0, 1.0, 0.0, 0.0)
    assert math.copysign(1, b.alpha1) == 1
    if name in PURE:
        assert (b.alpha0, b.beta0) == (1.0, 0.0)


def test_ends_that_are_not_reached():
    """To a few roundings: exp of a logarithm of size 5."""
    assert PATHS["variance_exploding"][0].boundary.alpha0 == pytest.approx(50, rel=4e-15)
    assert PATHS["variance_exploding"][0].boundary.alpha1 == pytest.approx(0.01, rel=4e-15)
    assert PATHS["edm"][0].boundary.alpha0 == 80
    assert PATHS["edm(.002)"][0].boundary.alpha1 == pytest.approx(0.002, rel=4e-15)


def test_karras_levels_are_times_of_the_edm_path():
    """Karras et al. 2022, eq. 5, with N = 18: uniform times of both parametrisations."""
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = at([(a + i / 17 * (b - a)) ** 7 for i in range(18)])
    i = torch.arange(18, dtype=torch.float64)
    # To 1e-12: a level is a 7th power of what is rounded, 4.5 times smaller at the end.
    torch.testing.assert_close(schedules.edm(0.002).alpha(i / 17), levels, rtol=1e-12, atol=0)
    stretch = 1 - (0.002 / 80) ** (1 / 7)
    assert stretch == pytest.approx(0.77993, abs=5e-6)  # as published: 5 digits
    torch.testing.assert_close(schedules.edm().alpha(i / 17 * stretch), levels, rtol=1e-12, atol=0)


def test_sub_vp_ends_are_the_published_ones():
    """FAMILIES of Song et al. 2020: sigma(0) = .999957, and alpha' = -beta_min at the data."""
    path = schedules.sub_variance_preserving()
    assert path.boundary.alpha0 == pytest.approx(0.999957, abs=5e-7)
    assert path.alpha.derivative(at(1.0)).item() == pytest.approx(-0.1, rel=1e-14)


def test_cosine_keeps_the_variance_and_leaves_the_data_as_a_root():
    path, c = schedules.cosine(), math.pi / 2 / 1.008
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.beta(t) ** 2, torch.ones_like(t))
    assert path.alpha.times_derivative(at(1.0)).item() == pytest.approx(-c / math.tan(c), rel=1e-13)
    assert path.alpha.derivative(at(1.0)).item() == -math.inf


def test_the_one_sided_bridge_is_one_gaussian():
    path = schedules.brownian_bridge(0.7, gaussian_base=True)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    variance = (1 - t) * (1 - t + 0.49 * t)
    torch.testing.assert_close(path.coefficients(t).sigma ** 2, variance)
    path.convert(torch.ones(2), "velocity", "score", torch.ones(2), 0.5)


def test_a_latent_of_ones_own():
    mine = schedules.with_gamma(Interpolant(lambda t: 1 - t, lambda t: t), "sine_squared")
    assert mine.config is None
    assert mine.gaussian_base
    assert mine.gamma(at(0.25)).item() == pytest.approx(0.5)
    with pytest.raises(OptionError, match="gamma already"):
        schedules.with_gamma(mine)
    with pytest.raises(UnknownName, match="parabola"):
        schedules.with_gamma(schedules.linear(), "parabole")
    with pytest.raises(OptionError, match="is a str, not a path"):
        schedules.with_gamma("linear")


def test_variance_preserving_ends_are_the_published_ones():
    """Song et al. 2020 with 0.1 and 20: beta(0) = exp(-5.025); alpha alpha'(1) = -beta_min / 2."""
    path = schedules.variance_preserving()
    assert path.beta(at(0.0)).item() == pytest.approx(math.exp(-5.025), rel=1e-15)
    assert path.alpha.derivative(at(1.0)).item() == -math.inf
    assert path.alpha.times_derivative(at(1.0)).item() == pytest.approx(-0.05, rel=1e-15)
    assert path.noise_scale(0.0).item() == pytest.approx(152.2, abs=0.05)  # as published: 4 digits


def test_trigonometric_slopes_vanish_exactly_where_they_should():
    path = schedules.trigonometric()
    assert path.alpha.derivative(at(0.0)).item() == 0.0
    assert path.beta.derivative(at(1.0)).item() == 0.0


def power(p, q):
    return schedules.power(p, q), (lambda t: (1 - t) ** mp.mpf(p), lambda t: t ** mp.mpf(q))


def rates(build, alpha):
    def one(low, high):
        beta = preserving(low, high)[1]
        return build(low, high), (lambda t: alpha(beta(t)), beta)

    return one


def exploding(low, ratio):
    high = low * ratio
    fall = lambda t: mp.mpf(low) * (mp.mpf(high) / mp.mpf(low)) ** (1 - t)  # noqa: E731
    return schedules.variance_exploding(low, high), (fall, one)


def bridge(sigma):
    path = schedules.brownian_bridge(sigma, gaussian_base=True)
    gamma = lambda t: mp.mpf(sigma) * mp.sqrt(t * (1 - t))  # noqa: E731
    return path, (lambda t: 1 - t, lambda t: t, gamma)


RATES = (st.floats(0.01, 3.0), st.floats(0.1, 40.0))
#: Any member of the families with a Gaussian base, with its definition.
MEMBERS = st.one_of(
    st.builds(power, st.floats(0.5, 4.0), st.floats(0.5, 4.0)),
    st.builds(
        power, st.shared(st.floats(0.5, 4.0), key="p"), st.shared(st.floats(0.5, 4.0), key="p")
    ),
    st.floats(0.5, 4.0).map(
        lambda n: (
            schedules.polynomial(n),
            (lambda t: 1 - t ** mp.mpf(n), lambda t: t ** mp.mpf(n)),
        )
    ),
    st.floats(0.01, 3.1).map(lambda a: (schedules.trigonometric(a), sines(mp.mpf(a)))),
    st.floats(1e-4, 1.0).map(lambda s: (schedules.cosine(s), cosines(s))),
    st.builds(rates(schedules.variance_preserving, lambda b: mp.sqrt(1 - b**2)), *RATES),
    st.builds(rates(schedules.sub_variance_preserving, lambda b: 1 - b**2), *RATES),
    st.builds(exploding, st.floats(1e-3, 1.0), st.floats(1.1, 1e5)),
    st.builds(
        lambda low, high, rho: (schedules.edm(low, high, rho), karras(low, high, rho)),
        st.floats(1e-4, 0.5) | st.just(0.0),
        st.floats(1.0, 200.0),
        st.floats(0.5, 9.0),
    ),
    st.floats(0.05, 5.0).map(bridge),
    st.floats(0.05, 5.0).map(
        lambda s: (
            schedules.foellmer(s),
            (lambda t: mp.mpf(s) * mp.sqrt(t * (1 - t)), lambda t: t),
        )
    ),
)
#: Times as near to both ends as 1e-12.
DISTANCES = st.floats(-12.0, math.log10(0.5)).map(lambda e: 10**e)
ANY_TIME = DISTANCES | DISTANCES.map(lambda u: 1 - u)


@settings(deadline=None, max_examples=200)
@given(member=MEMBERS, t=ANY_TIME)
def test_any_member_is_its_definition_in_sixty_digits(member, t):
    """To 1e-12, as above."""
    path, definitions = member
    k = path.coefficients(t)
    with mp.workdps(60):
        functions = [f(mp.mpf(t)) for f in definitions]
        slopes = [mp.diff(f, mp.mpf(t), h=mp.mpf(10) ** -30) for f in definitions]
        (a, b, *g), (da, db, *dg) = functions, slopes
        sigma, product = (a, a * da) if not g else (mp.hypot(a, g[0]), a * da + g[0] * dg[0])
        found = (k.alpha, k.beta, k.sigma, k.dalpha, k.dbeta, k.beta_dbeta)
        for one_, exact in zip(found, (a, b, sigma, da, db, b * db), strict=True):
            # pi is itself rounded, by 6e-17, beside which a slope that vanishes is small.
            assert abs(one_.item() - exact) <= 1e-12 * abs(exact) + 1e-16 * (abs(da) + abs(db))
        # With a latent the two products may cancel.
        size = abs(a * da) + (abs(g[0] * dg[0]) if g else 0)
        assert abs(k.sigma_dsigma.item() - product) <= 1e-12 * size
        lam = 2 * mp.log(b / sigma)
        assert abs(path.log_snr(t).item() - lam) <= 1e-12 * max(1, abs(lam))


@settings(deadline=None, max_examples=100)
@given(member=MEMBERS, times=st.lists(ANY_TIME, min_size=2, max_size=20, unique=True))
def test_log_snr_rises_and_inverts(member, times):
    path = member[0]
    t = at(sorted(times))
    lam = path.log_snr(t)
    assert (lam.diff() >= 0).all()
    apart = t.diff() > 1e-9 * torch.minimum(t[:-1], 1 - t[1:])
    assert (lam.diff() > 0)[apart].all()
    # What 20 roundings of log-SNR leave of t, and two of t itself; 1e-15 of its 1 / t at t = 0.
    k = path.coefficients(t)
    slope = 2 * (k.beta_dbeta / k.beta**2 - k.sigma_dsigma / k.sigma**2)
    back = path.time_at_log_snr(lam)
    assert ((back - t).abs() <= 5e-15 * lam.abs().clamp(min=1) / slope + 5e-16).all()


TARGET = exact.Mixture([0.4, 0.6], [-1.0, 0.8], [0.3, 0.1])


@settings(deadline=None, max_examples=60)
@given(member=MEMBERS, t=st.floats(0.05, 0.95), x=st.floats(-2.0, 2.0))
def test_the_velocity_carries_the_density(member, t, x):
    """The continuity equation, d log rho / dt = -(dv/dx + v s), on a mixture of normals."""
    path = member[0]
    scale = path.coefficients(t).sigma.item() + path.beta(at(t)).item()
    point = at([[x * scale]]).requires_grad_()
    v = TARGET.velocity(path)(t, point)
    (divergence,) = torch.autograd.grad(v.sum(), point)
    s = TARGET.score(path)(t, point)
    carried = -(divergence + v * s).item()
    h = 1e-4

    def log_density(t):
        return TARGET.marginal(path, t).log_prob(point.detach()).item()

    near = [log_density(t + j * h) for j in (-2, -1, 1, 2)]
    difference = (8 * (near[2] - near[1]) - (near[3] - near[0])) / (12 * h)
    # Rounding 1e-15 / h, and h^4 of a fifth derivative, which grows as powers of the rates.
    k = path.coefficients(t)
    rate = (k.dbeta / k.beta).abs().item() + (k.dsigma / k.sigma).abs().item() + 1 / (t * (1 - t))
    assert abs(difference - carried) <= 1e-9 + 100 * h**4 * rate**5 * max(1, x**2) ** 3


@pytest.mark.parametrize("name", PATHS)
def test_config_rebuilds_the_path_through_json(name):
    path = PATHS[name][0]
    config = json.loads(json.dumps(path.config))
    again = schedules.from_config(config)
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    assert again.config == path.config
    assert torch.equal(again.coefficients(t).alpha, path.coefficients(t).alpha)
    assert torch.equal(again.coefficients(t).beta, path.coefficients(t).beta)
    assert torch.equal(again.coefficients(t).gamma, path.coefficients(t).gamma)
    assert again.gaussian_base == path.gaussian_base
    assert path.config["name"] in repr(path)


def test_names_are_what_from_config_builds():
    closed = {path.config["name"] for path, _ in PATHS.values()}
    assert set(schedules.names()) >= closed
    for name in closed - {"with_gamma"}:
        assert schedules.from_config({"name": name}).config == schedules.from_config(name).config
    for name in schedules.names():
        assert callable(getattr(schedules, name))


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"name": "liner"}, UnknownName, "linear"),
        ("liner", UnknownName, "linear"),
        (3, OptionError, "int"),
        ({"name": 3}, UnknownName, "linear"),
        ({"theta": 1.0}, OptionError, '"name"'),
        ({"name": "trigonometric", "teta": 1.0}, UnknownName, "theta"),
        ({"name": "trigonometric", "theta": 4.0}, OptionError, "4.0"),
        ({"name": "with_gamma"}, OptionError, '"path"'),
        ({"name": "with_gamma", "path": {"name": "liner"}}, UnknownName, "linear"),
    ],
)
def test_a_bad_config_is_named(config, error, says):
    with pytest.raises(error, match=says):
        schedules.from_config(config)


@pytest.mark.parametrize("theta", [0.0, -1.0, math.pi, math.nan])
def test_a_bad_angle_is_refused(theta):
    with pytest.raises(OptionError, match="theta"):
        schedules.trigonometric(theta)


@pytest.mark.parametrize("rates", [(0.0, 20.0), (0.1, -1.0), (0.1, math.inf), (math.nan, 20.0)])
def test_bad_rates_are_refused(rates):
    with pytest.raises(OptionError, match="beta_m"):
        schedules.variance_preserving(*rates)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: schedules.power(0.4), "p=0.4"),
        (lambda: schedules.power(1.0, math.nan), "q=nan"),
        (lambda: schedules.power("2"), "p='2'"),
        (lambda: schedules.polynomial(0.1), "n=0.1"),
        (lambda: schedules.cosine(0.0), "s=0.0"),
        (lambda: schedules.sub_variance_preserving(-1.0), "beta_min=-1.0"),
        (lambda: schedules.variance_exploding(0.0, 1.0), "sigma_min=0.0"),
        (lambda: schedules.variance_exploding(2.0, 1.0), "sigma_max=1.0"),
        (lambda: schedules.edm(-0.5), "sigma_min=-0.5"),
        (lambda: schedules.edm(0.0, math.inf), "sigma_max=inf"),
        (lambda: schedules.edm(rho=0.1), "rho=0.1"),
        (lambda: schedules.brownian_bridge(0.0), "sigma=0.0"),
        (lambda: schedules.foellmer(True), "sigma=True"),
        (lambda: schedules.mirror(a=-1.0), "a=-1.0"),
    ],
)
def test_bad_arguments_are_named(build, says):
    with pytest.raises(OptionError, match=says):
        build()


# Schedule


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda t: 0.7, lambda t: 0 * t),
        (lambda t: 2, lambda t: 0 * t),
        (lambda t: torch.tensor(0.7, dtype=torch.float64), lambda t: 0 * t),
        (lambda t: torch.exp(2 * t) + 1, lambda t: 2 * torch.exp(2 * t)),
        (lambda t: torch.where(t < 0.5, t**2, t - 0.25), lambda t: torch.where(t < 0.5, 2 * t, 1)),
    ],
)
def test_a_callable_is_differentiated_at_any_shape(function, slope, shape):
    t = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    schedule = Schedule(function)
    value, derivative, product = schedule.jet(t)
    assert value.shape == derivative.shape == product.shape == t.shape
    assert value.dtype == derivative.dtype == torch.float64
    torch.testing.assert_close(value, torch.as_tensor(function(t)).double().expand(shape))
    torch.testing.assert_close(derivative, slope(t).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.times_derivative(t), value * derivative, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "end", "product"),
    [
        (lambda t: torch.sqrt(1 - t), 1.0, -0.5),
        (lambda t: torch.sqrt(t * (1 - t)), 0.0, 0.5),
        (lambda t: torch.sqrt(t * (1 - t)), 1.0, -0.5),
        (lambda t: torch.sqrt(torch.sin(2 * t)), 0.0, 1.0),
        (lambda t: torch.sqrt(-torch.expm1(-9.95 * (1 - t) ** 2 - 0.1 * (1 - t))), 1.0, -0.05),
    ],
)
def test_the_product_is_finite_at_a_vertical_tangent(function, end, product):
    """To 1e-8: h^2 times a third derivative of f^2 / 2 of up to 100, with h = 1e-5."""
    t = at([end, 0.4])
    schedule = Schedule(function)
    assert schedule.derivative(t)[0].isinf()
    assert schedule.times_derivative(t)[0].item() == pytest.approx(product, abs=1e-8)
    assert schedule.times_derivative(at(end)).item() == pytest.approx(product, abs=1e-8)
    assert torch.sign(schedule.derivative(at(end))).item() == math.copysign(1, product)
    inside = schedule(t)[1] * schedule.derivative(t)[1]
    assert schedule.times_derivative(t)[1] == inside


def test_a_root_of_a_square_keeps_its_slope():
    """|cos(pi t / 2)| written sqrt(1 - sin^2): autograd's 0 times infinity at t = 1 is -pi / 2.

    To 1e-5: what 1 - sin^2 loses to cancellation at 1 - 1e-5, 1e-16 / 2.5e-10, and as much again.
    """
    schedule = Schedule(lambda t: torch.sqrt(1 - torch.sin(HALF_PI * t) ** 2))
    assert schedule.derivative(at(1.0)).item() == pytest.approx(-HALF_PI, rel=1e-5)
    assert schedule.times_derivative(at(1.0)).item() == 0.0


def test_a_vertical_tangent_away_from_zero_is_told_as_it_is():
    schedule = Schedule(lambda t: 1 - torch.sqrt(t))
    assert schedule.jet(at(0.0)) == (1.0, -math.inf, -math.inf)


def test_given_derivatives_are_used():
    schedule = Schedule(torch.sqrt, lambda t: 0.5 / torch.sqrt(t), lambda t: 0.5)
    assert schedule.derivative(at(0.0)).item() == math.inf
    assert schedule.times_derivative(at(0.0)).item() == 0.5
    assert schedule.jet(at(0.0))[2].item() == 0.5


def test_a_learned_schedule_passes_gradients_through_value_and_slope():
    """d/dp of t^p and of p t^(p - 1), by the closed forms."""
    p = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    schedule, t = Schedule(lambda t: t**p), at(0.3)
    value, slope, _ = schedule.jet(t)
    (by_value,) = torch.autograd.grad(value, p, retain_graph=True)
    (by_slope,) = torch.autograd.grad(slope, p)
    log = math.log(0.3)
    assert by_value.item() == pytest.approx(0.3**2 * log, rel=1e-14)
    assert by_slope.item() == pytest.approx(0.3 + 2 * 0.3 * log, rel=1e-14)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda t: t.float(), "float32"),
        (lambda t: t[:2], r"shape \(2,\)"),
        (lambda t: "t", "str"),
        (lambda t: torch.ones_like(t, dtype=torch.int64), "int64"),
    ],
)
def test_what_a_schedule_returns_is_checked(function, says):
    with pytest.raises(ScheduleError, match=says):
        Schedule(function)(torch.rand(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("beta", "says"),
    [
        (lambda t: t / 2 + 0.5 * (t > 0.5), r"jumps at t = 0.5, from 0.25 to 0.75"),
        (lambda t: t + 1e-4 * (t > 0.123456), r"jumps at t = 0.123456"),
        (lambda t: torch.stack([t, t + (t > 0.3)], -1), r"jumps at t = 0.3, from 0.3 to 1.3"),
        (Schedule(lambda t: t * t, lambda t: t), r"given as 0.0028\d+, but beta moves by 0.0057"),
    ],
)
def test_a_derivative_that_is_not_the_functions_is_seen(beta, says):
    with pytest.raises(ScheduleError, match=says):
        Interpolant(lambda t: 1 - t, beta, gaussian_base=False)


@pytest.mark.parametrize(
    "beta",
    [
        lambda t: torch.sigmoid(1e3 * (t - 0.4)) + 1e-300,  # steep, not broken
        lambda t: t + (t - 0.5).abs(),  # a kink
        torch.sqrt,
        lambda t: t.pow(0.1),
    ],
)
def test_what_is_steep_or_has_a_kink_is_continuous(beta):
    Interpolant(lambda t: 1 - t, beta, gaussian_base=False)


@pytest.mark.parametrize(
    "path", [schedules.linear(), schedules.edm(), schedules.from_betas([0.1, 0.2, 0.3])], ids=repr
)
def test_a_schedule_takes_a_number(path):
    for number in (0.0, 0.25, 1):
        t = torch.tensor(number, dtype=torch.float64)
        for f in (path.alpha, path.beta):
            assert torch.equal(f(number), f(t))
            assert torch.equal(f.derivative(number), f.derivative(t))


@pytest.mark.parametrize("gamma", [schedules.gammas.root(1.0), schedules.gammas.parabola(2.0)])
def test_a_latent_turns_exactly_at_the_middle(gamma):
    """The product (1 - 2 t) / 2 or the slope 2 (1 - 2 t), a rounding before t = 1/2."""
    before = 0.5 - 2.0**-54
    assert gamma.times_derivative(before).item() == pytest.approx(2.0**-54, rel=1e-15)
