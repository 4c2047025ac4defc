"""The end of a run on a path that keeps some noise at t = 1 (VE, EDM down to a sigma_min).

The last step is the first-order one from sigma(1) to 0: x = E[x1 | x], the data estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import now
from ..errors import SolveError
from ..terms import PathODE, PathSDE
from .result import Stats
from .torch_backend.run import bad_rows, finite

if TYPE_CHECKING:
    from .plan import Request


def wanted(term: PathODE | PathSDE, ends: tuple[float, float], options: Mapping[str, Any]) -> bool:
    """Whether a run over ``ends`` ends with the step to clean data: not at the base of a reversed path."""
    path, (start, stop) = term.path, ends
    noisy = path.gaussian_base and not path.reversed and not path.boundary.ends_clean
    return noisy and start < stop == 1.0 and bool(options.get("denoise", True))


def to_clean_data(
    term: PathODE | PathSDE, request: Request, x: Tensor, xs: Tensor, stats: Stats
) -> tuple[Tensor, Tensor, Stats]:
    """The data estimate at t = 1 in place of x, there and among the saved states.

    Raises:
        SolveError: a model that gives NaN or infinity there; ``.last`` is the state before.
    """
    began = now()
    data = term.data(1.0, x, request.cond)
    spent = now() - began
    if not finite(data):
        if request.options.get("on_failure") == "partial":
            return x, xs, replace(stats, status="non_finite")
        rows = bad_rows(data)
        raise SolveError(
            f"the model became NaN or infinite at t = 1 in rows {rows[:8]}, in the step to clean "
            "data. Look at the model there, or give denoise=False.",
            time=1.0, step=stats.accepted, rows=rows, last=x, reason="non_finite",
        )  # fmt: skip
    if request.saves and request.saves[-1] == 1.0:
        xs = torch.cat([xs[:-1], data[None]])
    more = stats.accepted + 1
    stats = replace(
        stats, nfe=stats.nfe + 1, steps=more, accepted=more, field_s=stats.field_s + spent
    )
    return data, xs, stats
