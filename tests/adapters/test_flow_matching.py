"""Flow matching against Gaussian data, for which everything is in closed form.

Data N(m, s^2) in each dimension on the linear path: the velocity is
m + (t s^2 - (1 - t)) (x - t m) / ((1 - t)^2 + t^2 s^2) and the flow carries z to m + s z.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
from adapters.flow_matching import FlowMatching
from interp import Interpolant
from interp.errors import OptionError, UnknownName

M, S = 0.7, 0.6


class Exact(nn.Module):
    """The velocity of N(M, S^2) data, times a weight of one so that there is something to train."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x):
        t = t.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
        slope = (t * S**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * S**2)
        return self.one.to(x.dtype) * (M + slope * (x - t * M))


@pytest.fixture
def exact():
    return FlowMatching((2, 3), Exact()).double()


def labelled(**config):
    """A small conditional model with weights of its own."""
    torch.manual_seed(0)
    family = adapters.create(
        "flow_matching", shape=(4,), classes=3, **{"width": 16, **config}
    ).double()
    for p in family.parameters():
        if not p.any():
            p.data.normal_(0, 0.2)
    return family


def test_the_least_loss_is_s_pi_over_2(exact):
    g = torch.Generator().manual_seed(1)
    n = 20_000
    x = M + S * torch.randn(n, 2, 3, dtype=torch.float64, generator=g)
    # FAMILIES.md, flow_matching. The squared error of one element has a standard deviation of
    # about 1.7, so the mean of 6 n has one of 0.005; five of these.
    assert exact.loss(x, g).item() == pytest.approx(S * math.pi / 2, abs=0.025)


def test_the_loss_of_a_network_at_zero_is_the_mean_squared_rate():
    family = adapters.create("flow_matching", shape=(4,), width=8)
    x = torch.full((5000, 4), 0.5)
    loss = family.loss({"x": x}, torch.Generator().manual_seed(0)).item()
    # E (x1 - x0)^2 = 0.25 + 1; the variance of (0.5 - z)^2 is 3, so one sigma is 0.0122.
    assert loss == pytest.approx(1.25, abs=0.06)


def test_the_loss_is_a_function_of_the_generator(exact):
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    a, b, c = (exact.loss(x, torch.Generator().manual_seed(s)).item() for s in (3, 3, 4))
    assert a == b != c


def test_the_flow_is_affine_and_its_density_gaussian(exact):
    z = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tight = {"rtol": 1e-9, "atol": 1e-9}  # accumulated over the run: errors of some 1e-8
    x = M + S * z
    torch.testing.assert_close(exact.reverse(z, **tight), x, atol=1e-7, rtol=0)
    torch.testing.assert_close(exact.forward(x, **tight), z, atol=1e-7, rtol=0)
    wanted = torch.distributions.Normal(M, S).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(exact.log_prob(x, **tight), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"method": "dopri5", "rtol": 1e-7, "atol": 1e-7}, {"method": "rk4"}]
)
def test_samples_follow_the_flow_of_the_base(exact, options):
    n = 7
    z = exact.path.base.sample((n, 2, 3), seed=5, dtype=torch.float64)
    x = exact.sample(n, seed=5, **options)
    # Heun in 32 steps errs by about h^2 = 1e-3 of numbers of order 1; the others by less.
    torch.testing.assert_close(x, M + S * z, atol=3e-3, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"method": "euler_maruyama", "steps": 16, "diffusion": 0.5}]
)
def test_chunks_make_up_the_whole(exact, options):
    whole = exact.sample(7, seed=9, **options)
    parts = [exact.sample(n, seed=9, first_row=first, **options) for first, n in ((0, 3), (3, 4))]
    # Element by element the same float64 operations on the same noise.
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=0)


def test_an_sde_method_asks_for_the_size_of_its_noise(exact):
    with pytest.raises(OptionError, match="diffusion="):
        exact.sample(1, method="euler_maruyama", steps=4)


@pytest.mark.parametrize("path", ["linear", "trigonometric", "variance_preserving"])
def test_the_config_rebuilds_the_family(path):
    family = labelled(path=path, label_dropout=0.2, lr=0.5)
    again = adapters.create(family.name, **family.config).double()
    again.load_state_dict(family.state_dict())
    a, b = (f.sample(3, seed=0, steps=4, label=[0, 1, 2]) for f in (family, again))
    torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert again.config == family.config


@pytest.mark.parametrize(
    "config",
    [
        {"weight": "min_snr", "times": "logit_normal"},
        {"weight": {"name": "learned", "base": "snr", "features": 8}, "times": "importance"},
        {
            "weight": {"name": "edm", "sigma_data": 0.6},
            "times": {"name": "log_normal", "mean": -1.0},
        },
    ],
)
def test_the_loss_is_in_the_config_and_its_state_in_the_checkpoint(config):
    """A family that is saved after a step and made again goes on to the same number."""
    x = {"x": torch.randn(32, 4, dtype=torch.float64), "label": torch.arange(32) % 3}

    def step(family, seed):
        loss = family.loss(x, torch.Generator().manual_seed(seed))
        loss.backward()
        with torch.no_grad():
            for p in family.parameters():
                p -= 0.01 * p.grad
                p.grad = None
        return loss.item()

    family = labelled(**config)
    json.dumps(family.config)
    assert step(family, 1) != step(labelled(), 1)
    again = adapters.create(family.name, **family.config).double()
    again.load_state_dict(family.state_dict())
    assert again.config == family.config
    assert step(family, 2) == step(again, 2)


