"""What a search for a schedule gives back: it prints as a table, and is stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import schedules
from ..algebra import Warp
from ..errors import CheckpointError, OptionError, Unsupported
from ..files import write_bytes
from ..interpolant import Interpolant
from .flows import Term

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..plot.style import To

SCHEMA = 1


class Change(NamedTuple):
    """A number before and after."""

    before: float
    after: float

    @property
    def gain(self) -> float:
        """How many times smaller it is."""
        return self.before / self.after if self.after else float("inf")


@dataclass(frozen=True)
class BestSchedule:
    """A schedule for one solver and number of steps, beside the one that the search started from.

    Use: ``interp.solve(best.term, x, **best.options)``, or ``family.sample(n, **best.options)``
    where the grid was optimised.

    Attributes:
        solver, steps: what it is for.
        objective, optimised: what was minimised, over what.
        grid: the times of the steps on `path`.
        path: the path to run on: the model's own where the grid was optimised; None where there is
            none.
        warp: the clock, where one was optimised: `path` is the model's own, warped by it.
        value: the objective.
        error: the RMS distance per element from where the flow ends, on starts that the search
            has not seen.
        history: the objective at each step of the search.
        starts: the objective of each start that was tried.
        evaluations: runs of the solver, or of the objective.
        terms: what to integrate, one for each flow that was given.
    """

    solver: str
    steps: int
    objective: str
    optimised: str
    grid: tuple[float, ...]
    path: Interpolant | None
    warp: Warp | None
    value: Change
    error: Change
    history: tuple[float, ...]
    starts: Mapping[str, float]
    evaluations: int
    terms: tuple[Term, ...] = field(repr=False)
    before: tuple[tuple[float, ...], Interpolant | None] = field(repr=False)
    unit: str = ""

    @property
    def term(self) -> Term:
        """What to integrate, where one flow was given."""
        if len(self.terms) != 1:
            raise OptionError(
                f"the schedule was made for {len(self.terms)} flows. Take one of .terms."
            )
        return self.terms[0]

    @property
    def options(self) -> dict[str, Any]:
        """What `solve` and a family's ``sample`` take: method and grid."""
        return {"method": self.solver, "grid": list(self.grid)}

    def __str__(self) -> str:
        head = f"{self.optimised} for {self.solver}, {self.steps} steps, by {self.objective}"
        rows = [
            ("", "before", "after", "ratio"),
            (self.unit, *_cells(self.value)),
            ("RMS error at the end, held out", *_cells(self.error)),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        nodes = " ".join(f"{t:.4f}" for t in self.grid)
        return "\n".join([head, *lines, f"grid: {nodes}"])

    def plot(self, to: To | None = None) -> Figure:
        """Log-SNR at each step of the run, where it is finite: before and after.

        Raises:
            Unsupported: a field without a path.
        """
        from .picture import picture

        if self.path is None:
            raise Unsupported("a field made by hand has no log-SNR to draw. Print its grid.")
        return picture(self, to)

    def save(self, file: str | Path) -> None:
        """Write it as JSON: what `load` reads and ``interp sample --grid`` takes."""
        about = {
            "schema": SCHEMA, "method": self.solver, "grid": list(self.grid),
            "path": None if self.path is None else self.path.config, "objective": self.objective,
            "optimised": self.optimised, "error": list(self.error),
        }  # fmt: skip
        write_bytes(Path(file), (json.dumps(about, indent=2) + "\n").encode())


class Stored(NamedTuple):
    """A schedule as it comes back from a file."""

    options: dict[str, Any]
    path: Interpolant | None
    optimised: str


def load(file: str | Path) -> Stored:
    """A schedule that `BestSchedule.save` wrote.

    Raises:
        CheckpointError: a file that is none, or of another schema.
    """
    try:
        about = json.loads(Path(file).read_bytes())
        options = {"method": str(about["method"]), "grid": [float(t) for t in about["grid"]]}
        schema, config, optimised = about["schema"], about["path"], str(about["optimised"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is not a schedule ({error}). Make one with `interp schedule RUN`."
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"{file} has schema {schema} and this is {SCHEMA}. Make it again with `interp schedule`."
        )
    return Stored(options, None if config is None else schedules.from_config(config), optimised)


def _cells(change: Change) -> tuple[str, str, str]:
    return f"{change.before:.4g}", f"{change.after:.4g}", f"{change.gain:.2f}x"
