"""The probability flow as a closed form: of normal laws, and of any law on the line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import Time
from ..errors import TimeError
from .laws import Law, coefficients_at, rows_like
from .target import FlowMap


def affine_flow(law: Law) -> FlowMap:
    """The flow between normal laws, x_r = mu_r + Phi (x - mu_t).

    Where all covariances share an eigenbasis Phi = S_r^(1/2) S_t^(-1/2). Where they do not, it solves
    dPhi/dt = Cov[dI/dt, I] S^-1 Phi, which is integrated to 1e-12 by DOP853 for one pair of times.
    """
    shared = not law.covariances.dense

    def flow(t: Time, r: Time, x: Tensor) -> Tensor:
        start, end = (law.coefficients(time, x) for time in (t, r))
        residual = law.residual(start, x)
        if shared:
            S_t, S_r = (law.covariances.combine(law.variance(k)) for k in (start, end))
            local = law.covariances.enter(residual) * (S_r / S_t).sqrt()
            moved = law.covariances.leave(local)
        else:
            moved = residual @ _propagator(law, start.t, end.t).mT
        return rows_like((law.means(end.alpha, end.beta) + moved)[:, 0], x)

    return flow


def _propagator(law: Law, t: Tensor, r: Tensor) -> Tensor:
    """Phi(t, r), (d, d)."""
    from scipy.integrate import solve_ivp

    if t.ndim or r.ndim:
        raise TimeError(
            f"t has shape {tuple(t.shape)} and r {tuple(r.shape)}, and this flow, of covariances "
            "without a common eigenbasis, is integrated for one pair of times. Give two numbers."
        )
    d, device = law.m1.shape[1], law.m1.device

    def rate(time: float, flat: object) -> object:
        k = coefficients_at(law.path, min(max(time, 0.0), 1.0), law.row)
        S, dS = (
            law.covariances.combine(s).reshape(d, d).cpu() for s in (law.variance(k), law.rate(k))
        )
        Phi = torch.as_tensor(flat, dtype=torch.float64).reshape(d, d)
        return (dS @ torch.linalg.solve(S, Phi)).flatten().numpy()

    eye = torch.eye(d, dtype=torch.float64).flatten().numpy()
    done = solve_ivp(rate, (float(t), float(r)), eye, method="DOP853", rtol=1e-12, atol=1e-13)
    if not done.success:
        raise TimeError(
            f"the flow from {float(t):g} to {float(r):g} could not be integrated ({done.message}). "
            "Stay away from an end at which the velocity is infinite."
        )
    return torch.from_numpy(done.y[:, -1].copy()).reshape(d, d).to(device)


def quantile_flow(law: Law) -> FlowMap:
    """The flow of a law on the line: a point keeps its quantile, F_r(x_r) = F_t(x).

    Solved in log F of the nearer tail by bisection, to the last digits of x.
    """

    def flow(t: Time, r: Time, x: Tensor) -> Tensor:
        start, end = (law.coefficients(time, x) for time in (t, r))
        z = law.residual(start, x)[..., 0] / _deviations(law, start.t)
        lower, upper = (_log_cdf(law.log_weights, s * z) for s in (1, -1))
        sign = torch.where(lower > upper, -1.0, 1.0)[:, None]  # so that the tail is the left one
        means = sign * law.means(end.alpha, end.beta)[..., 0]
        y = _quantile(torch.minimum(lower, upper), law.log_weights, means, _deviations(law, end.t))
        return rows_like(sign * y[:, None], x)

    return flow


def _deviations(law: Law, t: Tensor) -> Tensor:
    """sqrt(S) of each pair, (P,) or (n, P)."""
    S = law.covariances.combine(law.variance(coefficients_at(law.path, t, law.row)))
    return law.covariances.matrices(S)[..., 0, 0].sqrt()


def _log_cdf(log_weights: Tensor, z: Tensor) -> Tensor:
    return torch.logsumexp(log_weights + torch.special.log_ndtr(z), -1)


def _quantile(log_p: Tensor, log_weights: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """The y with log F(y) = log p of a mixture, (n,); the parts' own quantiles enclose it."""
    from scipy.special import ndtri_exp

    z = torch.from_numpy(ndtri_exp(log_p.detach().cpu().numpy())).to(log_p)[:, None]
    own = means + deviations * z
    low, high = own.min(1).values, own.max(1).values
    halvings = 2 + math.ceil(-math.log2(torch.finfo(torch.float64).eps))
    for _ in range(halvings):
        middle = (low + high) / 2
        below = _log_cdf(log_weights, (middle[:, None] - means) / deviations) <= log_p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
