"""What a wrapper of a model says of itself: what the model says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
