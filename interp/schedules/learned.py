"""Learned paths: the curve of a known path, run through by monotone functions that are trained.

Each function of the path is taken at a learned time, alpha(tau_a(t)), beta(tau_b(t)), gamma(tau_g(t)),
where every tau rises from exactly 0 to exactly 1, so that the end points are those of the known path
whatever the weights. With one tau for all the curve of ratios stays and log-SNR(tau(t)) is learned
(Kingma, Salimans, Poole, Ho 2021, 2107.00630, sec. 4.2, whose end points are learned too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..algebra import Chain, Composite, Jet
from ..arguments import holds, whole
from ..errors import OptionError, ScheduleError, UnknownName
from ..interpolant import Interpolant
from ..transforms import After, composed
from . import rational
from .registry import from_config

_SMALLEST = 1e-3  # the least share of a bin and the least slope, as in neural spline flows


class Spline(nn.Module):
    """A monotone rational-quadratic spline of [0, 1] onto itself; the identity at first.

    Source: Durkan, Bekasov, Murray, Papamakarios 2019 (1906.04032), eq. 4-8.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.widths = nn.Parameter(torch.zeros(bins))
        self.heights = nn.Parameter(torch.zeros(bins))
        self.slopes = nn.Parameter(torch.zeros(bins + 1))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """tau and tau' at t, float64."""
        return rational.jet(self._cells(), t)

    def inverse(self, s: Tensor) -> Tensor:
        """The t at which tau is s, the stable root of a quadratic."""
        return rational.inverse(self._cells(), s)

    def _cells(self) -> rational.Cells:
        unit = math.log(math.expm1(1 - _SMALLEST))  # softplus of it is 1 - _SMALLEST: slope 1
        slopes = _SMALLEST + nn.functional.softplus(self.slopes.double() + unit)
        return rational.cells(_edges(self.widths), _edges(self.heights), slopes)


def _edges(raw: Tensor) -> Tensor:
    """Rising from exactly 0 to exactly 1."""
    shares = _SMALLEST + (1 - _SMALLEST * len(raw)) * torch.softmax(raw.double(), 0)
    inner = shares.cumsum(0)[:-1]
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])


class Network(nn.Module):
    """A monotone network, a t + sum_j w_j sigmoid(s_j (t - c_j)) with a, w, s > 0, from 0 to 1.

    Source: Kingma, Salimans, Poole, Ho 2021 (2107.00630), appendix H, with one hidden layer.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.straight = nn.Parameter(torch.zeros(()))
        self.sizes = nn.Parameter(torch.full((units,), -5.0))
        self.steepness = nn.Parameter(torch.full((units,), 10.0))
        self.centres = nn.Parameter(torch.linspace(0, 1, units))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """tau and tau' at t, float64."""
        straight = _SMALLEST + nn.functional.softplus(self.straight.double())
        sizes = nn.functional.softplus(self.sizes.double())
        steepness = nn.functional.softplus(self.steepness.double())
        centres = self.centres.double()

        def rise(t: Tensor) -> Tensor:
            return straight * t + (sizes * torch.sigmoid(steepness * (t[..., None] - centres))).sum(
                -1
            )

        start, end = rise(torch.zeros_like(straight)), rise(torch.ones_like(straight))
        bent = torch.sigmoid(steepness * (t[..., None] - centres))
        slope = straight + (sizes * steepness * bent * (1 - bent)).sum(-1)
        return (rise(t) - start) / (end - start), slope / (end - start)


_KINDS: Mapping[str, Callable[[int], nn.Module]] = {"spline": Spline, "network": Network}


class LearnedClock(Composite):
    """The time change that a monotone module is: exactly 0 and 1 at the ends, checked for NaN."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.inverse = self._back if isinstance(module, Spline) else None

    def _rule(self, t: Tensor) -> Jet:
        value, slope = (v.to(t.device) for v in self.module(t.to(self._device)))
        if not holds((value + slope).isfinite()):
            raise ScheduleError(
                "the learned schedule is no longer a number: its training diverged. Go back to the last "
                "good checkpoint and lower the learning rate, or clip the gradients."
            )
        value = torch.where(t == 0, 0.0, torch.where(t == 1, 1.0, value)).clamp(0.0, 1.0)
        return value, slope, value * slope

    def _value(self, t: Tensor) -> Tensor:
        return self._rule(t)[0]

    def _back(self, s: Tensor) -> Tensor:
        t: Tensor = self.module.inverse(s.to(self._device))  # type: ignore[operator]
        return torch.where(s == 0, 0.0, torch.where(s == 1, 1.0, t.to(s.device)))

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def learned(
    base: Interpolant | str, kind: str = "spline", size: int = 16, separate: bool = False
) -> Interpolant:
    """A trainable path along ``base``: an ``nn.Module`` whose weights bend the clock.

    Gradients flow through `at`, `rate`, `log_snr`, `between` and what is made of them, from a loss or
    from the end of a solve (backend="torch"). A family that holds the path has its weights among its
    own, so that they are trained, averaged and saved with it. At first the path is ``base`` (nearly
    so with a network).

    Args:
        base: the path whose curve and end points it has, or its name.
        kind: "spline" (rational quadratic; its log-SNR has a closed inverse) or "network".
        size: the spline's bins, 2 to 500, or the network's units.
        separate: a clock of its own for each of alpha, beta and gamma, so that the curve of ratios
            is learned too; otherwise one for all, which learns log-SNR.

    Raises:
        UnknownName: another kind.
        OptionError: a size that makes no sense.
        ScheduleError: when called, after a training that diverged.
    """
    if kind not in _KINDS:
        raise UnknownName.of("kind of learned schedule", kind, _KINDS)
    size = whole("size", size, 2, 500)
    path = from_config({"name": base}) if isinstance(base, str) else base
    if not isinstance(path, Interpolant):
        raise OptionError(f"base is a {type(base).__name__}. Give a path or its name.")
    if path.element:
        raise OptionError(
            f"the base has one schedule an element, of shape {path.element}. Learn one path for all, or "
            "build the elements' schedules of your own modules."
        )
    names = ["alpha", "beta"] + ["gamma"] * (path.gamma is not None)
    clocks = [LearnedClock(_KINDS[kind](size)) for _ in (names if separate else names[:1])]
    of = dict(zip(names, clocks if separate else clocks * len(names), strict=True))
    back = None
    if not separate and clocks[0].inverse is not None and path._time_at_log_snr is not None:
        back = After(clocks[0].inverse, path._time_at_log_snr)
    options = {"kind": kind, "size": size, "separate": separate}
    return composed(
        [path],
        alpha=Chain(path.alpha, of["alpha"]),
        beta=Chain(path.beta, of["beta"]),
        gamma=None if path.gamma is None else Chain(path.gamma, of["gamma"]),
        config=None if path.config is None else {"name": "learned", "base": path.config, **options},
        time_at_log_snr=back,
        modules=[clock.module for clock in clocks],
    )
