"""Hypothesis strategies and assertions for a test-suite that uses interp.

    from hypothesis import given
    from interp.testing import assert_same_marginals, schedules, targets

    @given(schedules(), targets())
    def test_the_flow_of_velocity_and_of_data_are_one(path, target):
        velocity = path.ode(target.velocity(path))
        data = path.ode(target.data(path), view="data")
        assert_same_marginals(velocity, data, shape=(target.dim,), t=(0.01, 0.99))

Strategies draw from what there is: a schedule, method or backend that is added to interp is drawn
from then on. Hypothesis comes with ``pip install 'interp[test]'`` and is imported nowhere else.
"""

from __future__ import annotations

from .equivalence import assert_equivalent
from .made import composed, monotone, two_sided
from .marginals import assert_same_marginals
from .orders import Problem, assert_order
from .strategies import paths, schedules, solvers, targets, times

__all__ = [
    "Problem",
    "assert_equivalent",
    "assert_order",
    "assert_same_marginals",
    "composed",
    "monotone",
    "paths",
    "schedules",
    "solvers",
    "targets",
    "times",
    "two_sided",
]
