"""The views of one posterior mean, and the one formula that turns each into each.

For a Gaussian base x = beta D + sigma n, with D = E[x1 | x] and n = E[standardised noise | x].
Every view is w * value = a D + c n:

    view             a       c              w
    velocity         beta'   sigma'         1
    data             1       0              1
    noise            0       1              1
    base             0       alpha / sigma  1
    score            0       -1             sigma
    energy_gradient  0       1              sigma
    v_prediction     -sigma  beta           1
    flow_prediction  -1      1              1

The energy U is -log rho_t up to a constant, so that grad U = -score. v = beta n - sigma D is
Salimans and Ho's (2202.00512), who have beta^2 + sigma^2 = 1; it is not normalised where that is
not so. The flow n - D is minus the velocity of the linear path, whatever the path. Two equations,
the source's and x's, give D and n, and so the target T from the source s:

    T = [(a_T c_s - c_T a_s) x + Delta_T w_s value] / (w_T Delta_s),   Delta = beta c - sigma a.

Where sigma' is infinite (sigma a square root that ends at 0) and a velocity is asked for or given,
n is counted in units of sigma: every c is multiplied by sigma, sigma sigma' stays finite, and the
score's weight becomes 1.

Two-sided paths, whose x0 is not Gaussian, have x = alpha B + beta D + gamma n with B = E[x0 | x]
and n = E[z | x]: two unknowns are left, and one view tells no more than its own kind. The score is
-n / gamma for every base and coupling (Albergo, Boffi, Vanden-Eijnden, 2303.08797). Without a gamma
B and D are all there is, and B takes the part of n above: velocity, data and base tell one another.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import holds
from .coefficients import Coefficients, Secant
from .errors import UndeterminedView, UnknownName
from .scalar import widened

VIEWS = (
    "velocity", "score", "noise", "data", "base", "energy_gradient", "v_prediction",
    "flow_prediction",
)  # fmt: skip
#: What a map between two times may say beside them; see `interp.maps`.
MAP_VIEWS = ("point", "mean_velocity", *VIEWS)
#: Those with the slopes of the path in their line.
_SLOPES = ("velocity", "mean_velocity")
#: The same, and the one whose limits at the ends they are.
SLOPED = (*_SLOPES, "base")
#: a = 0: one function in four scales, silent where beta is 0.
NOISE_LIKE = ("score", "noise", "base", "energy_gradient")
SCORES = ("score", "energy_gradient")  # on every path, at every time
#: What z tells where the base is not Gaussian.
_LATENT = ("score", "noise", "energy_gradient")
#: What the two ends tell where there is nothing else.
_ENDS = ("velocity", "data", "base")

_Number = Tensor | float


class _Row(NamedTuple):
    """One line of the table: w * value = a D + c n."""

    a: _Number
    c: _Number
    w: _Number


def check(view: object) -> None:
    """Refuse what is not a view.

    Raises:
        UnknownName: names the nearest.
    """
    if view not in VIEWS:
        raise UnknownName.of("view", view, VIEWS)


def log_snr_rate(k: Coefficients) -> Tensor:
    """d/dt of log-SNR = 2 (beta' / beta - sigma sigma' / sigma^2), float64."""
    return 2 * (k.dbeta / k.beta - k.sigma_dsigma / k.sigma**2)


def weights(
    k: Coefficients, source: str, target: str, scale: str = "sigma",
    onto: Coefficients | None = None,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """(p, q) in float64 with target = p x + q source, for a Gaussian base.

    p is None where x does not enter; ``scale`` is what an error calls ``k.sigma``. With ``onto`` the
    target's line of the table is that of another path, whose data and noise are the same.

    Raises:
        UndeterminedView: where the source at these times does not tell the target.
    """
    if source == target and onto is None:
        return None, torch.ones_like(k.beta)
    if source in SCORES and target in SCORES:
        return None, -torch.ones_like(k.beta)
    if source in NOISE_LIKE and target in NOISE_LIKE:
        s, T = _row(source, k, None), _row(target, k, None)
        q = torch.as_tensor((T.c * s.w) / (s.c * T.w), dtype=torch.float64).expand(k.beta.shape)
        if not holds(q.isfinite()):
            raise _undetermined(k, source, target, ~q.isfinite(), scale)
        return None, q
    regular = k.dsigma.isfinite() if onto is None else (k.dsigma + onto.dsigma).isfinite()
    all_regular = not {source, target} & {*_SLOPES} or holds(regular)
    s = _row(source, k, None if all_regular else regular)
    T = _row(target, onto or k, None if all_regular else regular)
    reach = k.sigma if all_regular else torch.where(regular, k.sigma, k.sigma**2)
    delta_s, delta_T = k.beta * s.c - reach * s.a, k.beta * T.c - reach * T.a
    divisor = T.w * delta_s
    p, q = (T.a * s.c - T.c * s.a) / divisor, delta_T * s.w / divisor
    silent = ~(p + q).isfinite()
    if holds(~silent):
        return p, q
    # Where the source tells nothing beyond x (Delta_s = 0), a target along x is told by x.
    told, scaled = torch.as_tensor(T.a).abs() + torch.as_tensor(T.c).abs(), torch.as_tensor(T.w)
    lost = silent & ~((delta_T == 0) & (told > 0) & (scaled != 0))
    if not holds(~lost):
        raise _undetermined(k, source, target, lost, scale)
    share = (T.a * k.beta + T.c * reach) / (T.w * (k.beta**2 + reach**2))
    return torch.where(silent, share, p), torch.where(silent, 0.0, q)


def two_sided(
    k: Coefficients, source: str, target: str, latent: bool
) -> tuple[Tensor | None, Tensor]:
    """(p, q) as `weights`, for a base that is not Gaussian; ``latent``: the path has a gamma.

    Raises:
        UndeterminedView: names the function that is missing.
    """
    kinds = (_LATENT,) if latent else (_ENDS, SCORES)
    if source != target and not any(source in kind and target in kind for kind in kinds):
        raise _one_is_missing(k, source, target, latent)
    if latent:
        return weights(dataclasses.replace(k, sigma=k.gamma), source, target, "gamma")
    ends = dataclasses.replace(k, sigma=k.alpha, dsigma=k.dalpha, sigma_dsigma=k.alpha_dalpha)
    return weights(ends, source, target, "alpha")


def _row(view: str, k: Coefficients, regular: Tensor | None) -> _Row:
    """The line of ``view``; ``regular`` marks where sigma' is finite (None: everywhere)."""
    unit: _Number = 1.0 if regular is None else torch.where(regular, 1.0, k.sigma)
    if view == "point" and isinstance(k, Secant):
        return _Row(k.beta_r, k.sigma_r * unit, 1.0)
    if view in _SLOPES:
        slope = k.dsigma if regular is None else torch.where(regular, k.dsigma, k.sigma_dsigma)
        return _Row(k.dbeta, slope, 1.0)
    if view == "data":
        return _Row(1.0, 0.0, 1.0)
    if view == "noise":
        return _Row(0.0, unit, 1.0)
    if view == "base":
        return _Row(0.0, _base_share(k, regular), 1.0)
    if view == "v_prediction":
        return _Row(-k.sigma, k.beta * unit, 1.0)
    if view == "flow_prediction":
        return _Row(-1.0, unit, 1.0)
    sign = -1.0 if view == "score" else 1.0
    return _Row(0.0, sign, k.sigma if regular is None else torch.where(regular, k.sigma, 1.0))


