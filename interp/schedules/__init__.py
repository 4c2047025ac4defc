"""Named paths: closed forms, tables, and how a stored one is built again."""

from __future__ import annotations

from ..scalar import Schedule
from . import gammas
from .bridges import brownian_bridge, encode_decode, foellmer, mirror, with_gamma
from .closed import cosine, linear, polynomial, power, trigonometric
from .diffusions import edm, sub_variance_preserving, variance_exploding, variance_preserving
from .registry import from_config, names

__all__ = [
    "Schedule",
    "brownian_bridge",
    "cosine",
    "edm",
    "encode_decode",
    "foellmer",
    "from_config",
    "gammas",
    "linear",
    "mirror",
    "names",
    "polynomial",
    "power",
    "sub_variance_preserving",
    "trigonometric",
    "variance_exploding",
    "variance_preserving",
    "with_gamma",
]
