"""Densities along a flow, against targets whose density is in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import interp
from interp import exact, schedules
from interp.errors import DataError, FieldError, OptionError, TimeError, UnknownName, Unsupported
from interp.likelihood import bits_per_dim, dequantise, level_width

TIGHT = {"rtol": 1e-8, "atol": 1e-8}  # integrated over [0, 1]: errors of some 1e-7


def mixture():
    mean = torch.tensor([0.3, -0.5], dtype=torch.float64)
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    return exact.Mixture([0.3, 0.7], torch.stack([mean, -mean]), torch.stack([cov, cov / 2]))


def points(n=6):
    return mixture().sample(n, 0).double()


@pytest.mark.parametrize("path", [schedules.linear(), schedules.trigonometric()])
def test_the_flow_of_a_mixture_has_its_density(path):
    target, x = mixture(), points()
    found = interp.log_prob(path.ode(target.velocity(path)), x, **TIGHT)
    torch.testing.assert_close(found, target.log_prob(x), atol=1e-6, rtol=0)


def test_in_float32_it_is_as_good_as_the_tolerance():
    path, target, x = schedules.linear(), mixture(), points().float()
    found = interp.log_prob(path.ode(target.velocity(path)), x, rtol=1e-6, atol=1e-6)
    # Tolerance and rounding, 1e-6 each, over some 30 steps.
    torch.testing.assert_close(found, target.log_prob(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("view", ["noise", "score", "velocity"])
def test_every_view_gives_the_same_density(view):
    # Variance preserving: sigma' is infinite at the data, and the base is not N(0, 1) exactly.
    path, target, x = schedules.variance_preserving(), mixture(), points()
    score = target.score(path)
    start = torch.tensor(1.0 if view != "velocity" else 0.999, dtype=torch.float64)

    def model(t, x):
        return path.convert(score(t.double(), x), "score", view, x, t.double())

    base = target.marginal(path, 0.0)
    term = path.ode(model, view=view)
    found = interp.log_prob(term, x, base, t=(float(start), 0.0), rtol=1e-6, atol=1e-6)
    # The tolerance over some 50 steps.
    torch.testing.assert_close(found, target.marginal(path, start).log_prob(x), atol=5e-5, rtol=0)


def test_hutchinson_is_unbiased_with_the_variance_of_rademacher_probes():
    # dx/dt = A x: the divergence is tr A, and with one probe for the whole solve the estimate of
    # its integral is e . A e, of variance 2 sum_{i != j} a_ij^2 over the symmetric part.
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, dtype=torch.float64, generator=g) / 3
    n = 4000
    base = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(5).double(), torch.ones(5).double()), 1
    )
    found = interp.log_prob(
        interp.ODE(lambda t, x: x @ a.T), torch.zeros(n, 5, dtype=torch.float64), base,
        divergence="hutchinson", rtol=1e-8, atol=1e-8,
    )  # fmt: skip
    estimate = base.log_prob(torch.zeros(5).double()) - found
    symmetric = (a + a.T) / 2
    variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    error = (variance / n).sqrt().item()
    assert abs(estimate.mean().item() - a.trace().item()) < 5 * error
    # The variance of a sample variance, for a law with tails no fatter than a normal's: 2 / n.
    assert estimate.var().item() == pytest.approx(variance.item(), rel=5 * math.sqrt(2 / n))


def test_the_probe_is_the_rows_own():
    path, target, x = schedules.linear(), mixture(), points(6)
    options = {"divergence": "hutchinson", "seed": 7, "method": "rk4", "steps": 8}
    term = path.ode(target.velocity(path))
    whole = interp.log_prob(term, x, **options)
    parts = [interp.log_prob(term, x[i : i + 3], first_row=i, **options) for i in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=0)
    assert not torch.allclose(interp.log_prob(term, x, **(options | {"seed": 8})), whole)


def test_conditions_reach_the_model():
    field = interp.ODE(lambda t, x, shift: 0 * x + shift)
    base = schedules.linear().base
    x = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    found = interp.log_prob(field, x, base, cond={"shift": 0.25}, **TIGHT)
    torch.testing.assert_close(found, base.log_prob(x - 0.25))


class Refusing(torch.autograd.Function):
    """An operation with a backward pass and no forward mode."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def test_a_model_without_forward_mode_is_told_of_hutchinson():
    field = interp.ODE(lambda t, x: Refusing.apply(x))
    x, base = torch.zeros(2, 3, dtype=torch.float64), schedules.linear().base
    with pytest.raises(Unsupported, match='divergence="hutchinson"'):
        interp.log_prob(field, x, base)
    found = interp.log_prob(field, x, base, divergence="hutchinson", **TIGHT)
    # At the fixed point 0 of dx/dt = sin x the Jacobian is the identity: exact for Rademacher.
    torch.testing.assert_close(found, base.log_prob(x) - 3, atol=1e-7, rtol=0)


