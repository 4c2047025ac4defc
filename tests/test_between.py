"""Between two paths of one law: the change of time and scale is exact, and carries models along."""

import math
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import interp
from interp import Interpolant, exact, schedules, testing
from interp.errors import (
    OptionError,
    OutOfRange,
    ScheduleError,
    TimeError,
    UndeterminedView,
    UnknownName,
)

F64 = torch.float64
MIXTURE = exact.Mixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[0.2, 0.3], [0.4, 0.1]])
LAW = exact.Gaussian([0.5, -1.0], torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64))
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "variance_preserving": schedules.variance_preserving(),
    "variance_exploding": schedules.variance_exploding(),
    "latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t)) / 2),
}
PAIRS = [(a, b) for a in PATHS for b in PATHS]
SOME_PAIRS = [(a, b) for i, a in enumerate(PATHS) for j, b in enumerate(PATHS) if (i + j) % 3 == 1]
VIEWS = ("velocity", "score", "noise", "data", "base", "v_prediction", "flow_prediction")


def at(t):
    return torch.tensor(t, dtype=F64)


def inside(interval, share):
    low, high = interval
    return low + share * (high - low)


# The change


@given(pair=st.sampled_from(PAIRS), share=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=100)
def test_log_snr_is_matched_and_beta_and_sigma_are_scaled(pair, share):
    a, b = (PATHS[name] for name in pair)
    change = a.between(b)
    t = at(inside(change.interval, share))
    s, c = change.time(t), change.scale(t)
    k, there = a.coefficients(t), b.coefficients(s)
    size = torch.hypot(there.beta, there.sigma)
    # A rounding of s near 1 moves a square root there by 1e-8 of itself.
    assert abs(there.beta - c * k.beta) <= 1e-7 * size
    assert abs(there.sigma - c * k.sigma) <= 1e-7 * size
    if 1e-3 < t < 0.99 and 1e-3 < s < 0.99:
        assert abs(there.beta - c * k.beta) <= 1e-12 * size
        assert abs(there.sigma - c * k.sigma) <= 1e-12 * size


@given(a=testing.schedules(), b=testing.schedules(), share=st.floats(0.02, 0.98))
@settings(deadline=None, max_examples=60)
def test_back_is_the_inverse_of_there(a, b, share):
    try:
        there, back = a.between(b), b.between(a)
    except OutOfRange:
        assume(False)
    t = at(inside(there.interval, share))
    s = there.time(t)
    assume(1e-4 < s < 1 - 1e-4 and 1e-4 < t < 1 - 1e-4)
    s = s.clamp(*back.interval)
    k = a.coefficients(t)
    slope = 2 * (k.dbeta / k.beta - k.dsigma / k.sigma).abs()
    room = 1e-11 * (1 + a.log_snr(t).abs()) / slope  # roundings of log-SNR, over its slope
    assert (back.time(s) - t).abs() <= room + 1e-12
    assert (there.scale(t) * back.scale(s)).item() == pytest.approx(1.0, rel=1e-9)


@given(names=st.tuples(*3 * [st.sampled_from(sorted(PATHS))]), share=st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=60)
def test_changes_compose(names, share):
    a, b, c = (PATHS[name] for name in names)
    direct, first, second = a.between(c), a.between(b), b.between(c)
    t = at(inside(first.interval, share))
    s = first.time(t)
    low, high = direct.interval
    assume(low <= t <= high and second.interval[0] <= s <= second.interval[1])
    # Two clocks in a row lose the roundings of s: 1e-16 over 1 - s >= 1e-6.
    assert second.time(s).item() == pytest.approx(direct.time(t).item(), rel=1e-8, abs=1e-9)
    both = first.scale(t) * second.scale(s)
    assert both.item() == pytest.approx(direct.scale(t).item(), rel=1e-8)


