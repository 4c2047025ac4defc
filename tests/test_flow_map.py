"""Maps between two times: one vocabulary of views, exact maps, and the method that steps them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import schedules, views
from interp.errors import OptionError, TimeError, UndeterminedView, UnknownName, Unsupported
from interp.exact import Gaussian, Mixture
from interp.terms import PathMap

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "variance_preserving": schedules.variance_preserving(),
    "sub_variance_preserving": schedules.sub_variance_preserving(),
    "variance_exploding": schedules.variance_exploding(0.01, 50.0),
    "edm": schedules.edm(0.002, 80.0),
}
M, S2 = torch.tensor([0.4, -0.2], dtype=F64), torch.tensor([0.25, 0.5], dtype=F64)
LAW = Gaussian(M, S2)
MIX = Mixture([0.3, 0.7], [M, -M], [S2 / 4, S2 / 2])
inside = st.floats(0.02, 0.98)


def points(path, t, n=4):
    """Points about where I_t lies."""
    k = path.coefficients(t)
    z = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    return k.beta * M + (k.beta**2 * S2 + k.sigma**2).sqrt() * z


def carried(path, t, r, x):
    """X = beta_r m + sqrt(S_r / S_t) (x - beta_t m), S = beta^2 s^2 + sigma^2, written out."""
    k, e = path.coefficients(t), path.coefficients(r)
    ratio = ((e.beta**2 * S2 + e.sigma**2) / (k.beta**2 * S2 + k.sigma**2)).sqrt()
    return e.beta * M + ratio * (x - k.beta * M)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("view", views.MAP_VIEWS)
@settings(deadline=None, max_examples=10)
@given(t=inside, r=inside)
def test_every_view_of_an_exact_map_is_the_closed_form_both_ways(path, view, t, r):
    if view == "velocity" or abs(t - r) < 1e-3:
        return
    x = points(path, t)
    found = path.flow_map(LAW.flow_map(path, view), view)(t, r, x)
    wanted = carried(path, t, r, x)
    # Point and view go through each other: rounding over the step that they are told by, 1e-3.
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(path.sigma(0.0)))
    back = path.flow_map(LAW.flow_map(path, view), view)(r, t, found)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9 * float(path.sigma(0.0)))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(deadline=None, max_examples=15)
@given(t=inside, s=inside, r=inside)
def test_maps_compose(path, t, s, r):
    """X(s, r, X(t, s, x)) = X(t, r, x)."""
    term = path.flow_map(LAW.flow_map(path))
    x = points(path, t)
    tol = 1e-12 * float(path.sigma(0.0)) + 1e-12
    torch.testing.assert_close(term(s, r, term(t, s, x)), term(t, r, x), rtol=1e-10, atol=tol)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_on_the_diagonal_the_views_are_those_of_one_time(path):
    """Also by the slope of the points: (X(t, t + h) - X(t, t - h)) / 2 h -> velocity."""
    t, h = 0.4, 1e-5
    x = points(path, t)
    v = LAW.velocity(path)(t, x)
    u = LAW.flow_map(path, "mean_velocity")
    torch.testing.assert_close(u(t, t, x), v, rtol=1e-12, atol=1e-12)
    point = LAW.flow_map(path)
    slope = (point(t, t + h, x) - point(t, t - h, x)) / (2 * h)
    # h^2 / 6 of a third derivative (at most about 1e4 |v| for EDM's seventh power), eps |x| / h.
    torch.testing.assert_close(slope, v, rtol=1e-6, atol=1e-6 * float(path.sigma(0.0)))
    for view, exact in (("data", LAW.data(path)), ("noise", LAW.noise(path))):
        found = path.convert(v, "mean_velocity", view, x, t, t)
        torch.testing.assert_close(found, exact(t, x), rtol=1e-9, atol=1e-9)
        again = path.convert(v, "velocity", view, x, t, t)
        torch.testing.assert_close(again, found, rtol=0, atol=0)
        near = LAW.flow_map(path, view)(t, t + h, x)
        torch.testing.assert_close(near, exact(t, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "trigonometric", "variance_preserving", "edm"])
@pytest.mark.parametrize("ends", [(0.1, 1.0), (0.9, 0.05)])
def test_one_step_of_the_map_of_a_mixture_is_its_flow_solved(name, ends):
    """The exact map integrates in the angle; DOP853 of the noise in EDM's coordinates is another route."""
    path = PATHS[name]
    x = points(path, ends[0])
    term = path.flow_map(MIX.flow_map(path, "mean_velocity"), "mean_velocity")
    one = interp.solve(term, x, t=ends, method="map", steps=1)
    ode = path.ode(MIX.noise(path), view="noise")
    solved = interp.solve(ode, x, t=ends, method="dop853", rtol=1e-10, atol=1e-10, denoise=False)
    assert one.stats.nfe == 1
    torch.testing.assert_close(one.x, solved.x, rtol=1e-7, atol=1e-7)
    three = interp.solve(term, x, t=ends, method="map", steps=3)
    torch.testing.assert_close(three.x, one.x, rtol=1e-8, atol=1e-8)


