"""Whether two paths, or two families, are one model in other clothes, and how far apart they are if not.

report = interp.equivalence.compare(schedules.linear(), schedules.trigonometric())
print(report)                    # a table
report.time_map(0.3), report.scale_map(0.3)
"""

from __future__ import annotations

from typing import Any

from ..errors import OptionError
from ..interpolant import Interpolant
from .families import RELATIONS, FamilyReport, compare_families
from .paths import PathReport, compare_paths

__all__ = ["RELATIONS", "FamilyReport", "PathReport", "compare"]


def compare(a: Any, b: Any, tol: float = 1e-6) -> PathReport:
    """Decide whether two paths or two families are one, with the maps between them.

    Two paths are one when t -> (alpha : beta : gamma) runs through the same ratios, at whatever speed:
    then a change of time and of scale carries one onto the other for every law of the ends. With a
    Gaussian base alpha and gamma count as one sigma = sqrt(alpha^2 + gamma^2), so that the range of
    log-SNR decides. Families are one where beside that they pair noise and data alike, and networks of
    both are fields (or both the solutions of one): then each one's exact model is the other's, under the
    maps and `Interpolant.convert`. How they are trained and sample is compared beside; `FamilyReport`.

    Args:
        a: an `Interpolant` or a family.
        b: another.
        tol: the largest angle in radians, between (sigma, beta) or (alpha, beta, gamma) as unit vectors
            at the best-matched times, at which they still count as one.

    Raises:
        OptionError: a path against a family, or something that is neither; a tol that is not positive.
        ScheduleError: a path with one schedule an element.
    """
    if not tol > 0:
        raise OptionError(f"tol={tol!r} is no angle. Give a positive number of radians, e.g. 1e-6.")
    if isinstance(a, Interpolant) and isinstance(b, Interpolant):
        return compare_paths(a, b, tol)
    for one in (a, b):
        if not isinstance(one, Interpolant) and not hasattr(one, "supports"):
            raise OptionError(
                f"a {type(one).__name__} is neither a path nor a family. Give two paths, "
                "schedules.linear(), or two families, adapters.create(...)."
            )
    if isinstance(a, Interpolant) or isinstance(b, Interpolant):
        raise OptionError(
            "a path and a family were given. Compare the path with family.path, or two families."
        )
    return compare_families(a, b, tol)
