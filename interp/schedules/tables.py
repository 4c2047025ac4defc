"""Paths from the tables of discrete diffusion models.

A table of n has index k = 0 (the least noise) to n - 1 (the most), and index k is a node at
t = 1 - (k + 1) / n. Log-SNR is exact there; between nodes it is a monotone rational quadratic, with
a continuous derivative and a closed inverse (Gregory, Delbourgo 1982). On the last cell, from k = 0
at t = 1 - 1 / n to clean data at t = 1, sigma / beta falls linearly to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..arguments import whole
from ..errors import OptionError, UnknownName
from ..interpolant import Interpolant
from ..scalar import Schedule
from .spline import Angle, LogSNR

Table = Sequence[float] | Tensor


# The three tables


def from_betas(
    betas: Table | str, n: int | None = None, zero_terminal_snr: bool = False
) -> Interpolant:
    """The variance-preserving path through beta^2 = prod_{j <= k} (1 - betas_j) at index k.

    Args:
        betas: the table of one-step variances, from the data to the noise, each inside (0, 1); or
            the name of one: "linear" (Ho et al.), "scaled_linear" (Stable Diffusion) or "cosine"
            (Nichol, Dhariwal); see `named_betas`.
        n: the size of a named table, 1000 where it is left out.
        zero_terminal_snr: whether to rescale it so that beta(0) = 0; see `from_alphas_cumprod`.

    Raises:
        OptionError: an entry outside (0, 1), with its index; an empty table or one of another
            shape; a size beside a table.
        UnknownName: a name that does not exist.

    Source: Ho, Jain, Abbeel 2020 (2006.11239).
    """
    if isinstance(betas, str):
        stored: object = betas
        table = named_betas(betas, 1000 if n is None else n)
    else:
        if n is not None:
            raise OptionError(f"n={n!r} beside a table, which has its own size. Leave n out.")
        table = _column("betas", betas)
        _inside("betas", table, 1.0)
        stored = table.tolist()
    log_abar = torch.log1p(-table).cumsum(0)
    config = {"name": "from_betas", "betas": stored, "n": n, "zero_terminal_snr": zero_terminal_snr}
    return _preserving(log_abar, zero_terminal_snr, config)


def from_alphas_cumprod(alphas_cumprod: Table, zero_terminal_snr: bool = False) -> Interpolant:
    """The variance-preserving path through beta^2 = alphas_cumprod_k at index k.

    Args:
        alphas_cumprod: falling strictly from k = 0, inside (0, 1); the last may be 0.
        zero_terminal_snr: whether to rescale r = sqrt(alphas_cumprod) to (r - r_last) r_first /
            (r_first - r_last), so that nothing of the data is left at t = 0.

    Raises:
        OptionError: an entry that is outside, NaN, or not below the one before, with its index.

    Source: Ho, Jain, Abbeel 2020 (2006.11239); the rescaling is Lin, Liu, Li, Yang 2023
    (2305.08891), algorithm 1. With beta(0) = 0 the noise says nothing of the data at t = 0: use a
    model of the velocity or the data there.
    """
    table = _column("alphas_cumprod", alphas_cumprod)
    _inside("alphas_cumprod", table, 1.0, zero_last=True)
    _monotone("alphas_cumprod", table, falling=True)
    config = {
        "name": "from_alphas_cumprod",
        "alphas_cumprod": table.tolist(),
        "zero_terminal_snr": zero_terminal_snr,
    }
    return _preserving(table.log(), zero_terminal_snr, config)


def from_sigmas(sigmas: Table) -> Interpolant:
    """The variance-exploding path, beta = 1, through sigma = sigmas_k at index k.

    Args:
        sigmas: the noise levels, positive, rising strictly from k = 0 (the data) to the base; the
            papers' sampling grids run the other way, and end with a 0 that is left out here.

    Raises:
        OptionError: a level that is not positive and finite, or not above the one before, with its
            index.

    Source: Song, Ermon 2019 (1907.05600), whose list is read from its end.
    """
    table = _column("sigmas", sigmas)
    _inside("sigmas", table, math.inf)
    _monotone("sigmas", table, falling=False)
    curve = LogSNR(-2 * table.log())

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(-0.5 * curve.log_snr(t))

    def slope(t: Tensor) -> Tensor:
        lam, lam_slope = curve.jet(t)
        curved = -0.5 * torch.exp(-0.5 * lam) * lam_slope
        return torch.where(curve.in_last_cell(t), -curve.last_slope, curved)

    def bend(t: Tensor) -> Tensor:
        lam, lam_slope = curve.jet(t)
        curved = torch.exp(-0.5 * lam) * (0.25 * lam_slope**2 - 0.5 * curve.bend(t))
        return torch.where(curve.in_last_cell(t), 0.0, curved)

    return Interpolant(
        Schedule(alpha, slope, second_derivative=bend),
        Schedule(lambda t: 1.0, lambda t: 0.0),
        config={"name": "from_sigmas", "sigmas": table.tolist()},
        time_at_log_snr=curve.time_at,
        table=len(table),
    )


def named_betas(name: str, n: int) -> Tensor:
    """The betas of a published table, at any size n, float64.

        linear          from 1e-4 to .02, both times 1000 / n (Ho, Jain, Abbeel 2020, 2006.11239)
        scaled_linear   the square of a line from sqrt(.00085) to sqrt(.012) (Rombach et al. 2022,
                        2112.10752; their code calls it linear)
        cosine          1 - abar((k + 1) / n) / abar(k / n), at most .999, of the cosine diffusion
                        (Nichol, Dhariwal 2021, 2102.09672)

    Raises:
        OptionError: a size below 1, or one at which a beta would not be below 1.
        UnknownName: another name.
    """
    n = whole("n", n, 1)
    if name not in _NAMED:
        raise UnknownName.of("table of betas", name, _NAMED)
    table = _NAMED[name](n)
    if not table.max() < 1:
        k = int((table >= 1).nonzero()[0])
        raise OptionError(
            f"betas[{k}] of the table {name!r} of {n} is {table[k].item():g}, and not below 1. Give a "
            "larger n."
        )
    return table


def _linear(n: int) -> Tensor:
    return torch.linspace(1e-4, 0.02, n, dtype=torch.float64) * (1000 / n)


def _scaled_linear(n: int) -> Tensor:
    return torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=torch.float64) ** 2


def _cosine(n: int) -> Tensor:
    u = torch.arange(n + 1, dtype=torch.float64) / n
    abar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


_NAMED: Mapping[str, Callable[[int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
}


def _preserving(
    log_abar: Tensor, zero_terminal_snr: bool, config: Mapping[str, object]
) -> Interpolant:
    """The path beta^2 = abar, alpha^2 = 1 - abar."""
    if zero_terminal_snr:
        log_abar = _without_terminal_signal(log_abar)
    curve = LogSNR(log_abar - torch.log(-torch.expm1(log_abar)))
    return Interpolant(
        Angle(curve, -1.0),
        Angle(curve, 1.0),
        config=config,
        time_at_log_snr=curve.time_at,
        table=len(log_abar),
    )


def _without_terminal_signal(log_abar: Tensor) -> Tensor:
    """Lin et al.'s rescaling, r -> (r - r_T) r_0 / (r_0 - r_T), as a factor of each r."""
    if len(log_abar) < 2:
        raise OptionError("a table of 1 has no signal left to rescale. Give a longer table.")
    last = torch.exp((log_abar[-1] - log_abar) / 2)  # r_T / r
    return log_abar + 2 * (torch.log1p(-last) - torch.log1p(-last[0]))


