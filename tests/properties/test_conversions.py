"""Random schedules and targets: every view says what every other says, through `path.convert`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import UndeterminedView
from interp.testing import paths, schedules, targets, times
from interp.views import VIEWS

MANY = settings(deadline=None, max_examples=40)


def exact_views(target, path, t, x):
    """All views of the exact law at x, each by its own definition."""
    k = path.coefficients(t)
    views = {
        v: getattr(target, v)(path)(t, x) for v in ("velocity", "score", "noise", "data", "base")
    }
    views["energy_gradient"] = -views["score"]
    views["v_prediction"] = k.beta * views["noise"] - k.sigma * views["data"]
    views["flow_prediction"] = views["noise"] - views["data"]
    return views


def drawn_points(target, path, t, dtype=torch.float64):
    x = target.marginal(path, t).sample(4, seed=1, dtype=torch.float64)
    return (x + 0.05).to(dtype)


def test_the_views_are_all_here():
    assert set(VIEWS) == {
        "velocity", "score", "noise", "data", "base", "energy_gradient", "v_prediction",
        "flow_prediction",
    }  # fmt: skip


def condition(path, source, target, t):
    """How much a unit of the source's error is of the target: |q| of target = p x + q source."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    q = path.convert(one, source, target, zero, t) - path.convert(zero, source, target, zero, t)
    p = path.convert(zero, source, target, one, t)
    return float(q.abs()), float(p.abs())


@MANY
@given(paths(two_sided=False), targets(kinds=["gaussian", "mixture", "empirical"]), times(0.01))
def test_conversion_of_the_exact_views(path, target, t):
    """All pairs, float64: 1e-12 of what is added, |p x| + |q source|.

    A pair that the path does not determine (base from score on `mirror`, where x0 has no share; anything from
    the velocity at its middle, where all stands still) is refused, and by name.
    """
    x = drawn_points(target, path, t)
    views, undetermined = exact_views(target, path, t, x), set()
    for source, value in views.items():
        for sought, wanted in views.items():
            try:
                found = path.convert(value, source, sought, x, t)
            except UndeterminedView:
                undetermined.add((source, sought))
                continue
            q, p = condition(path, source, sought, t)
            scale = 1 + q * value.abs().max() + p * x.abs().max() + wanted.abs().max()
            assert (found - wanted).abs().max() <= 1e-11 * scale, (source, sought)
    k = path.coefficients(t)
    no_share, still = float(k.alpha) == 0, float(k.dbeta * k.sigma - k.beta * k.dsigma) == 0
    silent = [*(["base"] if no_share else []), *(["velocity"] if still else [])]
    assert undetermined <= {(source, v) for source in silent for v in VIEWS}


@MANY
@given(schedules(), targets(), times(0.01))
def test_conversion_in_float32(path, target, t):
    """The same at float32 points: 8 roundings of 6e-8 of what is added."""
    x = drawn_points(target, path, t, torch.float32)
    views = {name: v.float() for name, v in exact_views(target, path, t, x.double()).items()}
    for source, value in views.items():
        for sought, wanted in views.items():
            found = path.convert(value, source, sought, x, t)
            assert found.dtype == torch.float32
            q, p = condition(path, source, sought, t)
            scale = q * value.abs().max() + p * x.abs().max() + wanted.abs().max()
            assert (found - wanted).abs().max() <= 8 * 6e-8 * scale, (source, sought)


@MANY
@given(schedules(), times(0.01), st.sampled_from([torch.float32, torch.float64]))
def test_round_trips(path, t, dtype):
    """There and back with any value, not of a law: 1e-12 of what was added on the way.

    In single precision 8 roundings of 6e-8, as above.
    """
    rounding = 1e-12 if dtype is torch.float64 else 8 * 6e-8
    generator = torch.Generator().manual_seed(0)
    x, value = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator).to(dtype)
    for source in VIEWS:
        for other in VIEWS:
            there = path.convert(value, source, other, x, t)
            back = path.convert(there, other, source, x, t)
            q, p = condition(path, other, source, t)
            scale = 1 + q * there.abs().max() + p * x.abs().max()
            assert (back - value).abs().max() <= rounding * scale, (source, other)


@MANY
@given(schedules(), targets())
def test_a_time_for_each_row(path, target):
    """A conversion of rows at their own times is that of each row alone, to rounding."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = drawn_points(target, path, 0.5)[:3]
    value = target.velocity(path)(t, x)
    together = path.convert(value, "velocity", "data", x, t)
    for i in range(3):
        alone = path.convert(value[i : i + 1], "velocity", "data", x[i : i + 1], t[i])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-14, atol=1e-14)


@MANY
@given(paths(two_sided=True), targets(dim=2), targets(dim=2), times(0.05))
def test_between_two_laws_only_what_is_determined_converts(path, base, target, t):
    """s = -E[z | x] / gamma for any base; velocity and score are two functions."""
    x = target.marginal(path, t, base).sample(3, seed=1, dtype=torch.float64)
    score, latent = (getattr(target, v)(path, base)(t, x) for v in ("score", "latent"))
    k = path.coefficients(t)
    torch.testing.assert_close(score * k.gamma, -latent, rtol=1e-12, atol=1e-12)
    with pytest.raises(UndeterminedView):
        path.convert(score, "score", "velocity", x, t)
    with pytest.raises(UndeterminedView):
        path.convert(score, "velocity", "score", x, t)
