"""How the times of a training step are drawn.

A law of time has a density p on an interval, and draws t = Q(u) by its quantile function Q from u
uniform on (0, 1). Its weight 1 / (p(t) (high - low)) makes a mean over t ~ p estimate the mean over
uniform t without bias.

A published law (logit-normal, log-normal in sigma) stands for a weighting of the loss, so that its
weight is not used unless asked for: on all of (0, 1) it has no variance, since int 1 / p diverges, and
wants an interval (`within`). `Importance` only lowers the variance, and its weight always is used.

``stratified`` draws u_i = (u + i / rows) mod 1 from one u: each row is uniform, and together they
cover (0, 1) evenly, which makes the mean over a batch vary less (the low-discrepancy sampler of
Kingma, Salimans, Poole, Ho, 2107.00630, "antithetic" in their code). Neighbouring rows then have neighbouring
times: do not sort a batch by what it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from . import views
from .arguments import host, positive, real, share, whole
from .errors import OptionError
from .named import build

if TYPE_CHECKING:
    from .interpolant import Interpolant

Device = torch.device | str | None
_TINY = 2.0**-54  # takes the place of a u that came out 0: t stays in the open interval


class Times(Protocol):
    """What draws times.

    Attributes:
        interval: where they lie.
        corrects: whether a loss applies the weight unless told otherwise.
    """

    @property
    def interval(self) -> tuple[float, float]: ...

    @property
    def corrects(self) -> bool: ...

    def within(self, low: float, high: float) -> Self:
        """The same law on the part of [0, 1] from ``low`` to ``high``."""
        ...

    def draw(
        self, rows: int, *, generator: Generator | None = None, device: Device = None
    ) -> Tensor:
        """Times, (rows,) float64."""
        ...

    def weight(self, t: Tensor) -> Tensor:
        """What each of the times ``t`` counts in a mean over uniform time, float64."""
        ...


def uniforms(
    rows: int, stratified: bool, generator: Generator | None = None, device: Device = None
) -> Tensor:
    """(rows,) numbers, each uniform on (0, 1), float64."""
    count = (1,) if stratified else (rows,)
    u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    return (lattice(u, rows) if stratified else u).clamp_(min=_TINY)


def lattice(u: Tensor, rows: int) -> Tensor:
    """(u + i / rows) mod 1 for i = 0, ..., rows - 1."""
    steps = torch.arange(rows, dtype=u.dtype, device=u.device) / rows
    return (u + steps) % 1.0


@dataclass(frozen=True)
class Uniform:
    """t ~ U(0, 1), or on the interval that is left of it.

    Args:
        stratified: rows that together cover the interval evenly.
    """

    stratified: bool = False
    interval: tuple[float, float] = dataclasses.field(default=(0.0, 1.0), kw_only=True)
    corrects = False

    def __post_init__(self) -> None:
        _check_interval(self.interval)

    def within(self, low: float, high: float) -> Self:
        """The same law on the part of [0, 1] from ``low`` to ``high``."""
        return dataclasses.replace(self, interval=(low, high))

    def cdf(self, t: Tensor) -> Tensor:
        """The share of [0, 1] below t."""
        return t

    def quantile(self, u: Tensor) -> Tensor:
        """The t below which a share u lies."""
        return u

    def density(self, t: Tensor) -> Tensor:
        """p(t) on [0, 1]."""
        return torch.ones_like(t)

    def weight(self, t: Tensor) -> Tensor:
        """1 / (p (high - low)) with p the density on the interval."""
        first, last = self.levels
        return (last - first) / ((self.interval[1] - self.interval[0]) * self.density(t))

    def draw(
        self, rows: int, *, generator: Generator | None = None, device: Device = None
    ) -> Tensor:
        """Times, (rows,) float64."""
        u = uniforms(rows, self.stratified, generator, device)
        first, last = self.levels
        return self.quantile(u if (first, last) == (0.0, 1.0) else first + (last - first) * u)

    @functools.cached_property
    def levels(self) -> tuple[float, float]:
        """The cdf at both ends of the interval."""
        first, last = self.cdf(host(list(self.interval))).tolist()
        return first, last


@dataclass(frozen=True)
class LogitNormal(Uniform):
    """logit(t) ~ N(mean, std^2): most often in the middle (Esser et al., 2403.03206, section 3.1).

    Args:
        mean: of log(t / (1 - t)); below 0 there are more times at the noise. (Esser et al. run time
            the other way: their mean is minus this one.)
        std: its standard deviation, positive.

    Raises:
        OptionError: numbers that make no normal law.
    """

    mean: float = dataclasses.field(default=0.0, kw_only=True)
    std: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_normal(self.mean, self.std)

    def cdf(self, t: Tensor) -> Tensor:
        """Phi((logit t - mean) / std)."""
        share: Tensor = torch.special.ndtr((torch.logit(t) - self.mean) / self.std)
        return share

    def quantile(self, u: Tensor) -> Tensor:
        """sigmoid(mean + std Phi^-1(u))."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def density(self, t: Tensor) -> Tensor:
        """phi(z) / (std t (1 - t))."""
        return _bell((torch.logit(t) - self.mean) / self.std) / (self.std * t * (1 - t))


