"""Whether two families, or two paths, are one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ..errors import OptionError, UnknownName
from .common import Common, config, say

if TYPE_CHECKING:
    from ..equivalence import PathReport


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Say whether two families, or two schedules, are one model, under which map, or how far apart.

    Example: interp compare ddpm vp_sde --out compared.png
    """

    a: tyro.conf.Positional[str]
    """A family or a schedule of `interp list`, with options as in edm:sigma_max=20."""
    b: tyro.conf.Positional[str]
    """Another of the same kind."""
    tol: float = 1e-6
    """The angle in radians at which they still count as one."""
    out: Path | None = None
    """Where to draw both, with the time map: a .png, .svg or .pdf."""

    def run(self) -> None:
        """Compare."""
        from ..equivalence import compare

        a, b = _pair(self.a, self.b)
        report: PathReport = compare(a, b, self.tol)
        say(str(report))
        if self.out is not None:
            from ..plot import equivalence

            equivalence(report, to=self.out)


def _pair(*specs: str) -> list[Any]:
    """Two families where both names are of families, else two paths."""
    from .. import families, schedules

    configs = [config(spec) for spec in specs]
    names = [c["name"] for c in configs]
    if all(name in families.available() for name in names):
        return [families.create(c.pop("name"), (2,), **c) for c in configs]
    known = (*families.available(), *schedules.names())
    for name in names:
        if name not in known:
            raise UnknownName.of("family or schedule", name, known)
    kinds = [name in schedules.names() for name in names]
    if not all(kinds):
        schedule, family = names if kinds[0] else names[::-1]
        raise OptionError(
            f"{family} is a family and {schedule} a schedule. Give two families, or two schedules."
        )
    return [schedules.from_config(c) for c in configs]