def _base_share(k: Coefficients, regular: Tensor | None) -> _Number:
    """alpha / sigma, in units of n: the share of the noise that came from x0."""
    if k.alpha is k.sigma:  # no latent: the base is the noise, also where both vanish
        return 1.0 if regular is None else torch.where(regular, 1.0, k.sigma)
    ratio = torch.where(k.sigma > 0, k.alpha / k.sigma, k.dalpha / k.dsigma)
    return ratio if regular is None else torch.where(regular, ratio, k.alpha)


_SILENT = {
    "sigma": "sigma is 0 there: x is the data and says nothing of the noise",
    "alpha": "alpha is 0 there: x is the data and says nothing of the base",
    "gamma": "gamma is 0 there: x holds nothing of z",
}


def _undetermined(
    k: Coefficients, source: str, target: str, where: Tensor, scale: str
) -> UndeterminedView:
    where = where.expand(k.beta.shape)
    numbers = (widened(k.t, k.beta).expand(k.beta.shape), k.beta, k.sigma, k.dbeta + k.dsigma)
    t, beta, sigma, slope = (v[where][0].item() if v.ndim else v.item() for v in numbers)
    if sigma != 0 and not math.isfinite(slope):
        missing = "a schedule has a vertical tangent there"
    elif sigma == 0:
        missing = _SILENT[scale]
    elif beta == 0:
        missing = "beta is 0 there: x is noise and says nothing of the data"
    else:
        missing = "the source tells nothing there that x does not"
    return UndeterminedView(
        f"at t = {t!r} the {source} does not determine the {target}: {missing}. Convert strictly "
        f"inside (0, 1), or ask the model for the {target} itself."
    )


def _one_is_missing(k: Coefficients, source: str, target: str, latent: bool) -> UndeterminedView:
    at = f"{k.t.item()!r}" if k.t.ndim == 0 else f"{k.t.flatten()[:3].tolist()}..."
    if not latent:
        why = "the path has no gamma, so that no view but velocity, data and base is told by x"
    elif source in _LATENT:
        why = "a second function is missing, the velocity (or E[x1 | x])"
    else:
        why = "a second function is missing, the score (or the noise, E[z | x])"
    return UndeterminedView(
        f"at t = {at} the {source} alone does not determine the {target}, because the base is "
        f"not Gaussian: {why}. Give a model of the {target} too."
    )