@given(
    path=testing.schedules(), law=testing.targets(), share=st.floats(0.05, 0.95),
    other=st.sampled_from(sorted(PATHS)),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_the_law_is_carried_along(path, law, share, other):
    """x on other is scale times x on path: log densities differ by -d log scale."""
    try:
        change = path.between(PATHS[other])
    except OutOfRange:
        assume(False)
    t = at(inside(change.interval, share))
    s, c = change.time(t), change.scale(t)
    assume(1e-3 < s < 0.999)
    x = law.marginal(path, t).sample(4, seed=0, dtype=F64)
    there = law.marginal(PATHS[other], s).log_prob(c * x) + law.dim * c.log()
    torch.testing.assert_close(there, law.marginal(path, t).log_prob(x), rtol=1e-7, atol=1e-7)


def test_the_scale_is_regular_where_beta_or_sigma_vanishes():
    change = schedules.linear().between(schedules.trigonometric())
    assert change.interval == (0.0, 1.0)
    assert change.scale(at([0.0, 1.0])).tolist() == [1.0, 1.0]
    assert change.time(at([0.0, 1.0])).tolist() == [0.0, 1.0]
    root = math.sqrt(2)
    assert change.scale(0.5).item() == pytest.approx(root, rel=1e-15)
    vp = schedules.variance_preserving().between(schedules.linear())
    assert vp.interval == (0.0, 1.0)
    assert schedules.linear().between(schedules.variance_preserving()).interval[1] == 1.0


def test_the_ends_of_an_interval_are_as_exact_as_the_rest():
    change = schedules.linear().between(schedules.variance_exploding(0.01, 50.0))
    low, high = (at(end) for end in change.interval)
    assert change.time(low).item() == 0.0
    assert change.time(high).item() == 1.0
    back = schedules.variance_exploding(0.01, 50.0).between(schedules.linear())
    assert back.interval == (0.0, 1.0)
    assert back.time(0.0).item() == pytest.approx(1 / 51, rel=1e-14)
    assert back.time(at([0.5, 1.0]))[1].item() == pytest.approx(1 / 1.01, rel=1e-14)


def test_a_warp_and_a_rescaling_are_read_off():
    path = schedules.linear()
    other = path.warp(lambda t: t * t, lambda s: s.sqrt()).rescale(lambda t: 1 + t)
    change, t = path.between(other), torch.linspace(0.0, 1.0, 11, dtype=F64)
    torch.testing.assert_close(change.time(t), t.sqrt(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(change.scale(t), 1 + t.sqrt(), rtol=1e-14, atol=0)


# Two-sided paths


TWO_SIDED = {
    "bridge": Interpolant(
        lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t)), gaussian_base=False
    ),
    "straight": Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False),
    "encode_decode": schedules.encode_decode(),
}


@pytest.mark.parametrize("name", TWO_SIDED)
def test_a_two_sided_path_keeps_its_curve_under_warp_and_rescaling(name):
    path = TWO_SIDED[name]
    other = path.warp(lambda t: t * (1 + t) / 2).rescale(lambda t: 1 + t)
    change, s = other.between(path), torch.linspace(0.01, 0.99, 25, dtype=F64)
    # Half the doubles: the phase is flat to second order where encode_decode turns.
    torch.testing.assert_close(change.time(s), s * (1 + s) / 2, rtol=0, atol=1e-9)
    torch.testing.assert_close(change.scale(s), 1 / (1 + s), rtol=1e-7, atol=0)
    assert change.interval == (0.0, 1.0)


def test_two_sided_paths_of_other_curves_are_told_apart():
    with pytest.raises(ScheduleError, match=r"different curves: at t = .*alpha : beta : gamma is"):
        TWO_SIDED["bridge"].between(TWO_SIDED["straight"])
    with pytest.raises(OptionError, match="the other path is a str"):
        schedules.linear().between("cosine")
    with pytest.raises(ScheduleError, match="one of these paths has a Gaussian base"):
        TWO_SIDED["straight"].between(schedules.linear())
    trigonometric = Interpolant(
        lambda t: torch.cos(math.pi * t / 2), lambda t: torch.sin(math.pi * t / 2), None, False
    )
    change = TWO_SIDED["straight"].between(trigonometric)  # without a gamma every curve is the line
    assert change.scale(0.5).item() == pytest.approx(math.sqrt(2), rel=1e-12)