def test_rows_may_have_times_of_their_own():
    path = PATHS["linear"]
    t, r = (
        torch.tensor([0.2, 0.5, 0.7, 0.3], dtype=F64),
        torch.tensor([0.9, 0.5, 0.1, 1.0], dtype=F64),
    )
    x = points(path, 0.4)
    for view in ("point", "mean_velocity", "data"):
        for law in (LAW, MIX) if view == "data" else (LAW,):
            term = path.flow_map(law.flow_map(path, view), view)
            alone = [term(t[i].item(), r[i].item(), x[i : i + 1]) for i in range(4)]
            # A mixture's rows share the steps of one adaptive run.
            torch.testing.assert_close(term(t, r, x), torch.cat(alone), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(term(t, 1.0, x)[3], term(t, r, x)[3], rtol=1e-9, atol=1e-9)


def test_at_clean_data_the_data_are_the_point():
    """A consistency function: f(t, x) = X(t, 1, x), and f(1, x) = x without a step."""
    path, x = PATHS["trigonometric"], points(PATHS["trigonometric"], 0.3)
    X = carried(path, 0.3, 1.0, x)
    torch.testing.assert_close(path.convert(X, "point", "data", x, 0.3, 1.0), X, rtol=0, atol=1e-15)
    k = path.coefficients(0.3)  # TrigFlow: X = cos(w) x - sin(w) F
    F = path.convert(X, "point", "v_prediction", x, 0.3, 1.0)
    torch.testing.assert_close(k.beta * x - k.sigma * F, X, rtol=0, atol=1e-14)
    assert torch.equal(path.flow_map(lambda t, r, x: 7 + x, "data")(1.0, 1.0, x), x)
    assert torch.equal(path.flow_map(lambda t, r, x: 7 + x, "mean_velocity")(0.3, 0.3, x), x)


def test_what_a_map_does_not_determine_is_refused():
    path, x = PATHS["linear"], torch.ones(2, 2, dtype=F64)
    with pytest.raises(UndeterminedView, match="r = t"):
        path.convert(x, "point", "mean_velocity", x, 0.3, 0.3)
    with pytest.raises(UndeterminedView):
        path.convert(x, "point", "data", x, 0.3, 0.3)
    with pytest.raises(UndeterminedView, match="one time"):
        path.convert(x, "velocity", "point", x, 0.3, 0.5)
    with pytest.raises(UndeterminedView, match="sigma is 0"):
        path.convert(x, "data", "point", x, 1.0, 0.5)
    with pytest.raises(UndeterminedView, match="beta is 0"):
        path.convert(x, "noise", "point", x, 0.0, 0.5)
    # In mean velocities both ends are regular, also where sigma' is infinite.
    vp = PATHS["variance_preserving"]
    X = path.convert(x, "mean_velocity", "point", x, 0.0, 1.0)
    assert torch.equal(X, 2 * x)
    assert vp.convert(x, "mean_velocity", "data", x, 0.0, 1.0).isfinite().all()
    with pytest.raises(UnknownName, match="mean_velocity"):
        path.flow_map(lambda t, r, x: x, view="mean_velocty")
    with pytest.raises(UndeterminedView, match="one time"):
        path.flow_map(lambda t, r, x: x, view="velocity")
    with pytest.raises(TimeError, match=r"\[0, 1\]"):
        path.flow_map(lambda t, r, x: x)(0.0, 1.5, x)


def test_between_two_laws_points_and_mean_velocities_tell_each_other():
    path = schedules.brownian_bridge(0.5)
    x = torch.ones(3, 2, dtype=F64)
    u = torch.full_like(x, 2.0)
    X = path.flow_map(lambda t, r, x: u, "mean_velocity")(0.2, 0.7, x)
    torch.testing.assert_close(X, x + 0.5 * u, rtol=0, atol=1e-15)
    torch.testing.assert_close(path.convert(X, "point", "mean_velocity", x, 0.2, 0.7), u)
    with pytest.raises(UndeterminedView, match="not Gaussian"):
        path.convert(X, "point", "data", x, 0.2, 0.7)
    with pytest.raises(UndeterminedView, match="not Gaussian"):
        path.flow_map(lambda t, r, x: u, "data")


# The method


def test_the_model_is_told_both_times_in_its_own_convention():
    seen = []

    def model(t, r, x, label):
        seen.append((t.item(), r.item(), t.dtype, label))
        return x

    path = PATHS["linear"]
    x = torch.ones(2, 2)
    sol = interp.solve(
        path.flow_map(model, time="noise"), x, method="map", grid=[0.0, 0.5, 1.0], cond={"label": 3}
    )
    assert seen == [(1.0, 0.5, torch.float32, 3), (0.5, 0.0, torch.float32, 3)]
    assert sol.stats.nfe == sol.stats.steps == 2


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_the_backends_agree_and_states_are_saved(backend):
    path = PATHS["trigonometric"]
    term = path.flow_map(LAW.flow_map(path, "data"), "data")
    x = points(path, 0.0)
    options = {"method": "map", "grid": [0.0, 0.3, 1.0], "save_at": [0.3, 1.0]}
    sol = interp.solve(term, x, backend=backend, **options)
    assert sol.stats.backend == backend
    for t, state in zip((0.3, 1.0), sol.xs, strict=True):
        torch.testing.assert_close(state, carried(path, 0.0, t, x), rtol=1e-12, atol=1e-12)
    noisy = [
        interp.solve(term, x, backend=b, renoise=True, seed=3, **options).x
        for b in ("rust", "torch")
    ]
    torch.testing.assert_close(*noisy, rtol=1e-12, atol=1e-12)


def test_gradients_pass_through_the_map():
    path = PATHS["linear"]
    x = points(path, 0.0).requires_grad_()
    term = path.flow_map(lambda t, r, x: M + (S2.sqrt() - 1) * x, "mean_velocity")
    y = interp.solve(term, x, method="map", steps=1).x
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, S2.sqrt().expand_as(x))