def test_pairs_that_a_batch_brings_are_used_as_they_are():
    family = FlowMatching((3,), nn.Identity(), coupling=lambda *_, **__: 1 / 0)
    family.network.forward = lambda t, x: torch.zeros_like(x)
    x0, x1 = torch.randn(2, 5, 3)
    assert family.loss({"x": x1, "x0": x0}).item() == pytest.approx(
        (x1 - x0).square().mean().item()
    )


def test_a_coupling_pairs_before_labels_are_hidden():
    seen = []

    def backwards(x0, x1, labels=None, generator=None):
        seen.append(labels)
        return x0, x1.flip(0), labels.flip(0)

    family = labelled(coupling=backwards)
    label = torch.arange(40) % 3
    family.network.forward = lambda t, x, label=None: seen.append(label) or torch.zeros_like(x)
    family.loss({"x": torch.randn(40, 4, dtype=torch.float64), "label": label})
    given, used = seen
    assert torch.equal(given, label)
    assert torch.equal(used[used < 3], label.flip(0)[used < 3])
    with pytest.raises(OptionError, match="coupling of the user's own, function"):
        adapters.create(family.name, **family.config)


def test_what_a_config_cannot_hold_is_asked_for():
    own = FlowMatching((2,), Exact())
    with pytest.raises(OptionError, match="network of the user's own"):
        adapters.create("flow_matching", **own.config)
    path = Interpolant(lambda t: 1 - t, lambda t: t)
    own = FlowMatching((2,), Exact(), path=path)
    with pytest.raises(OptionError, match="path of the user's own"):
        adapters.create("flow_matching", **{**own.config, "network": Exact()})


def test_labels_reach_the_network_and_are_hidden_as_often_as_asked():
    seen = []

    class Spy(nn.Module):
        def forward(self, t, x, label=None):
            seen.append(label)
            return x

    family = FlowMatching((2,), Spy(), classes=3, label_dropout=0.25)
    batch = {"x": torch.zeros(4000, 2), "label": torch.arange(4000) % 3}
    family.loss(batch, torch.Generator().manual_seed(0))
    hidden = seen[0] == 3
    # Binomial: 4000 at a quarter has a standard deviation of 27; five of these.
    assert abs(int(hidden.sum()) - 1000) < 140
    assert (seen[0][~hidden] == batch["label"][~hidden]).all()


def test_guidance_mixes_the_two_velocities():
    family = labelled()
    z = family.path.base.sample((2, 4), seed=0, dtype=torch.float64)
    t, label = torch.zeros((), dtype=torch.float64), torch.tensor([1, 1])
    with torch.no_grad():
        c, u = family.network(t, z, label), family.network(t, z)
    one_step = family.sample(2, seed=0, method="euler", steps=1, label=1, guidance=2.5)
    torch.testing.assert_close(one_step, z + u + 2.5 * (c - u), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"guidance": 2.0}, "no label is given"),
        ({"classes": None}, {"label": 1}, "without labels"),
        ({"label_dropout": 0.0}, {}, "label_dropout=0"),
        ({"label_dropout": 0.0}, {"label": 1, "guidance": 2.0}, "label_dropout=0"),
        ({}, {"label": 3}, "from 0 to 2"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(config, options, message):
    config = {"classes": 3, "width": 8, **config}
    with pytest.raises(OptionError, match=message):
        adapters.create("flow_matching", shape=(4,), **config).sample(2, **options)


def test_a_path_with_a_latent_draws_it_and_one_without_a_gaussian_base_is_refused():
    bridge = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: t * (1 - t))
    family = FlowMatching((1,), path=bridge, width=8)
    x = torch.zeros(20_000, 1)
    # The network starts at zero, so the loss is E (x1 - x0 + gamma' z)^2 with gamma' = 1 - 2 t:
    # 1 + 1/3. Each square has a standard deviation of about 2: five errors are 0.07.
    loss = family.loss(x, torch.Generator().manual_seed(0)).item()
    assert loss == pytest.approx(4 / 3, abs=0.07)
    other = Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    with pytest.raises(OptionError, match="gaussian_base=True"):
        FlowMatching((1,), path=other)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"label_dropout": 1.0}, OptionError),
        ({"levels": 1}, OptionError),
        ({"lr": 0.0}, OptionError),
        ({"path": "lineer"}, UnknownName),
        ({"network": "cnn"}, UnknownName),
        ({"depht": 3}, UnknownName),
    ],
)
def test_options_that_make_no_sense_are_refused(config, error):
    with pytest.raises(error):
        adapters.create("flow_matching", shape=(4,), **config)


def test_bits_per_dim_is_the_density_of_the_dequantised_image():
    family = FlowMatching((2, 3), Exact(), levels=5).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (4, 2, 3), generator=g).double() / 2 - 1
    bits = family.bits_per_dim(x, seed=3, rtol=1e-9, atol=1e-9)
    u = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    p = torch.distributions.Normal(M, S).log_prob(x + (u - 0.5) / 2).flatten(1).sum(1)
    # P(level) is about p times the cell, 1/2 wide in each of 6 dimensions.
    torch.testing.assert_close(bits, -p / (6 * math.log(2)) + 1, atol=1e-6, rtol=0)
    with pytest.raises(OptionError, match="levels"):
        FlowMatching((2, 3), Exact()).bits_per_dim(x)
