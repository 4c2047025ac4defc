"""A network that sees inputs of unit variance and the noise level, whatever the schedule.

    D(t, x) = c_skip x + c_out net(c_noise, c_in x)

With s = sigma / beta, data of standard deviation sd and r = sqrt(sigma^2 + beta^2 sd^2), the standard
deviation of x:

    kind      c_in  c_skip           c_out        the net is regressed on             Source
    edm       1/r   beta sd^2 / r^2  sigma sd/r   (sigma x1/sd - beta sd n) / r       2206.00364
    trigflow  1/r   beta sd^2 / r^2  -sigma sd/r  minus that, dx/dw / sd              2410.11081
    variance  1/r   0                sd           x1 / sd
    noise     1/r   1 / beta         -s           n                                   2006.11239

All targets have unit variance. Everything but beta x is a function of s alone, so that on two paths
D is one function of (x / beta, s): a change of schedule is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import Time, as_time, check_rows, positive, spread
from .errors import FieldError, OptionError, TimeError, UndeterminedView, UnknownName

if TYPE_CHECKING:
    from .interpolant import Interpolant

KINDS = ("edm", "trigflow", "variance", "noise")
NOISES = ("edm", "angle", "log_snr")


class Scalings(NamedTuple):
    """The four numbers of a preconditioned network at t: float64, of t's shape."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor


class Preconditioned(nn.Module):
    """A model of the data, D(t, x) = c_skip x + c_out net(c_noise, c_in x); see `precondition`."""

    view = "data"
    exact_time = True  # 1 - t is what counts near data, and float32 has not got it

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: Interpolant,
        kind: str,
        sigma_data: float,
        noise: str,
    ) -> None:
        super().__init__()
        self.net, self.path, self.kind, self.sigma_data = net, path, kind, sigma_data
        self.noise = noise

    def scalings(self, t: Time) -> Scalings:
        """c_in, c_skip, c_out and c_noise at t.

        Raises:
            TimeError: t outside [0, 1].
        """
        k, sd = self.path.coefficients(t), self.sigma_data
        total = torch.hypot(k.sigma, k.beta * sd)
        if self.kind == "variance":
            c_skip, c_out = torch.zeros_like(total), torch.full_like(total, sd)
        elif self.kind == "noise":
            c_skip, c_out = 1 / k.beta, -k.sigma / k.beta
        else:
            sign = 1.0 if self.kind == "edm" else -1.0
            c_skip, c_out = k.beta * (sd / total) ** 2, sign * k.sigma * sd / total
        if self.noise == "angle":
            c_noise = torch.atan2(k.sigma, k.beta * sd)
        else:
            share = 0.25 if self.noise == "edm" else -2.0
            c_noise = share * (k.sigma.log() - k.beta.log())
        return Scalings(1 / total, c_skip, c_out, c_noise)

    def forward(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        """The data estimate at (t, x), of x's shape and dtype.

        Raises:
            TimeError: t outside [0, 1], or where the noise level or a scale is infinite.
            FieldError: a network that returns something else than a tensor of x's shape.
        """
        time = as_time(t)
        check_rows(time, x)
        c = self.scalings(time)
        usable = c.c_noise.isfinite() & c.c_out.isfinite()
        if not bool(usable.all()):
            bad = time[~usable][0] if time.ndim else time
            raise TimeError(
                f"at t = {bad.item():g} the network would be told {self.noise!r} = "
                f'{c.c_noise.flatten()[0].item()}. Start and end strictly inside, or use kind="edm" or '
                '"variance" with noise="angle", which is finite at both ends.'
            )
        told = c.c_noise.to(device=x.device, dtype=x.dtype)
        found = self.net(told, spread(c.c_in, x) * x, **cond)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise FieldError(
                f"the network returned {what} for points of shape {tuple(x.shape)}. Return a tensor of "
                "the points' shape."
            )
        return self.denoised(found, time, x)

    def denoised(self, output: Tensor, t: Time, x: Tensor) -> Tensor:
        """The data estimate that an ``output`` of the network stands for, at (t, x)."""
        c = self.scalings(t)
        return spread(c.c_skip, x) * x + spread(c.c_out, x) * output.to(x.dtype)

    def output(self, data: Tensor, t: Time, x: Tensor) -> Tensor:
        """The output of the network that stands for a ``data`` estimate: the inverse of `denoised`.

        Raises:
            UndeterminedView: where c_out is 0, at clean data.
        """
        c = self.scalings(t)
        if not bool(c.c_out.all()):
            raise UndeterminedView(
                "at clean data every output of the network stands for x itself. Convert strictly inside "
                "(0, 1)."
            )
        return (data - spread(c.c_skip, x) * x) / spread(c.c_out, x)


def precondition(
    net: Callable[..., Tensor],
    path: Interpolant,
    kind: str = "edm",
    *,
    sigma_data: float = 0.5,
    noise: str | None = None,
) -> Preconditioned:
    """A model of the data from a network of unit scale, on any path with a Gaussian base.

    Use it as ``path.ode(model, view="data")`` and train it as ``Regression(path, "data", "edm")``,
    which weighs the error of a "edm" network's own output with 1. The same net on another path is the
    same model there: ``precondition(net, other)``.

    Args:
        net: net(noise, x, **cond) -> tensor of x's shape; a module's parameters become the model's.
        path: where the model is used.
        kind: "edm" (Karras, Aittala, Aila, Laine, 2206.00364, table 1), "trigflow" (Lu, Song,
            2410.11081), "variance" (the net gives the data themselves) or "noise" (the net gives the
            noise; infinite where beta is 0).
        sigma_data: the standard deviation of the data, positive.
        noise: what the net is told: "edm" log(s) / 4, "log_snr" -2 log(s), or "angle"
            atan(s / sigma_data), finite at both ends. None is the kind's own: "edm", "angle" for
            trigflow, "log_snr" for the others.

    Raises:
        UnknownName: a kind or noise that does not exist.
        OptionError: a net that cannot be called, a path without a Gaussian base or with one schedule
            an element, or a scale that is not positive.
    """
    if not callable(net):
        raise OptionError(f"net is a {type(net).__name__}. Give a function net(noise, x, **cond).")
    if kind not in KINDS:
        raise UnknownName.of("preconditioning", kind, KINDS)
    if noise is None:
        noise = {"edm": "edm", "trigflow": "angle"}.get(kind, "log_snr")
    if noise not in NOISES:
        raise UnknownName.of("noise level", noise, NOISES)
    if not path.gaussian_base:
        raise OptionError(
            "this path was built with gaussian_base=False, and sigma / beta is no noise level there. "
            "Build it with gaussian_base=True."
        )
    if path.element:
        raise OptionError(
            f"sigma / beta differs between the elements of this path, of shape {path.element}, and a net "
            "is told one noise level. Give path.ode the net itself, and tell it t."
        )
    return Preconditioned(net, path, kind, positive("sigma_data", sigma_data), noise)
