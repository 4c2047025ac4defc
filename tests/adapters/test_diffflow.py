"""DiffFlow with exact networks on normal data, for every share of score and discriminator."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from interp.errors import OptionError

F64 = torch.float64
M, S = 0.4, 0.5
SIGMAS = {"sigma_max": 2.0, "sigma_min": 0.1, "sigma_data": 0.5}


def sigma(t):
    return 2.0 * 0.05**t


def noised(t):
    """The variance of q at t."""
    return S**2 + sigma(t) ** 2


def law(t, drift, noise):
    """Mean and variance of the particles at t, from N(0, sigma_max^2).

    With dS_t = -G^2 dt, m' and V' of `interp.exact.particle_law` integrate to

        m_t = m - m (S_t / S_0)^B,   V_t = c S_t + (V_0 - c S_0) (S_t / S_0)^(2 B),
        c = (2 B - L^2) / (2 B - 1).
    """
    ratio, c = noised(t) / noised(0.0), (2 * drift - noise**2) / (2 * drift - 1)
    v = c * noised(t) + (sigma(0.0) ** 2 - c * noised(0.0)) * ratio ** (2 * drift)
    return M - M * ratio**drift, v


class Score(nn.Module):
    """n = sigma (x - m) / S_t, told x / r and asked for F = (sigma x / r^2 - n) r / sigma_data."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, t, x):
        t = t.reshape(-1, 1)
        r = (sigma(t) ** 2 + 0.25).sqrt()
        n = sigma(t) * (x * r - M) / noised(t)
        return self.one * (sigma(t) * x / r - n) * r / 0.5


class Logit(nn.Module):
    """log(q / p) of one dimension a factor, p from `law`."""

    def __init__(self, drift, noise):
        super().__init__()
        self.drift, self.noise = drift, noise

    def forward(self, t, x):
        t = t.reshape(-1, 1)
        x = x * (sigma(t) ** 2 + 0.25).sqrt()
        mean, var = law(t, self.drift, self.noise)
        q = -0.5 * ((x - M).square() / noised(t) + noised(t).log())
        p = -0.5 * ((x - mean).square() / var + var.log())
        return (q - p).sum(1)


def exact(drift=1.0, g=1.2, noise=1.0, **config):
    return adapters.create(
        "diffflow", (2,), Score(), logit=Logit(drift, noise), drift=drift, g=g, noise=noise,
        **SIGMAS, **config,
    ).double()  # fmt: skip


@pytest.mark.parametrize(
    ("drift", "noise", "g"),
    [
        (1.0, 1.0, math.sqrt(2)),  # the reverse SDE of the variance-exploding diffusion
        (0.75, 1.0, 1.0),  # score and discriminator, no noise
        (1.0, 0.5, 1.2),  # all three
        (1.5, 0.0, 0.0),  # the particles of a GAN
        (1.0, 0.0, math.sqrt(2)),  # Langevin
    ],
)
def test_the_particles_have_their_law_for_every_share(drift, noise, g):
    family = exact(drift, g, noise)
    x = family.sample(3000, seed=0, steps=200, denoise=False)
    mean, var = law(1.0, drift, noise)
    # Of 6000 elements: standard errors .007 and 1.8 %; two hundred first-order steps are 4 % off.
    assert x.mean().item() == pytest.approx(mean, abs=0.03)
    assert x.var().item() == pytest.approx(var, rel=0.1)


def test_g_is_free_when_sampling():
    """Also where training had another, and by an ODE."""
    family = exact(0.75, 1.0, 0.8)
    mean, var = law(1.0, 0.75, 0.8)
    for options in ({"g": 1.4, "steps": 200}, {"method": "dopri5"}):
        x = family.sample(3000, seed=1, denoise=False, **options)
        assert x.mean().item() == pytest.approx(mean, abs=0.03)
        assert x.var().item() == pytest.approx(var, rel=0.1)


