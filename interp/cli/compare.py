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
    """A family or a schedule of `interp list`, with options as in edm:sigma_max=20, or a run's folder."""
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
    """Two families, by name or as runs hold them, where both are such; else two paths."""
    from .. import families, schedules
    from ..training import load
    from ..training.run import exists

    runs = {spec: load(spec)[0] for spec in specs if exists(Path(spec))}
    shape = next((run.shape for run in runs.values()), (2,))
    configs = [{"name": spec} if spec in runs else config(spec) for spec in specs]
    names = [c["name"] for c in configs]
    if all(name in runs or name in families.available() for name in names):
        return [runs.get(c["name"]) or families.create(c.pop("name"), shape, **c) for c in configs]
    known = {*families.available(), *schedules.names()}
    for name in names:
        if name not in known and name not in runs:
            hint = UnknownName.of("family or schedule", name, known)
            raise UnknownName(f"{hint} Or give the folder of a run.")
    kinds = [name in schedules.names() for name in names]
    if not all(kinds):
        schedule, family = names if kinds[0] else names[::-1]
        raise OptionError(
            f"{family} is a family and {schedule} a schedule. Give two families, or two schedules."
        )
    return [schedules.from_config(c) for c in configs]
