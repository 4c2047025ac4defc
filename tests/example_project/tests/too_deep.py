"""What fails: a sway deeper than 1 turns back. Not collected unless it is asked for."""

from hypothesis import Phase, given, settings
from hypothesis.strategies import builds, floats
from sway import sway

from interp import schedules, testing

FAILING = settings(
    deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink]
)


@FAILING
@given(builds(sway, depth=floats(0.0, 3.0)))
def test_it_is_a_path(path):
    testing.assert_path(path)


@FAILING
@given(builds(sway, depth=floats(0.0, 0.9)))
def test_it_is_variance_preserving(path):
    testing.assert_equivalent(path, schedules.variance_preserving())
