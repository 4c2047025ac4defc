"""The noising SDE of a path, and the path of a noising SDE.

In the papers' time u = 1 - t, from clean data at u = 0 (Song, Sohl-Dickstein, Kingma, Kumar, Ermon,
Poole 2020, 2011.13456):

    dX = f X du + G dW,    f = d log beta / du,    G^2 = d sigma^2 / du - 2 f sigma^2

and back

    log beta(t) = int_t^1 f,    sigma^2(t) = beta^2(t) int_t^1 G^2 / beta^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .algebra import Composite, Jet
from .errors import ScheduleError
from .scalar import Scalar, Schedule, evaluate

_NODES = 24  # Chebyshev nodes of a panel whose ends differ by a factor 2: 1 / t to 6^-24 = 5e-19
_TINY = 2.0**-200


class Noising(NamedTuple):
    """f and G at t, float64: dX = f X du + G dW in u = 1 - t."""

    drift: Tensor
    diffusion: Tensor


class Integrated:
    """beta and sigma of f and G, by Chebyshev series on panels that shrink towards both ends.

    The panels halve down to t = 2^-200 and to 1 - t = 2^-40, so that an f like 1 / t or
    (1 - t)^(-1/2) is smooth on each. At t = 0 the values are those at 2^-200.
    """

    def __init__(self, f: Schedule, g: Schedule) -> None:
        self.f, self.g = f, g
        up = [2.0**-k for k in range(200, 0, -1)]
        down = [1 - 2.0**-k for k in range(2, 41)]
        self.edges = torch.tensor([*up, *down, 1.0], dtype=torch.float64, device="cpu")
        k = torch.arange(_NODES, dtype=torch.float64, device="cpu")
        angles = torch.pi * (k + 0.5) / _NODES
        self._cosines = torch.cos(k[:, None] * angles) * (2 / _NODES)
        self._cosines[0] /= 2
        left, right = self.edges[:-1, None], self.edges[1:, None]
        self._half = (right - left) / 2
        nodes = (right + left) / 2 + self._half * torch.cos(angles)
        drift = _finite("f", f, nodes)
        self._f = self._series("f", drift)
        depth = self._to_edge(self._f, angles[None], self._half)  # int from the node to the edge
        squared = _finite("g", g, nodes) ** 2 * torch.exp(-2 * depth)
        self._g2 = self._series("g", squared)
        # log beta and sigma^2 at the right edge of each panel, from t = 1 down
        pi = torch.full_like(angles[:1], torch.pi)
        whole, gained = (self._to_edge(s, pi[None], self._half)[:, 0] for s in (self._f, self._g2))
        log_beta, variance = [torch.zeros_like(whole[0])], [torch.zeros_like(whole[0])]
        for i in range(len(whole) - 1, 0, -1):
            log_beta.append(log_beta[-1] + whole[i])
            variance.append((variance[-1] + gained[i]) * torch.exp(2 * whole[i]))
        self._log_beta, self._variance = (torch.stack(v[::-1]) for v in (log_beta, variance))

    def _series(self, name: str, values: Tensor) -> Tensor:
        """The Chebyshev coefficients of the integral, (panels, nodes), from the values at the nodes."""
        c = values @ self._cosines.mT
        tail, size = c[:, -2:].abs().amax(1), values.abs().amax(1)
        width = self.edges.diff()  # a node is known to a rounding of t, 2^-53
        rough = (tail > (1e-7 + 2.0**-50 / width) * size).nonzero()
        if len(rough):
            i = int(rough[0])
            raise ScheduleError(
                f"{name} is not smooth between t = {self.edges[i].item():.6g} and "
                f"{self.edges[i + 1].item():.6g}. Give functions that are smooth inside (0, 1)."
            )
        k = torch.arange(1, _NODES, dtype=torch.float64)
        after = torch.cat([c[:, 2:], torch.zeros_like(c[:, :1])], 1)
        before = torch.cat([2 * c[:, :1], c[:, 1:-1]], 1)
        return (before - after) / (2 * k)

    @staticmethod
    def _to_edge(series: Tensor, angle: Tensor, half: Tensor) -> Tensor:
        """The integral from cos(angle) to the panel's right edge: sum_k C_k (1 - cos k angle)."""
        k = torch.arange(1, _NODES, dtype=torch.float64)
        shares = 2 * torch.sin(0.5 * k * angle[..., None]) ** 2
        return half * (series.unsqueeze(-2) * shares).sum(-1)

    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """beta and sigma^2, float64."""
        at = t.detach().to("cpu").clamp(min=_TINY)
        i = (torch.searchsorted(self.edges, at.contiguous(), right=True) - 1).clamp(
            max=len(self.edges) - 2
        )
        left, right, half = self.edges[i], self.edges[i + 1], self._half[i, 0]
        # The angle by its sine: exact at the right edge, where the integral vanishes.
        angle = 2 * torch.asin(((right - at) / (right - left)).sqrt())
        depth = self._to_edge(self._f[i], angle[..., None], half[..., None])[..., 0]
        gained = self._to_edge(self._g2[i], angle[..., None], half[..., None])[..., 0]
        beta = torch.exp(self._log_beta[i] + depth)
        variance = (self._variance[i] + gained) * torch.exp(2 * depth)
        return beta.to(t.device), variance.to(t.device)


