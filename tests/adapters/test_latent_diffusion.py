"""A family in the latents of another: what is trained when, how it is scaled, what is refused."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from torch import nn

import adapters
import interp
from adapters.protocol import Family, Objective, Optimizer
from interp import families
from interp.errors import OptionError, UnknownName, Unsupported
from interp.training import load

VAE = {"name": "vae", "width": 8, "latent": 3}
FLOW = {"name": "flow_matching", "width": 8}
DATA = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


class Stretch(Family):
    """x = stretch z + 1, an autoencoder in closed form; training moves a number that is not used."""

    name = "stretch"
    verbs: ClassVar = {"forward": "exact", "reverse": "exact", "loss": "exact"}

    def __init__(self, shape, network=None, stretch=5.0):
        super().__init__(shape, {"stretch": stretch})
        self.stretch = stretch
        self.idle = nn.Parameter(torch.zeros(()))
        self.steps = []

    def forward(self, x):
        return (x - 1) / self.stretch

    def reverse(self, z):
        return self.stretch * z + 1

    def loss(self, batch, generator=None):
        return (self.idle - 1).square()

    def objectives(self, step, total):
        self.steps.append((step, total))
        yield Objective("loss", (self.idle,), self.loss, Optimizer(0.1, "SGD", clip=None))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(families, "_registered", {"stretch": Stretch})


def make(shape=(1, 8, 8), autoencoder=VAE, prior=FLOW, **options):
    torch.manual_seed(0)
    return adapters.create(
        "latent_diffusion", shape, autoencoder=autoencoder, prior=prior, **options
    )


def train(family, steps, out=None, data=DATA, **options):
    given = {"batch_size": 16, "save_every": 3, "progress": False, **options}
    return interp.train(family, data, steps, out, **given)


def test_each_part_is_trained_in_its_phase_and_left_alone_in_the_other():
    family = make(share=0.4)
    assert list(family.stages()) == ["autoencoder train", "prior train"]
    assert [family.stage(k, 10) for k in (0, 3, 4, 9)] == [
        "autoencoder train", "autoencoder train", "prior train", "prior train",
    ]  # fmt: skip
    weights = {"autoencoder": [], "prior": []}
    kept = family.after_step

    def watched(step, total):
        kept(step, total)
        for name, seen in weights.items():
            seen.append(
                torch.cat([p.flatten() for p in getattr(family, name).parameters()]).clone()
            )

    family.after_step = watched
    train(family, 10, ema=0.0)
    moved = {
        name: [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
        for name, seen in weights.items()
    }
    assert moved == {"autoencoder": [True] * 3 + [False] * 6, "prior": [False] * 3 + [True] * 6}


def test_the_parts_see_runs_of_their_own():
    """A prior of phases has them too, and each part's rates are functions of its own steps."""
    family = make(
        (2,), "stretch", {"name": "rectified_flow", "width": 8, "pairs": 10, "pair_steps": 1}
    )
    assert list(family.stages()) == ["autoencoder train", "prior flow", "prior reflow 1"]
    trained = train(family, 8, data=torch.randn(16, 2))
    assert family.autoencoder.steps == [(k, 4) for k in range(4)]
    assert int(trained.family.prior.phase) == 1
    rate = next(iter(family.objectives(4, 8))).optimizer.lr
    assert rate == next(iter(family.prior.objectives(0, 4))).optimizer.lr


def test_latents_are_scaled_to_one_and_unscaled_before_they_are_decoded():
    family, x = make((3,), "stretch"), 2 + 3 * torch.randn(500, 3)
    latents = family._latents(x, None)["x"]
    assert latents.std().item() == pytest.approx(1)
    assert family.scale.item() == pytest.approx(1 / ((x - 1) / 5).std().item())
    again = family._latents(7 * x, None)["x"]  # the first batch's scale is kept
    torch.testing.assert_close(again, family.scale * (7 * x - 1) / 5)
    torch.testing.assert_close(family.reverse(family.forward(x)), x, atol=1e-3, rtol=0)

    class Prior:
        def sample(self, n, **options):
            return latents[:n]

    del family.prior
    family.__dict__["prior"] = Prior()
    torch.testing.assert_close(family.sample(5), x[:5])


def test_a_scale_that_is_given_stays():
    family = make((3,), "stretch", scale=0.18215)
    train(family, 4, data=torch.randn(16, 3))
    assert family.scale.item() == pytest.approx(0.18215)


