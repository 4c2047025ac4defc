"""Denoising diffusion on a table of noise levels: DDPM and DDIM.

Ho, Jain, Abbeel, 2006.11239; learned variances, the cosine table and the hybrid loss: Nichol, Dhariwal,
2102.09672; DDIM: Song, Meng, Ermon, 2010.02502. Index k = 0 ... T - 1 of the papers, of k + 1 noisings,
is t = 1 - (k + 1) / T; with abar_k = prod_{j <= k} (1 - beta_j), beta = sqrt(abar), sigma = sqrt(1 - abar).
One step k -> p, with al = abar_k / abar_p and D the data estimate, is

    N(sqrt(abar_p) (1 - al) / (1 - abar_k) D + sqrt(al) (1 - abar_p) / (1 - abar_k) x, v),
    v = (1 - al) (1 - abar_p) / (1 - abar_k)  (fixedsmall),  1 - al  (fixedlarge),  or in between (learned).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Generator, Tensor, nn

from interp import noise, schedules
from interp.arguments import host, spread, whole
from interp.errors import OptionError, UnknownName

from .path_family import Common, Label, PathFamily
from .protocol import Batch, ExactModel, Losses

VARIANCES = ("fixedsmall", "fixedlarge", "learned")
OBJECTIVES = ("simple", "vlb", "hybrid")

#: What of `Common` L_simple alone has.
_OF_SIMPLE = ("weight", "times", "coupling")

#: What `solve` calls them; a run by it with a learned variance takes the smaller fixed one.
_SIZES = {"fixedsmall": "small", "fixedlarge": "large", "learned": "small"}


class DDPM(PathFamily):
    """Minimise E |network(k, x_k) - n|^2 over k uniform (L_simple), the variational bound, or both.

    Args:
        shape, network: as for every `PathFamily`; the network is told (k + 1) / T, or k where
            ``index`` is true, and gives ``prediction``; with variance="learned" twice as many channels,
            the second half for the variance.
        table: "linear" or "cosine", or a list of betas.
        steps: T, the size of a named table.
        prediction: "noise", "data" or "v_prediction" (Salimans, Ho, 2202.00512).
        variance: of a step; "learned" interpolates the logarithms of the two fixed ones.
        objective: "simple", "vlb", or "hybrid", L_simple + L_vlb / 1000 with L_vlb moving the variance
            alone; None is "hybrid" where the variance is learned and else "simple".
        index: whether the network is told k itself.
        common: see `adapters.path_family.Common`.

    Raises:
        UnknownName: a table, prediction, variance or objective that does not exist.
        OptionError: an objective that does not train the variance, or one without a variance to train; a
            weight, law of times or coupling for another objective than "simple".
    """

    name = "ddpm"
    defaults: ClassVar[Common] = {"times": "nodes"}
    diffusion = "reverse"
    dequantises = False

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        table: str | Sequence[float] = "linear",
        steps: int = 1000,
        prediction: str = "noise",
        variance: str = "fixedsmall",
        objective: str | None = None,
        index: bool = False,
        **common: Unpack[Common],
    ) -> None:
        for kind, value, known in (
            ("prediction", prediction, ("noise", "data", "v_prediction")),
            ("variance", variance, VARIANCES),
            ("objective", objective or "simple", OBJECTIVES),
        ):
            if value not in known:
                raise UnknownName.of(kind, value, known)
        learned = variance == "learned"
        objective = objective or ("hybrid" if learned else "simple")
        if learned == (objective == "simple"):
            raise OptionError(
                f"variance={variance!r} and objective={objective!r} contradict each other: "
                + (
                    'L_simple does not train a variance. Take objective="hybrid" or "vlb".'
                    if learned
                    else 'the bound trains a variance. Take variance="learned", or objective="simple".'
                )
            )
        if objective != "simple":
            self.refuse_idle(
                f"objective={objective!r} draws k evenly and fresh noise, and the bound has its own weights. "
                'Leave it out, or take objective="simple".',
                **{name: value for name, value in common.items() if name in _OF_SIMPLE},
            )
        named = isinstance(table, str)
        if not named and steps != len(table):
            self.refuse_idle(f"the table has {len(table)} betas. Leave it out.", steps=steps)
        path = schedules.from_betas(table, whole("steps", steps, 1) if named else None)
        own = {
            "table": table if named else list(table), "steps": steps, "prediction": prediction,
            "variance": variance, "objective": objective, "index": index,
        }  # fmt: skip
        n = path.table or 1
        super().__init__(
            shape, network, path, own, view=prediction, time=("index", n) if index else "noise",
            outputs=2 if learned else 1, **common,
        )  # fmt: skip
        self.steps, self.variance, self.objective = n, variance, objective
        betas = schedules.named_betas(table, n) if isinstance(table, str) else host(list(table))
        self._log_abar = torch.log1p(-betas).cumsum(0)

    @property
    def sampler(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Every index of the table, from T - 1 to 0."""
        every = ("timesteps", list(range(self.steps - 1, -1, -1)))
        return {"method": "ddpm", "grid": every, "variance": _SIZES[self.variance]}

    def exact(self) -> ExactModel:
        """As every `PathFamily`; the bound is no regression of one view."""
        exact = super().exact()
        return exact if self.objective == "simple" else replace(exact, regression=None)

    @property
    def model(self) -> Any:
        """What terms and losses call: the network's prediction, without its variance."""
        if self.variance != "learned":
            return self.network
        return lambda t, x, **cond: self.network(t, x, **cond).chunk(2, dim=1)[0]

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """L_simple, a scalar; or the terms of the objective by name."""
        if self.objective == "simple":
            return super().loss(batch, generator)
        _, x1, cond = self.drawn(batch, generator)
        k = torch.randint(self.steps, (len(x1),), generator=generator, device=x1.device)
        n = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
        t = 1 - (k.double() + 1) / self.steps
        x = self.path.at(t, n, x1)
        network = self.hiding(self.network, generator)
        both: Tensor = network(self._told(k, x), x, **cond)
        vlb = self.steps * self._bound(k, x1, x, both, self.objective == "hybrid").mean()
        if self.objective == "vlb":
            return vlb
        found = both.chunk(2, dim=1)[0]
        target = self.regression.target(t, n, x1)[1]
        return {"simple": nn.functional.mse_loss(found, target), "vlb": vlb / 1000}

    def _told(self, k: Tensor, x: Tensor) -> Tensor:
        told = k.double() if self.time != "noise" else (k.double() + 1) / self.steps
        return told.to(x.dtype)

    def _moments(
        self, k: Tensor, x: Tensor, both: Tensor, x1: Tensor | None = None, still: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means and log variances of the step k -> k - 1: the model's, then the posterior's given x1.

        At k = 0 the posterior has no variance, and its logarithm is that of k = 1.
        """
        log_abar = self._log_abar.to(k.device)
        before = torch.where(k > 0, log_abar[(k - 1).clamp(min=0)], 0.0)
        log_al = log_abar[k] - before
        rest, rest_before = -torch.expm1(log_abar[k]), -torch.expm1(before)
        beta = -torch.expm1(log_al)
        small = beta * rest_before / rest
        first = -torch.expm1(log_abar[1] - log_abar[0]) * -torch.expm1(log_abar[0])
        log_small = torch.where(k > 0, small, first / -torch.expm1(log_abar[1])).log()
        of_data, of_x = (before / 2).exp() * beta / rest, (log_al / 2).exp() * rest_before / rest
        found, raw = both.chunk(2, dim=1) if self.variance == "learned" else (both, both)
        t = 1 - (k.double() + 1) / self.steps
        data = self.path.convert(found, self.view, "data", x, t)
        mean = spread(of_data, x) * data + spread(of_x, x) * x
        mean = mean.detach() if still else mean
        if self.variance == "learned":
            share = (raw + 1) / 2
            log_var = share * spread(beta.log(), x) + (1 - share) * spread(log_small, x)
        else:
            log_var = spread(
                beta.log() if self.variance == "fixedlarge" else log_small, x
            ).expand_as(x)
        exact = mean if x1 is None else spread(of_data, x) * x1 + spread(of_x, x) * x
        return mean, log_var, exact, spread(log_small, x)

    def _bound(self, k: Tensor, x1: Tensor, x: Tensor, both: Tensor, still: bool = False) -> Tensor:
        """The term of the bound at k, nats a dimension: (rows,).

        KL(q(x_{k-1} | x_k, x1) || p) for k > 0; -log p(x1 | x_0) at k = 0, of grey levels (each cell's
        probability, the outer ones open) where the family has them, else the density of x1.
        """
        mean, log_var, exact, log_exact = self._moments(k, x, both, x1, still)
        kl = 0.5 * (log_var - log_exact - 1 + (log_exact - log_var).exp())
        kl = kl + 0.5 * (exact - mean) ** 2 * (-log_var).exp()
        at_data = -_log_likelihood(x1, mean, log_var, self.levels)
        first = (k == 0).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(first, at_data, kl).flatten(1).mean(1)

    @torch.no_grad()
    def elbo(self, x: Tensor, *, label: Label = None, generator: Generator | None = None) -> Tensor:
        """The variational bound of log p(x) of each row, nats: (rows,), by one draw of noise an index.

        Of the grey level that x is, where the family has ``levels`` (then ``-elbo / d / log 2`` is in
        bits a dimension), else of the density. Ho, Jain, Abbeel, eq. 5.
        """
        x = self.points(x)
        cond, d = self._cond(label, x), math.prod(self.shape)
        last = torch.exp(self._log_abar[-1])
        # KL(N(sqrt(abar) x, 1 - abar) || N(0, 1)) at the last index.
        rest = -torch.expm1(self._log_abar[-1])
        total = 0.5 * (last * x.double() ** 2 + rest - 1 - rest.log()).flatten(1).sum(1)
        for index in range(self.steps):
            k = torch.full((len(x),), index, device=x.device)
            n = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x_k = self.path.at(1 - (index + 1) / self.steps, n, x)
            both: Tensor = self.network(self._told(k, x), x_k, **cond)
            total = total + d * self._bound(k, x, x_k, both).double()
        return -total

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        label: Label = None,
        x0: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """As every `PathFamily`; with a learned variance and no method told, by the learned steps."""
        if self.variance != "learned" or options:
            return super().sample(n, seed=seed, first_row=first_row, label=label, x0=x0, **options)
        seed = noise.fresh_seed() if seed is None else seed
        x = self._begun(n, seed, first_row, x0)
        self._check_conditions(label, 1.0)
        cond = self._cond(label, x)
        for index in range(self.steps - 1, -1, -1):
            k = torch.full((n,), index, device=x.device)
            both: Tensor = self.network(self._told(k, x), x, **cond)
            mean, log_var, _, _ = self._moments(k, x, both)
            x = mean.to(x.dtype)
            if index:
                z = noise.normal(
                    x.shape, seed=seed, first_row=first_row, stream="path", node=index, dtype=x.dtype,
                    device=x.device,
                )  # fmt: skip
                x = x + (0.5 * log_var).exp().to(x.dtype) * z
        return x


class DDIM(DDPM):
    """DDPM, sampled by 50 steps of the implicit model: its probability flow by exponential Euler.

    ``eta`` of `sample` adds noise, 1 being DDPM with fixedsmall at any stride. Arguments as for `DDPM`.
    """

    name = "ddim"

    @property
    def sampler(self) -> Mapping[str, Any]:  # type: ignore[override]
        """50 indices from T - 1 to 0, evenly."""
        count = min(50, self.steps)
        even = torch.linspace(self.steps - 1, 0, count).round().long().tolist()
        return {"method": "ddim", "grid": ("timesteps", even)}


def _log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor, levels: int | None) -> Tensor:
    """log N(x; mean, var), or of the grey level's cell, the outer ones open."""
    centred, inv = (x - mean).double(), (-0.5 * log_var).exp().double()
    if levels is None:
        return -0.5 * ((centred * inv) ** 2 + log_var + math.log(2 * math.pi))
    half = 1 / (levels - 1)
    upper = torch.special.log_ndtr(inv * (centred + half))
    lower = torch.special.log_ndtr(inv * (centred - half))
    upper = torch.where(x > 1 - half, 0.0, upper)
    lower = torch.where(x < -1 + half, -math.inf, lower)
    # log(e^upper - e^lower); on the far side both are close to 1, and the mirrored pair is exact.
    other = (
        torch.special.log_ndtr(-inv * (centred - half)),
        torch.special.log_ndtr(-inv * (centred + half)),
    )
    mirrored = (
        torch.where(x < -1 + half, 0.0, other[0]),
        torch.where(x > 1 - half, -math.inf, other[1]),
    )
    far = (upper > -math.log(2)) & (lower > -math.log(2))
    high, low = torch.where(far, mirrored[0], upper), torch.where(far, mirrored[1], lower)
    gap = torch.clamp(low - high, max=-1e-300)
    return high + torch.log(-torch.expm1(gap))
