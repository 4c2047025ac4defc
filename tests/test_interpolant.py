"""What a path promises: points, rates, times, ends, base, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import Interpolant, noise, schedules
from interp.errors import (
    OptionError,
    ScheduleError,
    TimeError,
    UnknownName,
    Unsupported,
)
from interp.schedules import Schedule

EPS = 2.0**-52


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
    "custom": Interpolant(
        lambda t: torch.cos(math.pi * t / 2), lambda t: torch.expm1(t) / math.expm1(1)
    ),
    "custom root": Interpolant(lambda t: torch.sqrt((1 - t) * (1 + t)), lambda t: t),
    "custom latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t))),
    "constant latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.25),
}


# Points and rates


@pytest.mark.parametrize("name", PATHS)
def test_the_rate_is_the_derivative_of_the_point(name):
    """A central difference of step 1e-5: 1e-7 for third derivatives of up to 1e3."""
    path = PATHS[name]
    x0, x1, z = torch.randn(3, 4, 2, dtype=torch.float64)
    t, h = at([0.05, 0.3, 0.6, 0.95]), 1e-5
    difference = (path.at(t + h, x0, x1, z) - path.at(t - h, x0, x1, z)) / (2 * h)
    torch.testing.assert_close(path.rate(t, x0, x1, z), difference, rtol=1e-7, atol=1e-7)


def test_a_time_per_row_scales_rows_even_in_a_square():
    path = schedules.linear()
    x0, x1 = torch.zeros(3, 3), torch.ones(3, 3)
    point = path.at(torch.tensor([0.0, 0.5, 1.0]), x0, x1)
    assert torch.equal(point, torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, 3))


def test_a_time_per_token_is_accepted():
    path, t = schedules.linear(), torch.rand(2, 5, dtype=torch.float64)
    x1 = torch.ones(2, 5, 3, dtype=torch.float64)
    assert torch.equal(path.at(t, 0 * x1, x1), t[..., None].expand(2, 5, 3))


@pytest.mark.parametrize(
    ("t", "says"),
    [
        (-1e-9, "-1e-09"),
        (1.0 + EPS, "1.0000000000000002"),
        (math.nan, "nan"),
        (torch.tensor([0.5, 0.2, 7.0, 0.1]), "7.0"),
        (torch.tensor([0.5, math.nan, 0.1, 0.1]), "nan"),
        (torch.rand(3), r"\(3,\).*\(4, 3\)"),
        (torch.rand(1), r"\(1,\)"),
        (torch.rand(4, 1), r"\(4, 1\)"),
        (torch.rand(1, 4, 3), r"\(1, 4, 3\)"),
        ("0.5", "str"),
        (torch.tensor(True), "bool"),
    ],
)
def test_a_time_that_means_nothing_is_named(t, says):
    path, x = schedules.linear(), torch.randn(4, 3)
    for call in (
        lambda: path.at(t, x, x),
        lambda: path.rate(t, x, x),
        lambda: path.convert(x, "velocity", "data", x, t),
    ):
        with pytest.raises(TimeError, match=says):
            call()


@pytest.mark.parametrize("t", [0, 1, 0.5, torch.tensor(1), torch.tensor(0.5).half()])
def test_any_number_in_the_interval_is_a_time(t):
    x = torch.randn(4, 3)
    torch.testing.assert_close(schedules.linear().at(t, 0 * x, x), float(t) * x)


def test_points_that_do_not_match_are_named():
    path, x = schedules.linear(), torch.randn(4, 3)
    with pytest.raises(OptionError, match=r"x0 has dtype torch.int64"):
        path.at(0.5, torch.ones(4, 3, dtype=torch.int64), x)
    with pytest.raises(OptionError, match=r"x1 has shape.*4, 2"):
        path.rate(0.5, x, x[:, :2])
    with pytest.raises(OptionError, match=r"x1 has dtype torch.float64"):
        path.at(0.5, x, x.double())
    with pytest.raises(OptionError, match=r"z has shape"):
        path.at(0.5, x, x, x[:2])
    with pytest.raises(OptionError, match=r"value has dtype"):
        path.convert(x.double(), "velocity", "data", x, 0.5)


def test_a_latent_is_never_silently_zero():
    path, x = PATHS["constant latent"], torch.randn(4, 3)
    for method in (path.at, path.rate):
        with pytest.raises(OptionError, match=r"gamma.*z is None"):
            method(0.5, x, x)


def test_an_infinite_rate_is_refused_at_its_end_alone():
    path, x = schedules.variance_preserving(), torch.randn(2, 3)
    assert path.rate(at([0.0, 1 - 1e-12]), x, x).isfinite().all()
    with pytest.raises(TimeError, match="infinite at t = 1"):
        path.rate(at([0.5, 1.0]), x, x)


def test_no_rows_work():
    path, x = schedules.linear(), torch.zeros(0, 3)
    for t in (0.5, torch.zeros(0)):
        assert path.at(t, x, x).shape == (0, 3)
        assert path.convert(x, "velocity", "score", x, t).shape == (0, 3)


# Functions of time


def test_coefficients_keep_the_shape_of_t_in_float64():
    for t in (0.5, torch.rand(4), torch.rand(2, 3), torch.rand(0)):
        for path in PATHS.values():
            k = path.coefficients(t)
            shape = () if isinstance(t, float) else t.shape
            for value in (v for v in vars(k).values() if isinstance(v, torch.Tensor)):
                assert value.shape == shape
                assert value.dtype == torch.float64


@pytest.mark.parametrize("name", PATHS)
@given(t=st.just(0.0) | st.floats(1e-300, 1) | st.floats(1e-300, 1e-8) | st.floats(1 - 1e-8, 1))
@settings(deadline=None, max_examples=40)
def test_time_at_log_snr_is_the_inverse(name, t):
    """Log-SNR at the time found differs by no more than its rounding and one step of doubles in t.

    Rounding: 8 eps of the size of its terms; one step of t near 1 moves log-SNR by eps / (1 - t).
    """
    path = PATHS[name]
    lam = path.log_snr(t)
    back = path.time_at_log_snr(lam)
    if lam.isinf():
        assert back.item() == t
        return
    step = path.log_snr(min(1.0, t + EPS)) - path.log_snr(max(0.0, t - EPS))
    allowed = 8 * EPS * (1 + lam.abs()) + (step if step.isfinite() else 2.0)
    assert (path.log_snr(back) - lam).abs() <= allowed


def test_bisection_finds_what_the_closed_forms_do():
    for closed in (
        schedules.linear(),
        schedules.trigonometric(),
        schedules.trigonometric(2.5),
        schedules.variance_preserving(),
    ):
        searched = Interpolant(closed.alpha, closed.beta)
        t = torch.cat([10.0 ** torch.arange(-15, -1).double(), torch.linspace(0.1, 1, 19).double()])
        lam = closed.log_snr(t)
        # The finest that log-SNR tells apart: a few of its roundings over its slope, about 1 / t.
        room = 16 * EPS * (1 + lam.abs()) * t.clamp(min=EPS)
        room = room if closed.boundary.starts_at_base else 16 * EPS
        error = (closed.time_at_log_snr(lam) - searched.time_at_log_snr(lam)).abs()
        assert (error <= room).all()
        assert searched.time_at_log_snr(lam).shape == lam.shape


def test_bisection_reaches_the_smallest_times():
    path = Interpolant(lambda t: 1 - t, lambda t: t)
    t = at([1e-300, 3e-200, 1e-20])
    torch.testing.assert_close(path.time_at_log_snr(path.log_snr(t)), t, rtol=1e-12, atol=0)


def test_log_snr_outside_the_path_is_refused_with_its_range():
    path = schedules.variance_preserving()
    assert path.time_at_log_snr(math.inf).item() == 1.0
    assert path.time_at_log_snr(path.log_snr(0.0)).item() == 0.0
    for lam in (-math.inf, -10.1, math.nan, at([0.0, -11.0])):
        with pytest.raises(OptionError, match=r"from -10.05 to inf"):
            path.time_at_log_snr(lam)
    line = schedules.linear()
    assert line.time_at_log_snr(at([-math.inf, 0.0, math.inf])).tolist() == [0.0, 0.5, 1.0]


def test_a_log_snr_that_falls_has_no_inverse():
    path = Interpolant(lambda t: t, lambda t: 1 - t)
    assert not path.monotone
    with pytest.raises(ScheduleError, match="no inverse"):
        path.time_at_log_snr(0.0)


def test_sigma_falls_to_zero_and_counts_no_sign():
    """sigma = hypot(1 - t, t (1 - t)) has the slope -sqrt(2) at t = 1; -x0 is as good as x0."""
    latent = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: t * (1 - t))
    assert latent.coefficients(1.0).dsigma.item() == pytest.approx(-math.sqrt(2), rel=1e-15)
    assert Interpolant(lambda t: t, lambda t: 1 - t).coefficients(0.0).dsigma.item() == 1.0
    mirrored = Interpolant(lambda t: t - 1, lambda t: t, gaussian_base=False)
    t = torch.linspace(0, 1, 5)
    assert torch.equal(mirrored.log_snr(t), schedules.linear().log_snr(t))
    assert mirrored.monotone


def test_the_named_paths_from_noise_to_data_are_monotone():
    closed = (schedules.linear, schedules.cosine, schedules.power, schedules.edm)
    assert all(build().monotone for build in closed)


# Ends


def test_the_ends_are_recorded():
    line, vp = schedules.linear().boundary, schedules.variance_preserving().boundary
    assert (line.alpha0, line.beta0, line.alpha1, line.beta1) == (1, 0, 0, 1)
    assert line.starts_at_base
    assert line.ends_at_data
    assert line.finite_rate
    assert not vp.starts_at_base
    assert vp.ends_at_data
    assert (vp.finite_rate0, vp.finite_rate1) == (True, False)
    latent = PATHS["constant latent"].boundary
    assert (latent.gamma0, latent.gamma1) == (0.25, 0.25)
    assert not latent.ends_at_data


def test_cosine_of_a_quarter_turn_ends_at_zero():
    """cos(pi / 2) is 6e-17 in float64; as a sigma it would be divided by."""
    path = Interpolant(lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t))
    k = path.coefficients(at([0.5, 1.0]))
    assert k.alpha[1] == 0.0
    assert k.alpha[0].item() == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert k.dalpha[1].item() == pytest.approx(-math.pi / 2, rel=1e-15)
    assert path.log_snr(1.0) == math.inf
    assert path.boundary.ends_at_data


def test_a_path_need_not_be_monotone_or_have_a_gaussian_base():
    """encode_decode (Albergo et al. 2023): base, then noise alone at t = 1/2, then data."""
    path = Interpolant(
        lambda t: torch.where(t < 0.5, torch.cos(math.pi * t) ** 2, 0.0),
        lambda t: torch.where(t > 0.5, torch.cos(math.pi * t) ** 2, 0.0),
        lambda t: torch.sin(math.pi * t) ** 2,
        gaussian_base=False,
    )
    assert not path.monotone
    assert path.boundary.starts_at_base
    assert path.boundary.ends_at_data
    with pytest.raises(ScheduleError, match=r"beta\(.*positive"):
        Interpolant(path.alpha, path.beta, path.gamma)


def mean_of_batch(t):
    return t.mean() + 0 * t


@pytest.mark.parametrize(
    ("alpha", "says"),
    [
        (lambda t: 1 / t, r"alpha\(0\) is inf"),
        (lambda t: torch.log(1 - t) ** 2, r"alpha\(1\) is inf"),
        (lambda t: torch.sin(t) / t, r"alpha\(0\) is nan"),
        (lambda t: torch.sqrt(0.5 - t), r"alpha\(0.5\d*\) is nan"),
        (lambda t: 2 - torch.where(t < 0.5, 0.0, torch.sqrt(t - 0.5)), r"alpha'\(0.5"),
        (mean_of_batch, r"alpha\(.*alone.*elementwise"),
        (lambda t: t[:, None], "alpha.*elementwise"),
        (lambda t: t.cumsum(0) if t.ndim else t, "alone.*elementwise"),
        (lambda t: t.float(), "alpha.*float32"),
        (lambda t: 1 - t if t < 0.5 else 0 * t, "alpha.*torch.where"),
        (lambda t: (1 - t).detach(), "derivative is 0"),
        (lambda t: torch.from_numpy(1 - t.detach().numpy()), "alpha"),
        (0.5, "alpha is a float.*lambda"),
        (lambda t: t - 1, r"alpha\(.*must be positive.*symmetric"),
        (lambda t: None, "NoneType"),
    ],
)
def test_a_bad_schedule_is_named_when_the_path_is_built(alpha, says):
    with pytest.raises(ScheduleError, match=says):
        Interpolant(alpha, lambda t: t)


def test_each_function_is_named_for_itself():
    good, bad = Schedule(lambda t: 1 - t), Schedule(lambda t: t.float())
    for name, functions in {
        "alpha": (bad, good),
        "beta": (good, bad),
        "gamma": (good, lambda t: t, bad),
    }.items():
        with pytest.raises(ScheduleError, match=f"^{name}"):
            Interpolant(*functions)


def test_a_learned_schedule_is_reached_by_gradients_through_points_and_views():
    power = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    path = Interpolant(lambda t: (1 - t) ** power, lambda t: t)
    x = torch.randn(4, 2, dtype=torch.float64)
    for result in (
        path.at(0.3, x, x),
        path.rate(0.3, x, x),
        path.convert(x, "velocity", "data", x, 0.3),
    ):
        (slope,) = torch.autograd.grad(result.sum(), power)
        assert slope.isfinite()
        assert slope != 0


# The base


def test_the_base_is_the_normal_of_sigma_at_the_start():
    x = torch.randn(5, 2, 3)
    for path, scale in (
        (schedules.linear(), 1.0),
        (PATHS["constant latent"], math.sqrt(1 + 0.25**2)),
        (schedules.variance_preserving(), math.sqrt(-math.expm1(-10.05))),
    ):
        base = path.base
        assert base.scale == pytest.approx(scale, rel=1e-15)
        wanted = torch.distributions.Normal(at(0.0), at(scale)).log_prob(x.double()).sum((1, 2))
        assert base.log_prob(x).dtype == torch.float32
        assert base.log_prob(x).shape == (5,)
        torch.testing.assert_close(base.log_prob(x), wanted.float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(base.log_prob(x.double()), wanted, rtol=1e-14, atol=0)
    assert base.log_prob(torch.zeros(0, 3)).shape == (0,)
    assert base.log_prob(torch.zeros(4)).shape == (4,)


def test_base_samples_are_the_numbered_normals_whole_or_in_chunks():
    base = PATHS["constant latent"].base
    whole = base.sample((6, 3), seed=5, dtype=torch.float64)
    normals = noise.normal((6, 3), seed=5, dtype=torch.float64)
    torch.testing.assert_close(whole, normals * base.scale, rtol=0, atol=0)
    chunks = [base.sample((3, 3), seed=5, first_row=k, dtype=torch.float64) for k in (0, 3)]
    assert torch.equal(torch.cat(chunks), whole)
    assert base.sample((2, 3)).dtype == torch.float32


def test_no_gaussian_base_no_base():
    path = Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    with pytest.raises(Unsupported, match="gaussian_base"):
        path.base


def test_prior_gap_is_the_divergence_from_the_base():
    """Against torch's closed form for two normals; 1e-9 of it, which it loses to cancellation."""
    path = schedules.variance_preserving()
    k = path.coefficients(0.0)
    mean, std = at([0.0, 0.5, 3.0]), at([1.0, 0.5, 2.0])
    start = torch.distributions.Normal(k.beta * mean, torch.hypot(k.beta * std, k.sigma))
    wanted = torch.distributions.kl_divergence(start, torch.distributions.Normal(0.0, k.sigma))
    torch.testing.assert_close(path.prior_gap(mean, std), wanted, rtol=1e-9, atol=1e-15)
    assert path.prior_gap(0.5, 0.5) == path.prior_gap(mean, std)[1].item()
    assert schedules.linear().prior_gap(3.0, 2.0) == 0.0
    with pytest.raises(OptionError, match="std"):
        path.prior_gap(0.0, -1.0)


def test_terms_are_made_of_the_path():
    path, model = schedules.linear(), lambda t, x: x
    ode = path.ode(model, view="data", time="sigma")
    sde = path.sde(model, diffusion=0.5)
    for term in (ode, sde):
        assert term.path is path
    with pytest.raises(UnknownName, match="velocity"):
        path.ode(model, view="velocty")