@pytest.mark.parametrize("name", ["linear", "variance_preserving", "edm", "variance_exploding"])
def test_renoising_keeps_the_marginals_of_an_exact_map(name):
    """At every time of the grid the mean and the variance are those of I_t, noise at t = 1 included."""
    path, n = PATHS[name], 20_000
    k = path.coefficients(0.0)
    g = torch.Generator().manual_seed(1)
    z = torch.randn(n, 2, dtype=F64, generator=g)
    x = (
        k.beta * M + (k.beta**2 * S2 + k.sigma**2).sqrt() * z
    )  # of I_0, whatever leaks into the base
    term = path.flow_map(LAW.flow_map(path, "data"), "data")
    times = [0.0, 0.4, 0.8, 1.0]
    sol = interp.solve(term, x, method="map", grid=times, renoise=True, seed=0, save_at=times[1:])
    for t, y in zip(times[1:], sol.xs, strict=True):
        k = path.coefficients(t)
        std = (k.beta**2 * S2 + k.sigma**2).sqrt()
        # Four standard errors of 20 000 numbers.
        assert ((y.mean(0) - k.beta * M) / std).abs().max() < 4 / math.sqrt(n)
        assert (y.std(0) / std - 1).abs().max() < 4 / math.sqrt(2 * n)
    moved = (sol.xs[0] - carried(path, 0.0, 0.4, x)).abs().mean()
    assert moved > 0.1 * path.sigma(0.4)  # and it is not the map itself


