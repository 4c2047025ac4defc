"""Learned paths: end points exact whatever the weights, gradients everywhere, saved and loaded."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters
import interp
from interp import exact, schedules
from interp.errors import OptionError, ScheduleError, UnknownName
from interp.schedules.learned import Network, Spline
from interp.training.ema import Average
from interp.transforms import Trainable

F64 = torch.float64
T = torch.linspace(0.0, 1.0, 33, dtype=F64)
INSIDE = T[1:-1]
KINDS = ("spline", "network")
VARIANTS = [(kind, separate) for kind in KINDS for separate in (False, True)]
LAW = exact.Gaussian([0.5, -1.0], torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64))


def bent(path, seed=0, size=1.0):
    """``path`` with random weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in path.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return path


# The curve


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_it_is_the_base(kind):
    path, base = schedules.learned("trigonometric", kind), schedules.trigonometric()
    k, wanted = path.coefficients(T), base.coefficients(T)
    # The network begins as a straight line and 16 small steps.
    room = 1e-14 if kind == "spline" else 0.05
    torch.testing.assert_close(k.beta, wanted.beta, rtol=0, atol=room)
    torch.testing.assert_close(k.dbeta[1:-1], wanted.dbeta[1:-1], rtol=0, atol=20 * room)


@given(
    variant=st.sampled_from(VARIANTS),
    base=st.sampled_from(["linear", "cosine", "variance_preserving", "brownian_bridge"]),
    seed=st.integers(0, 1000),
    size=st.floats(0.1, 5.0),
)
@settings(deadline=None, max_examples=40)
def test_ends_are_exact_and_clocks_rise_whatever_the_weights(variant, base, seed, size):
    kind, separate = variant
    path = bent(schedules.learned(base, kind, 8, separate), seed, size)
    known = schedules.from_config({"name": base})
    k, wanted = (
        path.coefficients(torch.tensor([0.0, 1.0])),
        known.coefficients(torch.tensor([0.0, 1.0])),
    )
    for f in ("alpha", "beta", "gamma", "sigma"):
        assert torch.equal(getattr(k, f), getattr(wanted, f))
    values = path.beta(T)
    assert (values.diff() > 0).all()
    assert path.boundary.alpha0 == known.boundary.alpha0


