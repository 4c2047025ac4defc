"""One schedule an element, a channel or a frequency: the same promises, element by element."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp import Interpolant, schedules
from interp.errors import OptionError, ScheduleError, TimeError, UndeterminedView, Unsupported

F64 = torch.float64
SPEEDS = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
VIEWS = ("velocity", "score", "noise", "data")


def by_element() -> Interpolant:
    """beta = t^s and alpha = (1 - t)^s, s its own in each of three elements."""
    return Interpolant(lambda t: (1 - t[..., None]) ** SPEEDS, lambda t: t[..., None] ** SPEEDS)


def one(s: float) -> Interpolant:
    return Interpolant(lambda t: (1 - t) ** s, lambda t: t**s)


def dct(x: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of the last axis."""
    return x @ matrix(x.shape[-1]).to(x).mT


def idct(x: Tensor) -> Tensor:
    return x @ matrix(x.shape[-1]).to(x)


def matrix(n: int) -> Tensor:
    k, i = torch.meshgrid(*2 * (torch.arange(n, dtype=F64),), indexing="ij")
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def blurring(n: int, strength: float) -> Interpolant:
    """Blurring diffusion: each frequency fades by exp(-w_k tau(u)) beside a cosine schedule.

    Hoogeboom, Salimans 2209.05557: alpha_t = a_t d_t with d_t the heat kernel
    exp(-w_k sin^2(pi u / 2) strength); sigma the same for all frequencies.
    """
    frequencies = (math.pi * torch.arange(n).double() / n) ** 2

    def kept(t: Tensor) -> Tensor:
        u = (1 - t)[..., None]
        decay = torch.exp(-frequencies * strength * torch.sin(math.pi * u / 2) ** 2)
        return torch.sin(math.pi * t / 2)[..., None] * decay

    return Interpolant(lambda t: torch.cos(math.pi * t / 2), kept).in_basis(dct, idct)


def gaussian_views(path: Interpolant, t: float, x: Tensor, mean: Tensor, var: Tensor) -> dict:
    """The exact views for data N(mean, diag var), element by element in the path's basis."""
    k = path.coefficients(t)
    into, out = path.basis or (lambda v: v, lambda v: v)
    S, r = k.beta**2 * var + k.sigma**2, into(x) - k.beta * mean
    return {
        "velocity": out(k.dbeta * mean + (k.beta * k.dbeta * var + k.sigma_dsigma) * r / S),
        "score": out(-r / S),
        "noise": out(k.sigma * r / S),
        "data": out(mean + k.beta * var * r / S),
    }


# Points