@pytest.mark.parametrize("name", ["bridge", "straight"])
def test_a_two_sided_velocity_is_adapted(name):
    base = exact.Gaussian([0.3, -0.2], 0.5)
    path = TWO_SIDED[name]
    other = path.warp(lambda t: t * (1 + t) / 2).rescale(lambda t: 1 + t)
    x = LAW.sample(5, seed=0, dtype=F64)
    for one, trained_on in ((path, other), (other, path)):
        adapted = one.adapt(LAW.velocity(trained_on, base=base), trained_on=trained_on)
        for t in (0.1, 0.5, 0.9):
            wanted = LAW.velocity(one, base=base)(t, x)
            torch.testing.assert_close(adapted(at(t), x), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(UndeterminedView, match="not"):
        path.adapt(LAW.velocity(other, base=base), trained_on=other, to="data")


# Models


@pytest.mark.parametrize(("here", "trained_on"), PAIRS)
def test_the_exact_model_of_one_path_is_the_exact_model_of_another(here, trained_on):
    """Every view into every view, to rounding times the conditions of both conversions."""
    path, other = PATHS[here], PATHS[trained_on]
    interval = path.between(other).interval
    x = MIXTURE.sample(6, seed=0, dtype=F64)
    models = {v: path.adapt(_exact(MIXTURE, other, v), trained_on=other, view=v) for v in VIEWS}
    for t in (inside(interval, share) for share in (0.1, 0.5, 0.9)):
        k = path.coefficients(t)
        there = other.coefficients(path.between(other).time(at(t)))
        condition = sum(
            ((1 + c.dbeta.abs() + c.dsigma.abs()) / (c.beta * c.sigma) ** 2).item()
            for c in (k, there)
        )
        y = x * k.sigma + k.beta * 0.3
        truth = {v: _exact(MIXTURE, path, v)(at(t), y) for v in VIEWS}
        for model in models.values():
            for target in VIEWS:
                found, wanted = model.returning(target)(at(t), y), truth[target]
                room = 1e-13 * condition * (1 + wanted.abs().max().item())
                torch.testing.assert_close(found, wanted, rtol=0, atol=room)


def _exact(law, path, view):
    if view == "base" and path.gamma is not None:
        return lambda t, x: path.convert(law.data(path)(t, x), "data", "base", x, t)
    if view == "base":
        return law.noise(path)
    if view in ("v_prediction", "flow_prediction"):
        return lambda t, x: path.convert(law.data(path)(t, x), "data", view, x, t)
    return getattr(law, view)(path)


@pytest.mark.parametrize("view", ["velocity", "data", "noise"])
@pytest.mark.parametrize(("here", "trained_on"), SOME_PAIRS)
def test_sampling_on_another_path_ends_at_the_same_points(here, trained_on, view):
    """Both against the exact flow over the interval; 1e-6 is 100 times the tolerance of 1e-8."""
    path, other = PATHS[here], PATHS[trained_on]
    adapted = path.adapt(_exact(LAW, other, view), trained_on=other, view=view)
    low, high = adapted.interval
    if view == "noise" and path.boundary.starts_at_base and low == 0.0:
        low = 0.01
    x = path.sigma(low) * torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    term = path.ode(adapted, view=view)
    times = {} if low == adapted.interval[0] else {"t": (low, high)}
    sol = interp.solve(term, x, rtol=1e-8, atol=1e-8, denoise=False, **times)
    wanted = LAW.flow(path)(low, high, x)
    size = 1 + wanted.abs().max().item()
    torch.testing.assert_close(sol.x, wanted, rtol=0, atol=1e-6 * size)


def test_a_run_starts_by_default_where_the_interval_does():
    path, other = schedules.linear(), schedules.variance_preserving()
    adapted = path.adapt(LAW.velocity(other), trained_on=other)
    low, high = adapted.interval
    # sigma / beta of the linear path is that of VP at its start, sqrt(exp(10.05) - 1).
    assert low == pytest.approx(1 / (1 + math.sqrt(math.expm1(10.05))), rel=1e-12)
    assert high == 1.0
    assert adapted.base.scale == pytest.approx(1 - low, rel=1e-15)
    seen = []
    x = adapted.base.sample((3, 2), seed=0, dtype=F64)
    for term, options in (
        (path.ode(adapted), {"method": "euler"}),
        (path.sde(adapted, diffusion=0.0), {"method": "euler_maruyama", "seed": 0}),
    ):
        seen.append(term.interval)
        end = interp.solve(term, x, steps=500, **options).x
        # Euler's first order over 500 steps: h times half a slope of some tens.
        torch.testing.assert_close(end, LAW.flow(path)(low, 1.0, x), rtol=0, atol=5e-2)
    assert seen == [(low, 1.0), (low, 1.0)]
    assert path.ode(LAW.velocity(path)).interval == (0.0, 1.0)


def test_outside_the_interval_the_interval_is_named():
    path, other = schedules.linear(), schedules.variance_exploding(0.01, 50.0)
    change, adapted = path.between(other), path.adapt(LAW.velocity(other), trained_on=other)
    low, high = change.interval
    assert (low, high) == (pytest.approx(1 / 51), pytest.approx(1 / 1.01))
    x = torch.zeros(2, 2)
    for t in (0.0, 1.0, at([0.5, 1e-3])):
        for call in (change.time, change.scale, lambda t: adapted(t, x)):
            with pytest.raises(OutOfRange, match=r"from 0\.0196\d* to 0\.990") as caught:
                call(t)
            assert caught.value.interval == change.interval
            assert isinstance(caught.value, TimeError)
    calls = []
    model = path.adapt(lambda t, x: calls.append(t) or x, trained_on=other)
    for term in (path.ode(model), path.sde(model, diffusion=1.0)):
        method = {"method": "euler_maruyama"} if term.kind == "sde" else {}
        with pytest.raises(OutOfRange, match=r"0\.0196.*0\.990"):
            interp.solve(term, x, t=(0.0, 1.0), steps=3, **method)
    assert not calls
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.interval) == (str(caught.value), change.interval)


