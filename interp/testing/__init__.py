"""A pytest plugin: Hypothesis strategies and assertions for a test-suite that uses interp.

    from hypothesis import given
    from interp.testing import assert_same_marginals, schedules, targets

    @given(schedules(), targets())
    def test_the_flow_of_velocity_and_of_data_are_one(path, target):
        velocity = path.ode(target.velocity(path))
        data = path.ode(target.data(path), view="data")
        assert_same_marginals(velocity, data, shape=(target.dim,), t=(0.01, 0.99))

Strategies draw from what there is: a schedule, method, backend or family that is added to interp is
drawn from then on. A path of your own is one with parameters, drawn by Hypothesis' ``builds``, so that
what fails shrinks to a call that can be copied:

    @given(builds(my_path, depth=floats(0.0, 0.9)))
    def test_my_path(path):
        assert_path(path)

The plugin adds the marker ``families``, see `interp.testing.plugin`. Hypothesis comes with ``pip install
'interp[test]'`` and is imported nowhere else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .equivalence import assert_different, assert_equivalent
    from .made import composed, monotone, two_sided
    from .marginals import assert_same_marginals
    from .orders import PathProblem, Problem, assert_order
    from .own_path import assert_path
    from .strategies import couplings, families, paths, schedules, solvers, targets, times
    from .twins import perturbed

# By name when asked for: pytest imports this package with its plugin, in every run.
_HOME = {
    "PathProblem": "orders",
    "Problem": "orders",
    "assert_different": "equivalence",
    "assert_equivalent": "equivalence",
    "assert_order": "orders",
    "assert_path": "own_path",
    "assert_same_marginals": "marginals",
    "composed": "made",
    "couplings": "strategies",
    "families": "strategies",
    "monotone": "made",
    "paths": "strategies",
    "perturbed": "twins",
    "schedules": "strategies",
    "solvers": "strategies",
    "targets": "strategies",
    "times": "strategies",
    "two_sided": "made",
}

__all__ = [
    "PathProblem",
    "Problem",
    "assert_different",
    "assert_equivalent",
    "assert_order",
    "assert_path",
    "assert_same_marginals",
    "composed",
    "couplings",
    "families",
    "monotone",
    "paths",
    "perturbed",
    "schedules",
    "solvers",
    "targets",
    "times",
    "two_sided",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
