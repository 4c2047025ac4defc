"""What the flow of a path looks like on average, by which the path's own costs are closed forms.

Along the probability flow x = beta D + sigma n and dx/dt = beta' D + sigma' n, with D = E[x1 | x] and
n = E[noise | x] functions of log-SNR alone, up to the scale of x. With the angle
theta = atan(sigma / beta) and M = beta dD/dx, which is SNR Cov[x1 | x],

    E |dx/dt|^2      = beta'^2 E|D|^2 + 2 beta' sigma' E[D n] + sigma'^2 E|n|^2
    dv/dx            = (beta'/beta) M + (sigma'/sigma) (1 - M)
                     = (beta beta' / r^2) P + (sigma sigma' / r^2) R,        r^2 = beta^2 + sigma^2
    E |x1 - D|^2     = sin^2(theta) E tr P

with P = M / cos^2(theta) and R = (1 - M) / sin^2(theta) finite at both ends. The means are taken once,
along the flow of one path, and hold for every path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import spread
from ..coefficients import Coefficients
from ..errors import ScheduleError, UndeterminedView
from ..solvers import solve
from ..terms import PathODE
from .flows import Flow

_NODES = 97  # angles: curves as smooth as these are interpolated to 1e-4


@dataclass(frozen=True)
class Moments:
    """Means per element at rising angles, float64, each (m,).

    Attributes:
        angle: theta.
        DD, Dn, nn: E|D|^2, E[D n], E|n|^2.
        PP, PR, RR: E|P|^2, E tr(P^T R), E|R|^2 (Frobenius).
        P: E tr P.
    """

    angle: Tensor
    DD: Tensor
    Dn: Tensor
    nn: Tensor
    PP: Tensor
    PR: Tensor
    RR: Tensor
    P: Tensor

    def at(self, name: str, angle: Tensor) -> Tensor:
        """One of the means at other angles: linear between the nodes, constant beyond."""
        values: Tensor = getattr(self, name)
        k = torch.searchsorted(self.angle, angle.contiguous()).clamp(1, len(self.angle) - 1)
        before, after = self.angle[k - 1], self.angle[k]
        share = ((angle - before) / (after - before)).clamp(0, 1)
        return torch.lerp(values[k - 1], values[k], share)

    def energy(self, k: Coefficients) -> Tensor:
        """E |dx/dt|^2 of a path, per element."""
        angle, db, ds = torch.atan2(k.sigma, k.beta), k.dbeta, k.dsigma
        DD, Dn, nn = (self.at(name, angle) for name in ("DD", "Dn", "nn"))
        return (db * db * DD + 2 * db * ds * Dn + ds * ds * nn).clamp(min=0)

    def lipschitz(self, k: Coefficients) -> Tensor:
        """E |dv/dx|^2 of a path, per element."""
        angle, squared = torch.atan2(k.sigma, k.beta), k.beta**2 + k.sigma**2
        b, s = k.beta_dbeta / squared, k.sigma_dsigma / squared
        PP, PR, RR = (self.at(name, angle) for name in ("PP", "PR", "RR"))
        return (b * b * PP + 2 * b * s * PR + s * s * RR).clamp(min=0)

    def mmse(self, angle: Tensor) -> Tensor:
        """E |x1 - D|^2, per element."""
        return torch.sin(angle) ** 2 * self.at("P", angle)


@torch.no_grad()
def moments(flow: Flow, seed: int) -> Moments:
    """The means along a flow, over the starts to search on; traces by one random sign a row.

    Raises:
        UndeterminedView: a term without a path, or of one whose base is not Gaussian.
        ScheduleError: a path whose log-SNR does not rise.
    """
    path = flow.path
    term = flow.on(path)
    if path is None or not isinstance(term, PathODE) or not path.gaussian_base:
        raise UndeterminedView(
            "this objective is told by data and noise estimates, which the flow of a field made by "
            'hand, or of a base that is not Gaussian, has not. Use "end_error" or "local_error".'
        )
    if not path.invertible:
        raise ScheduleError(
            "this objective is told along log-SNR, which does not rise on this path, or differs between "
            'elements. Use "end_error" or "local_error".'
        )
    angle = torch.linspace(0, 0.5 * math.pi, _NODES + 2, dtype=torch.float64)[1:-1]
    low, high = (float(path.log_snr(t)) for t in (0.0, 1.0))
    lam = 2 * (torch.cos(angle).log() - torch.sin(angle).log())
    angle = angle[(lam > low) & (lam < high)]
    times = path.time_at_log_snr(2 * (torch.cos(angle).log() - torch.sin(angle).log()))
    start, stop = flow.ends
    inside = (times > start) & (times < stop)
    angle, times = angle[inside], times[inside]
    x, cond = flow.halves[0]
    save_at = times.flip(0)  # from noise to data the angle falls
    tight = {"rtol": 1e-6, "atol": 1e-6}
    xs = solve(term, x, t=(start, float(save_at[-1])), save_at=save_at, cond=cond, **tight).xs  # type: ignore[arg-type]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    rows = [
        _means(term, float(t), x_t, signs, cond)
        for t, x_t in zip(save_at.flip(0), xs.flip(0), strict=True)
    ]
    return Moments(angle, *torch.tensor(rows, dtype=torch.float64).unbind(-1))


def _means(
    term: PathODE, t: float, x: Tensor, signs: Tensor, cond: dict[str, object]
) -> tuple[float, ...]:
    """DD, Dn, nn, PP, PR, RR and P at one time."""
    k = term.path.coefficients(t)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        D = term.data(t, leaf, cond)
        (slope,) = torch.autograd.grad((D * signs).sum(), leaf)
    D, beta, sigma = D.detach(), spread(k.beta, x), spread(k.sigma, x)
    n, M = (x - beta * D) / sigma, beta * slope
    length = beta**2 + sigma**2
    P, R = M * (length / beta**2), (signs - M) * (length / sigma**2)
    pairs = ((D, D), (D, n), (n, n), (P, P), (P, R), (R, R), (P, signs))
    return tuple((a.double() * b.double()).mean().item() for a, b in pairs)
