"""Score matching at several noise levels, sampled by annealed Langevin dynamics.

Hyvarinen, 2005; denoising: Vincent, 2011; noise conditional score networks: Song, Ermon, 1907.05600;
sliced: Song, Garg, Shi, Ermon, 1905.07088. The path is the variance-exploding one through L levels,
sigma_k geometric, a table: index k = 0 is the least noise and stands at t = 1 - 1/L. At each level a
model s(x, sigma) of the score of the data plus N(0, sigma^2) minimises one of

    denoising   |sigma s + z|^2                                x = x1 + sigma z
    sliced      2 sigma^2 (v' (ds/dx) v + (v' s)^2 / 2) / d    v = +-1 in each of d elements
    sliced_vr   2 sigma^2 (v' (ds/dx) v + |s|^2 / 2) / d       of less variance

in the mean over k. By parts E[s z] = sigma E[tr ds/dx], so that in expectation the last two are the first
less 1. The minimiser is the score of the *smoothed* data: for N(m, s1^2) it is
-(x - m) / (s1^2 + sigma^2), with a denoising loss of s1^2 / (s1^2 + sigma^2) an element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import Energy, schedules
from interp.arguments import host, real, whole
from interp.errors import OptionError, UnknownName
from interp.noise import normal_like
from interp.solvers import solve

from .path_family import Common, Diffusion, Guidance, Label, PathFamily
from .protocol import Batch

OBJECTIVES = ("denoising", "sliced", "sliced_vr")


class ScoreMatching(PathFamily):
    """Minimise the table's loss at levels drawn evenly; sample level by level, from noise to data.

    The network sees x / sqrt(sigma^2 + sigma_data^2) and log(sigma) / 4 and gives the noise, so that
    s = -network / sigma (Song, Ermon, 2006.09011). Annealed Langevin dynamics takes ``steps`` steps

        x += h s + sqrt(2 h) z,   h = step_size (sigma / sigma_min)^2

    at each level, and ends with the data estimate x + sigma_min^2 s (2006.09011). Where nothing is asked
    there are 25 of step_size = 0.8 sigma_min^2, the paper's time in a quarter of its steps: it takes 100 of
    2e-5 at sigma_min = 0.01, 0.2 sigma_min^2 (its algorithm 1 writes h / 2 and sqrt(h), and its code the h
    above). For data N(0, 1/4) its levels end 1.5 % too wide by the paper's steps and 2.0 % by ours. Any
    other method of `interp.solve` runs on the path itself, and needs a sigma_max far above the data: it
    starts from N(0, sigma_max^2) and, unlike a chain, keeps what that leaves out (``path.prior_gap``).

    Args:
        shape, network: as for every `PathFamily`.
        sigma_min, sigma_max: the least and the largest level. The paper's 0.01 and 1 are for images in
            [0, 1], so 0.02 and 2 for ours in [-1, 1].
        scales: L, 10 in the paper.
        objective: one of the table's.
        sigma_data: the standard deviation of the data.
        common: see `adapters.path_family.Common`.

    Raises:
        OptionError: levels that are not positive, finite and rising, or fewer than two.
        UnknownName: another objective.
    """

    name = "score_matching"
    diffusion = "reverse"
    # The error of the data estimate over sigma is that of the noise.
    defaults: ClassVar[Common] = {"weight": "snr", "times": "nodes"}
    sampler: ClassVar[dict[str, Any]] = {"method": "annealed", "steps": 25}

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        sigma_min: float = 0.02,
        sigma_max: float = 2.0,
        scales: int = 10,
        objective: str = "denoising",
        sigma_data: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        if objective not in OBJECTIVES:
            raise UnknownName.of("objective", objective, OBJECTIVES)
        if objective != "denoising":
            self.refuse_idle(
                f"objective={objective!r} has its own weight and adds fresh noise to each row. Leave it out, "
                'or take objective="denoising".',
                **{name: value for name, value in common.items() if name in ("weight", "coupling")},
            )
        if not 0 < sigma_min < sigma_max < math.inf:
            raise OptionError(
                f"the levels go from sigma_min={sigma_min} to sigma_max={sigma_max}. Give two positive "
                "numbers, the second above the first."
            )
        ratio = math.log(sigma_max / sigma_min) / (whole("scales", scales, 2) - 1)
        path = schedules.from_sigmas([sigma_min * math.exp(k * ratio) for k in range(scales)])
        own = {
            "sigma_min": sigma_min, "sigma_max": sigma_max, "scales": scales, "objective": objective,
            "sigma_data": sigma_data,
        }  # fmt: skip
        scaled = {"kind": "noise", "noise": "edm", "sigma_data": sigma_data}
        super().__init__(shape, network, path, own, view="data", precondition=scaled, **common)
        self.objective = objective
        self.data_time = 1 - 1 / scales  # the least level: below it the network was told none
        self.sigmas = [float(path.sigma(1 - (k + 1) / scales)) for k in range(scales)]

    def loss(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """The loss of the objective, the mean over rows and elements."""
        if self.objective == "denoising":
            return super().loss(batch, generator)
        _, x1, cond = self.drawn(batch, generator)
        t = self.regression.times.draw(len(x1), generator=generator, device=x1.device)
        x = self.path.at(t, normal_like(x1, generator), x1).requires_grad_()
        v = normal_like(x1, generator).sign()
        with torch.enable_grad():
            data = self.hiding(self.model, generator)(t, x, **cond)
            s = self.path.convert(data, "data", "score", x, t)
            (along,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
        curvature = (along * v).flatten(1).mean(1)
        d = v[0].numel()
        if self.objective == "sliced":
            square = (s * v).flatten(1).sum(1).square() / d
        else:
            square = s.square().flatten(1).mean(1)
        weight = 2 * self.path.sigma(t).to(x1.dtype) ** 2
        return (weight * (curvature + square / 2)).mean()

    def score(self, x: Tensor, sigma: float, *, label: Label = None) -> Tensor:
        """The score of the data plus N(0, sigma^2) at ``x``."""
        x = self.points(x)
        t = self._time(real("sigma", sigma, self.sigmas[0]))
        data = self.model(t, x, **self._cond(label, x))
        return self.path.convert(data, "data", "score", x, t)

    def _sampler(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A grid is one of the path's times, which the chain has not."""
        return super()._sampler({"method": "heun", **options} if "grid" in options else options)

    def carried(
        self, x0: Tensor, label: Label, guidance: Guidance, diffusion: Diffusion,
        options: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """By annealed Langevin dynamics, or by another method.

        Options of "annealed" are ``steps`` at each level, ``step_size`` at the last, and denoise=False to
        leave out the last data estimate.
        """
        if options["method"] != "annealed":
            return super().carried(x0, label, guidance, diffusion, options)
        term = self.term(guidance)
        cond, low = self._cond(label, x0), self.sigmas[0]

        def slope(x: Tensor, sigma: float, **cond: Tensor) -> Tensor:
            return -term.as_view("score", self._time(sigma), x, cond)

        given = {"step_size": 0.8 * low**2, **options}
        denoise = given.pop("denoise", True)
        levels = self.sigmas[::-1]
        chain = solve(Energy(None, gradient=slope), x0, cond=cond, levels=levels, **given)
        if not denoise:
            return chain.x
        with torch.no_grad():
            return term.data(self._time(low), chain.x, cond)

    def _time(self, sigma: float) -> Tensor:
        """Where the noise level is ``sigma``."""
        return self.path.time_at_log_snr(host(-2 * math.log(sigma)))
