"""What every family takes and what it refuses, whichever it is: the one place is `adapters.arguments`."""

from __future__ import annotations

import pytest
import torch

import adapters
import interp
from interp import families
from interp.errors import DataError, OptionError, Unsupported

NAMES = adapters.available()
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).half().float()  # in both dtypes
VERBS = ("forward", "reverse", "log_prob")


def made(name, **options):
    known = families.options(families.load(name)) or ()
    torch.manual_seed(0)
    return adapters.create(
        name, (2,), **({"width": 8} if "width" in known else {}), **options
    ).eval()


def loss(family, batch):
    found = family.loss(batch, generator=torch.Generator().manual_seed(1))
    return torch.stack(list(found.values()) if isinstance(found, dict) else [found])


def points(family, verb):
    """What a verb takes: data, or latents of whatever shape."""
    shape = getattr(family, "latent", None) if verb == "reverse" else None
    shape = (shape,) if isinstance(shape, int) else shape
    return X if not isinstance(shape, tuple) else X.repeat(1, 100)[:, : shape[0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floating_points_of_any_dtype_count_as_those_of_the_weights(name, dtype):
    family = made(name)
    torch.testing.assert_close(loss(family, X.to(dtype)), loss(made(name), X), rtol=0, atol=0)
    for verb in VERBS:
        if family.supports(verb):
            x = points(family, verb)
            short = {"method": "euler", "steps": 2} if family.supports(verb) == "ode" else {}
            found, expected = (getattr(family, verb)(z, **short) for z in (x.to(dtype), x))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_are_no_points_is_said_in_the_same_words_by_all(name):
    family = made(name)
    bad = X.clone()
    bad[3, 1] = torch.nan
    calls = [family.loss, *(getattr(family, v) for v in VERBS[::2] if family.supports(v))]
    for call in calls:
        for x, said in (
            ((127 * X).byte(), r"torch.uint8.*x / 127.5 - 1"),
            (X.tolist(), "a list"),
            (bad, "1 of 6 rows, first in row 3"),
            (X[:, :1], r"\(1,\)"),
            (X[0, 0], r"shape \(\)"),
        ):
            with pytest.raises(DataError, match=said):
                call(x)
    with pytest.raises(DataError, match="no rows"):
        family.loss(X[:0])


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_rows(name):
    family = made(name)
    assert family.sample(0, seed=0).shape == (0, 2)
    for verb in VERBS:
        if family.supports(verb):
            assert len(getattr(family, verb)(points(family, verb)[:0])) == 0


@pytest.mark.parametrize("name", NAMES)
def test_options_that_make_no_sense_are_refused_when_it_is_made(name):
    known = families.options(families.load(name)) or ()
    hostile = {
        "levels": 2.5, "width": 2.5, "classes": 2.5, "sigma_data": 0.0, "lr": "fast",
        "label_dropout": "often",
    }  # fmt: skip
    for option, value in hostile.items():
        if option in known:
            with pytest.raises(OptionError, match=f"{option}.*(does not fit|no scale)"):
                adapters.create(name, (2,), **{option: value})
    for shape in ((), (0,), (1.5,)):
        with pytest.raises(OptionError, match="positive sizes of one data point"):
            adapters.create(name, shape)


def test_base_points_of_a_batch_are_as_many_and_of_the_weights_dtype():
    family = made("flow_matching")
    paired = {"x": X.double(), "x0": X.flip(0).double()}
    assert loss(family, paired).dtype is torch.float32
    with pytest.raises(DataError, match="x0 has 2 rows and x has 6"):
        family.loss({"x": X, "x0": X[:2]})


def test_a_model_that_pairs_within_labels_asks_for_them():
    family = made("unbalanced_ot", classes=3)
    with pytest.raises(OptionError, match="within each label, and no labels are given"):
        family.loss(X)
    with pytest.raises(DataError, match=r"label of the data is a list.*as_tensor\(label\)"):
        interp.train(family, {"x": X, "label": [0] * 6}, 1, progress=False)


def test_latents_of_one_number_wait_for_a_scale():
    family = adapters.create("latent_diffusion", (1,))
    for x in (torch.randn(1, 1), torch.ones(3, 1)):
        assert all(value.isfinite() for value in family.loss(x).values())


def test_a_prior_has_the_labels_and_the_verbs_that_are_asked_of_it():
    with pytest.raises(OptionError, match="classes is 3 and the prior gan has no labels"):
        adapters.create("latent_diffusion", (2,), prior="gan", classes=3)
    family = adapters.create("latent_diffusion", (2,), prior="gan")
    with pytest.raises(Unsupported, match=r"forward of its prior, and gan has none.*flow_matching"):
        family.forward(X)


def test_every_weight_of_an_energy_has_a_slope():
    """A constant of V moves neither its slope nor a difference of depths."""
    family = made("energy_matching")
    sum(family.loss(X).values()).backward()
    assert all(p.grad is not None for p in family.parameters())


class Net(torch.nn.Module):
    """A network of the user's own."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, t, x, label=None):
        return self.layer(x)


IDLE = [  # options, the last of which the others leave without effect
    ("consistency", {"recipe": "ect", "finest": 40}),
    ("consistency", {"recipe": "sct", "finest": 40}),
    ("ddpm", {"variance": "learned", "weight": "snr"}),
    ("ddpm", {"variance": "learned", "times": "uniform"}),
    ("ddpm", {"variance": "learned", "objective": "vlb", "coupling": "optimal_transport"}),
    ("ddpm", {"table": [0.1, 0.2], "steps": 7}),
    ("diffflow", {"network": Net(), "logit": Net(), "width": 8}),
    ("energy_matching", {"contrast_share": 0.0, "negatives": 8}),
    ("flow_matching", {"label_dropout": 0.2}),
    ("flow_matching", {"network": Net(), "width": 8}),
    ("gan", {"network": (Net(), Net()), "width": 8}),
    ("jko", {"functional": "mmd", "critic_steps": 3}),
    ("jko", {"functional": "mmd", "critic": "mlp"}),
    ("latent_diffusion", {"autoencoder": {"name": "vae", "levels": 17}, "levels": 16}),
    ("latent_diffusion", {"prior": {"name": "ddpm", "lr": 1e-3}, "lr": 2e-3}),
    ("latent_diffusion", {"trained": True, "share": 0.3}),
    ("meanflow", {"power": 0.0, "c": 1.0}),
    ("realnvp", {"margin": 0.1}),
    ("rectified_flow", {"reflows": 0, "pairs": 100}),
    ("schroedinger_bridge", {"weight": "snr"}),
    ("schroedinger_bridge", {"iterations": 2}),
    ("score_matching", {"objective": "sliced", "weight": "simple"}),
    ("shortcut", {"share": 0.0, "clip": 2.0}),
    ("vae", {"network": (Net(), Net()), "width": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), IDLE)
def test_an_option_without_effect_is_refused_and_without_it_the_config_makes_the_family_again(
    name, options
):
    idle = list(options)[-1]
    with pytest.raises(OptionError, match=rf"^{idle}=.* has no effect: .*"):
        adapters.create(name, (2,), **options)
    options = {k: v for k, v in options.items() if k != idle}
    family = adapters.create(name, (2,), **options)
    if not any(isinstance(v, (torch.nn.Module, tuple)) for v in options.values()):
        assert adapters.create(name, **family.config).config == family.config
