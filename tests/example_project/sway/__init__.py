"""A path that lingers half-way, and flow matching on it."""

from .schedule import sway

__all__ = ["sway"]
