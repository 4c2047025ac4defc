"""The bar that shows how training goes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """A progress bar on stderr with the loss and the rows a second, both smoothed.

    Args:
        total: steps of the run.
        done: steps that it had before.
        shown: False for no bar at all.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} samples/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("train", total=total, completed=done, loss="-", speed="-")
        self._loss = self._speed = 0.0
        self._count = 0

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """Move on to the step of this line of metrics."""
        self._count += 1
        new = max(0.02, 1 / self._count)  # a plain mean at first, then over about 50 steps
        self._loss += new * (row["loss"] - self._loss)
        self._speed += new * (row["samples_per_s"] - self._speed)
        self._bar.update(
            self._task, description=row["stage"], completed=row["step"],
            loss=f"{self._loss:.4f}", speed=f"{self._speed:.0f}",
        )  # fmt: skip
