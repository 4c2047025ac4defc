"""What can go wrong, by name.

Every message is one sentence of what is wrong, with the values that made it so, and one of what
to do about it. Errors that a caller may expect from Python's own vocabulary (a bad value, a
missing file) also derive from the built-in class of that meaning.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class InterpError(Exception):
    """The root of every error that interp raises on purpose."""


class OptionError(InterpError, ValueError):
    """An argument whose value makes no sense: the message names it and what would."""


class UnknownName(InterpError, ValueError):
    """A family, method, view, schedule or option that does not exist; names the nearest ones."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> UnknownName:
        """Build the message for an unknown ``kind`` called ``name`` out of the ``known`` names."""
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else f"Known: {', '.join(known) or 'none'}."
        )
        return cls(f"There is no {kind} called {name!r}. {hint}")


class TimeError(InterpError, ValueError):
    """A time outside the interval on which it means something, or of the wrong shape."""


class OutOfRange(TimeError):
    """A time or log-SNR that one path has and the other has not.

    Attributes:
        interval: the times that both have; None where there are none.
    """

    def __init__(self, message: str, *, interval: tuple[float, float] | None) -> None:
        super().__init__(message)
        self.interval = interval

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuilt from all its parts, so that it survives the way out of a worker process."""
        return _out_of_range, (str(self), self.interval)


def _out_of_range(message: str, interval: tuple[float, float] | None) -> OutOfRange:
    return OutOfRange(message, interval=interval)


class ScheduleError(InterpError, ValueError):
    """A schedule that is not finite, not elementwise, or breaks what its path needs."""


class UndeterminedView(InterpError, ValueError):
    """A conversion that the path does not determine; the message says what is missing."""


class FieldError(InterpError, ValueError):
    """A field (drift, model) that returned something other than a tensor like its input."""


class Unsupported(InterpError, NotImplementedError):
    """A verb or combination that does not exist here; the message says where it does."""


class Uncompilable(InterpError, NotImplementedError):
    """A model that has no native field.

    Attributes:
        node: the first node of its graph that is in the way.
        obstacles: every one, in words.
    """

    def __init__(self, message: str, *, node: str, obstacles: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.node = node
        self.obstacles = list(obstacles) or [message]

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuilt from all its parts, so that it survives the way out of a worker process."""
        return _uncompilable, (str(self), self.node, self.obstacles)


def _uncompilable(message: str, node: str, obstacles: list[str]) -> Uncompilable:
    return Uncompilable(message, node=node, obstacles=obstacles)


class StiffWarning(UserWarning):
    """A run of an explicit method that stability held back; the message names what would not be."""


class SolveError(InterpError, RuntimeError):
    """A solve that could not go on.

    Attributes:
        time: where it stopped, in the caller's time.
        step: how many steps had been accepted.
        rows: indices of the rows that are not finite (empty where that is not the reason).
        last: the last good state, at ``time``.
        reason: a short word: ``non_finite``, ``step_underflow``, ``too_many_steps`` or ``no_convergence``.
    """

    def __init__(
        self,
        message: str,
        *,
        time: float,
        step: int,
        rows: Sequence[int],
        last: Tensor,
        reason: str,
    ) -> None:
        super().__init__(message)
        self._args = (message, time, step, list(rows), last, reason)
        self.time, self.step, self.rows, self.last, self.reason = (
            time,
            step,
            list(rows),
            last,
            reason,
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuilt from all its parts, so that it survives the way out of a worker process."""
        return _solve_error, self._args


def _solve_error(
    message: str, time: float, step: int, rows: Sequence[int], last: Tensor, reason: str
) -> SolveError:
    return SolveError(message, time=time, step=step, rows=rows, last=last, reason=reason)


class TrainingError(InterpError, RuntimeError):
    """A training run that could not go on (a loss that is not finite)."""


class CheckpointError(InterpError, ValueError):
    """A checkpoint or run folder that is damaged, of another schema, or of another family."""


class RunExists(InterpError, FileExistsError):
    """An output folder that already holds a run."""


class DataError(InterpError, ValueError):
    """Data that are not there, or are not what the caller says they are."""
