"""GANs at critics that are known: values, slopes, turns; and what they refuse."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from interp.errors import OptionError, UnknownName, Unsupported
from interp.training.state import State

NAMES = ["gan", "dcgan", "wgan", "wgan_gp"]
M = 0.8  # the data N(M, 1), the samples N(0, 1)


class Score(nn.Module):
    """D(x) = a x + b."""

    def __init__(self, a=0.0, b=0.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(float(v))) for v in (a, b))

    def forward(self, x):
        return self.a * x + self.b


class Shift(nn.Module):
    """G(z) = z + shift."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return z + self.shift


def make(name, a=0.0, b=0.0, **options):
    family = adapters.create(name, (1,), (Shift(), Score(a, b)), latent=1, **options)
    return family.double()


def data(rows=100_000):
    return M + torch.randn(rows, 1, generator=torch.Generator().manual_seed(1)).double()


def losses(family, x):
    return {k: v.item() for k, v in family.loss(x, torch.Generator().manual_seed(2)).items()}


def test_at_the_best_critic_a_gan_has_twice_the_jensen_shannon_divergence():
    """D* = log p / q = M x - M^2 / 2; its loss is log 4 - 2 JS, by quadrature."""
    grid = torch.linspace(-12, 12, 20_001).double()
    p, q = (torch.distributions.Normal(m, 1.0).log_prob(grid) for m in (M, 0.0))
    middle = torch.logaddexp(p, q) - math.log(2)
    js = 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum().item() * (24 / 20_000)
    found = losses(make("gan", M, -(M**2) / 2), data())
    # 100,000 rows, terms of deviation .4: a standard error of 2e-3.
    assert found["critic"] == pytest.approx(math.log(4) - 2 * js, abs=8e-3)
    worse = [
        losses(make("gan", a, b), data())["critic"] for a, b in ((0, 0), (2 * M, -(M**2)), (M, 0))
    ]
    assert min(worse) > found["critic"] + 0.01  # it is the least
    assert worse[0] == pytest.approx(math.log(4), abs=1e-9)  # a critic that knows nothing


def test_a_critic_of_slope_one_has_the_wasserstein_distance_and_no_penalty():
    family, x = make("wgan_gp", 1.0, 0.3), data()
    terms = family.critic_loss(x, data() - M, torch.Generator().manual_seed(0))
    assert terms["wasserstein"].item() == pytest.approx(-M, abs=1e-9)  # pairs a shift apart
    assert terms["penalty"].item() == pytest.approx(0, abs=1e-12)
    steep = make("wgan_gp", -3.0).critic_loss(x, x - M, torch.Generator().manual_seed(0))
    assert steep["penalty"].item() == pytest.approx(10 * (3 - 1) ** 2)


def test_the_penalty_takes_one_u_a_row_and_the_norm_over_all_its_elements():
    """D = sum of x^2 / 2 has slope x: the penalty sees the points themselves."""

    class Square(nn.Module):
        def forward(self, x):
            seen.append(x)
            return 0.5 * x.square().flatten(1).sum(1, keepdim=True)

    seen = []
    shape = (2, 3, 4)
    network = (adapters.create("gan", shape, "mlp", width=4).generator, Square())
    family = adapters.create("wgan_gp", shape, network, latent=64)
    x, fake = torch.randn(2, 50, *shape, generator=torch.Generator().manual_seed(0))
    terms = family.critic_loss(x, fake, torch.Generator().manual_seed(0))
    share = ((seen[0] - fake) / (x - fake)).flatten(1)
    spread = share.amax(1) - share.amin(1)
    assert spread.median() < 1e-4  # one u for all elements of a row; differences may be small
    assert share.median(1).values.std() > 0.1  # another for each row
    wanted = 10 * (seen[0].flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(terms["penalty"], wanted)


def test_training_a_penalised_critic_ends_at_its_closed_form():
    """For D = a x the loss -a M + 10 (|a| - 1)^2 is least at a = 1 + M / 20, at -M - M^2 / 40."""
    family = make("wgan_gp", 0.5, critic_steps=10**6, lr=0.02)
    x = M + torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)).double()
    trained = interp.train(family, x - x.mean() + M, 200, batch_size=4000, progress=False, ema=0.9)
    # Samples G(z) have means of .016 around 0: a tenth of that is in a.
    assert family.critic.a.item() == pytest.approx(1 + M / 20, abs=5e-3)
    last = sum(trained.losses[-50:]) / 50
    assert last == pytest.approx(-M - M**2 / 40, abs=0.02)
    assert family.generator.shift.item() == 0  # its turn never came


def test_the_generator_goes_up_the_critics_slope():
    """d/dshift of -E D(z + shift) is -a; of E softplus(-D) it is -a E sigmoid(-D)."""
    for name, wanted in (("wgan_gp", -2.0), ("wgan", -2.0), ("gan", None)):
        bound = {"clip": 5.0} if name == "wgan" else {}
        family = make(name, 2.0, -1.0, critic_steps=1, **bound)
        _, objective = family.objectives(0, 1)
        loss = objective.evaluate(data(1000), torch.Generator().manual_seed(3))
        (slope,) = torch.autograd.grad(loss, family.generator.shift)
        if wanted is None:
            z = family._fake(data(1000), torch.Generator().manual_seed(3)).detach()
            wanted = -2 * torch.sigmoid(-family.critic(z)).mean().item()
        assert slope.item() == pytest.approx(wanted)


def test_the_critic_has_its_turns_and_one_batch_each():
    family, seen = make("wgan_gp", 0.5, critic_steps=3), []
    for step in range(7):
        for objective in family.objectives(step, 7):
            seen.append(objective.name[0])
    assert "".join(seen) == "ccc" + "g" + "ccc" + "g" + "c"