@dataclass(frozen=True)
class LogNormal(Uniform):
    """log(sigma / beta) ~ N(mean, std^2), cut to the path's range (Karras et al., 2206.00364, table 1).

    Args:
        path: a path with a Gaussian base and an increasing log-SNR.
        mean: of the natural logarithm of sigma / beta; -1.2 for images of standard deviation 0.5.
        std: its standard deviation, positive; 1.2 there.

    Raises:
        OptionError: numbers that make no normal law, or a path that sigma / beta does not order.
    """

    path: Interpolant = dataclasses.field(kw_only=True)
    mean: float = dataclasses.field(default=-1.2, kw_only=True)
    std: float = dataclasses.field(default=1.2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_normal(self.mean, self.std)
        if not (self.path.gaussian_base and self.path.monotone):
            raise OptionError(
                f"times log-normal in sigma need a path whose log-SNR increases, and {self.path!r} "
                'is not one. Use "uniform" or "logit_normal".'
            )

    def cdf(self, t: Tensor) -> Tensor:
        """Phi((mean - log(sigma / beta)) / std)."""
        share: Tensor = torch.special.ndtr((self.mean + 0.5 * self.path.log_snr(t)) / self.std)
        return share

    def quantile(self, u: Tensor) -> Tensor:
        """The t at which log(sigma / beta) = mean - std Phi^-1(u)."""
        lam = 2.0 * (self.std * torch.special.ndtri(u) - self.mean)
        low, high = (self.path.log_snr(end).to(lam.device) for end in (0.0, 1.0))
        # u lies between the ends' shares; what is outside here is rounding.
        return self.path.time_at_log_snr(torch.clamp(lam, low, high))

    def density(self, t: Tensor) -> Tensor:
        """phi(z) lambda' / (2 std), with lambda the log-SNR."""
        z = (self.mean + 0.5 * self.path.log_snr(t)) / self.std
        rate = views.log_snr_rate(self.path.coefficients(t))
        return _bell(z) * rate / (2.0 * self.std)


@dataclass(frozen=True)
class Nodes(Uniform):
    """The nodes t = 1 - (k + 1) / n of a path's table, k uniform in 0 ... n - 1: what DDPM draws.

    Args:
        path: with a table; its size is n.
        stratified: as for the other laws.

    Raises:
        OptionError: a path without a table.
    """

    path: Interpolant = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path.table is None:
            raise OptionError(
                f"{self.path!r} has no table, whose nodes could be drawn. Make it with from_betas, or "
                'draw "uniform" times.'
            )

    def quantile(self, u: Tensor) -> Tensor:
        """The node of the cell that holds u."""
        n = self.path.table or 1
        return torch.clamp((u * n).floor(), max=n - 1) / n


class Importance(nn.Module):
    """Times where the loss is large, from a histogram of what was seen: lower variance, no bias.

    Over ``bins`` equal bins of t the square root of the mean squared loss is followed; a bin is drawn
    in proportion to it and t is uniform inside (Nichol, Dhariwal, 2102.09672, section 3.3, there for
    steps of a table and with a share of 0.001). Uniform until every bin has been seen.

    Args:
        bins: how many.
        floor: the share of draws that stays uniform, in (0, 1]; bounds the weight by 1 / floor.
        keep: how much of a bin's mean stays at an update, in [0, 1).
        stratified: as for the other laws.

    Raises:
        OptionError: a number out of range.
    """

    seen: Tensor
    squares: Tensor
    corrects = True

    def __init__(
        self, bins: int = 64, floor: float = 0.1, keep: float = 0.95, stratified: bool = False
    ) -> None:
        super().__init__()
        bins = whole("bins", bins, 1)
        floor = share("floor", floor)
        if not real("keep", keep) < 1:
            raise OptionError(f"keep={keep!r} does not fit. Give a share in [0, 1).")
        self.bins, self.floor, self.keep, self.stratified = bins, floor, keep, stratified
        self.interval = (0.0, 1.0)
        self.register_buffer("squares", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.bool))

    def within(self, low: float, high: float) -> Self:
        """This sampler on the part of [0, 1] from ``low`` to ``high``."""
        _check_interval((low, high))
        self.interval = (low, high)
        return self

    def probabilities(self) -> Tensor:
        """Of the bins: (bins,), float64."""
        root = self.squares.double().sqrt()  # double, whatever a module around this was cast to
        even = torch.full_like(root, 1.0 / self.bins)
        total = root.sum()
        usable = self.seen.all() & (total > 0)
        return torch.where(usable, torch.lerp(root / total, even, self.floor), even)

    def draw(
        self, rows: int, *, generator: Generator | None = None, device: Device = None
    ) -> Tensor:
        """Times, (rows,) float64."""
        return self.quantile(uniforms(rows, self.stratified, generator, device))

    def quantile(self, u: Tensor) -> Tensor:
        """The t below which a share u lies."""
        p = self.probabilities().to(u.device)
        above = p.cumsum(0)
        k = torch.searchsorted(above, u).clamp_(max=self.bins - 1)  # the sum is 1 but for rounding
        inside = ((u - (above - p)[k]) / p[k]).clamp(0.0, 1.0)
        low, high = self.interval
        return low + (high - low) * (k + inside) / self.bins

    def weight(self, t: Tensor) -> Tensor:
        """1 / (bins p) of t's bin."""
        return 1.0 / (self.bins * self.probabilities().to(t.device)[self._bin(t)])

    def _bin(self, t: Tensor) -> Tensor:
        low, high = self.interval
        return ((t - low) / (high - low) * self.bins).long().clamp_(0, self.bins - 1)

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take in the ``losses`` (rows,) of the times ``t`` (rows,), before their weights."""
        k = self._bin(t).to(self.squares.device)
        squares = losses.detach().to(k.device, torch.float64).square()
        count = torch.bincount(k, minlength=self.bins)
        mean = torch.bincount(k, squares, self.bins) / count.clamp(min=1)
        known = self.squares.double()
        moved = torch.where(self.seen, torch.lerp(mean, known, self.keep), mean)
        self.squares.copy_(torch.where(count > 0, moved, known))
        self.seen.logical_or_(count > 0)


_BUILDERS: dict[str, Callable[..., Times]] = {
    "importance": Importance,
    "log_normal": LogNormal,
    "logit_normal": LogitNormal,
    "nodes": Nodes,
    "stratified": lambda: Uniform(stratified=True),
    "uniform": Uniform,
}


def names() -> tuple[str, ...]:
    """The names that a config may give."""
    return tuple(sorted(_BUILDERS))


def resolve(times: Times | str | Mapping[str, Any] | None, path: Interpolant) -> Times:
    """What draws times on ``path``: itself, a name, or {"name": ..., and its options}.

    Raises:
        UnknownName, OptionError: what does not exist, or cannot be.
    """
    if times is None:
        return Uniform()
    if not isinstance(times, (str, Mapping)) and callable(getattr(times, "draw", None)):
        return times
    return build("law of time", times, _BUILDERS, path=path)


def _bell(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _check_normal(mean: object, std: object) -> None:
    real("mean", mean, -math.inf)
    positive("std", std)


def _check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0 <= low < high <= 1:
        raise OptionError(
            f"the interval {interval} is no part of [0, 1]. Give (low, high) inside it."
        )
