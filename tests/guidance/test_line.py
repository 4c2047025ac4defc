"""Guidance: u + scale (c - u), and when it is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import schedules
from interp.errors import OptionError

T = torch.tensor(0.5)
X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Counted:
    """A model of a label, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, x, label=None):
        self.calls += 1
        return x * t.reshape(-1, *[1] * (x.ndim - 1)) + (0.0 if label is None else label)


@settings(deadline=None, max_examples=50)
@given(st.floats(-5, 5))
def test_it_is_the_line_through_both(scale):
    c, u = X * T + 2.0, X * T
    guided = interp.guide(Counted(), {"label": None}, scale)(T, X, label=2.0)
    # Numbers up to 12 in float32, three roundings.
    torch.testing.assert_close(guided, u + scale * (c - u), atol=5e-6, rtol=0)


def test_scale_one_is_the_conditional_model_for_one_call():
    model = Counted()
    out = interp.guide(model, {"label": None}, 1.0, rescale=0.7)(T, X, label=2.0)
    assert torch.equal(out, X * T + 2.0)
    assert model.calls == 1


def test_another_model_may_stand_for_the_unconditional_one():
    out = interp.guide(Counted(), lambda t, x, label: x - label, 2.0)(T, X, label=1.0)
    torch.testing.assert_close(out, 2 * (X * T + 1) - (X - 1))


@pytest.mark.parametrize(("t", "calls"), [(0.1, 1), (0.2, 2), (0.5, 2), (0.8, 2), (0.9, 1)])
def test_outside_its_interval_it_costs_nothing(t, calls):
    model, t = Counted(), torch.tensor(t)
    out = interp.guide(model, {"label": None}, 3.0, interval=(0.2, 0.8))(t, X, label=2.0)
    assert model.calls == calls
    torch.testing.assert_close(out, X * t + (6.0 if calls == 2 else 2.0))


def test_the_interval_is_each_rows_own():
    t = torch.tensor([0.1, 0.5, 0.9])
    model = interp.guide(Counted(), {"label": None}, 3.0, interval=(0.2, 0.8))
    out = model(t, X, label=2.0)
    torch.testing.assert_close(out, X * t[:, None] + torch.tensor([2.0, 6.0, 2.0])[:, None])


@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
def test_rescaling_brings_the_spread_of_each_row_back(rescale):
    def model(t, x, label=None):
        return x if label is None else 3 * x

    guided = interp.guide(model, {"label": None}, 4.0, rescale=rescale)(T, X, label=1)
    # c = 3 x and u + 4 (c - u) = 9 x, so the share phi takes 9 back to 3 (Lin et al., eq. 15-16).
    torch.testing.assert_close(guided, X * (9 * (1 - rescale) + 3 * rescale))


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_guiding_between_gaussians_shifts_the_mean(w):
    # With N(m_c, s^2) and N(m_u, s^2) the guided flow ends at N(m_u + w (m_c - m_u), s^2).
    path, s, means = schedules.linear(), 0.5, {"c": 1.0, None: -0.5}
    targets = {
        k: interp.exact.Gaussian(torch.full((2,), m).double(), s**2 * torch.eye(2).double())
        for k, m in means.items()
    }
    models = {k: target.velocity(path) for k, target in targets.items()}
    guided = interp.guide(lambda t, x, label: models[label](t, x), {"label": None}, w)
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    term = path.ode(guided)
    sol = interp.solve(term, z, cond={"label": "c"}, rtol=1e-9, atol=1e-9)
    wanted = -0.5 + w * 1.5 + s * z
    torch.testing.assert_close(sol.x, wanted, atol=1e-7, rtol=0)  # the tolerance, accumulated


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, {}, 1.0), {}, "model is a NoneType"),
        ((Counted(), None, 1.0), {}, "uncond is a NoneType"),
        ((Counted(), {}, float("nan")), {}, "scale is nan"),
        ((Counted(), {}, 2.0), {"rescale": 1.5}, "rescale is 1.5"),
        ((Counted(), {}, 2.0), {"interval": (0.8, 0.2)}, "empty"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, options, message):
    with pytest.raises(OptionError, match=message):
        interp.guide(*arguments, **options)
