"""Second derivatives, the noising SDE and back, and paths inside the transforms of torch."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interp import Interpolant, schedules, testing
from interp.errors import ScheduleError, TimeError, Unsupported
from interp.scalar import Schedule

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "variance_preserving": schedules.variance_preserving(),
    "sub_variance_preserving": schedules.sub_variance_preserving(),
    "variance_exploding": schedules.variance_exploding(),
    "custom": Interpolant(lambda t: (1 - t) ** 2 * (1 + t), lambda t: torch.sin(1.5 * t)),
    "latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t))),
    "warped": schedules.linear().warp(lambda t: t * (1 + t) / 2).rescale(lambda t: 1 + t),
}


def at(t):
    return torch.tensor(t, dtype=F64)


# Second derivatives


@given(path=testing.paths(), t=testing.times())
@settings(deadline=None, max_examples=60)
def test_the_second_rate_is_the_derivative_of_the_rate(path, t):
    """Central differences of step 1e-5: h^2 of fourth derivatives, and 1e-16 / h of rounding."""
    t = 0.999 * t + 0.000123  # beside the nodes of a table, where a second derivative jumps
    assume(abs(t - 0.5) > 1e-4)  # where encode_decode goes from one piece to the other
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    h = 1e-5
    rates = [path.rate(s, x0, x1, z) for s in (t + h, t - h)]
    found = path.second_rate(t, x0, x1, z)
    size = 1 + found.abs().max().item() + rates[0].abs().max().item()
    torch.testing.assert_close(found, (rates[0] - rates[1]) / (2 * h), rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", PATHS)
def test_coefficients_have_second_derivatives(name):
    path, t, h = PATHS[name], at([0.1, 0.4, 0.9]), 1e-5
    k, after, before = (path.coefficients(s) for s in (t, t + h, t - h))
    for f in ("alpha", "beta", "gamma", "sigma"):
        slopes = getattr(after, f"d{f}"), getattr(before, f"d{f}")
        difference = (slopes[0] - slopes[1]) / (2 * h)
        torch.testing.assert_close(getattr(k, f"dd{f}"), difference, rtol=1e-6, atol=1e-6)


TWINS = {
    "power": (Interpolant(lambda t: (1 - t) ** 0.5, lambda t: t**0.5), schedules.power(0.5, 0.5)),
    "bridge": (
        Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.7 * torch.sqrt(t * (1 - t))),
        schedules.brownian_bridge(0.7, gaussian_base=True),
    ),
    "variance_preserving": (
        Interpolant(
            lambda t: torch.sqrt(-torch.expm1(-((1 - t) ** 2) * 19.9 / 2 - (1 - t) * 0.1)),
            lambda t: torch.exp(-((1 - t) ** 2) * 19.9 / 4 - (1 - t) * 0.05),
        ),
        schedules.variance_preserving(),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_vertical_tangent_is_an_infinity_of_second_derivatives_and_spoils_no_other_time(name):
    """A formula written down plainly, in one batch with both ends, has those of the closed form."""
    t = at([0.0, 1e-6, 0.3, 0.5, 1 - 1e-6, 1.0])
    plain, closed = (path.coefficients(t) for path in TWINS[name])
    ends = torch.stack([closed.ddsigma, closed.ddbeta])[:, [0, -1]]
    assert ends.isinf().any()
    for f in ("ddalpha", "ddbeta", "ddgamma", "ddsigma"):
        torch.testing.assert_close(getattr(plain, f), getattr(closed, f), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_sine_squared_bends_by_its_cosine_where_it_turns(end):
    gamma = schedules.gammas.sine_squared(0.7)
    bend = 0.7 * 2 * math.pi**2 * math.cos(2 * math.pi * end)
    assert gamma.second_derivative(at(end)).item() == pytest.approx(bend, rel=1e-14)


def test_second_derivatives_cost_nothing_until_they_are_read():
    calls = []
    beta = Schedule(lambda t: t, lambda t: 1.0, lambda t: t, lambda t: calls.append(t) or 0.0)
    k = Interpolant(lambda t: 1 - t, beta).coefficients(0.5)
    assert not calls
    assert (k.ddbeta.item(), k.ddbeta.item()) == (0.0, 0.0)
    assert len(calls) == 1


def test_a_second_rate_that_is_infinite_is_refused():
    path, x = schedules.variance_preserving(), torch.zeros(2, 2)
    with pytest.raises(TimeError, match="infinite at t = 1"):
        path.second_rate(at([0.5, 1.0]), x, x)


# The noising SDE


@given(path=testing.schedules(), t=testing.times())
@settings(deadline=None, max_examples=60)
def test_noising_is_what_moves_mean_and_variance(path, t):
    """d beta / du = f beta and d sigma^2 / du = 2 f sigma^2 + G^2, u = 1 - t, by differences."""
    t = 0.999 * t + 0.000123  # beside the nodes of a table, where a second derivative jumps
    f, G = path.noising(t)
    k, h = path.coefficients(t), 1e-6
    after, before = (path.coefficients(s) for s in (t + h, t - h))
    fall = (before.beta - after.beta) / (2 * h)
    growth = (before.sigma**2 - after.sigma**2) / (2 * h)
    size = 1 + abs(fall.item()) + abs(growth.item()) + (k.sigma**2).item() * abs(f.item())
    # h^2 of third derivatives, 1e-16 / h of rounding, in units of what is added up.
    assert (f * k.beta).item() == pytest.approx(fall.item(), abs=1e-7 * size)
    assert (2 * f * k.sigma**2 + G**2).item() == pytest.approx(growth.item(), abs=1e-6 * size)


def test_noising_in_closed_form():
    vp, t = schedules.variance_preserving(), torch.linspace(0, 1, 11, dtype=F64)
    f, G = vp.noising(t)
    rate = 0.1 + (1 - t) * 19.9
    torch.testing.assert_close(f, -rate / 2, rtol=1e-13, atol=0)
    torch.testing.assert_close(G, rate.sqrt(), rtol=1e-12, atol=0)
    f, G = schedules.linear().noising(at([0.0, 0.25]))
    assert (f[0].item(), G[0].item()) == (-math.inf, math.inf)
    assert (f[1].item(), G[1].item()) == (-4.0, pytest.approx(math.sqrt(6), rel=1e-15))
    with pytest.raises(ScheduleError, match="log-SNR falls at t = 0.25"):
        schedules.linear().reverse().noising(0.25)
    with pytest.raises(Unsupported, match="not Gaussian"):
        Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False).noising(0.5)


@pytest.mark.parametrize(
    "name", ["linear", "trigonometric", "cosine", "variance_preserving", "sub_variance_preserving"]
)
def test_there_and_back_through_the_sde(name):
    """A path that is clean at t = 1 comes back from its own f and G; 1e-10 over ten panels a decade."""
    path = PATHS[name]
    again = Interpolant.from_sde(lambda t: path.noising(t)[0], lambda t: path.noising(t)[1])
    t = torch.cat([at([0.0, 1e-6, 1e-3]), torch.linspace(0.01, 1, 40, dtype=F64)])
    k, wanted = again.coefficients(t), path.coefficients(t)
    scale = wanted.beta[-1]  # the SDE says how beta moves, from 1
    torch.testing.assert_close(k.beta, wanted.beta / scale, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(k.sigma, wanted.sigma, rtol=1e-9, atol=1e-9)
    inside = slice(1, -1)
    torch.testing.assert_close(k.dbeta[inside], wanted.dbeta[inside], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(k.sigma_dsigma, wanted.sigma_dsigma, rtol=1e-8, atol=1e-8)
    f, G = again.noising(t[inside])
    g, H = path.noising(t[inside])
    torch.testing.assert_close(f, g, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(G, H, rtol=1e-7, atol=1e-7)


def test_an_sde_of_ones_own_gives_a_path():
    """Ornstein-Uhlenbeck over a time of 4: beta = exp(-2 u), sigma^2 = 1 - exp(-4 u)."""
    path = Interpolant.from_sde(lambda t: -2.0, lambda t: 2.0)
    t = torch.linspace(0, 1, 9, dtype=F64)
    k = path.coefficients(t)
    torch.testing.assert_close(k.beta, torch.exp(-2 * (1 - t)), rtol=1e-14, atol=0)
    torch.testing.assert_close(k.sigma, torch.sqrt(-torch.expm1(-4 * (1 - t))), rtol=1e-13, atol=0)
    h = 1e-5
    for f in ("beta", "sigma"):
        slopes = (getattr(path.coefficients(0.4 + s), f"d{f}") for s in (h, -h))
        difference = (next(slopes) - next(slopes)) / (2 * h)
        found = getattr(path.coefficients(0.4), f"dd{f}")
        torch.testing.assert_close(found, difference, rtol=1e-8, atol=1e-8)
    assert path.boundary.ends_at_data
    x = torch.randn(3, 2)
    assert path.at(0.3, x, x).dtype == torch.float32


@pytest.mark.parametrize(
    ("f", "g", "says"),
    [
        (
            lambda t: torch.where(t < 0.4, -1.0, -2.0).double(),
            lambda t: 1.0,
            r"f is not smooth between t = 0.25",
        ),
        (lambda t: -1 / (t - 0.7).abs().clamp(min=1e-9), lambda t: 1.0, "f is not smooth"),
        (lambda t: -1.0, lambda t: -1.0, r"g\(.*\) is -1"),
        (lambda t: t.log() * math.nan, lambda t: 1.0, r"f\(.*\) is nan"),
        (-1.0, lambda t: 1.0, "f is a float.*lambda"),
        (lambda t: t.float(), lambda t: 1.0, "float32"),
    ],
)
def test_an_sde_that_gives_no_path_is_named(f, g, says):
    with pytest.raises(ScheduleError, match=says):
        Interpolant.from_sde(f, g)


# Inside torch's transforms


@pytest.mark.parametrize("name", PATHS)
def test_paths_run_under_vmap_over_time(name):
    path, t = PATHS[name], at([0.2, 0.5, 0.8])
    x0, x1, z = torch.randn(3, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for function in (path.at, path.rate, path.second_rate):
        found = torch.func.vmap(function)(t, x0, x1, z)
        torch.testing.assert_close(found, function(t, x0, x1, z), rtol=1e-13, atol=1e-13)
    for function in (path.log_snr, path.sigma, lambda t: path.coefficients(t).dsigma):
        torch.testing.assert_close(
            torch.func.vmap(function)(t), function(t), rtol=1e-13, atol=1e-13
        )

    def data(t, x, v):
        return path.convert(v, "velocity", "data", x, t)

    torch.testing.assert_close(torch.func.vmap(data)(t, x0, x1), data(t, x0, x1))


def test_a_time_outside_is_refused_under_vmap_too():
    path, x = schedules.linear(), torch.zeros(3, 2)
    with pytest.raises(TimeError, match=r"t = 1\.5"):
        torch.func.vmap(path.at)(at([0.2, 1.5, 0.3]), x, x)
    with pytest.raises(TimeError, match="infinite at t = 1"):
        torch.func.vmap(schedules.variance_preserving().rate)(at([0.2, 1.0, 0.3]), x, x)


@pytest.mark.parametrize("name", PATHS)
def test_the_derivative_in_time_by_torch_func_is_the_rate(name):
    path, t = PATHS[name], at(0.3)
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    by_grad = torch.func.grad(lambda t: path.at(t, x0, x1, z).sum())(t)
    torch.testing.assert_close(by_grad, path.rate(t, x0, x1, z).sum(), rtol=1e-12, atol=1e-12)
    twice = torch.func.grad(lambda t: path.rate(t, x0, x1, z).sum())(t)
    torch.testing.assert_close(twice, path.second_rate(t, x0, x1, z).sum(), rtol=1e-10, atol=1e-10)


def test_the_inverse_of_log_snr_is_followed():
    """d t / d lambda = 1 / lambda', by the closed form and by bisection alike."""
    for path in (schedules.linear(), PATHS["custom"]):
        lam = path.log_snr(0.4).requires_grad_()
        t = path.time_at_log_snr(lam)
        k = path.coefficients(0.4)
        slope = 2 * (k.dbeta / k.beta - k.dsigma / k.sigma)
        (found,) = torch.autograd.grad(t, lam)
        torch.testing.assert_close(found, 1 / slope, rtol=1e-10, atol=0)


@given(t=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=20)
def test_times_of_every_shape_give_the_same(t):
    path, x = schedules.cosine(), torch.randn(2, 3, 4, dtype=F64)
    alone = path.at(t, x, -x)
    for shape in ((), (2,), (2, 3), (2, 3, 4)):
        torch.testing.assert_close(path.at(torch.full(shape, t, dtype=F64), x, -x), alone)
