"""Models in the convention of k-diffusion, model(x, sigma), under our solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import schedules
from ..arguments import real
from ..errors import FieldError, OptionError, UnknownName
from ..interpolant import Interpolant

_VIEWS = ("data", "noise", "score", "v_prediction")


class SigmaModel(nn.Module):
    """model(x, sigma, **cond), one sigma a row, as a model told sigma at x."""

    time = "sigma"
    exact_time = True

    def __init__(self, net: Callable[..., Any], view: str) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, sigma: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """What the network returns at x and sigma.

        Raises:
            FieldError: no tensor of x's shape.
        """
        wide = x.dtype if x.dtype is torch.float64 else torch.float32
        rows = sigma.to(device=x.device, dtype=wide)
        found = self.net(x, rows.expand(len(x)) if rows.ndim == 0 else rows, **cond)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise FieldError(
                f"the model returned {what} for points of shape {tuple(x.shape)}. Return a tensor of the "
                "points' shape."
            )
        return found


def from_k_diffusion(
    model: Callable[..., Any],
    sigma_max: float | None = None,
    sigma_min: float = 0.0,
    *,
    sigmas: Any = None,
    view: str = "data",
    rho: float = 7.0,
) -> tuple[Interpolant, SigmaModel]:
    """The path and the model of a network in k-diffusion's convention: model(x, sigma, **cond).

    Its points are x = data + sigma noise, so beta = 1. k-diffusion's own wrappers, of networks of the
    noise or v and a table or none, are denoisers D(x, sigma) and given as they are; where one carries a
    table (``model.sigmas``) the path goes through it, with index k at t = 1 - (k + 1) / n.

    Args:
        model: model(x, sigma, **cond), sigma of shape (rows,).
        sigma_max: the noise at t = 0; left out where there is a table.
        sigma_min: the noise left at t = 1, from where a run ends with one step to clean data; 0 ends
            there by itself. A run of `rho` 7 with uniform steps has the noise levels of `edm`.
        sigmas: a table of noise levels, rising; None is ``model.sigmas``, where there is one and no
            sigma_max is given.
        view: what the model returns: "data" (the denoiser), "noise", "score", or "v_prediction",
            (noise - sigma data) / sqrt(1 + sigma^2).
        rho: the power at which sigma falls; see `interp.schedules.edm`.

    Raises:
        UnknownName: another view.
        OptionError: a model that cannot be called, or neither a sigma_max nor a table, or both.

    Source: Karras, Aittala, Aila, Laine 2022 (2206.00364), section 2.
    """
    if not callable(model):
        raise OptionError(
            f"the model is a {type(model).__name__}. Give a function model(x, sigma, **cond)."
        )
    if view not in _VIEWS:
        raise UnknownName.of("view of a model of sigma", view, _VIEWS)
    if sigmas is None and sigma_max is None:
        sigmas = getattr(model, "sigmas", None)
    if (sigmas is None) == (sigma_max is None):
        given = "neither sigma_max nor sigmas" if sigmas is None else "both sigma_max and sigmas"
        raise OptionError(
            f"from_k_diffusion was given {given}, and the model carries no table to go by. Give one of "
            "the two, e.g. sigma_max=80."
        )
    if sigmas is not None:
        path = schedules.from_sigmas(sigmas)
    else:
        path = schedules.edm(real("sigma_min", sigma_min), real("sigma_max", sigma_max), rho)
    if view == "v_prediction":
        return path, SigmaModel(_Denoised(model), "data")
    return path, SigmaModel(model, view)


class _Denoised(nn.Module):
    """D = x / (1 + sigma^2) - sigma v / sqrt(1 + sigma^2)."""

    def __init__(self, net: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        s = sigma.double().reshape(-1, *(1,) * (x.ndim - 1))
        total = torch.hypot(s, torch.ones_like(s))
        v: Tensor = self.net(x, sigma, **cond)
        denoised: Tensor = (1 / total**2).to(x.dtype) * x - (s / total).to(x.dtype) * v
        return denoised
