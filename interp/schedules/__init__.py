"""Named paths: closed forms, and how a stored one is built again."""

from __future__ import annotations

from ..scalar import Schedule
from .closed import linear, trigonometric, variance_preserving
from .registry import from_config, names

__all__ = [
    "Schedule",
    "from_config",
    "linear",
    "names",
    "trigonometric",
    "variance_preserving",
]
