"""Generators trained against a critic: GAN, DCGAN, WGAN, WGAN-GP.

With x the data, G(z) made from z ~ N(0, 1), and D the critic's output, a number:

    gan, dcgan  D: E softplus(-D(x)) + E softplus(D(G(z)))   G: E softplus(-D(G(z)))
                Goodfellow et al., 1406.2661 (the generator's loss that does not saturate)
    wgan        D: E D(G(z)) - E D(x), its weights cut to [-c, c] after every step   G: -E D(G(z))
                Arjovsky, Chintala, Bottou, 1701.07875
    wgan_gp     D: the same + 10 E (|grad D(u x + (1 - u) G(z))| - 1)^2, u ~ U[0, 1] one a row
                Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, 1704.00028

At the best critic of a GAN, D = log p / q, its loss is log 4 - 2 JS(p, q); that of wgan_gp is near -W1.
There is no density and no encoder. Each step is one batch for the critic, and each ``critic_steps``-th one
for the generator too, so that no critic step sees a batch twice: n steps are n / critic_steps of what
papers count, which are steps of the generator.

The defaults are the papers', for convolutional networks and some 100 000 of these steps. Ours, for MLPs and
runs a hundred times as short: the learning rates of ``dense``, at which the weights get as far, and of wgan
two critic steps, which leave the generator half of a run and not a fifth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from interp import noise
from interp.arguments import real, spread, whole
from interp.errors import OptionError

from . import networks
from .arguments import checked_shape, filled, refuse
from .protocol import Batch, Family, Losses, Objective, Optimizer


class Common(TypedDict, total=False):
    """The options that all of these families take beside their own; None is the family's default.

    Attributes:
        latent: the size of z.
        critic_steps: steps of the critic for each of the generator.
        width: of networks made here.
        lr: the learning rate of both.
    """

    latent: int | None
    critic_steps: int | None
    width: int | None
    lr: float | None


class GAN(Family):
    """A generator and the critic that tells its samples from the data.

    Args:
        shape: of one data point; images in [-1, 1], which a generator made here cannot leave.
        network: (generator, critic) of the user's own, from (rows, latent) to the data and from there to
            (rows, 1); or "conv", "mlp"; None is "conv" for images.
        common: see `Common`; what is missing is the family's ``defaults``.

    Attributes:
        defaults: of the options in `Common`, as published.
        dense: what of these is another for MLPs made here.
        betas: of Adam.
        batch_norm: whether networks made here normalise batches.
        critic_activation: of a critic that is an MLP made here.
    """

    name = "gan"
    no_path = (
        "a generator leads from noise to data in one step, trained against a critic; no law of points "
        "lies between."
    )
    solver_options: ClassVar[tuple[str, ...]] = ()
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "reverse": "exact",
        "loss": "exact",
        "sample": "exact",
    }
    defaults: ClassVar[Common] = {"latent": 64, "critic_steps": 1, "lr": 2e-4}
    dense: ClassVar[Common] = {"lr": 1e-3}
    betas: tuple[float, float] = (0.5, 0.999)
    batch_norm: ClassVar[bool] = False
    critic_activation: ClassVar[type[nn.Module]] = nn.SiLU

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        **common: Unpack[Common],
    ) -> None:
        shape = checked_shape(shape)
        given = {name: value for name, value in common.items() if value is not None}
        dense = self.dense if networks.chosen(network, shape) == "mlp" else {}
        options = filled(self.name, Common, {"width": None}, self.defaults, dense, given)
        size, width = whole("latent", options["latent"], 1), options["width"]
        self.critic_steps = whole("critic_steps", options["critic_steps"], 1)
        norm = self.batch_norm
        makers = {
            "generator": lambda kind: _bounded(
                networks.between(kind, (size,), shape, width, norm), shape
            ),
            "critic": lambda kind: networks.between(
                kind, shape, (1,), width, norm, self.critic_activation
            ),
        }
        (generator, critic), kind = networks.several(network, shape, makers, width)
        config = {
            "network": kind, "latent": size, "critic_steps": self.critic_steps, "width": width,
        }  # fmt: skip
        super().__init__(shape, config, lr=options["lr"])
        self.generator, self.critic, self.latent = generator, critic, size

    # Training

    def critic_loss(self, x: Tensor, fake: Tensor, generator: Generator | None = None) -> Losses:
        """What the critic minimises on data ``x`` and samples ``fake``."""
        return softplus(-self.critic(x)).mean() + softplus(self.critic(fake)).mean()

    def generator_loss(self, score: Tensor) -> Tensor:
        """What the generator minimises, of the critic's ``score`` of its samples."""
        return softplus(-score).mean()

    def after_critic(self) -> None:
        """What is done to the critic after each of its steps. By default nothing."""

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """The critic's, and at every ``critic_steps``-th step the generator's."""
        optimizer = self.optimizer(step, total)

        def critic(batch: Batch, generator: Generator | None = None) -> Losses:
            x, _ = self.split(batch)
            with torch.no_grad():
                fake = self._fake(x, generator)
            return self.critic_loss(x, fake, generator)

        def generator(batch: Batch, generator: Generator | None = None) -> Losses:
            fake = self._fake(self.split(batch)[0], generator)
            return self.generator_loss(self.critic(fake))

        yield Objective("critic", tuple(self.critic.parameters()), critic, optimizer)
        with torch.no_grad():
            self.after_critic()  # the step has been taken when the trainer asks for what comes next
        if (step + 1) % self.critic_steps == 0:
            yield Objective("generator", tuple(self.generator.parameters()), generator, optimizer)

    def optimizer(self, step: int, total: int) -> Optimizer:
        """Adam at a constant rate."""
        return Optimizer(self.lr, "Adam", {"betas": self.betas}, clip=None)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Both losses at these weights: {"critic": ..., "generator": ...}.

        Neither has a slope in the other's parameters, so that descent on their sum is the simultaneous
        game; training takes turns, see `objectives`.
        """
        x, _ = self.split(batch)
        fake = self._fake(x, generator)
        against = self.critic_loss(x, fake.detach(), generator)
        terms = against.values() if isinstance(against, Mapping) else [against]
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        score = torch.func.functional_call(self.critic, frozen, (fake,))
        return {"critic": torch.stack(list(terms)).sum(), "generator": self.generator_loss(score)}

    def _fake(self, x: Tensor, generator: Generator | None) -> Tensor:
        """As many samples as ``x`` has rows."""
        made: Tensor = self.generator(
            noise.normal_like(x.new_empty(len(x), self.latent), generator)
        )
        return made

    # Sampling

    @torch.no_grad()
    def reverse(self, z: Tensor, **options: Any) -> Tensor:
        """G(z) with the running statistics of its normalisation, so that rows do not see one another."""
        refuse(self.name, "reverse", options)
        z = self.points(z, (self.latent,))
        with networks.evaluating(self.generator):
            made: Tensor = self.generator(z)
        return made

    def sample(
        self, n: int, *, seed: int | None = None, first_row: int = 0, **options: Any
    ) -> Tensor:
        """``n`` samples G(z), z ~ N(0, 1)."""
        refuse(self.name, "sample", options)
        return self.reverse(self.normals(n, seed, first_row, (self.latent,)))


class DCGAN(GAN):
    """A convolutional GAN whose batches are normalised, real and fake ones apart. Options as of `GAN`.

    Radford, Metz, Chintala, 1511.06434: Adam at 2e-4 with beta_1 = 0.5, weights from N(0, 0.02^2), leaky
    rectifiers in the critic, z of 100 numbers. Its first convolution keeps the resolution.
    """

    name = "dcgan"
    defaults: ClassVar[Common] = {"latent": 100, "critic_steps": 1, "lr": 2e-4}
    batch_norm: ClassVar[bool] = True

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(shape, network, **common)
        if network is None or isinstance(network, str):
            self.apply(_small)


class WGAN(GAN):
    """The critic's weights in [-clip, clip]. Options as of `GAN`, and:

    The authors' code takes 100 critic steps for each of the first 25 of the generator and for every 500th;
    that is left out. Cut weights make a critic of few shapes (Gulrajani et al., section 3), and in an MLP of
    smooth activations nearly a line, as small weights keep each layer near 0: made here it has rectifiers,
    as in the paper, whose shape does not depend on their scale.

    Args:
        shape, network, common: as of `GAN`.
        clip: c, to which the critic's weights are cut after every step; None is the published 0.01, or for
            MLPs made here, whose weights begin at 0.1 and which 0.01 leaves hardly a slope, ours of 0.1.
    """

    name = "wgan"
    defaults: ClassVar[Common] = {"latent": 100, "critic_steps": 5, "lr": 5e-5}
    dense: ClassVar[Common] = {"lr": 1e-3, "critic_steps": 2}
    critic_activation: ClassVar[type[nn.Module]] = nn.ReLU

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        clip: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        if clip is not None and real("clip", clip) == 0:
            raise OptionError("clip is 0, which leaves the critic no weights. Give 0.01 or so.")
        super().__init__(shape, network, **common)
        usual = 0.1 if self.config["network"] == "mlp" else 0.01
        self.clip = usual if clip is None else clip
        self.config = {**self.config, "clip": self.clip}

    def critic_loss(self, x: Tensor, fake: Tensor, generator: Generator | None = None) -> Losses:
        """E D(fake) - E D(x)."""
        difference: Tensor = self.critic(fake).mean() - self.critic(x).mean()
        return difference

    def generator_loss(self, score: Tensor) -> Tensor:
        """-E D(fake)."""
        return -score.mean()

    def after_critic(self) -> None:
        """Cut the weights."""
        for p in self.critic.parameters():
            p.clamp_(-self.clip, self.clip)

    def optimizer(self, step: int, total: int) -> Optimizer:
        """RMSprop at a constant rate."""
        return Optimizer(self.lr, "RMSprop", clip=None)


class WGANGP(GAN):
    """The critic's slope held near one between data and samples. Options as of `GAN`, and:

    For MLPs made here betas (0.5, 0.9) and the penalty are those of the authors' code for points in the
    plane, whose comment is that the smaller penalty is faster there.

    Args:
        shape, network, common: as of `GAN`.
        penalty: the weight of E (|grad D| - 1)^2, the norm over all elements of a row; None is 10, or
            0.1 for MLPs made here.

    Raises:
        OptionError: a critic that normalises batches, whose slope is not one of each row.
    """

    name = "wgan_gp"
    defaults: ClassVar[Common] = {"latent": 128, "critic_steps": 5, "lr": 1e-4}
    betas = (0.0, 0.9)

    def __init__(
        self,
        shape: Sequence[int],
        network: Sequence[nn.Module] | str | None = None,
        penalty: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(shape, network, **common)
        usual = 10.0
        if self.config["network"] == "mlp":
            self.betas, usual = (0.5, 0.9), 0.1
        self.penalty = real("penalty", usual if penalty is None else penalty)
        self.config = {**self.config, "penalty": self.penalty}
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.critic.modules()):
            raise OptionError(
                "this critic normalises batches, and the penalty is on its slope at each row alone. Use "
                "layer normalisation, or none."
            )

    def critic_loss(self, x: Tensor, fake: Tensor, generator: Generator | None = None) -> Losses:
        """{"wasserstein": E D(fake) - E D(x), "penalty": 10 E (|grad D| - 1)^2}."""
        u = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        u = spread(u, x)
        between = (u * x + (1 - u) * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        steepness = torch.linalg.vector_norm(slope.flatten(1), dim=1)
        return {
            "wasserstein": self.critic(fake).mean() - self.critic(x).mean(),
            "penalty": self.penalty * (steepness - 1).square().mean(),
        }

    def generator_loss(self, score: Tensor) -> Tensor:
        """-E D(fake)."""
        return -score.mean()


def _bounded(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """``network``, within [-1, 1] where it makes images."""
    return nn.Sequential(network, nn.Tanh()) if len(shape) == 3 else network


def _small(layer: nn.Module) -> None:
    """Weights from N(0, 0.02^2), those of normalisations around one."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