def test_the_prior_is_trained_on_draws_and_not_on_means():
    family = make()
    g = [torch.Generator().manual_seed(k) for k in (0, 0, 1)]
    a, b, c = (family._latents(DATA[:4], one)["x"] for one in g)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_scale_and_the_prior_are_those_of_the_averaged_autoencoder():
    """A phase ends with the averaged weights, which are also what sampling decodes with."""
    family = make()
    train(family, 6, ema=0.9)
    alone = make().autoencoder
    interp.train(alone, DATA, 3, batch_size=16, progress=False, ema=0.9)
    # The same batches, seeds and weights: the first phase is a run of the autoencoder.
    for a, b in zip(family.autoencoder.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_stopped_in_either_phase_resumes_to_the_same_numbers(tmp_path, stop):
    whole, broken = make(classes=3), make(classes=3)
    data = {"x": DATA, "label": torch.arange(64) % 3}
    options = {"data": data, "save_every": 1}
    wanted = train(whole, 8, tmp_path / "whole", **options)

    class KilledError(Exception):
        pass

    kept = broken.after_step

    def dying(step, total):
        kept(step, total)
        if step == stop:
            raise KilledError

    broken.after_step = dying
    with pytest.raises(KilledError):
        train(broken, 8, tmp_path / "broken", **options)
    again = train(make(classes=3), 8, tmp_path / "broken", resume=True, **options)
    assert again.losses == wanted.losses[stop:]
    for name, tensor in wanted.family.state_dict().items():
        assert torch.equal(again.family.state_dict()[name], tensor), name
    loaded, _ = load(tmp_path / "broken")
    assert loaded.classes == 3
    sampled = loaded.sample(2, seed=0, label=1, steps=2)
    assert torch.equal(sampled, wanted.family.sample(2, seed=0, label=1, steps=2))


def test_a_trained_run_serves_as_the_autoencoder_even_when_it_is_gone(tmp_path):
    vae = adapters.create("vae", (1, 8, 8), width=8, latent=3)
    interp.train(vae, DATA, 3, tmp_path / "vae", progress=False)
    family = make(autoencoder=str(tmp_path / "vae"))
    assert list(family.stages()) == ["prior train"]
    train(family, 3, tmp_path / "run")
    for a, b in zip(family.autoencoder.parameters(), vae.parameters(), strict=True):
        assert torch.equal(a, b)
    wanted = family.sample(2, seed=0, steps=2)
    (tmp_path / "vae").rename(tmp_path / "gone")
    loaded, _ = load(tmp_path / "run")
    assert loaded.trained
    assert torch.equal(loaded.sample(2, seed=0, steps=2), wanted)


def test_a_family_object_serves_too_and_any_family_can_be_the_prior():
    flow = adapters.create("realnvp", (2,), width=8, layers=2)
    for prior in ("realnvp", "wgan_gp", "ddpm"):
        family = make((2,), flow, {"name": prior, "width": 8})
        assert family.trained
        train(family, 2, data=torch.randn(16, 2))
        assert family.sample(3, seed=0).shape == (3, 2)
    assert make((2,), flow, trained=False).stages()[0] == "autoencoder train"


def test_what_it_supports_is_what_its_prior_does():
    family = make()
    assert family.supports("log_prob") is False
    assert family.supports("sample") == family.supports("forward") == "ode"
    with pytest.raises(Unsupported, match="latent_diffusion has no log_prob"):
        family.log_prob(DATA[:1])
    assert make(prior={"name": "gan", "width": 8}).supports("forward") is False


def test_a_config_makes_the_family_again():
    family = make(classes=4, autoencoder={**VAE, "latent": [2, 4, 4]})
    again = adapters.create("latent_diffusion", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())
    assert again.config == family.config
    assert again.latent == (2, 4, 4)
    assert torch.equal(again.sample(2, seed=0, label=1), family.sample(2, seed=0, label=1))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (UnknownName, "autoencoder is to be a family or the folder.*vae", {"autoencoder": "vea"}),
        (UnknownName, "prior is to be a family.*flow_matching", {"prior": "flow_matchin"}),
        (UnknownName, "option of vae", {"autoencoder": {"name": "vae", "latents": 3}}),
        (
            OptionError,
            "no forward.*cannot be the autoencoder.*realnvp.*vae",
            {"autoencoder": "gan"},
        ),
        (OptionError, "stretch has no sample", {"prior": "stretch"}),
        (
            OptionError,
            "halved 2 times are not 3 x 3",
            {"autoencoder": {**VAE, "latent": [4, 3, 3]}},
        ),
        (
            OptionError,
            "patch",
            {
                "autoencoder": {**VAE, "latent": [4, 1, 1]},
                "prior": {"name": "flow_matching", "network": "dit"},
            },
        ),
        (OptionError, 'no "name"', {"prior": {"width": 3}}),
        (OptionError, "autoencoder is a int", {"autoencoder": 3}),
        (OptionError, "Identity", {"autoencoder": nn.Identity()}),
        (
            OptionError,
            r"shape \(2,\), not \(1, 8, 8\)",
            {"autoencoder": {"name": "vae", "shape": [2]}},
        ),
        (OptionError, "share is 1", {"share": 1.0}),
        (OptionError, "scale is 0", {"scale": 0}),
    ],
)
def test_what_contradicts_itself_is_refused_when_made(error, message, options):
    with pytest.raises(error, match=message):
        adapters.create("latent_diffusion", (1, 8, 8), **options)


def test_an_autoencoder_for_other_points_is_refused():
    with pytest.raises(OptionError, match=r"shape \(2,\), not \(1, 8, 8\)"):
        make(autoencoder=adapters.create("realnvp", (2,), width=8))
