"""A monotone curve of log-SNR through the nodes of a table, with its slope and its inverse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..scalar import Schedule


class _Nodes(NamedTuple):
    """Times, log-SNR and slopes of the finite nodes, rising."""

    t: Tensor
    y: Tensor
    d: Tensor


class Curve:
    """Log-SNR through a table's nodes: index k at t = 1 - (k + 1) / n, exact there.

    Between nodes, with q in [0, 1] along a cell of width w, its rise h, D = h / w and slopes d at
    the nodes,

        y = y_i + h (D q^2 + d_i q (1 - q)) / (D + (d_i + d_{i+1} - 2 D) q (1 - q)),

    which is monotone for any positive slopes; they are the harmonic means of their neighbours' D.
    On the last cell sigma / beta falls linearly to 0 at t = 1; where the last entry is -inf, beta /
    sigma rises linearly from 0 on the first. Gregory, Delbourgo 1982.

    Args:
        log_snr: by index k: falling, finite but for the last, which may be -inf. (n,), float64.

    Raises:
        OptionError: log-SNR that does not fall strictly in float64, with the index.
    """

    def __init__(self, log_snr: Tensor) -> None:
        n = len(log_snr)
        flat = ~(log_snr.diff() < 0)
        if flat.any():
            k = int(flat.nonzero()[0]) + 1
            raise OptionError(
                f"the table's log-SNR goes from {log_snr[k - 1].item()!r} to {log_snr[k].item()!r} at "
                f"index {k}, and has to fall. Leave out entries that change nothing."
            )
        index = torch.arange(n - 1, -1, -1, dtype=torch.float64)
        t, y = 1 - (index + 1) / n, log_snr.flip(0)
        self.starts_pure = bool(y[0].isinf())
        if self.starts_pure:
            t, y = t[1:], y[1:]
        #: The spline's first and last node: times, and log-SNR there.
        self.begin, self.end = t[0].item(), t[-1].item()
        self.low, self.high = y[0].item(), y[-1].item()
        #: -d(sigma / beta)/dt on the last cell, and d(beta / sigma)/dt on a pure first one.
        self.last_slope = math.exp(-0.5 * self.high) / (1 - self.end)
        self.first_slope = math.exp(0.5 * self.low) / self.begin if self.starts_pure else math.inf
        if len(t) == 1:  # no cell between nodes: one beyond, of which only the beginning is read
            t, y = torch.cat([t, t + 1]), torch.cat([y, y + 1])
        self._nodes = {torch.device("cpu"): _Nodes(t, y, _slopes(t, y))}

    def in_last_cell(self, t: Tensor) -> Tensor:
        """Whether t is on the last cell, its node k = 0 included."""
        return t >= self.end

    def in_first_cell(self, t: Tensor) -> Tensor:
        """Whether t is on a first cell that starts with nothing of the data."""
        return t < self.begin if self.starts_pure else torch.zeros_like(t, dtype=torch.bool)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log-SNR at t."""
        value = self._spline(t)[0]
        last = self.high - 2 * torch.log((1 - t) / (1 - self.end))
        value = torch.where(self.in_last_cell(t), last, value)
        if self.starts_pure:
            first = self.low + 2 * torch.log(t / self.begin)
            value = torch.where(self.in_first_cell(t), first, value)
        return value

    def slope(self, t: Tensor) -> Tensor:
        """Its derivative, infinite at a pure end."""
        value = torch.where(self.in_last_cell(t), 2 / (1 - t), self._spline(t)[1])
        return torch.where(self.in_first_cell(t), 2 / t, value) if self.starts_pure else value

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        t = self._invert(log_snr)
        last = 1 - (1 - self.end) * torch.exp(0.5 * (self.high - log_snr))
        t = torch.where(log_snr >= self.high, last, t)
        if self.starts_pure:
            first = self.begin * torch.exp(0.5 * (log_snr - self.low))
            t = torch.where(log_snr < self.low, first, t)
        return t

    def _on(self, like: Tensor) -> _Nodes:
        """The nodes on a tensor's device."""
        if like.device not in self._nodes:
            here = self._nodes[torch.device("cpu")]
            self._nodes[like.device] = _Nodes(*(v.to(like.device) for v in here))
        return self._nodes[like.device]

    def _spline(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope between the finite nodes; those of the nearest one beyond."""
        nodes = self._on(t)
        t = t.clamp(self.begin, self.end)
        i = _cell(nodes.t, t)
        t0, y0, d0, d1 = nodes.t[i], nodes.y[i], nodes.d[i], nodes.d[i + 1]
        w, h = nodes.t[i + 1] - t0, nodes.y[i + 1] - y0
        D, q = h / w, (t - t0) / w
        p = 1 - q
        below = D + (d0 + d1 - 2 * D) * (q * p)
        value = y0 + h * (D * q * q + d0 * (q * p)) / below
        slope = D * D * (d1 * q * q + 2 * D * (q * p) + d0 * p * p) / below**2
        return value, slope

    def _invert(self, y: Tensor) -> Tensor:
        """The time of a value between the finite nodes: the root q in [0, 1] of a quadratic."""
        nodes, y = self._on(y), y.clamp(self.low, self.high)
        i = _cell(nodes.y, y)
        t0, y0, d0, d1 = nodes.t[i], nodes.y[i], nodes.d[i], nodes.d[i + 1]
        w, h, rise = nodes.t[i + 1] - t0, nodes.y[i + 1] - y0, y - y0
        D = h / w
        e = d0 + d1 - 2 * D
        a, b, c = h * (D - d0) + rise * e, h * d0 - rise * e, -D * rise
        root = torch.sqrt(torch.clamp_min(b * b - 4 * a * c, 0.0))
        return t0 + w * (2 * c / (-b - root))


def _cell(nodes: Tensor, at: Tensor) -> Tensor:
    """The index of the cell that holds each of ``at``."""
    i = torch.searchsorted(nodes, at.detach().contiguous(), right=True) - 1
    return i.clamp(0, len(nodes) - 2)


def _slopes(t: Tensor, y: Tensor) -> Tensor:
    """Positive slopes at the nodes: harmonic means inside, extrapolated at the ends."""
    D: Tensor = y.diff() / t.diff()
    if len(D) == 1:
        return D.expand(2).clone()
    inside = 2 * D[:-1] * D[1:] / (D[:-1] + D[1:])
    first, last = D[:1] ** 2 / inside[:1], D[-1:] ** 2 / inside[-1:]
    return torch.cat([first, inside, last])


class Angle(Schedule):
    """Beta = sin(angle) (sign 1) or sigma = cos(angle) (sign -1), tan^2(angle) being the SNR.

    With the angle's rate k = beta sigma lambda' / 2, which is finite at pure ends, beta' = sigma k
    and sigma' = -beta k.
    """

    def __init__(self, curve: Curve, sign: float) -> None:
        super().__init__(lambda t: torch.sqrt(torch.sigmoid(sign * curve.log_snr(t))))
        self._curve, self._sign = curve, sign

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        curve = self._curve
        lam = curve.log_snr(t)
        beta2, sigma2 = torch.sigmoid(lam), torch.sigmoid(-lam)
        beta, sigma = beta2.sqrt(), sigma2.sqrt()
        rate = 0.5 * beta * sigma * curve.slope(t)
        rate = torch.where(curve.in_last_cell(t), beta2 * curve.last_slope, rate)
        if curve.starts_pure:
            rate = torch.where(curve.in_first_cell(t), sigma2 * curve.first_slope, rate)
        value, other = (beta, sigma) if self._sign > 0 else (sigma, beta)
        slope = self._sign * other * rate
        return value, slope, value * slope
