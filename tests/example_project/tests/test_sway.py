"""The schedule and the family, under whatever Hypothesis thinks of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import builds, floats
from sway import sway

import adapters
from interp import schedules, testing
from interp.equivalence import compare

SOME = settings(deadline=None, max_examples=6)
SWAYS = builds(sway, depth=floats(-0.9, 0.9))


@SOME
@given(SWAYS)
def test_it_is_a_path(path):
    testing.assert_path(path)


@SOME
@given(SWAYS)
def test_it_is_the_straight_path_at_another_speed(path):
    testing.assert_equivalent(path, schedules.linear())
    testing.assert_different(testing.perturbed(path), schedules.linear())


@SOME
@given(SWAYS, testing.targets(kinds=["gaussian"]))
def test_both_sample_one_law(path, target):
    own, straight = (p.ode(target.velocity(p)) for p in (path, schedules.linear()))
    testing.assert_same_marginals(own, straight, shape=(target.dim,))


@pytest.mark.families("loss", "sample", shape=(2,), depth=0.3, width=8)
def test_every_family_with_a_depth(family):
    """sway_matching alone has one; the plugin leaves the others out."""
    assert family.name == "sway_matching"
    assert "sway_matching" in adapters.available()
    family.loss(torch.randn(8, 2)).backward()
    assert family.sample(3, seed=0).shape == (3, 2)


@settings(deadline=None, max_examples=3)
@given(testing.families(["sway_matching"], depth=floats(0.1, 0.9)))
def test_the_family_is_flow_matching_at_another_speed(family):
    report = compare(family, adapters.create("flow_matching", (2,), width=8))
    assert report.equivalent
    assert report.loss_ratio > 1.01  # the same model, trained with another weight
