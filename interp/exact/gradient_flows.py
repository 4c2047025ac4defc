"""Steps and flows of normal laws down a divergence, in the Wasserstein metric.

Of F = KL(. | N(m, S)), or of F = int rho log rho (the negative entropy) without a target, for which
S^-1 = 0 below. Jordan, Kinderlehrer, Otto 1998; that normal laws stay normal under a step is in Wibisono,
1802.08089, appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import real
from ..errors import OptionError
from .covariances import symmetric
from .mixture import Gaussian


def jko_step(start: Gaussian, h: float, target: Gaussian | None = None) -> Gaussian:
    """argmin_rho F(rho) + W2^2(rho, start) / (2 h), a normal law in closed form.

    With Q = 1 + h S^-1 and B = Q^-1/2 C Q^-1/2, C the covariance at the start,

        m+ = Q^-1 (m0 + h S^-1 m),
        C+ = Q^-1/2 Z Q^-1/2,   Z + h^2 Z^-1 = B + 2 h,   Z >= h,

    since the optimal map back to the start is y - m+ -> (Q - h C+^-1)(y - m+). Without a target
    C+ = Z, a step of heat flow.

    Args:
        start: the law before the step.
        h: the step, positive.
        target: N(m, S); None for the negative entropy.

    Raises:
        OptionError: a step that is not positive, or laws of different dimensions.
    """
    h, (pull, shift) = _positive("h", h), _force(start, target)
    root = _power(torch.eye(start.dim).to(pull) + h * pull, -0.5)
    spectrum, basis = torch.linalg.eigh(symmetric(root @ start.cov @ root))
    # The larger root of z^2 - (b + 2 h) z + h^2 = 0.
    z = (spectrum + 2 * h + (spectrum * (spectrum + 4 * h)).sqrt()) / 2
    cov = root @ (basis * z) @ basis.mT @ root
    return Gaussian(root @ root @ (start.mean + h * shift), symmetric(cov))


def gradient_flow(start: Gaussian, time: float, target: Gaussian | None = None) -> Gaussian:
    """The law after ``time`` along drho/dt = div(rho grad dF/drho): the limit of steps with h -> 0.

        m_t = m + e^{-t S^-1} (m0 - m),   C_t = S + e^{-t S^-1} (C - S) e^{-t S^-1},

    the Ornstein-Uhlenbeck flow; without a target heat flow, C + 2 t.

    Raises:
        OptionError: a time that is not positive, or laws of different dimensions.
    """
    time, (pull, _) = _positive("time", time), _force(start, target)
    if target is None:
        return Gaussian(start.mean, start.cov + 2 * time * torch.eye(start.dim).to(pull))
    decay = torch.linalg.matrix_exp(-time * pull)
    cov = target.cov + decay @ (start.cov - target.cov) @ decay
    return Gaussian(target.mean + decay @ (start.mean - target.mean), symmetric(cov))


def particle_law(
    start: Gaussian, time: float, target: Gaussian, drift: float = 1.0, noise: float = 0.0
) -> Gaussian:
    """The law after ``time`` of DiffFlow's particles (Zhang, Shi, Yu, Xie, Li, 2307.02159), for every g.

    dX = [B grad log(q / p) + (g^2 / 2) grad log p] dt + sqrt(g^2 - L^2) dW, q the target N(m, S) and p the
    law of X: so

        m' = -B S^-1 (m_t - m),   C' = -B (S^-1 C + C S^-1) + 2 B - L^2,

    with C = (1 - L^2 / (2 B)) S in the end.

    Args:
        start: the law at time 0, whose covariance need not commute with the target's.
        time: positive.
        target: q.
        drift: B, positive.
        noise: L, at most sqrt(2 B), as no law has less than no variance.

    Raises:
        OptionError: a number out of range, or laws of different dimensions.
    """
    time, drift, noise = _positive("time", time), _positive("drift", drift), real("noise", noise)
    if noise**2 > 2 * drift * (1 + 1e-12):
        raise OptionError(
            f"noise={noise} and drift={drift} shrink every law to a point: L^2 is above 2 B. Give less noise."
        )
    pull, _ = _force(start, target)
    decay = torch.linalg.matrix_exp(-time * drift * pull)
    end = max(0.0, 1 - noise**2 / (2 * drift)) * target.cov
    cov = end + decay @ (start.cov - end) @ decay
    return Gaussian(target.mean + decay @ (start.mean - target.mean), symmetric(cov))


def _force(start: Gaussian, target: Gaussian | None) -> tuple[Tensor, Tensor]:
    """S^-1 and S^-1 m; zeros without a target."""
    if target is None:
        return torch.zeros_like(start.cov), torch.zeros_like(start.mean)
    if target.dim != start.dim:
        raise OptionError(
            f"the start has {start.dim} dimensions and the target {target.dim}. Give laws of one space."
        )
    pull = torch.linalg.inv(target.cov)
    return symmetric(pull), pull @ target.mean


def _power(matrix: Tensor, power: float) -> Tensor:
    spectrum, basis = torch.linalg.eigh(matrix)
    result: Tensor = (basis * spectrum**power) @ basis.mT
    return result


def _positive(name: str, value: float) -> float:
    if real(name, value) == 0:
        raise OptionError(f"{name}=0 does not fit. Give a positive number.")
    return float(value)
