"""Paths composed of paths, stored by the configs of their parts."""

from __future__ import annotations

from ..transforms import rescale, reverse, warp

__all__ = ["rescale", "reverse", "warp"]
