"""The VAE against a linear Gaussian model, whose posterior and evidence are closed forms."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from adapters.observations import Gaussian, Logistic
from interp.errors import DataError, OptionError, UnknownName
from interp.exact import Gaussian as Law
from interp.training.evaluation import likelihood

W, S = 1.5, 0.7  # x = W z + S e, so x ~ N(0, W^2 + S^2)
V = W**2 + S**2


class Encoder(nn.Module):
    """q(z|x) = N(slope x, var); by default the posterior, N(W x / V, S^2 / V)."""

    def __init__(self, slope=W / V, var=S**2 / V):
        super().__init__()
        self.slope, self.log_var = slope, math.log(var)

    def forward(self, x):
        return torch.cat([self.slope * x, torch.full_like(x, self.log_var)], dim=1)


class Decoder(nn.Module):
    def forward(self, z):
        return W * z


def linear(d=3, **encoder):
    return adapters.create("vae", (d,), (Encoder(**encoder), Decoder()), latent=d, sigma=S).double()


def evidence(x):
    return torch.distributions.Normal(0.0, math.sqrt(V)).log_prob(x).sum(1)


X = math.sqrt(V) * torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_exact_posterior_each_draw_weighs_what_the_evidence_is(samples):
    # w = p(x|z) p(z) / p(z|x) = p(x) whatever z: no expectation; sigma was kept in float32.
    found = linear().log_prob(X, samples=samples)
    torch.testing.assert_close(found, evidence(X), rtol=0, atol=1e-6)


def test_the_loss_is_the_evidence_a_dimension_in_the_mean():
    x = X.repeat(200, 1)
    loss = linear().loss(x, torch.Generator().manual_seed(0))
    fit, kl = linear().elbo(x[:1], torch.zeros(1, 3).double())
    # 40,000 rows; the fit of a row varies by about one nat: a standard error of 2e-3 a dimension.
    assert sum(loss.values()).item() == pytest.approx(-evidence(X).mean().item() / 3, abs=8e-3)
    mean, var = W / V * x[:1], S**2 / V
    posterior = torch.distributions.Normal(mean, math.sqrt(var))
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, wanted.sum(1))  # another route to the same number
    assert fit.shape == kl.shape == (1,)


def test_beta_weighs_the_divergence_alone():
    one, four = (
        adapters.create(name, (3,), (Encoder(), Decoder()), latent=3, sigma=S).double()
        for name in ("vae", "beta_vae")
    )
    a, b = (family.loss(X, torch.Generator().manual_seed(0)) for family in (one, four))
    assert b["kl"].item() == pytest.approx(4 * a["kl"].item())
    assert b["reconstruction"].item() == a["reconstruction"].item()
    assert torch.equal(one.log_prob(X), four.log_prob(X))  # the bound is not one of beta


def test_beta_above_one_lets_a_learned_scale_grow_so_that_it_is_fixed():
    """With x = W z and q of the best variance, beta sigma^2 / W^2, the loss is (1 - beta) log sigma and more.

    The rest, of the variance itself in the KL, is (beta / 2) beta sigma^2 / W^2 a dimension.
    """
    beta, sigmas = 4.0, (0.05, 0.1)
    losses = []
    for sigma in sigmas:
        encoder = Encoder(1 / W, beta * sigma**2 / W**2)
        family = adapters.create("beta_vae", (3,), (encoder, Decoder()), latent=3, sigma=sigma)
        terms = family.double().loss(X.repeat(100, 1), torch.Generator().manual_seed(0))
        losses.append(sum(terms.values()).item())
    rest = [beta * beta * sigma**2 / W**2 / 2 for sigma in sigmas]
    wanted = (1 - beta) * math.log(2) + rest[1] - rest[0]
    # The same draws in both, so that the fit, (beta / 2) mean z^2, cancels but for rounding.
    assert losses[1] - losses[0] == pytest.approx(wanted, abs=1e-6)
    fixed = adapters.create("beta_vae", (3,), width=8)
    assert not fixed.observation.log_scale.requires_grad
    assert adapters.create("vae", (3,), width=8).observation.log_scale.requires_grad


def test_the_bound_grows_with_its_draws_and_from_the_elbo():
    """With q = N(slope x, var) instead, ELBO = log p(x) - KL(q | posterior); more draws are nearer."""
    family = linear(slope=0.2, var=0.5)
    posterior = torch.distributions.Normal(W / V * X, math.sqrt(S**2 / V))
    q = torch.distributions.Normal(0.2 * X, math.sqrt(0.5))
    gap = torch.distributions.kl_divergence(q, posterior).sum(1)
    bounds = [
        torch.stack([family.log_prob(X, samples=k, seed=seed) for seed in range(40)]).mean(0)
        for k in (1, 4, 16, 64)
    ]
    wanted = (evidence(X) - gap).mean().item()
    # 8000 draws of log w, whose deviation is a few nats: a standard error of .04.
    assert bounds[0].mean().item() == pytest.approx(wanted, abs=0.15)
    means = [b.mean().item() for b in bounds]
    assert all(more > less + 0.05 for less, more in zip(means, means[1:], strict=False))
    assert means[-1] < evidence(X).mean().item()


def test_chunks_with_their_offsets_equal_the_whole():
    family = linear(slope=0.2)
    whole = family.log_prob(X[:9], samples=3, seed=5)
    parts = [family.log_prob(X[k : k + 3], samples=3, seed=5, first_row=k) for k in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(parts), whole)
    # and so an evaluation does not depend on its batches
    a, b = (likelihood(family, X[:20], seed=2, batch_size=size) for size in (20, 7))
    assert (a.nats, a.kind) == (pytest.approx(b.nats, abs=1e-9), "bound")


def test_samples_follow_the_law_that_is_bounded():
    x = linear().sample(20_000, seed=0)
    # 60,000 numbers: standard errors .004 sqrt(V) = .007 of the deviation.
    assert x.std().item() == pytest.approx(math.sqrt(V), abs=0.03)
    assert linear().sample(20_000, seed=0, observed=False).std().item() == pytest.approx(
        W, abs=0.03
    )


def test_encoding_draws_from_the_posterior_and_forward_is_its_mean():
    family, x = linear(), X[:1].expand(20_000, 3)
    z = family.encode(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(family.forward(X), W / V * X)
    torch.testing.assert_close(family.reverse(X), W * X)
    # Standard errors of 20,000 draws: .003 of the means, .002 of the deviations.
    torch.testing.assert_close(z.mean(0), W / V * X[0], rtol=0, atol=0.012)
    torch.testing.assert_close(
        z.std(0), torch.full((3,), S / math.sqrt(V)).double(), rtol=0, atol=0.01
    )


# What the data are to the decoder


@pytest.mark.parametrize("levels", [2, 3, 17])
@pytest.mark.parametrize("scale", [0.02, 0.3, 5.0])
def test_the_levels_of_a_logistic_law_have_mass_one(levels, scale):
    law = Logistic(levels, scale).double()
    grid = torch.linspace(-1, 1, levels).double().reshape(-1, 1)
    for mean in (-3.0, -0.2, 0.9):
        mass = law.log_prob(grid, torch.full_like(grid, mean)).exp() * law.width
        # Float64; the formula has no difference that cancels.
        assert mass.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_logistic_law_is_that_of_its_cell_wherever_in_the_cell():
    law = Logistic(5, 0.2)
    x = torch.tensor([[-1.2], [-0.8], [0.3], [0.7], [1.24]])
    assert law.seen(x).flatten().tolist() == [-1, -1, 0.5, 0.5, 1]
    assert torch.equal(law.log_prob(x, 0 * x), law.log_prob(law.seen(x), 0 * x))
    drawn = law.draw(torch.zeros(20_000, 1), 0, 0)
    wanted = law.log_prob(torch.tensor([[0.5]]), torch.zeros(1, 1)).exp().item() * law.width
    # A share of about a sixth of 20,000: a standard error of .003.
    assert (drawn == 0.5).float().mean().item() == pytest.approx(wanted, abs=0.012)


def test_the_gaussian_law_is_torchs():
    law, x = Gaussian(None), torch.randn(4, 2, 3)
    wanted = torch.distributions.Normal(0.1 * x, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(law.log_prob(x, 0.1 * x), wanted)


def test_bits_of_a_logistic_likelihood_do_not_depend_on_the_dequantisation():
    torch.manual_seed(0)
    family = adapters.create("vae", (1, 4, 4), levels=17, likelihood="logistic", width=8)
    x = torch.randint(0, 17, (6, 1, 4, 4)) / 8 - 1
    bits = [family.bits_per_dim(x, seed, samples=8) for seed in (0, 1)]
    assert torch.equal(*bits)
    nats = family.log_prob(x, samples=8)
    masses = nats + 16 * math.log(2 / 16)
    torch.testing.assert_close(bits[0], -masses / (16 * math.log(2)))
    assert set(((family.sample(3, seed=0) + 1) * 8).flatten().tolist()) <= set(range(17))


# Made, trained, refused


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"latent": [4, 4, 4]}, (1, 8, 8)),
        ({"latent": [2, 7, 7]}, (3, 28, 28)),
        ({}, (1, 9, 7)),
        ({}, (5,)),
    ],
)
def test_latents_have_their_shape_and_a_config_makes_it_again(options, shape):
    torch.manual_seed(0)
    family = adapters.create("vae", shape, width=8, **options)
    again = adapters.create("vae", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())
    x = torch.randn(2, *shape).clamp(-1, 1)
    z = family.forward(x)
    assert z.shape == (2, *options.get("latent", [min(16, math.prod(shape))]))
    assert torch.equal(again.reverse(z), family.reverse(z))
    assert family.reverse(z).shape == x.shape


def test_training_finds_two_lines_that_a_gaussian_cannot():
    """x on two parallel lines: log p of the best Gaussian, which sees one broad band, is beaten."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 2, generator=g) * torch.tensor([1.0, 0.05])
    x[:, 1] += torch.where(torch.rand(1500, generator=g) < 0.5, -1.0, 1.0)
    torch.manual_seed(0)
    family = adapters.create("vae", (2,), latent=2, width=32, lr=5e-3)
    interp.train(family, x[:1000], 500, progress=False, batch_size=128, ema=0.95)
    held = x[1000:]
    gaussian = Law(x[:1000].mean(0), x[:1000].T.cov()).log_prob(held.double()).mean().item()
    found = family.log_prob(held, samples=64).mean().item()
    # The data's own is log 20 - log 2 = 2.3 nats above; a bound half a nat above shows both lines.
    assert found > gaussian + 0.5


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (OptionError, "levels is None", {"likelihood": "logistic"}),
        (UnknownName, "gaussian", {"likelihood": "gausian"}),
        (UnknownName, "conv", {"network": "cnv"}),
        (OptionError, "8 x 8 halved 2 times are not 3 x 3", {"latent": [4, 3, 3]}),
        (OptionError, "scale of an observation", {"sigma": 0}),
        (OptionError, "scale of an observation", {"sigma": -1.0}),
        (OptionError, "beta=", {"beta": -1}),
        (OptionError, "shape is", {"latent": 0}),
        (OptionError, "levels=1", {"levels": 1}),
        (OptionError, "encoder, decoder", {"network": (nn.Identity(),)}),
        (OptionError, "networks of the user's own", {"network": "own:Encoder Decoder"}),
        (OptionError, "width=0", {"width": 0}),
        (UnknownName, "latent", {"latents": 3}),
    ],
)
def test_what_contradicts_itself_is_refused_when_made(error, message, options):
    with pytest.raises(error, match=message):
        adapters.create("vae", (1, 8, 8), **options)


def test_what_a_vae_does_not_know_is_refused():
    family = adapters.create("vae", (1, 8, 8), width=8, levels=17)
    with pytest.raises(OptionError, match="no option 'method'"):
        family.sample(1, method="heun")
    with pytest.raises(OptionError, match="no option 'label'"):
        family.log_prob(torch.zeros(1, 1, 8, 8), label=3)
    with pytest.raises(DataError, match="outside"):
        family.loss(torch.full((2, 1, 8, 8), 3.0))
    with pytest.raises(OptionError, match="images"):
        adapters.create("vae", (5,), network="conv")
