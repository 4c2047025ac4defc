"""Whether two paths, or two families, are one."""

from __future__ import annotations

from typing import Any

from ..equivalence import compare
from ..interpolant import Interpolant


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
        raise AssertionError(f"{_said(a)} and {_said(b)} are not one:\n{report}")
    return report.max_error


def assert_different(a: Any, b: Any, tol: float = 1e-6) -> float:
    """Assert that they are not one: of a twin that is a little off, that the test sees it.

    Arguments and what is returned as of `assert_equivalent`.

    Raises:
        AssertionError: they are one.
    """
    report = compare(a, b, tol)
    if report.equivalent:
        raise AssertionError(f"{_said(a)} and {_said(b)} are one:\n{report}")
    return report.max_error


def _said(one: Any) -> str:
    """A path by itself, a family by what makes it again."""
    if isinstance(one, Interpolant) or not hasattr(one, "config"):
        return repr(one)
    return f"{getattr(one, 'name', type(one).__name__)}({dict(one.config)})"
