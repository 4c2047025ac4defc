"""Spoilt attention, and guidance projected away from the data estimate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import interp
from adapters import networks
from interp import exact, guidance, schedules
from interp.errors import OptionError, UnknownName

X = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.4)


class Attends(nn.Module):
    """Two attentions over 16 tokens."""

    def forward(self, t, x, **cond):
        h = x + scaled_dot_product_attention(x, 2 * x, x)
        return h + scaled_dot_product_attention(query=h, key=h, value=3 * h)


def test_identity_lets_each_token_attend_to_itself():
    h = 2 * X
    assert torch.equal(guidance.perturbed(Attends())(T, X), h + 3 * h)
    first = guidance.perturbed(Attends(), layers=[0])(T, X)
    torch.testing.assert_close(first, h + scaled_dot_product_attention(h, h, 3 * h))


def test_smoothed_queries_are_their_mean_and_a_blur_between():
    q = X.mean(1, keepdim=True).expand_as(X)
    wanted = X + scaled_dot_product_attention(q, 2 * X, X)
    model = Attends()
    found = guidance.perturbed(model, "smoothed", layers=[0])(T, X)
    torch.testing.assert_close(found, model(T, X) - model(T, X) + _second(wanted))
    wide = guidance.perturbed(model, "smoothed", width=1e4)(T, X)
    torch.testing.assert_close(wide, guidance.perturbed(model, "smoothed")(T, X), atol=1e-4, rtol=0)
    narrow = guidance.perturbed(model, "smoothed", width=1e-2)(T, X)
    torch.testing.assert_close(narrow, model(T, X))


def _second(h):
    return h + scaled_dot_product_attention(h, h, 3 * h)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_it_finds_the_attention_of_our_networks(kind):
    torch.manual_seed(0)
    network, _ = networks.resolve(kind, (1, 8, 8), width=16)
    with torch.no_grad():
        for p in network.parameters():  # the last layers begin at zero
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 1, 8, 8)
    plain = network(T, x)
    spoilt = guidance.perturbed(network)(T, x)
    assert spoilt.shape == plain.shape
    assert not torch.allclose(spoilt, plain)
    pushed = interp.guide(network, guidance.perturbed(network), 3.0)(T, x)
    torch.testing.assert_close(pushed, spoilt + 3 * (plain - spoilt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: guidance.perturbed(nn.Identity(), "identitee"), UnknownName, "identity"),
        (lambda: guidance.perturbed(nn.Identity(), "smoothed", width=0), OptionError, "width is 0"),
        (lambda: guidance.perturbed(3), OptionError, "model"),
        (lambda: guidance.perturbed(lambda t, x: x)(T, X), OptionError, "attends in 0 layers"),
        (lambda: guidance.perturbed(Attends(), layers=[2])(T, X), OptionError, "layer 2 is none"),
        (
            lambda: guidance.perturbed(Attends(), "smoothed", width=1.0)(T, X[:, :15]),
            OptionError,
            "15 tokens are no square",
        ),
    ],
)
def test_what_cannot_be_spoilt_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Projected

PATH = schedules.trigonometric()
GIVEN, FREE = exact.Gaussian([1.0, 0.5, -0.3], 0.2), exact.Gaussian([0.2, -0.1, 0.4], 0.5)


def _pair(view):
    given, free = getattr(GIVEN, view)(PATH), getattr(FREE, view)(PATH)
    return given, free


@pytest.mark.parametrize("view", ["velocity", "data", "noise", "score"])
@pytest.mark.parametrize("radius", [None, 0.2])
def test_projection_is_the_papers_on_data_estimates_in_every_view(view, radius):
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.1, 1.0], [-1.0, 0.2, 0.4], [0.5, 0.5, 0.1]], dtype=torch.float64)
    D, U = GIVEN.data(PATH)(t, x), FREE.data(PATH)(t, x)
    d = D - U
    if radius is not None:
        d = d * (radius / d.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = D / D.norm(dim=1, keepdim=True)
    parallel = (d * unit).sum(1, keepdim=True) * unit
    wanted = D + 3.0 * (d - parallel + 0.25 * parallel)
    given, free = _pair(view)
    model = guidance.projected(given, free, 4.0, PATH, 0.25, radius, view=view)
    found = PATH.convert(model(t, x), view, "data", x, t)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("view", ["velocity", "data"])
def test_with_all_of_the_parallel_part_it_is_guide_also_at_the_ends(view):
    given, free = _pair(view)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = interp.guide(given, free, 2.5)(t, x)
    torch.testing.assert_close(
        guidance.projected(given, free, 2.5, PATH, 1.0, view=view)(t, x), plain
    )
    held = guidance.projected(given, free, 2.5, PATH, view=view)
    assert bool(torch.isfinite(held(t, x)).all())


def test_scale_one_is_one_call_of_the_conditional_model():
    given, _ = _pair("data")
    model = guidance.projected(given, lambda t, x: 1 / 0, 1.0, PATH, view="data")
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(model(0.5, x), given(0.5, x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.nan}, "scale is nan"),
        ({"parallel": -1.0}, "parallel"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"uncond": 3}, "uncond is a int"),
    ],
)
def test_projection_refuses_what_makes_no_sense(options, message):
    given = {
        "model": lambda t, x: x,
        "uncond": lambda t, x: x,
        "scale": 2.0,
        "path": PATH,
        **options,
    }
    with pytest.raises(OptionError, match=message):
        guidance.projected(**given)
