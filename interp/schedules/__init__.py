"""Named paths: closed forms, tables, and how a stored one is built again."""

from __future__ import annotations

from ..scalar import Schedule
from . import gammas, warps
from .bridges import brownian_bridge, encode_decode, foellmer, mirror, with_gamma
from .closed import cosine, linear, polynomial, power, trigonometric
from .composed import ensemble, piecewise, product, shifted, weighted_sum
from .diffusions import edm, sub_variance_preserving, variance_exploding, variance_preserving
from .learned import learned
from .registry import from_config, names
from .tables import from_alphas_cumprod, from_betas, from_sigmas, named_betas

__all__ = [
    "Schedule",
    "brownian_bridge",
    "cosine",
    "edm",
    "encode_decode",
    "ensemble",
    "foellmer",
    "from_alphas_cumprod",
    "from_betas",
    "from_config",
    "from_sigmas",
    "gammas",
    "learned",
    "linear",
    "mirror",
    "named_betas",
    "names",
    "piecewise",
    "polynomial",
    "power",
    "product",
    "shifted",
    "sub_variance_preserving",
    "trigonometric",
    "variance_exploding",
    "variance_preserving",
    "warps",
    "weighted_sum",
    "with_gamma",
]
