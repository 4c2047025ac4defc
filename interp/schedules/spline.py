"""A monotone curve of log-SNR through the nodes of a table, with its slope and its inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import OptionError
from ..scalar import Schedule
from . import rational


class LogSNR:
    """Log-SNR through a table's nodes: index k at t = 1 - (k + 1) / n, exact there.

    Between nodes a rational-quadratic spline, which is monotone for any positive slopes: inside, the
    harmonic means of their neighbours' D, rise over width; at the ends D and half of its change to
    the next cell's, within D / 3 and 3 D.
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
        self._cells = {torch.device("cpu"): _cells(t, y)}

    def in_last_cell(self, t: Tensor) -> Tensor:
        """Whether t is on the last cell, its node k = 0 included."""
        return t >= self.end

    def in_first_cell(self, t: Tensor) -> Tensor:
        """Whether t is on a first cell that starts with nothing of the data."""
        return t < self.begin if self.starts_pure else torch.zeros_like(t, dtype=torch.bool)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log-SNR at t."""
        inside = t.clamp(self.begin, self.end)
        return self._with_ends(t, rational.value(self._on(t.device), inside))

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR and its derivative, which is infinite at a pure end."""
        value, slope = self._inside(t)
        slope = torch.where(t >= self.end, 2 / (1 - t), slope)
        if self.starts_pure:
            slope = torch.where(t < self.begin, 2 / t, slope)
        return self._with_ends(t, value), slope

    def bend(self, t: Tensor) -> Tensor:
        """Its second derivative between the finite nodes."""
        cells, t = self._on(t.device), t.clamp(self.begin, self.end)
        t0, _, w, _, D, d0, d1, e = rational.cell(cells.numbers, cells.x, t)
        q = (t - t0) / w
        p = 1 - q
        below, slope_below = D + e * (p * q), e * (p - q)
        above = (d1 * q + 2 * D * p) * q + d0 * p * p
        slope_above = 2 * (d1 * q + D * (p - q) - d0 * p)
        return (D / below) ** 2 * (slope_above - 2 * above * slope_below / below) / w

    def _with_ends(self, t: Tensor, value: Tensor) -> Tensor:
        last = self.high - 2 * torch.log((1 - t) / (1 - self.end))
        value = torch.where(t >= self.end, last, value)
        if self.starts_pure:
            value = torch.where(t < self.begin, self.low + 2 * torch.log(t / self.begin), value)
        return value

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        t = rational.inverse(self._on(log_snr.device), log_snr.clamp(self.low, self.high))
        last = 1 - (1 - self.end) * torch.exp(0.5 * (self.high - log_snr))
        t = torch.where(log_snr >= self.high, last, t)
        if self.starts_pure:
            first = self.begin * torch.exp(0.5 * (log_snr - self.low))
            t = torch.where(log_snr < self.low, first, t)
        return t

    def _inside(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope between the finite nodes; beyond, at the nearest."""
        return rational.jet(self._on(t.device), t.clamp(self.begin, self.end))

    def _on(self, device: torch.device) -> rational.Cells:
        if device not in self._cells:
            self._cells[device] = self._cells[torch.device("cpu")].to(device)
        return self._cells[device]


def _cells(t: Tensor, y: Tensor) -> rational.Cells:
    """Slopes: harmonic means of the neighbours' D inside, at the ends D + half its change."""
    w, h = t.diff(), y.diff()
    D = h / w
    d = torch.cat([D, D])
    if len(D) > 1:
        inside = 2 * D[:-1] * D[1:] / (D[:-1] + D[1:])
        ends, inner = D[[0, -1]], D[[1, -2]]
        ends = (1.5 * ends - 0.5 * inner).clamp(ends / 3, ends * 3)
        d = torch.cat([ends[:1], inside, ends[1:]])
    return rational.cells(t, y, d)


class Angle(Schedule):
    """Beta = sin(angle) (sign 1) or sigma = cos(angle) (sign -1), tan^2(angle) being the SNR.

    With the angle's rate k = beta sigma lambda' / 2, which is finite at pure ends, beta' = sigma k
    and sigma' = -beta k.
    """

    def __init__(self, curve: LogSNR, sign: float) -> None:
        super().__init__(lambda t: torch.sqrt(torch.sigmoid(sign * curve.log_snr(t))))
        self._curve, self._sign = curve, sign

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        beta, sigma, rate, _ = self._angle(t)
        value, other = (beta, sigma) if self._sign > 0 else (sigma, beta)
        slope = self._sign * other * rate
        return value, slope, value * slope

    def second_derivative(self, t: Tensor) -> Tensor:
        """beta'' = sigma k' - beta k^2, sigma'' = -beta k' - sigma k^2."""
        beta, sigma, rate, lam_slope = self._angle(t)
        curve, both = self._curve, beta * sigma
        change = 0.5 * (rate * (sigma - beta) * (sigma + beta) * lam_slope + both * curve.bend(t))
        change = torch.where(curve.in_last_cell(t), 2 * both * rate * curve.last_slope, change)
        if curve.starts_pure:
            first = -2 * both * rate * curve.first_slope
            change = torch.where(curve.in_first_cell(t), first, change)
        value, other = (beta, sigma) if self._sign > 0 else (sigma, beta)
        return self._sign * other * change - value * rate * rate

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Beta, sigma, the angle's rate and that of log-SNR."""
        curve = self._curve
        lam, lam_slope = curve.jet(t)
        beta2, sigma2 = torch.sigmoid(lam), torch.sigmoid(-lam)
        beta, sigma = beta2.sqrt(), sigma2.sqrt()
        rate = torch.where(
            curve.in_last_cell(t), beta2 * curve.last_slope, 0.5 * beta * sigma * lam_slope
        )
        if curve.starts_pure:
            rate = torch.where(curve.in_first_cell(t), sigma2 * curve.first_slope, rate)
        return beta, sigma, rate, lam_slope
