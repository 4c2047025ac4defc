"""Named paths: closed forms, tables, composed and learned ones, and how a stored one is built again.

    name                      alpha                       beta                  at t = 0    at t = 1
    linear                    1 - t                       t                     base        data
    power(p, q)               (1 - t)^p                   t^q                   base        data
    polynomial(n)             1 - t^n                     t^n                   base        data
    trigonometric(theta)      sin(theta (1 - t)) / ...    sin(theta t) / ...    base        data
    cosine(s)                 sqrt(1 - beta^2)            sin(c t) / sin(c)     base        data
    variance_preserving       sqrt(1 - beta^2)            exp(-int B / 2)       a leak      data
    sub_variance_preserving   1 - beta^2                  exp(-int B / 2)       a leak      data
    variance_exploding        geometric in t              1                     the data    sigma_min
    edm                       a power of 1 - t            1                     the data    data
    brownian_bridge(sigma)    1 - t                       t                     any law     data
    foellmer(sigma)           sigma sqrt(t (1 - t))       t                     the point 0 data
    encode_decode             cos^2(pi t), then 0         0, then cos^2(pi t)   any law     data
    mirror                    0                           1                     data        data
    from_betas, from_alphas_cumprod, from_sigmas: tables, index k at t = 1 - (k + 1) / n

The bridge, encode_decode and mirror have a latent, gamma; `with_gamma` gives one to any path, and
`gammas` has the functions. Each formula is tested against its definition in 60 digits.
"""

from __future__ import annotations

from ..scalar import Schedule
from . import gammas, warps
from .bridges import brownian_bridge, encode_decode, foellmer, mirror, with_gamma
from .closed import cosine, linear, polynomial, power, trigonometric
from .composed import clocked, ensemble, piecewise, product, shifted, weighted_sum
from .diffusions import edm, sub_variance_preserving, variance_exploding, variance_preserving
from .learned import learned
from .registry import from_config, names
from .tables import from_alphas_cumprod, from_betas, from_sigmas, named_betas

__all__ = [
    "Schedule",
    "brownian_bridge",
    "clocked",
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