@pytest.mark.parametrize("chunk", [1, 6, 10**6])
def test_the_exact_divergence_does_not_depend_on_its_chunks(chunk, monkeypatch):
    monkeypatch.setattr(interp.divergence, "_CHUNK", chunk)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def field(t, x):
        return net(x.flatten(1)).reshape(x.shape)

    v, div = interp.divergence.exact(field)(torch.tensor(0.0), x)
    full = torch.autograd.functional.jacobian(lambda x: field(0.0, x), x).reshape(3, 4, 3, 4)
    wanted = torch.stack([full[i, :, i].trace() for i in range(3)])
    torch.testing.assert_close(v, field(0.0, x))
    torch.testing.assert_close(div, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": None}, OptionError, "no base of its own"),
        ({"divergence": "exakt"}, UnknownName, "exact"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, OptionError, "floating"),
        ({"term": interp.SDE(lambda t, x: x, 1.0)}, Unsupported, "SDE"),
        ({"term": lambda t, x: x[:1]}, FieldError, r"\(1, 3\)"),
        ({"term": schedules.linear().ode(lambda t, x: x), "t": (1.5, 0.0)}, TimeError, "outside"),
    ],
)
def test_what_makes_no_sense_is_refused(change, error, message):
    given = {"term": lambda t, x: x, "x": torch.zeros(2, 3), "base": schedules.linear().base}
    given |= change
    with pytest.raises(error, match=message):
        interp.log_prob(given.pop("term"), given.pop("x"), **given)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 300), st.integers(1, 50))
def test_uniform_noise_costs_log2_of_the_levels(levels, d):
    # Uniform over all cells: log p = -d log(levels * width), and each level has 1 / levels.
    nats = torch.tensor([-d * math.log(levels * level_width(levels))], dtype=torch.float64)
    bits = bits_per_dim(nats, (d,), levels).item()
    assert bits == pytest.approx(math.log2(levels), abs=1e-12 * 1e3)  # float64 after a few sums


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 256), st.integers(0, 2**32))
def test_dequantisation_fills_each_levels_own_cell(levels, seed):
    g = torch.Generator().manual_seed(seed)
    k = torch.randint(0, levels, (200,), generator=g)
    x = 2 * k.double() / (levels - 1) - 1
    y = dequantise(x, levels, g)
    assert (((y + 1) * (levels - 1) / 2).round().clamp(0, levels - 1) == k).all()
    assert (y - x).abs().max() <= level_width(levels) / 2
    assert (y - x).std() > level_width(levels) / 5  # a uniform has 0.289 of its width


def test_images_out_of_range_and_single_levels_are_refused():
    with pytest.raises(DataError, match="outside"):
        dequantise(torch.tensor([0.0, 255.0]), 256)
    with pytest.raises(OptionError, match="levels=1"):
        dequantise(torch.zeros(2), 1)