@pytest.mark.parametrize(("kind", "separate"), VARIANTS)
def test_slopes_are_derivatives(kind, separate):
    """Central differences of step 1e-6: h^2 of third derivatives of up to 1e5, 1e-16 / h."""
    path, h = bent(schedules.learned("trigonometric", kind, 6, separate)), 1e-6
    t = INSIDE + 1e-3
    with torch.no_grad():
        k, after, before = (path.coefficients(s) for s in (t, t + h, t - h))
        for f in ("alpha", "beta"):
            slope = (getattr(after, f) - getattr(before, f)) / (2 * h)
            torch.testing.assert_close(getattr(k, f"d{f}"), slope, rtol=1e-6, atol=1e-7)
            bend = (getattr(after, f"d{f}") - getattr(before, f"d{f}")) / (2 * h)
            torch.testing.assert_close(getattr(k, f"dd{f}"), bend, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_spline_has_its_inverse_in_closed_form(seed):
    path = bent(schedules.learned("linear", "spline", 8), seed, 2.0)
    lam = path.log_snr(INSIDE)
    assert path._time_at_log_snr is not None
    back = path.time_at_log_snr(lam)
    # A slope may be as small as 1e-3 times 1e-3.
    torch.testing.assert_close(back, INSIDE, rtol=0, atol=1e-9)
    assert path.time_at_log_snr(torch.tensor([-math.inf, math.inf])).tolist() == [0.0, 1.0]
    found = bent(schedules.learned("linear", "network", 8), seed)
    torch.testing.assert_close(
        found.time_at_log_snr(found.log_snr(INSIDE)), INSIDE, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_points_keep_their_dtype_and_weights_may_have_any(dtype):
    path = bent(schedules.learned("linear")).to(dtype)
    x = torch.randn(3, 2, dtype=dtype)
    assert path.at(0.3, x, x).dtype == path.rate(0.3, x, x).dtype == dtype
    assert path.coefficients(0.3).beta.dtype == F64


# Training


@pytest.mark.parametrize(("kind", "separate"), VARIANTS)
def test_a_known_schedule_is_fitted(kind, separate):
    """The linear path learns to be the trigonometric one, up to scale: log-SNR of range 14."""
    path = schedules.learned("linear", kind, 12, separate)
    wanted = schedules.trigonometric().log_snr(INSIDE)
    optimizer = torch.optim.Adam(path.parameters(), lr=0.05)
    for _ in range(250):
        loss = (path.log_snr(INSIDE) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Untrained it is off by up to 0.9; 12 bins fit a smooth clock to a per cent.
    error = (path.log_snr(INSIDE) - wanted).abs().max().item()
    assert error < 0.1
    x0, x1 = torch.randn(2, 3, 2)
    assert torch.equal(path.at(0.0, x0, x1), x0)
    assert torch.equal(path.at(1.0, x0, x1), x1)


@pytest.mark.parametrize(("kind", "separate"), VARIANTS)
def test_gradients_reach_every_weight_through_points_rates_and_views(kind, separate):
    path = bent(schedules.learned("brownian_bridge", kind, 4, separate), size=0.3)
    x0, x1, z = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
    loss = path.at(t, x0, x1, z).square().sum() + path.rate(t, x0, x1, z).square().sum()
    loss.backward()
    for weight in path.parameters():
        assert weight.grad.isfinite().all()
        assert weight.grad.any()
    one_sided = bent(schedules.learned("linear", kind, 4, separate), size=0.3)
    value = one_sided.convert(x0, "velocity", "data", x1, 0.4).square().sum()
    (slope, *_) = torch.autograd.grad(value, list(one_sided.parameters()), allow_unused=True)
    assert slope.isfinite().all()


def test_the_gradient_is_the_slope_of_the_loss():
    """Against differences of step 1e-6 in each weight, float64."""
    path = bent(schedules.learned("trigonometric", "spline", 3).double(), size=0.5)
    x0, x1 = torch.randn(2, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.25, 0.6], dtype=F64)

    def loss():
        return (path.at(t, x0, x1) * x1 + path.rate(t, x0, x1).square()).sum()

    loss().backward()
    for weight in path.parameters():
        for i in range(len(weight)):
            with torch.no_grad():
                weight[i] += 1e-6
                up = loss()
                weight[i] -= 2e-6
                down = loss()
                weight[i] += 1e-6
            assert ((up - down) / 2e-6).item() == pytest.approx(weight.grad[i].item(), abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_trained_for_a_solver(kind):
    """Through four Heun steps, of a model trained on another path: the error at the end shrinks."""
    known = schedules.linear()
    path = schedules.learned("trigonometric", kind, 6)
    model = LAW.velocity(known)
    x = torch.randn(32, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    end = LAW.flow(known)(0.0, 1.0, x)

    def error():
        term = path.ode(path.adapt(model, trained_on=known))
        found = interp.solve(term, x, method="heun", steps=4, backend="torch").x
        return (found - end).square().mean()

    optimizer = torch.optim.Adam(path.parameters(), lr=0.05)
    before = error().item()
    for _ in range(25):
        loss = error()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error().item() < 0.5 * before


def test_a_training_that_diverged_is_named():
    for kind in KINDS:
        path = schedules.learned("linear", kind, 4)
        with torch.no_grad():
            next(path.parameters()).fill_(math.nan)
        x = torch.zeros(2, 2)
        for call in (path.at, path.rate):
            with pytest.raises(ScheduleError, match="no longer a number: its training diverged"):
                call(0.5, x, x)


# Stored


def test_whether_log_snr_rises_is_told_of_the_weights_as_they_are():
    """A base that leaves at once and a latent that comes late: sigma falls to 0 and rises again."""
    path = schedules.learned(schedules.with_gamma(schedules.linear()), separate=True)
    assert path.monotone
    kept = {name: w.clone() for name, w in path.state_dict().items()}
    with torch.no_grad():
        path.learned[0].heights[0] = 5.0
        path.learned[2].heights[8] = 5.0
    assert (path.log_snr(torch.linspace(0.05, 0.95, 91, dtype=F64)).diff() < 0).any()
    assert not path.monotone
    with pytest.raises(ScheduleError, match="no inverse"):
        path.time_at_log_snr(0.0)
    path.load_state_dict(kept)
    assert path.monotone


def test_it_is_a_module_and_comes_back_from_config_and_state():
    path = bent(schedules.learned(schedules.variance_preserving(0.2, 10.0), "spline", 5, True))
    assert isinstance(path, torch.nn.Module)
    again = schedules.from_config(json.loads(json.dumps(path.config)))
    assert not torch.equal(again.beta(T), path.beta(T))
    again.load_state_dict(path.state_dict())
    assert torch.equal(again.beta(T), path.beta(T))
    assert again.config == path.config


def test_what_is_made_of_it_has_its_weights():
    path = bent(schedules.learned("linear"))
    made = [
        path.rescale(2.0),
        path.reverse(),
        path.warp(schedules.warps.sine()),
        schedules.ensemble([path, schedules.trigonometric()]),
        schedules.shifted(path, 2.0),
        schedules.piecewise([path, path], [0.5]),
    ]
    for other in made:
        assert isinstance(other, Trainable)
        assert {id(w) for w in other.parameters()} == {id(w) for w in path.parameters()}
        again = schedules.from_config(json.loads(json.dumps(other.config)))
        again.load_state_dict(other.state_dict())
        assert torch.equal(again.beta(INSIDE), other.beta(INSIDE))


def test_a_copy_has_weights_of_its_own():
    path = schedules.learned("linear", "network", 4)
    twin = bent(copy.deepcopy(path))
    assert not torch.equal(twin.beta(INSIDE), path.beta(INSIDE))
    assert torch.equal(path.beta(T), schedules.learned("linear", "network", 4).beta(T))


def test_a_family_trains_averages_and_saves_it():
    family = adapters.create("flow_matching", shape=(2,), path=schedules.learned("linear", size=4))
    names = [name for name, _ in family.named_parameters() if "learned" in name]
    assert len(names) == 3
    average = Average(family, 0.9)
    x = LAW.sample(64, seed=0)
    optimizer = torch.optim.SGD(family.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        family.loss(x, generator=torch.Generator().manual_seed(step)).backward()
        optimizer.step()
        average.update(step)
    assert not torch.equal(family.path.beta(INSIDE), INSIDE)
    again = adapters.create("flow_matching", **json.loads(json.dumps(family.config)))
    again.load_state_dict(average.state())
    # Under whichever name a weight is stored, it is the averaged one.
    for name, weight in again.named_parameters():
        assert torch.equal(weight, average.weights[name]), name
    again.load_state_dict(family.state_dict())
    assert torch.equal(again.path.beta(T), family.path.beta(T))


# What makes no sense


def test_bad_arguments_are_named():
    with pytest.raises(UnknownName, match="spline"):
        schedules.learned("linear", "splin")
    with pytest.raises(UnknownName, match="linear"):
        schedules.learned("liner")
    for size in (1, 501, 2.5):
        with pytest.raises(OptionError, match="size"):
            schedules.learned("linear", size=size)
    with pytest.raises(OptionError, match="base is a float"):
        schedules.learned(0.5)
    rates = torch.tensor([1.0, 2.0], dtype=F64)
    uneven = interp.Interpolant(lambda t: 1 - t, lambda t: t[..., None] ** rates)
    with pytest.raises(OptionError, match=r"element, of shape \(2,\)"):
        schedules.learned(uneven)


@pytest.mark.parametrize("module", [Spline(6), Network(6)])
def test_a_clock_alone_rises_from_0_to_1(module):
    tau, slope = module(T)
    assert (tau[0].item(), tau[-1].item()) == (0.0, pytest.approx(1.0, abs=1e-15))
    assert (slope > 0).all()