def test_the_weights_of_a_wgans_critic_are_cut_after_every_step():
    torch.manual_seed(0)
    family = adapters.create("wgan", (2,), width=16, lr=0.5, clip=0.02)
    state = State(family, 4, 0.0)
    before = torch.cat([p.detach().flatten() for p in family.critic.parameters()])
    assert before.abs().max() > 0.02
    for _ in range(4):
        state.advance(torch.randn(8, 2), torch.Generator().manual_seed(0))
        weights = torch.cat([p.detach().flatten() for p in family.critic.parameters()])
        assert weights.abs().max().item() == pytest.approx(0.02)  # steps of .5 hit the bound


@pytest.mark.parametrize("name", NAMES)
def test_neither_loss_has_a_slope_in_the_others_parameters(name):
    torch.manual_seed(0)
    family = adapters.create(name, (1, 8, 8), width=8)
    x = torch.randn(6, 1, 8, 8).clamp(-1, 1)
    parts = {"critic": family.critic, "generator": family.generator}
    for term, wanted in (("critic", "critic"), ("generator", "generator")):
        family.zero_grad()
        family.loss(x, torch.Generator().manual_seed(0))[term].backward()
        for part, module in parts.items():
            moved = any(p.grad is not None and p.grad.ne(0).any() for p in module.parameters())
            assert moved == (part == wanted)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_one_another_and_a_config_makes_the_family_again(name):
    torch.manual_seed(0)
    family = adapters.create(name, (1, 8, 8), width=8)
    interp.train(family, torch.randn(16, 1, 8, 8).clamp(-1, 1), 5, batch_size=8, progress=False)
    whole = family.sample(5, seed=3)
    parts = torch.cat([family.sample(2, seed=3), family.sample(3, seed=3, first_row=2)])
    torch.testing.assert_close(parts, whole)
    assert whole.abs().max() <= 1
    again = adapters.create(name, **json.loads(json.dumps(family.config)))
    assert again.load_state_dict(family.state_dict())
    assert torch.equal(again.sample(5, seed=3), whole)  # also where it was never told to evaluate


def test_a_dcgan_starts_as_published():
    torch.manual_seed(0)
    family = adapters.create("dcgan", (3, 32, 32), width=32)
    weights = torch.cat(
        [
            m.weight.flatten()
            for m in family.modules()
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]
    )
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    (optimizer,) = {o.optimizer.lr for o in family.objectives(0, 10)}
    assert (optimizer, family.latent) == (2e-4, 100)


def test_mlps_have_rates_of_their_own_and_convolutions_the_published_ones():
    def found(name, shape, **options):
        family = adapters.create(name, shape, width=8, **options)
        (_, generator) = list(family.objectives(family.critic_steps - 1, 10))
        own = {key: family.config[key] for key in ("clip", "penalty") if key in family.config}
        return generator.optimizer.lr, generator.optimizer.options.get("betas"), own

    points, images = (2,), (1, 8, 8)
    assert found("gan", points) == (1e-3, (0.5, 0.999), {})
    assert found("gan", images) == (2e-4, (0.5, 0.999), {})
    assert found("wgan", points) == (1e-3, None, {"clip": 0.1})
    assert found("wgan", images) == (5e-5, None, {"clip": 0.01})
    assert found("wgan_gp", points) == (1e-3, (0.5, 0.9), {"penalty": 0.1})
    assert found("wgan_gp", images) == (1e-4, (0.0, 0.9), {"penalty": 10.0})
    assert found("wgan_gp", images, network="mlp") == found("wgan_gp", points)
    assert found("wgan", points, clip=0.02, lr=1e-2) == (1e-2, None, {"clip": 0.02})


def test_a_dcgan_of_points_normalises_batches_too():
    torch.manual_seed(0)
    family = adapters.create("dcgan", (2,), width=8)
    for part in (family.generator, family.critic):
        assert sum(isinstance(layer, nn.BatchNorm1d) for layer in part.modules()) == 2
    interp.train(family, torch.randn(16, 2), 3, batch_size=8, progress=False)
    whole = family.sample(5, seed=3)
    torch.testing.assert_close(
        torch.cat([family.sample(2, seed=3), family.sample(3, seed=3, first_row=2)]), whole
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["forward", "log_prob"])
def test_there_is_no_density_and_no_encoder(name, verb):
    family = adapters.create(name, (2,), width=8)
    assert family.supports(verb) is False
    with pytest.raises(Unsupported, match=f"{name} has no {verb}.*realnvp"):
        getattr(family, verb)(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("name", "error", "message", "options"),
    [
        ("gan", OptionError, "latent=0", {"latent": 0}),
        ("wgan", OptionError, "critic_steps=0", {"critic_steps": 0}),
        ("wgan", OptionError, "clip is 0", {"clip": 0}),
        ("wgan_gp", OptionError, "penalty=-1", {"penalty": -1}),
        ("gan", UnknownName, "option of gan", {"penalty": 10}),
        ("wgan_gp", OptionError, "generator, critic", {"network": [nn.Identity()]}),
        (
            "wgan_gp",
            OptionError,
            "normalises batches",
            {"network": (nn.Identity(), nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)))},
        ),
    ],
)
def test_what_contradicts_itself_is_refused_when_made(name, error, message, options):
    with pytest.raises(error, match=message):
        adapters.create(name, (2,), **options)
    with pytest.raises(OptionError, match="no option 'method'"):
        adapters.create(name, (2,), width=8).sample(1, method="heun")
