"""Whether two paths, or two families, are one."""

from __future__ import annotations

from typing import Any

from ..equivalence import compare


def assert_equivalent(a: Any, b: Any, tol: float = 1e-6) -> float:
    """Assert that a change of time and scale carries one path onto the other, for all laws of the ends.

    Args:
        a: a path, or a family.
        b: another.
        tol: the largest angle, in radians; see `interp.equivalence.compare`.

    Returns:
        The largest angle.

    Raises:
        AssertionError: says where they part.
    """
    report = compare(a, b, tol)
    if not report.equivalent:
        raise AssertionError(f"{a!r} and {b!r} are not one:\n{report}")
    return report.max_error