def test_paths_without_a_common_range_are_refused():
    low = schedules.variance_exploding(1.0, 50.0)
    high = schedules.variance_exploding(0.01, 0.5)
    with pytest.raises(OutOfRange, match="no common range") as caught:
        low.between(high)
    assert caught.value.interval is None
    with pytest.raises(ScheduleError, match="without turning back"):
        schedules.linear().between(schedules.linear().reverse())


def test_a_velocity_that_is_infinite_at_the_end_is_asked_for_there():
    path, other = schedules.variance_preserving(), schedules.linear()
    adapted, x = path.adapt(LAW.velocity(other), trained_on=other), torch.zeros(2, 2, dtype=F64)
    with pytest.raises(UndeterminedView, match='t = 1.*to="data"'):
        adapted(at(1.0), x)
    assert path.ode(adapted).view == "data"
    assert schedules.trigonometric().ode(LAW.velocity(other)).view == "velocity"
    assert schedules.trigonometric().adapt(LAW.velocity(other), other).regular().view == "velocity"


def test_what_a_model_is_told_is_its_own_paths():
    path, other = schedules.linear(), schedules.variance_preserving()
    told = []

    def model(time, x):
        told.append(time)
        return x

    for time in ("noise", "log_snr", ("index", 1000)):
        path.adapt(model, trained_on=other, view="noise", time=time)(at(0.5), torch.zeros(1, 2))
    s = path.between(other).time(0.5)
    assert told[0].dtype == torch.float32
    assert told[0].item() == pytest.approx((1 - s).item(), rel=1e-6)
    assert told[1].item() == pytest.approx(0.0, abs=1e-6)
    assert told[2].item() == pytest.approx((1000 * (1 - s) - 1).item(), rel=1e-6)


def test_conditions_and_times_a_row_reach_the_model():
    path, other = schedules.linear(), schedules.trigonometric()

    def model(t, x, shift):
        return x + shift

    adapted = path.adapt(model, trained_on=other, view="noise")
    t, x = torch.tensor([0.2, 0.7]), torch.ones(2, 3)
    alone = torch.cat([adapted(t[i], x[i : i + 1], shift=2.0) for i in range(2)])
    torch.testing.assert_close(adapted(t, x, shift=2.0), alone, rtol=1e-6, atol=0)


def test_bad_arguments_of_adapt_are_named():
    path, other = schedules.linear(), schedules.trigonometric()
    with pytest.raises(UnknownName, match="velocity"):
        path.adapt(lambda t, x: x, trained_on=other, view="velocty")
    with pytest.raises(UnknownName, match="data"):
        path.adapt(lambda t, x: x, trained_on=other, to="dat")
    with pytest.raises(UnknownName, match="log_snr"):
        path.adapt(lambda t, x: x, trained_on=other, time="logsnr")
    with pytest.raises(OptionError, match="model"):
        path.adapt(3, trained_on=other)
    with pytest.raises(interp.errors.FieldError, match="the model"):
        path.adapt(lambda t, x: None, trained_on=other)(0.5, torch.zeros(2, 2))