# Checks


def _column(name: str, table: object) -> Tensor:
    """A table as a column of float64."""
    try:
        dtype = getattr(table, "dtype", None)  # a list's numbers are Python's: float64
        column = torch.as_tensor(table, dtype=torch.float64 if dtype is None else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"{name} is no table of numbers ({error}). Give a list of them."
        ) from error
    if column.ndim != 1 or not len(column) or column.is_complex() or column.dtype is torch.bool:
        raise OptionError(
            f"{name} has shape {tuple(column.shape)} and dtype {column.dtype}. Give a list of at "
            "least one number, from the data to the noise."
        )
    return column.detach().to(device="cpu", dtype=torch.float64)


def _inside(name: str, table: Tensor, high: float, zero_last: bool = False) -> None:
    bad = ~((table > 0) & (table < high))
    if zero_last and len(table) > 1 and table[-1] == 0:
        bad[-1] = False
    if bad.any():
        k = int(bad.nonzero()[0])
        limits = "positive and finite" if high == math.inf else f"inside (0, {high:g})"
        raise OptionError(f"{name}[{k}] is {table[k].item()!r}. Give numbers {limits}.")


def _monotone(name: str, table: Tensor, falling: bool) -> None:
    steps = -table.diff() if falling else table.diff()
    if not (steps > 0).all():
        k = int((~(steps > 0)).nonzero()[0])
        raise OptionError(
            f"{name}[{k + 1}] is {table[k + 1].item()!r} after {table[k].item()!r}, and index 0 has "
            f"the least noise. Give a table that {'falls' if falling else 'rises'} strictly, e.g. "
            "flipped."
        )
