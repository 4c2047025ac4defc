"""The five views of one posterior mean, and the one formula that turns each into each.

For a Gaussian base x = beta D + sigma n, with D = E[x1 | x] and n = E[standardised noise | x].
Every view is w * value = a D + c n:

    view        a       c              w
    velocity    beta'   sigma'         1
    data        1       0              1
    noise       0       1              1
    base        0       alpha / sigma  1
    score       0       -1             sigma

Two equations, the source's and x's, give D and n, and so the target T from the source s:

    T = [(a_T c_s - c_T a_s) x + Delta_T w_s value] / (w_T Delta_s),   Delta = beta c - sigma a.

Where sigma' is infinite (sigma a square root that ends at 0) n is counted in units of sigma: every
c is multiplied by sigma, sigma sigma' stays finite, and the score's weight becomes 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .coefficients import Coefficients
from .errors import UndeterminedView

VIEWS = ("velocity", "score", "noise", "data", "base")
_NOISE_ONLY = ("score", "noise", "base")  # a = 0: one function in three scales

_Number = Tensor | float


class _Row(NamedTuple):
    """One line of the table: w * value = a D + c n."""

    a: _Number
    c: _Number
    w: _Number


def weights(k: Coefficients, source: str, target: str) -> tuple[Tensor | None, Tensor]:
    """(p, q) in float64 with target = p x + q source; p is None where x does not enter.

    Raises:
        UndeterminedView: where the source at these times does not tell the target.
    """
    if source == target:
        return None, torch.ones_like(k.t)
    if source in _NOISE_ONLY and target in _NOISE_ONLY:
        s, T = _row(source, k, None), _row(target, k, None)
        q = torch.as_tensor((T.c * s.w) / (s.c * T.w), dtype=torch.float64).expand(k.t.shape)
        if not q.isfinite().all():
            raise _undetermined(k, source, target, ~q.isfinite())
        return None, q
    regular = k.dsigma.isfinite()
    all_regular = bool(regular.all())
    s, T = (_row(view, k, None if all_regular else regular) for view in (source, target))
    reach = k.sigma if all_regular else torch.where(regular, k.sigma, k.sigma**2)
    delta_s, delta_T = k.beta * s.c - reach * s.a, k.beta * T.c - reach * T.a
    scale = T.w * delta_s
    p, q = (T.a * s.c - T.c * s.a) / scale, delta_T * s.w / scale
    determined = (p + q).isfinite()
    if not determined.all():
        p, q = _from_x_alone(k, source, target, T, reach, ~determined, delta_T, p, q)
    return p, q


def _row(view: str, k: Coefficients, regular: Tensor | None) -> _Row:
    """The line of ``view``; ``regular`` marks where sigma' is finite (None: everywhere)."""
    unit: _Number = 1.0 if regular is None else torch.where(regular, 1.0, k.sigma)
    if view == "velocity":
        slope = k.dsigma if regular is None else torch.where(regular, k.dsigma, k.sigma_dsigma)
        return _Row(k.dbeta, slope, 1.0)
    if view == "data":
        return _Row(1.0, 0.0, 1.0)
    if view == "noise":
        return _Row(0.0, unit, 1.0)
    if view == "base":
        return _Row(0.0, _base_share(k, regular), 1.0)
    return _Row(0.0, -1.0, k.sigma if regular is None else torch.where(regular, k.sigma, 1.0))


def _base_share(k: Coefficients, regular: Tensor | None) -> _Number:
    """alpha / sigma, in units of n: the share of the noise that came from x0."""
    if k.alpha is k.sigma:  # no latent: the base is the noise, also where both vanish
        return 1.0 if regular is None else torch.where(regular, 1.0, k.sigma)
    ratio = torch.where(k.sigma > 0, k.alpha / k.sigma, k.dalpha / k.dsigma)
    return ratio if regular is None else torch.where(regular, ratio, k.alpha)


def _from_x_alone(
    k: Coefficients, source: str, target: str, T: _Row, reach: Tensor, silent: Tensor,
    delta_T: Tensor, p: Tensor, q: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Where the source tells nothing beyond x (Delta_s = 0), a target along x is told by x."""
    told, scaled = torch.as_tensor(T.a).abs() + torch.as_tensor(T.c).abs(), torch.as_tensor(T.w)
    along_x = (delta_T == 0) & (told > 0) & (scaled != 0)
    lost = silent & ~along_x
    if lost.any():
        raise _undetermined(k, source, target, lost)
    share = (T.a * k.beta + T.c * reach) / (T.w * (k.beta**2 + reach**2))
    return torch.where(silent, share, p), torch.where(silent, 0.0, q)


def _undetermined(k: Coefficients, source: str, target: str, where: Tensor) -> UndeterminedView:
    where = where.expand(k.t.shape)
    numbers = (k.t, k.beta, k.sigma, k.dbeta + k.dsigma)
    t, beta, sigma, slope = (v[where][0].item() if v.ndim else v.item() for v in numbers)
    if sigma != 0 and not math.isfinite(slope):
        missing = "a schedule has a vertical tangent there"
    elif sigma == 0:
        missing = "sigma is 0 there: x is the data and says nothing of the noise"
    elif beta == 0:
        missing = "beta is 0 there: x is noise and says nothing of the data"
    else:
        missing = "the source tells nothing there that x does not"
    return UndeterminedView(
        f"at t = {t!r} the {source} does not determine the {target}: {missing}. Convert strictly "
        f"inside (0, 1), or ask the model for the {target} itself."
    )