def test_at_the_score_end_it_is_the_variance_exploding_flow():
    """g = L = 1, B = 1 / 2: the probability flow m + sqrt(S_1 / S_0) (z - m), whatever the logit."""
    family = exact(0.5 + 1e-9, 1.0, 1.0)
    family.B = 0.5
    z = torch.randn(5, 2, dtype=F64)
    wanted = M + math.sqrt(noised(1.0) / noised(0.0)) * (z - M)
    found = family.reverse(z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(family.forward(found, rtol=1e-9, atol=1e-9), z, rtol=0, atol=1e-5)


class Judge(nn.Module):
    """A GAN's critic as the logit: DiffFlow tells its networks x / r, a GAN x itself."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, t, x):
        return self.critic(x * (sigma(t.reshape(-1, 1)) ** 2 + 0.25).sqrt()).flatten()


def test_at_the_other_end_particles_go_where_a_gan_sends_its_samples():
    """g = L = 0: dx/dt = B G^2 grad l, and a GAN's samples are sent along (1 - D) grad l, D = sigmoid(l)."""
    gan = adapters.create("gan", (2,), width=16).double()
    family = exact(1.5, 0.0, 0.0)
    family.logit = Judge(gan.critic)
    x = interp.noise.normal((7, 2), seed=0, dtype=F64).requires_grad_()
    score = gan.critic(x)
    (sent,) = torch.autograd.grad(-7 * gan.generator_loss(score), x)
    t = torch.linspace(0, 1, 7, dtype=F64)
    moves = family.velocity(t, x.detach(), 0.0)
    size = 1.5 * family.squared_rate(t)[:, None] / (1 - score.detach().sigmoid())
    torch.testing.assert_close(moves, size * sent, rtol=1e-10, atol=0)


def test_log_prob_is_that_of_the_particles():
    """N(m_1, V_1) of `law`, through the discriminator's own second derivative."""
    family = exact(0.75, 1.0, 0.8)
    mean, var = law(1.0, 0.75, 0.8)
    x = M + 0.6 * torch.randn(6, 2, dtype=F64)
    normal = -0.5 * ((x - mean).square() / var + math.log(2 * math.pi * var))
    found = family.log_prob(x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found, normal.sum(1), rtol=0, atol=1e-5)


def test_the_exact_networks_have_the_least_losses():
    """Denoising: E sigma_z|x = s^2 / S_t a dimension. Both losses rise when a network is moved."""
    family = exact(particles=400, steps=24)
    x = M + S * torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = family.loss(x, torch.Generator().manual_seed(1))
    t = torch.linspace(0, 1, 2001, dtype=F64)
    assert found["score"].item() == pytest.approx((S**2 / noised(t)).mean().item(), rel=0.08)
    # q = p but for the start, so the logit is nearly 0 and its loss nearly 2 log 2, never more.
    assert found["logit"].item() == pytest.approx(2 * math.log(2), abs=0.03)
    for moved in (-0.2, 0.2):
        family.network.one.data += moved
        assert family.loss(x, torch.Generator().manual_seed(1))["score"] > found["score"]
        family.network.one.data -= moved


def test_it_learns_a_mixture():
    """Better than a normal fit by half, in the energy distance to held-out data."""
    target = interp.exact.Mixture([0.3, 0.7], [[-1.2, 0.0], [0.9, 0.6]], [0.05, 0.08])
    torch.manual_seed(0)
    family = adapters.create("diffflow", (2,), width=32, particles=24, steps=10, lr=4e-3)
    interp.train(family, target.sample(4000, seed=0), 150, progress=False)
    real = target.sample(1000, seed=1).double()
    fit = interp.exact.Gaussian(real.mean(0), real.T.cov()).sample(1000, seed=2, dtype=F64)
    found = family.sample(1000, seed=3)
    assert _distance(found.double(), real) < 0.5 * _distance(fit, real)
    part = family.sample(2, seed=3, first_row=5)
    torch.testing.assert_close(part, found[5:7], rtol=1e-3, atol=1e-3)


def _distance(x, y):
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_it_is_made_from_a_shape_alone_and_again_from_its_config(shape):
    torch.manual_seed(0)
    family = adapters.create("diffflow", shape=shape, width=8, particles=4, steps=3)
    sum(family.loss(torch.rand(8, *shape) * 2 - 1).values()).backward()
    assert all(p.grad is not None for p in family.parameters())
    x = family.sample(2, seed=0, steps=3)
    assert x.isfinite().all()
    again = adapters.create("diffflow", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())
    assert torch.equal(again.sample(2, seed=0, steps=3), x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"g": 0.5, "noise": 1.0}, "noise=1.0 is above g=0.5"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "exchange"),
        ({"drift": 0.0}, "drift"),
        ({"particles": 0}, "particles"),
        ({"steps": 0}, "steps"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(OptionError, match=match):
        adapters.create("diffflow", (2,), **options)


def test_less_g_than_noise_is_refused_when_sampling_too():
    with pytest.raises(OptionError, match="above g"):
        exact().sample(1, g=0.5)