@given(t=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_each_element_is_on_its_own_path(t):
    x0, x1 = torch.randn(2, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    path, x = by_element(), None
    assert path.element == (3,)
    x = path.at(t, x0, x1)
    for i, s in enumerate(SPEEDS.tolist()):
        torch.testing.assert_close(
            x[:, i], one(s).at(t, x0[:, i], x1[:, i]), rtol=1e-14, atol=1e-15
        )
        slope = one(s).rate(t, x0[:, i], x1[:, i])
        torch.testing.assert_close(path.rate(t, x0, x1)[:, i], slope, rtol=1e-13, atol=1e-15)
        lam = path.log_snr(t)[..., i]
        torch.testing.assert_close(lam, one(s).log_snr(t), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (4,), (4, 2)])
def test_times_of_any_leading_axes_meet_the_elements(shape):
    path, x = by_element(), torch.randn(4, 2, 3, dtype=F64)
    t = torch.rand(shape, dtype=F64)
    k = path.coefficients(t)
    assert k.alpha.shape == k.dbeta.shape == k.sigma.shape == k.gamma.shape == (*shape, 3)
    assert k.t.shape == shape
    wide = t.reshape(shape + (1,) * (3 - len(shape)))
    expected = (1 - wide) ** SPEEDS * x - wide**SPEEDS * x
    torch.testing.assert_close(path.at(t, x, -x), expected, rtol=1e-13, atol=1e-13)


def test_a_channel_has_its_own_schedule_in_float32():
    scale = torch.tensor([1.0, 0.5], dtype=F64).reshape(2, 1, 1)
    path = Interpolant(lambda t: 1 - t, lambda t: t[..., None, None, None] * scale)
    x = torch.ones(5, 2, 4, 4)
    point = path.at(torch.full((5,), 0.5, dtype=F64), x, x)
    assert point.dtype == torch.float32
    assert torch.equal(point[:, 0], torch.full((5, 4, 4), 1.0))
    assert torch.equal(point[:, 1], torch.full((5, 4, 4), 0.75))
    assert path.boundary.starts_at_base
    assert not path.boundary.ends_at_data


def test_second_derivatives_and_warps_go_element_by_element():
    path, t = by_element(), torch.tensor([0.3, 0.8], dtype=F64)
    expected = SPEEDS * (SPEEDS - 1) * t[:, None] ** (SPEEDS - 2)
    torch.testing.assert_close(path.beta.second_derivative(t), expected, rtol=1e-12, atol=1e-12)
    warped = schedules.linear().warp(lambda t: t[..., None] ** SPEEDS)
    x = torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(warped.at(t, 0 * x, x), t[:, None] ** SPEEDS * x)
    torch.testing.assert_close(path.rescale(2.0).at(t, x, -x), 2 * path.at(t, x, -x))
    with pytest.raises(Unsupported, match="both the path and tau"):
        path.warp(lambda t: t[..., None] ** SPEEDS)


# Views and terms


PATHS = {"elements": by_element(), "blurring": blurring(3, 2.0)}
MEAN, VAR = torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([0.3, 1.5, 0.7], dtype=F64)


@given(t=st.floats(0.1, 0.9), name=st.sampled_from(sorted(PATHS)))
@settings(deadline=None, max_examples=60)
def test_views_convert_in_every_element(t, name):
    """To 1e-9: a condition of up to 1e6, 1 / beta^2 in the third element, times 1e-16."""
    path, x = PATHS[name], torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact_views = gaussian_views(path, t, x, MEAN, VAR)
    for source in VIEWS:
        for target in VIEWS:
            found = path.convert(exact_views[source], source, target, x, t)
            torch.testing.assert_close(found, exact_views[target], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PATHS)
def test_every_view_is_integrated_to_the_exact_end(name, view):
    """The flow of a Gaussian is affine: x1 = m + sqrt(V) x0 / sigma(0) where beta(0) = 0."""
    path = PATHS[name]
    start = 0.0 if view in ("velocity", "data") else 0.05
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    into, out = path.basis or (lambda v: v, lambda v: v)
    k = path.coefficients(start)
    spread = (k.beta**2 * VAR + k.sigma**2).sqrt()
    end = out(MEAN + VAR.sqrt() * (into(x) - k.beta * MEAN) / spread)

    def model(t, x):
        return gaussian_views(path, t.double(), x, MEAN, VAR)[view]

    term = path.ode(model, view=view)
    stop = 1.0 if view in ("velocity", "data") else 0.999999
    sol = interp.solve(term, x, t=(start, stop), rtol=1e-8, atol=1e-8)
    # The tolerance, amplified; the noise views stop 1e-6 short of t = 1, where slopes are some 3.
    torch.testing.assert_close(sol.x, end, rtol=0, atol=1e-6 if stop == 1.0 else 1e-5)


def test_an_sde_of_elements_keeps_the_marginals():
    """Mean and variance after 400 steps of weak order 1, 4000 rows: 4 standard errors of 0.016."""
    path = by_element()

    def model(t, x):
        return gaussian_views(path, t.double(), x, MEAN, VAR)["velocity"]

    term = path.sde(model, diffusion=lambda t: 1 - t)
    x = path.base.sample((4000, 3), seed=0, dtype=F64)
    end = interp.solve(term, x, method="euler_maruyama", steps=400, seed=1).x
    torch.testing.assert_close(end.mean(0), MEAN, rtol=0, atol=4 * (1.5 / 4000) ** 0.5)
    torch.testing.assert_close(end.var(0), VAR, rtol=4 * (2 / 4000) ** 0.5 + 0.01, atol=0)
    with pytest.raises(Unsupported, match="takes one eps"):
        path.sde(model, diffusion="reverse")


def test_blurring_mixes_pixels_only_through_frequencies():
    path, x = blurring(8, 4.0), torch.randn(2, 8, dtype=F64)
    wanted = idct(path.coefficients(0.4).beta * dct(x))
    torch.testing.assert_close(path.at(0.4, 0 * x, x), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(path.at(1.0, x, 2 * x), 2 * x, rtol=1e-13, atol=1e-13)
    constant = torch.ones(1, 8, dtype=F64)  # frequency 0 does not fade
    faded = path.at(0.4, 0 * constant, constant)
    torch.testing.assert_close(faded, math.sin(math.pi * 0.2) * constant, rtol=1e-13, atol=0)


def test_the_same_schedule_for_all_is_the_same_in_every_basis():
    path, x = schedules.trigonometric(), torch.randn(2, 4, 8, dtype=F64)
    inside = path.in_basis(dct, idct)
    torch.testing.assert_close(inside.at(0.3, *x), path.at(0.3, *x), rtol=1e-13, atol=1e-13)
    data = (p.convert(x[0], "velocity", "data", x[1], 0.3) for p in (inside, path))
    torch.testing.assert_close(*data, rtol=1e-13, atol=1e-13)


# What makes no sense


def test_what_needs_one_log_snr_says_so():
    path, x = by_element(), torch.randn(2, 3)
    with pytest.raises(ScheduleError, match=r"differs between the elements"):
        path.time_at_log_snr(0.0)
    with pytest.raises(OptionError, match="sigma differs"):
        path.ode(lambda t, x: x, time="sigma")
    with pytest.raises(TimeError, match="beta is 0"):
        interp.solve(path.ode(lambda t, x: x, view="noise"), x)
    with pytest.raises(UndeterminedView, match="t = 1.0"):
        path.convert(x, "data", "velocity", x, 1.0)
    assert path.base.scale == 1.0
    uneven = Interpolant(lambda t: (1 - t[..., None]) * SPEEDS, lambda t: t)
    with pytest.raises(Unsupported, match="from 1 to 3"):
        uneven.base


@pytest.mark.parametrize("shape", [(4,), (4, 2), (3,), (4, 3, 1, 2)])
def test_an_x_without_such_elements_is_refused(shape):
    x = torch.zeros(shape)
    t = torch.zeros(shape[0])
    with pytest.raises(OptionError, match=r"shape \(3,\)"):
        by_element().at(t, x, x)


def test_a_schedule_whose_values_do_not_lead_with_t_is_refused():
    with pytest.raises(ScheduleError, match="alpha.*one schedule an element"):
        Interpolant(lambda t: SPEEDS * 1.0, lambda t: t)
    with pytest.raises(ScheduleError, match=r"alpha\(1\) is inf"):
        Interpolant(lambda t: SPEEDS / (1 - t[..., None]), lambda t: t)


@pytest.mark.parametrize(
    ("forward", "inverse", "says"),
    [
        (lambda x: 2 * x, lambda x: x / 2, "orthonormal"),
        (dct, dct, "misses"),
        (lambda x: x.float(), lambda x: x.double(), "dtype"),
    ],
)
def test_a_basis_that_is_none_is_refused(forward, inverse, says):
    with pytest.raises(OptionError, match=says):
        by_element().in_basis(forward, inverse)
