"""The tables of diffusers' discrete diffusions, in float64 and from their configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments import whole
from ..errors import OptionError, UnknownName
from ..interpolant import Interpolant
from ..schedules import from_alphas_cumprod


def path_of_table(config: Mapping[str, Any]) -> Interpolant:
    """The variance-preserving path through the table that a configuration describes.

    Rescaled to no signal at the last index where it says so (Lin, Liu, Li, Yang 2023, 2305.08891),
    exactly: four of diffusers' schedulers put 2^-24 in place of the 0, and with the linear table that
    is above the entry before it.

    Args:
        config: ``trained_betas``, or ``beta_schedule`` with ``num_train_timesteps``, ``beta_start`` and
            ``beta_end``; ``rescale_betas_zero_snr`` and CogVideoX's ``snr_shift_scale`` where there.

    Raises:
        OptionError: an entry that is missing, or makes no table.
        UnknownName: a beta_schedule that does not exist.
    """
    betas = _betas(config)
    if not bool(((betas > 0) & (betas < 1)).all()):
        k = int((~((betas > 0) & (betas < 1))).nonzero()[0])
        raise OptionError(
            f"the scheduler's betas[{k}] is {betas[k].item()!r}. Give a configuration whose one-step "
            "variances are inside (0, 1)."
        )
    log_abar = torch.log1p(-betas).cumsum(0)
    shift = config.get("snr_shift_scale")
    if shift is not None:  # sigma^2 / beta^2 times the shift
        log_abar = log_abar - torch.log(shift + (1 - shift) * log_abar.exp())
    return from_alphas_cumprod(log_abar.exp(), bool(config.get("rescale_betas_zero_snr")))


def _betas(config: Mapping[str, Any]) -> Tensor:
    given = config.get("trained_betas")
    if given is not None:
        return torch.as_tensor(given, dtype=torch.float64)
    name = needed(config, "beta_schedule")
    if name not in _BETAS:
        raise UnknownName.of("beta_schedule", name, _BETAS)
    return _BETAS[name](
        config, whole("num_train_timesteps", needed(config, "num_train_timesteps"), 1)
    )


def needed(config: Mapping[str, Any], key: str) -> Any:
    """An entry of a configuration that nothing stands in for.

    Raises:
        OptionError: it is not there.
    """
    if key not in config:
        raise OptionError(
            f"the scheduler's configuration has no {key!r}, and no value is guessed. Give the scheduler "
            "itself, whose configuration is complete."
        )
    return config[key]


def _ends(config: Mapping[str, Any]) -> tuple[float, float]:
    return float(needed(config, "beta_start")), float(needed(config, "beta_end"))


def _linear(config: Mapping[str, Any], n: int) -> Tensor:
    return torch.linspace(*_ends(config), n, dtype=torch.float64)


def _scaled_linear(config: Mapping[str, Any], n: int) -> Tensor:
    low, high = _ends(config)
    return torch.linspace(low**0.5, high**0.5, n, dtype=torch.float64) ** 2


def _sigmoid(config: Mapping[str, Any], n: int) -> Tensor:
    low, high = _ends(config)
    return torch.sigmoid(torch.linspace(-6, 6, n, dtype=torch.float64)) * (high - low) + low


def _from_abar(abar: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Any], int], Tensor]:
    """Betas 1 - abar((k + 1) / n) / abar(k / n), at most .999."""

    def betas(config: Mapping[str, Any], n: int) -> Tensor:
        value = abar(torch.arange(n + 1, dtype=torch.float64) / n)
        return (1 - value[1:] / value[:-1]).clamp(max=0.999)

    return betas


def _laplace(u: Tensor) -> Tensor:
    centred = 0.5 - u
    lam = (
        -0.5 * torch.copysign(torch.ones_like(u), centred) * torch.log(1 - 2 * centred.abs() + 1e-6)
    )
    return torch.sigmoid(lam).sqrt()


_BETAS: Mapping[str, Callable[[Mapping[str, Any], int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "squaredcos_cap_v2": _from_abar(lambda u: torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2),
    "exp": _from_abar(lambda u: torch.exp(-12.0 * u)),
    "laplace": _from_abar(_laplace),
}
