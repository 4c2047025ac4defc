"""What a wrapper of a model says of itself: what the model says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import OptionError

Interval = tuple[float, float]


class Wrapper:
    """A model of the same view, time and path as ``model``."""

    model: Callable[..., Any]

    @property
    def view(self) -> str | None:
        """What the model says that it returns, if it does."""
        return getattr(self.model, "view", None)

    @property
    def time(self) -> Any:
        """What the model says that it is told, if it does."""
        return getattr(self.model, "time", None)

    @property
    def path(self) -> Any:
        """The path that the model says that it is on, if it does."""
        return getattr(self.model, "path", None)

    @property
    def exact_time(self) -> bool:
        """Whether the model wants its time in float64."""
        return bool(getattr(self.model, "exact_time", False))


def check_interval(interval: Interval | None) -> None:
    """Refuse an interval of no times.

    Raises:
        OptionError: says which.
    """
    if interval is not None and not interval[0] <= interval[1]:
        raise OptionError(
            f"the interval {interval} is empty. Give (first, last) with first <= last."
        )


def inside(interval: Interval | None, t: Tensor) -> bool | Tensor:
    """Whether ``t`` is in the interval: for each row where that differs, else for all."""
    if interval is None:
        return True
    within = (t >= interval[0]) & (t <= interval[1])
    if bool(within.all()):
        return True
    return within if bool(within.any()) else False
