"""Variational autoencoders: VAE and beta-VAE.

Kingma, Welling, 1312.6114; beta: Higgins et al., ICLR 2017; the bound of several draws: Burda, Grosse,
Salakhutdinov, 1509.00519. With z ~ N(0, 1), q(z|x) = N(m(x), s(x)^2) and a decoder's law p(x|z),

    log p(x) >= ELBO = E_q log p(x|z) - KL(q | N(0, 1)),   KL = sum (m^2 + s^2 - 1 - log s^2) / 2,
    log p(x) >= E log 1/K sum_k w_k,   w_k = p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q,   no less for more K.

No path and no time: forward is the encoder, reverse the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from interp import noise
from interp.arguments import real, whole
from interp.errors import OptionError, UnknownName
from interp.likelihood import dequantise, level_width

from . import networks
from .arguments import checked_shape, refuse
from .observations import Gaussian, Logistic
from .protocol import Batch, Family, Losses


class VAE(Family):
    """Minimise -E_q log p(x|z) + beta KL(q | N(0, 1)), each summed over its dimensions, a data dimension.

    Args:
        shape: of one data point.
        network: (encoder, decoder) of the user's own: x -> (rows, 2 c, ...), the mean and log variance of
            latents (c, ...) one after the other, and z -> the mean of p(x|z); or "conv", "mlp"; None is
            "conv" for images.
        latent: the shape of z, or its size; None is 16, or as many as x has.
        beta: 1 for the bound itself; None is the family's ``default_beta``.
        likelihood: "gaussian", N(decoder, sigma^2), or "logistic", over the cells of ``levels``.
        sigma: the scale of p(x|z); "learned" for one of each element; None is the family's
            ``default_sigma``.
        levels: the number of grey levels of data on a grid over [-1, 1]: a Gaussian is then trained on
            each level spread over its width, and `bits_per_dim` is defined.
        width: of networks made here.
        lr: the largest learning rate.

    Raises:
        OptionError: a likelihood without what it needs, a latent shape that halving does not give, a
            number out of range.
        UnknownName: a likelihood or kind of network that does not exist.
    """

    name = "vae"
    default_beta: ClassVar[float] = 1.0
    default_sigma: ClassVar[float | str] = "learned"
    solver_options: ClassVar[tuple[str, ...]] = ()
    no_path = (
        "an encoder and a decoder lead between data and a latent in one step each, and a bound trains "
        "both; no law of points lies between."
    )
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "exact",
        "reverse": "exact",
        "loss": "bound",
        "sample": "exact",
        "log_prob": "bound",
    }

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        latent: int | Sequence[int] | None = None,
        beta: float | None = None,
        likelihood: str = "gaussian",
        sigma: float | str | None = None,
        levels: int | None = None,
        width: int | None = None,
        lr: float = 2e-3,
    ) -> None:
        shape = checked_shape(shape)
        beta = real("beta", self.default_beta if beta is None else beta)
        sigma = self.default_sigma if sigma is None else sigma
        if isinstance(sigma, str) and sigma != "learned":
            raise UnknownName.of("sigma", sigma, ("learned",))
        scale = None if isinstance(sigma, str) else sigma
        latent = min(16, math.prod(shape)) if latent is None else latent
        z = checked_shape(latent if isinstance(latent, Sequence) else (latent,))
        if likelihood not in ("gaussian", "logistic"):
            raise UnknownName.of("likelihood", likelihood, ("gaussian", "logistic"))
        if levels is not None:
            level_width(levels)
        elif likelihood == "logistic":
            raise OptionError(
                "the logistic likelihood is one of grey levels, and levels is None. Give levels=..., "
                'such as 256, or likelihood="gaussian".'
            )
        makers = {
            "encoder": lambda kind: networks.between(kind, shape, (2 * z[0], *z[1:]), width),
            "decoder": lambda kind: networks.between(kind, z, shape, width),
        }
        (encoder, decoder), kind = networks.several(network, shape, makers, width)
        config = {
            "network": kind, "latent": list(z), "beta": beta, "likelihood": likelihood,
            "sigma": sigma, "levels": levels, "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.encoder, self.decoder = encoder, decoder
        self.latent, self.beta, self.levels = z, beta, levels
        self.observation: Gaussian | Logistic = (
            Gaussian(scale, shape)
            if likelihood == "gaussian"
            else Logistic(levels or 2, scale, shape)
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log variance of q(z|x)."""
        mean, log_var = self.encoder(self.observation.seen(x)).chunk(2, dim=1)
        return mean, log_var

    def elbo(self, x: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log p(x|z) at one z ~ q(z|x), and KL(q | N(0, 1)): (rows,) each, nats.

        Args:
            x: the data.
            z: standard normals that z is made from; None draws them.
        """
        mean, log_var = self.posterior(x)
        z = torch.randn_like(mean) if z is None else z
        drawn = mean + (0.5 * log_var).exp() * z
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)
        return self.observation.log_prob(x, self.decoder(drawn)), kl

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """{"reconstruction": -E_q log p(x|z), "kl": beta KL}, nats a dimension of x."""
        x, _ = self.split(batch)
        if self.levels is not None and isinstance(self.observation, Gaussian):
            x = dequantise(x, self.levels, generator)
        z = noise.normal_like(x.new_empty(len(x), *self.latent), generator)
        fit, kl = self.elbo(x, z)
        d = math.prod(self.shape)
        return {"reconstruction": -fit.mean() / d, "kl": self.beta * kl.mean() / d}

    @torch.no_grad()
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """The mean of q(z|x)."""
        refuse(self.name, "forward", options)
        return self.posterior(self.points(x))[0]

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw of q(z|x)."""
        mean, log_var = self.posterior(self.points(x))
        return mean + (0.5 * log_var).exp() * noise.normal_like(mean, generator)

    @torch.no_grad()
    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """The mean of p(x|z)."""
        refuse(self.name, "reverse", options)
        x: Tensor = self.decoder(self.points(z, self.latent))
        return x

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        observed: bool = True,
        **options: Any,
    ) -> Tensor:
        """``n`` draws of z ~ N(0, 1), x ~ p(x|z), the law that `log_prob` bounds.

        Args:
            n: how many rows.
            seed: of all draws; None draws one.
            first_row: the number of the first row.
            observed: False leaves the mean of p(x|z) as it is, as pictures in papers do.
            options: none.
        """
        refuse(self.name, "sample", options)
        seed = noise.fresh_seed() if seed is None else seed
        mean = self.reverse(self._normals((n, *self.latent), seed, first_row))
        return self.observation.draw(mean, seed, first_row) if observed else mean

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, *, samples: int = 64, seed: int = 0, first_row: int = 0, **options: Any
    ) -> Tensor:
        """A bound of the log density of each row from ``samples`` draws of q(z|x): (rows,), nats.

        log 1/K sum_k w_k, whose mean is no more than log p(x) and grows with K. With ``levels`` it is
        the density of dequantised images.

        Args:
            x: the data.
            samples: K; 1 estimates the ELBO.
            seed: of the draws.
            first_row: the number of the first row.
            options: none.
        """
        refuse(self.name, "log_prob", options)
        x = self.points(x)
        mean, log_var = self.posterior(x)
        weights = []
        for k in range(whole("samples", samples, 1)):
            z = self._normals(mean.shape, seed, first_row, k)
            drawn = mean + (0.5 * log_var).exp() * z
            # log p(z) - log q(z|x); (2 pi)^{c/2} is in both.
            prior = (0.5 * (z.square() + log_var - drawn.square())).flatten(1).sum(1)
            weights.append((self.observation.log_prob(x, self.decoder(drawn)) + prior).double())
        return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)

    def _normals(self, shape: Sequence[int], seed: int, first_row: int, node: int = 0) -> Tensor:
        like = self.observation.log_scale
        return noise.normal(
            tuple(shape), seed=seed, first_row=first_row, node=node, dtype=like.dtype,
            device=like.device,
        )  # fmt: skip


class BetaVAE(VAE):
    """VAE with beta = 4: latents nearer to N(0, 1) and to one another's independence. As `VAE` else.

    sigma is fixed: of a learned one a latent in use puts (1 - beta) log sigma into the loss, which falls as
    sigma grows, until no latent is in use and p(x) is a Gaussian of independent elements. (With the best
    variance of q, beta sigma^2 in units of x, -log p(x|z) is log sigma and a constant, the KL a constant less
    log sigma.) How much of x the latents keep is told by beta sigma^2.
    """

    name = "beta_vae"
    default_beta = 4.0
    default_sigma = 0.1