def test_renoising_by_the_wrong_share_is_seen():
    """The twin: a map of data into noise that forgets the noise left at t = 1."""
    path = PATHS["variance_exploding"].warp(lambda t: 0.5 * t)  # ends at sigma = 0.7
    term = path.flow_map(LAW.flow_map(path))
    (share, noise), _ = term.renoised([0.0, 0.9, 1.0])
    k, end = path.coefficients(0.9), path.coefficients(1.0)
    assert noise**2 + share**2 * float(end.sigma) ** 2 == pytest.approx(float(k.sigma) ** 2)
    assert noise < 0.8 * float(k.sigma)


def test_the_noise_of_a_row_is_its_own():
    path = PATHS["linear"]
    term = path.flow_map(LAW.flow_map(path))
    x = points(path, 0.0, 7)
    options = {"method": "map", "steps": 3, "renoise": True, "seed": 5}
    whole = interp.solve(term, x, **options)
    parts = [interp.solve(term, x[a:b], first_row=a, **options).x for a, b in ((0, 3), (3, 7))]
    torch.testing.assert_close(torch.cat(parts), whole.x, rtol=0, atol=1e-13)
    assert whole.stats.seed == 5
    other = interp.solve(term, x, **{**options, "seed": 6})
    assert (other.x - whole.x).abs().max() > 0.1


def test_calls_that_make_no_sense_are_refused():
    path, x = PATHS["linear"], torch.zeros(2, 2, dtype=F64)
    term = path.flow_map(LAW.flow_map(path))
    with pytest.raises(OptionError, match="method='map'"):
        interp.solve(term, x)
    with pytest.raises(OptionError, match="flow_map"):
        interp.solve(path.ode(LAW.velocity(path)), x, method="map", steps=1)
    with pytest.raises(OptionError, match="steps"):
        interp.solve(term, x, method="map")
    with pytest.raises(OptionError, match="backwards"):
        interp.solve(term, x, t=(1.0, 0.0), method="map", steps=2, renoise=True)
    with pytest.raises(OptionError, match="True nor False"):
        interp.solve(term, x, method="map", steps=2, renoise=1)
    bridge = schedules.brownian_bridge(0.5).flow_map(lambda t, r, x: x)
    with pytest.raises(Unsupported, match="Gaussian base"):
        interp.solve(bridge, x, method="map", steps=2, renoise=True)
    with pytest.raises(Unsupported, match="r = t"):
        term.ode()
    data = LAW.flow_map(path, "data")
    data.view = "data"
    with pytest.raises(OptionError, match='view="data"'):
        path.flow_map(data, view="point")
    assert PathMap(path, data).view == "data"


@pytest.mark.parametrize("view", ["mean_velocity", "data"])
def test_the_flow_by_the_diagonal_of_a_map(view):
    """Its density is the law's: log N(m, s^2) at t = 1."""
    path = PATHS["linear"]
    ode = path.flow_map(LAW.flow_map(path, view), view).ode()
    x = points(path, 0.99)
    found = interp.log_prob(ode, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found, LAW.log_prob(x), rtol=0, atol=1e-6)