class Beta(Composite):
    """beta, with beta' = -f beta."""

    def __init__(self, integrated: Integrated) -> None:
        super().__init__()
        self.integrated = integrated

    def _value(self, t: Tensor) -> Tensor:
        return self.integrated.values(t)[0]

    def _rule(self, t: Tensor) -> Jet:
        beta = self._value(t)
        slope = -self.integrated.f(t) * beta
        return beta, slope, beta * slope

    def second_derivative(self, t: Tensor) -> Tensor:
        f = self.integrated.f
        return (f(t) ** 2 - f.derivative(t)) * self._value(t)


class Sigma(Composite):
    """sigma, with sigma sigma' = -f sigma^2 - G^2 / 2."""

    def __init__(self, integrated: Integrated) -> None:
        super().__init__()
        self.integrated = integrated

    def _value(self, t: Tensor) -> Tensor:
        return self.integrated.values(t)[1].sqrt()

    def _rule(self, t: Tensor) -> Jet:
        variance = self.integrated.values(t)[1]
        product = -self.integrated.f(t) * variance - self.integrated.g(t) ** 2 / 2
        sigma = variance.sqrt()
        return sigma, product / sigma, product

    def second_derivative(self, t: Tensor) -> Tensor:
        sigma, slope, product = self._rule(t)
        (f, df, _), (_, _, g_dg) = self.integrated.f.jet(t), self.integrated.g.jet(t)
        return (-df * sigma**2 - 2 * f * product - g_dg - slope**2) / sigma


def _finite(name: str, schedule: Schedule, t: Tensor) -> Tensor:
    values = schedule(t)
    bad = ~values.isfinite() if name == "f" else ~(values.isfinite() & (values >= 0))
    if bad.any():
        raise ScheduleError(
            f"{name}({t[bad][0].item():.6g}) is {values[bad][0].item()}. Give functions that are finite "
            "inside (0, 1), and a g that is not negative."
        )
    return values


def from_sde(f: Scalar | Schedule, g: Scalar | Schedule) -> tuple[Schedule, Schedule]:
    """(sigma, beta) of the SDE dX = f X du + g dW from clean data at t = 1."""
    made = []
    for name, function in (("f", f), ("g", g)):
        if not callable(function):
            raise ScheduleError(
                f"{name} is a {type(function).__name__}, not a function of t. "
                f"Give a callable, for a constant `lambda t: {function!r}`."
            )
        made.append(function if isinstance(function, Schedule) else Schedule(function))
    evaluate(made[0], torch.tensor(0.5, dtype=torch.float64))
    with torch.no_grad():
        integrated = Integrated(*made)
    return Sigma(integrated), Beta(integrated)
