"""The steps of a diffusers scheduler as times of our path."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .reading import Reading

#: Schedulers whose loop holds x / beta, and divides by sqrt(1 + sigma^2) for the network.
IN_SIGMA = frozenset(
    f"{name}Scheduler"
    for name in (
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
        "KDPM2AncestralDiscrete", "LMSDiscrete", "DPMSolverSDE",
    )
)  # fmt: skip


_ROUNDED = 1e-5  # a sigma of theirs, a float32 through a power of 7, at an end of ours


def nodes(theirs: Any, reading: Reading) -> list[float]:
    """The times of a scheduler's steps, after its set_timesteps, and of where it ends.

    Its own grid, whatever made it: spacing, offset, Karras, a shift. A noise level that is the table's
    own up to the rounding of float32 is that node, exactly; the end is clean data, or index 0 where the
    configuration stops there (``set_alpha_to_one=False``, ``final_sigmas_type="sigma_min"``).

    Raises:
        OptionError: steps that do not go from noise to data.
    """
    stamps = torch.as_tensor(theirs.timesteps, dtype=torch.float64, device="cpu")
    sigmas = getattr(theirs, "sigmas", None)
    if sigmas is None or reading.name in ("IPNDMScheduler",):
        times = [*reading.when(stamps).tolist(), _end(theirs, reading)]
    else:
        times = _from_sigmas(torch.as_tensor(sigmas, dtype=torch.float64, device="cpu"), reading)
    unique = [t for i, t in enumerate(times) if i == 0 or t != times[i - 1]]
    if len(unique) < 2 or any(b <= a for a, b in itertools.pairwise(unique)):
        raise OptionError(
            f"the steps of this {reading.name} do not go from noise to data: t = {unique[:6]}. Give "
            "timesteps or sigmas that fall."
        )
    return unique


def _end(theirs: Any, reading: Reading) -> float:
    size = reading.path.table
    if size is not None and theirs.config.get("set_alpha_to_one") is False:
        return 1.0 - 1.0 / size
    return 1.0


def _from_sigmas(sigmas: Tensor, reading: Reading) -> list[float]:
    """The times at noise levels sigma / beta; of a flow, at its sigma."""
    path, size = reading.path, reading.path.table
    flow = size is None and reading.preconditioned is None
    if flow:
        low, high = path.noise_scale(1.0).item(), math.inf
        inverted = bool(sigmas[-1] == 1.0 and sigmas[0] < 1.0)
        share = 1 - sigmas if inverted else sigmas
        levels = share / (1 - share)
    else:
        low, high = path.noise_scale(1.0).item(), path.noise_scale(0.0).item()
        levels = sigmas
    lam = -2 * levels.clamp(low, high).log()
    times = path.time_at_log_snr(lam)
    last, first = levels <= low * (1 + _ROUNDED), levels >= high * (1 - _ROUNDED)
    times = torch.where(last, 1.0, torch.where(first, 0.0, times))
    if size is not None:
        k = (size * (1 - times) - 1).round()
        node = (1 - (k + 1) / size).clamp(0, 1)
        own = path.noise_scale(node)
        times = torch.where((own - levels).abs() <= 1e-3 * own, node, times)
    elif not flow and levels[-1] == 0 and low > 0:
        times = times[:-1]  # the run itself ends with the step to clean data
    found: list[float] = times.tolist()
    return found


def takes(kind: type, name: str) -> bool:
    """Whether a scheduler class has an entry of this name."""
    return name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
