"""DiffFlow: particles driven by a score of the data and by a discriminator of data and particles.

Zhang, Shi, Yu, Xie, Li, 2307.02159. With q the data noised to sigma(t) and p the law of the particles,

    dX = [B grad log(q / p) + (g^2 / 2) grad log p] dt + sqrt(g^2 - L^2) dW
       = [(g^2 / 2) grad log q + (B - g^2 / 2) grad l] dt + sqrt(g^2 - L^2) dW,   l = log(q / p),

where the second line has put grad log q - grad l for grad log p, and l is the logit of the best
discriminator. p obeys dp/dt = -div(B p grad log q) + (B - L^2 / 2) lap p, in which g does not occur: it
only trades the score's share for the discriminator's.

    g = L = 0          dX = B grad l dt, the particles of a GAN
    g^2 = 2 B          dX = B grad log q dt + sqrt(2 B - L^2) dW: the score alone; Langevin at L = 0
    L^2 = -dsigma^2/dt p = q at all times, for every B and g: then g^2 = 2 B = 2 L^2 is the reverse SDE of the
                       variance-exploding diffusion, and g = L, B = L^2 / 2 its probability flow

Of the paper are the equation and that the law does not hang on the weights of the scores, as its
abstract has them; we took the first line in the form without a drift f of its own. Ours are: sigma(t)
geometric in the paper's reversed time, B, g^2 and L^2 in units of -dsigma^2/dt, the score of q by
denoising (Vincent 2011), and networks of t trained on the particles' own runs, so that new particles
need no data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss, softplus

import interp
from interp.arguments import positive, real, spread, whole
from interp.base import IsotropicNormal
from interp.errors import OptionError
from interp.noise import normal_like
from interp.solvers import solve
from interp.solvers.catalogue import find
from interp.terms import ODE, SDE

from . import networks
from .networks.potential import potential, slope
from .protocol import Batch, Family, Losses


class DiffFlow(Family):
    """Fit the score of the noised data and the logit of data against particles; sample by particles.

    The losses are E |n(t, x1 + sigma z) - z|^2 with score -n / sigma, and that of a discriminator,
    E softplus(-l(t, x1 + sigma z)) + E softplus(l(t, X_t)), on particles that are run at every step with
    the networks as they are.

    Args:
        shape: of one data point.
        network: the score's network F(t, x) -> like x of the user's own, as in `noise_estimate`; or "mlp",
            "unet", "dit"; None is "mlp", as particles are run at every step of training.
        logit: the discriminator's network(t, x) -> (rows,) of the user's own; or a kind, of which the
            logit is x . network(t, x); None is "mlp".
        drift: B / G^2, with G^2 = -dsigma^2/dt: how fast the particles are drawn to the noised data.
        g: g / G: the score's share; g = L is without noise, g^2 = 2 B without the discriminator.
        noise: L / G, at most g; 1 keeps the particles on the noised data.
        sigma_max: where the particles begin, N(0, sigma_max^2).
        sigma_min: of the noise that is left at t = 1.
        sigma_data: about the standard deviation of the data; the networks are told x / |(sigma, it)|.
        particles: how many run at a step of training.
        steps: of a run of theirs.
        width: of networks made here.
        lr: the largest learning rate.

    Raises:
        OptionError: an option out of range, or noise above g.
        UnknownName: a kind of network that does not exist.
    """

    name = "diffflow"
    no_path = "its particles move by the ratio of the data's law and their own, which no schedule prescribes."
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "forward": "ode",
        "reverse": "ode",
        "loss": "exact",
        "sample": "exact",
        "log_prob": "ode",
    }

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        logit: nn.Module | str | None = None,
        drift: float = 1.0,
        g: float = 1.2,
        noise: float = 1.0,
        sigma_max: float = 2.0,
        sigma_min: float = 0.05,
        sigma_data: float = 0.5,
        particles: int = 64,
        steps: int = 16,
        width: int | None = None,
        lr: float = 2e-3,
    ) -> None:
        numbers = {
            "drift": drift, "sigma_max": sigma_max, "sigma_min": sigma_min, "sigma_data": sigma_data,
        }  # fmt: skip
        for option, value in numbers.items():
            positive(option, value)
        if not sigma_min < sigma_max:
            raise OptionError(
                f"sigma_min={sigma_min} is not below sigma_max={sigma_max}. Noise falls from the one to "
                "the other: exchange them."
            )
        self._check_noise(real("g", g), real("noise", noise))
        whole("particles", particles, 1)
        whole("steps", steps, 1)
        widths = networks.widths(width, network, logit)
        made, kind = networks.resolve("mlp" if network is None else network, shape, width=widths[0])
        judge, judged = potential(logit, shape, widths[1])
        config = {
            "network": kind, "logit": judged, "g": g, "noise": noise, **numbers,
            "particles": particles, "steps": steps, "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=lr)
        self.network, self.logit = made, judge
        self.B, self.g, self.L = drift, g, noise
        self.sigma_max, self.sigma_min, self.sigma_data = sigma_max, sigma_min, sigma_data
        self.particles, self.steps = particles, steps

    @staticmethod
    def _check_noise(g: float, noise: float) -> None:
        if noise > g:
            raise OptionError(
                f"noise={noise} is above g={g}, and sqrt(g^2 - L^2) is no number. Give g of {noise} or "
                "more, or less noise."
            )

    # The two fields

    def sigma(self, t: Tensor) -> Tensor:
        """The noise on the data: sigma_max^(1 - t) sigma_min^t."""
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** t

    def squared_rate(self, t: Tensor) -> Tensor:
        """G^2 = -dsigma^2/dt = 2 sigma^2 log(sigma_max / sigma_min)."""
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2

    def noise_estimate(self, t: Tensor, x: Tensor) -> Tensor:
        """n = E[z | x1 + sigma z = x], the score times -sigma, by the network F in EDM's form.

        n = (sigma / r) (x / r) - (sigma_data / r) F(t, x / r), r = |(sigma, sigma_data)|: the score of
        N(0, sigma_data^2) where F is zero (Karras, Aittala, Aila, Laine, 2206.00364, eq. 7).
        """
        sigma = self.sigma(t)
        r = (sigma**2 + self.sigma_data**2).sqrt()
        scaled = self._scaled(t, x)
        n: Tensor = spread(sigma / r, x) * scaled - spread(self.sigma_data / r, x) * self.network(
            t, scaled
        )
        return n

    def log_ratio(self, t: Tensor, x: Tensor) -> Tensor:
        """l = log(q / p) of each row, (rows,)."""
        value: Tensor = self.logit(t, self._scaled(t, x))
        return value

    def _scaled(self, t: Tensor, x: Tensor) -> Tensor:
        return x / spread((self.sigma(t) ** 2 + self.sigma_data**2).sqrt(), x)

    def velocity(self, t: Tensor, x: Tensor, g: float | None = None) -> Tensor:
        """(g^2 / 2) grad log q + (B - g^2 / 2) grad l, in time's own units."""
        half = (self.g if g is None else g) ** 2 / 2
        rate = spread(self.squared_rate(t), x)
        drift = torch.zeros_like(x)
        if half:
            drift = drift - half * rate / spread(self.sigma(t), x) * self.noise_estimate(t, x)
        if half != self.B:
            drift = drift + (self.B - half) * rate * slope(self.log_ratio, t, x)
        return drift

    def term(self, g: float | None = None) -> SDE:
        """The particles' SDE at any g of L or more: all have one law."""
        g = self.g if g is None else real("g", g)
        self._check_noise(g, self.L)
        size = math.sqrt(g * g - self.L**2)
        return SDE(
            lambda t, x: self.velocity(t, x, g), lambda t: size * self.squared_rate(t).sqrt()
        )

    def flow(self) -> ODE:
        """The particles without noise, g = L: an ODE of the same law."""
        return ODE(lambda t, x: self.velocity(t, x, self.L))

    # The verbs

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The denoiser's loss and the discriminator's, on particles run for this batch."""
        x1, _ = self.split(batch)
        t = torch.rand(len(x1), generator=generator, device=x1.device, dtype=x1.dtype)
        z = normal_like(x1, generator)
        score = mse_loss(self.noise_estimate(t, x1 + spread(self.sigma(t), x1) * z), z)

        t, particles = self._run(x1, generator)
        at = torch.randint(len(x1), (len(particles),), generator=generator, device=x1.device)
        z = normal_like(particles, generator)
        real = x1[at] + spread(self.sigma(t), x1) * z
        logit = (
            softplus(-self.log_ratio(t, real)).mean()
            + softplus(self.log_ratio(t, particles)).mean()
        )
        return {"score": score, "logit": logit}

    @torch.no_grad()
    def _run(self, like: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Particles at all nodes of a run, one beside the other, and the time of each."""
        seed = int(torch.randint(2**62, (), generator=generator, device=like.device))
        x0 = self._start(self.particles, seed, 0)
        nodes = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        run = solve(self.term(), x0, method="euler_maruyama", grid=nodes, save_at=nodes, seed=seed)
        t = nodes.to(x0).repeat_interleave(self.particles)
        return t, run.xs.flatten(0, 1)

    def _start(self, n: int, seed: int | None, first_row: int) -> Tensor:
        like = self.like
        return IsotropicNormal(self.sigma_max).sample(
            (n, *self.shape), seed=seed, first_row=first_row, dtype=like.dtype, device=like.device
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_row: int = 0,
        g: float | None = None,
        denoise: bool = True,
        **options: Any,
    ) -> Tensor:
        """``n`` particles at t = 1: by the SDE, or where the method is for ODEs, by that of g = L.

        Args:
            n: how many rows.
            seed: of their noise; None draws one.
            first_row: the number of the first row.
            g: another than the family's, L or more.
            denoise: whether a last step takes the noise sigma_min off, by the score.
            options: of `interp.solve`; 32 steps of euler_maruyama where no method is given.
        """
        seed = interp.noise.fresh_seed() if seed is None else seed
        x = self._start(n, seed, first_row)
        method = find(options.setdefault("method", "euler_maruyama"))
        if not method.adaptive and not {"steps", "grid"} & options.keys():
            options["steps"] = 32
        if method.kind == "ode":
            x = solve(self.flow(), x, **options).x
        else:
            x = solve(self.term(g), x, seed=seed, first_row=first_row, **options).x
        if not denoise:
            return x
        end = torch.ones((), dtype=x.dtype, device=x.device)
        return x - self.sigma_min * self.noise_estimate(end, x)

    @torch.no_grad()
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Where the flow carries ``x`` from t = 1 back to 0."""
        x = self.points(x)
        return solve(self.flow(), x, t=(1.0, 0.0), **options).x

    @torch.no_grad()
    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """Where the flow carries ``z``, of scale sigma_max, from t = 0 to 1."""
        z = self.points(z)
        return solve(self.flow(), z, **options).x

    @torch.no_grad()
    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """The log density under the flow, nats: of data with the noise sigma_min left on them."""
        x = self.points(x)
        return interp.log_prob(self.flow(), x, IsotropicNormal(self.sigma_max), **options)
