"""Every family that is one network on a path, against data N(m, s^2), where all is in closed form.

A network that gives the exact view makes the family exact: its flow, its density, its samples and the
least possible loss are known numbers, whatever the family's parametrisation.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import adapters
import interp
from interp import schedules
from interp.errors import DataError, OptionError, UnknownName

M, S = 0.4, 0.5
FAMILIES = (
    "ddim",
    "ddpm",
    "edm",
    "flow_matching",
    "rectified_flow",
    "sub_vp_sde",
    "ve_sde",
    "vp_sde",
)
TABLE = schedules.from_betas("linear")
TARGET = interp.exact.Gaussian(torch.full((2,), M, dtype=torch.float64), S * S)


class Exact(nn.Module):
    """The network of a family whose data are N(M, S^2), written from the papers' formulas."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, told, x, label=None):
        told = told.reshape(-1, *(1,) * (x.ndim - 1)).double()
        return self.one * getattr(self, f"_{self.name}")(told, x)

    def _flow_matching(self, t, x):
        return M + (t * S**2 - (1 - t)) * (x - t * M) / ((1 - t) ** 2 + t**2 * S**2)

    _rectified_flow = _flow_matching

    def _vp_sde(self, u, x):
        b = torch.exp(-(u**2) * 19.9 / 4 - u * 0.1 / 2)
        return (x - b * M) * (1 - b**2).sqrt() / (b**2 * S**2 + 1 - b**2)

    def _ddpm(self, u, x):
        k = TABLE.coefficients(1 - u)  # smooth, also between the indices
        return (x - k.beta * M) * k.sigma / (k.beta**2 * S**2 + k.sigma**2)

    _ddim = _ddpm

    def _sub_vp_sde(self, u, x):
        b = torch.exp(-(u**2) * 19.9 / 4 - u * 0.1 / 2)
        return (x - b * M) * (1 - b**2) / (b**2 * S**2 + (1 - b**2) ** 2)

    def _ve_sde(self, c_noise, scaled):
        sigma = torch.exp(4 * c_noise)
        x = scaled * (sigma**2 + 0.25).sqrt()
        return (x - M) * sigma / (S**2 + sigma**2)

    def _edm(self, c_noise, scaled):
        sigma, sd = torch.exp(4 * c_noise), 0.5
        x = scaled * (sigma**2 + sd**2).sqrt()
        denoised = M + S**2 * (x - M) / (S**2 + sigma**2)
        c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
        return (denoised - c_skip * x) / c_out


def tolerance(name):
    """Of an adaptive solver; a table's curve has a kink at each of its thousand nodes."""
    return 1e-6 if name in ("ddim", "ddpm") else 1e-9


def exact(name):
    return adapters.create(name, (2,), Exact(name)).double()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_flow_is_the_closed_form(name):
    """phi(z) = beta_1 m + sqrt(S_1 / S_0) (z - beta_0 m), S_t = beta^2 s^2 + sigma^2."""
    family = exact(name)
    k0, k1 = (family.path.coefficients(t) for t in (0.0, 1.0))
    z = torch.tensor([[-1.0, 0.3], [0.5, 1.7]], dtype=torch.float64) * k0.sigma
    ratio = ((k1.beta**2 * S**2 + k1.sigma**2) / (k0.beta**2 * S**2 + k0.sigma**2)).sqrt()
    wanted = k1.beta * M + ratio * (z - k0.beta * M)
    # denoise=False: the state at t = 1, before the step to clean data that VE and EDM end with.
    tol = tolerance(name)
    found = family.reverse(z, rtol=tol, atol=tol, denoise=False)
    # The local errors of some hundred steps, and backwards grown by the flow's slope of at most 2.
    torch.testing.assert_close(found, wanted, rtol=0, atol=300 * tol)
    back = family.forward(found, rtol=tol, atol=tol)
    torch.testing.assert_close(back, z, rtol=1000 * tol, atol=1000 * tol)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_density_is_that_of_the_flow_from_the_base(name):
    """N(b_1 m - r b_0 m, r^2 sigma_0^2), r the flow's slope: the leak of the data into the base too."""
    family = exact(name)
    k0, k1 = (family.path.coefficients(t) for t in (0.0, 1.0))
    ratio = ((k1.beta**2 * S**2 + k1.sigma**2) / (k0.beta**2 * S**2 + k0.sigma**2)).sqrt()
    x = TARGET.sample(5, seed=0, dtype=torch.float64)
    law = torch.distributions.Normal(k1.beta * M - ratio * k0.beta * M, ratio * k0.sigma)
    tol = tolerance(name)
    found = family.log_prob(x, rtol=tol, atol=tol)
    torch.testing.assert_close(found, law.log_prob(x).sum(1), rtol=0, atol=1000 * tol)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"method": "euler_maruyama", "steps": 100}])
def test_samples_have_the_law_of_the_data(name, options):
    """Mean and standard deviation of 20 000 samples."""
    family = exact(name)
    if options and family.diffusion is None:
        options = {**options, "diffusion": lambda t: 1 - t}
    x = family.sample(10_000, seed=3, **options)
    # Standard errors .0035 and .0025, the base's leak .003; a hundred first-order steps of the
    # papers' noise are 6 % narrow at most.
    assert x.mean().item() == pytest.approx(M, abs=0.02)
    # Fifty steps of DDIM leave .4719 of .5, a known number.
    wide = 0.4719 if name == "ddim" and not options else S
    assert x.std().item() == pytest.approx(wide, abs=0.035 if options else 0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exact_network_has_the_least_loss(name):
    """The loss at the exact network is the mean posterior variance under the family's weight.

    In units of the noise's error the posterior variance of n given x is beta^2 s^2 / S, that of x1
    sigma^2 s^2 / S and that of the straight velocity s^2 / S.
    """
    family = exact(name)
    g = torch.Generator().manual_seed(1)
    x = TARGET.sample(40_000, seed=1, dtype=torch.float64)
    found = family.loss(x, g).item()
    t = family.regression.times.draw(200_000, generator=g)
    k = family.path.coefficients(t)
    total = k.beta**2 * S**2 + k.sigma**2
    if family.view == "velocity":
        rows = S**2 / total
    elif family.view == "noise":
        rows = k.beta**2 * S**2 / total
    else:
        sd = 0.5
        weight = k.sigma**-2 if name == "ve_sde" else (k.sigma**2 + sd**2) / (k.sigma * sd) ** 2
        rows = weight * k.sigma**2 * S**2 / total
    # A squared normal error varies by sqrt(2) of its mean: 80 000 elements, five standard errors.
    assert found == pytest.approx(rows.mean().item(), rel=0.03)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_it_is_made_from_a_shape_alone_learns_and_samples(name, shape):
    torch.manual_seed(0)
    family = adapters.create(name, shape=shape)
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(family.network.parameters(), 3e-3)
    x = (M + S * torch.randn(64, *shape, generator=g)).clamp(-1, 1)
    before = family.loss(x, torch.Generator().manual_seed(7)).item()
    for _ in range(20):
        optimizer.zero_grad()
        family.loss(x, g).backward()
        optimizer.step()
    assert family.loss(x, torch.Generator().manual_seed(7)).item() < before
    whole = family.sample(3, seed=0, steps=4)
    assert whole.shape == (3, *shape)
    assert whole.isfinite().all()
    part = family.sample(1, seed=0, first_row=2, steps=4)
    torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-4)  # float32, another batch size


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_rebuilds_the_family(name):
    config = {"classes": 3, "width": 8, "levels": 17}
    family = adapters.create(name, shape=(4,), **config)
    json.dumps(family.config)
    again = adapters.create(name, **family.config)
    again.load_state_dict(family.state_dict())
    a, b = (f.sample(3, seed=0, steps=3, label=[0, 1, 2], guidance=2.0) for f in (family, again))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert again.config == family.config


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_options_are_named(name):
    with pytest.raises(UnknownName, match="label_dropout"):
        adapters.create(name, shape=(2,), label_droput=0.2)


# Rectified flow


def reflowed(distil=False):
    """A family on Gaussian data whose first phase is over, exactly."""
    family = adapters.create(
        "rectified_flow", (2,), Exact("rectified_flow"), pairs=4000, distil=distil
    ).double()
    total = 3 if distil else 2
    for step in range(total - 1):
        family.after_stage(step, total)
    return family


def test_a_reflow_begins_where_its_phase_does():
    family = adapters.create("rectified_flow", (2,), reflows=2, distil=True)
    assert list(family.stages()) == ["flow", "reflow 1", "reflow 2", "distil"]
    phases = []
    family.loss = lambda batch, generator=None: (
        phases.append(int(family.phase)) or sum(p.sum() for p in family.network.parameters())
    )
    interp.train(family, torch.zeros(4, 2), 10, progress=False)
    assert phases == [family.stages().index(family.stage(step, 10)) for step in range(10)]


def test_what_a_flow_has_made_lies_on_no_grid_of_levels():
    family = adapters.create("rectified_flow", (2,), width=8, levels=3, pairs=500, pair_steps=2)
    data = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    interp.train(family, data, 4, batch_size=3, progress=False)  # the pairs run outside [-1, 1]
    assert family._flown()[2].abs().max() > 1
    with pytest.raises(DataError, match="outside"):
        adapters.create("rectified_flow", (2,), width=8, levels=3).loss(2 * data)


def test_after_a_reflow_the_least_loss_is_nothing_at_the_straight_velocity():
    """v = m + (s - 1)(x - t m) / (1 - t + t s) carries x0 to m + s x0 in a straight line."""
    family = reflowed()

    class Straight(nn.Module):
        def forward(self, t, x):
            t = t.reshape(-1, 1)
            return M + (S - 1) * (x - t * M) / (1 - t + t * S)

    before = family.loss(torch.zeros(500, 2, dtype=torch.float64)).item()
    family.network = Straight()
    after = family.loss(torch.zeros(500, 2, dtype=torch.float64)).item()
    assert before > 1e-2
    # What is left is the error of 16 Heun steps in the pairs, about 1e-3, squared.
    assert after < 1e-5
    assert family.straightness(200) < 1e-9
    z = family.path.base.sample((50, 2), seed=1, dtype=torch.float64)
    one = family.sample(50, seed=1, method="euler", steps=1)
    torch.testing.assert_close(one, M + S * z, rtol=0, atol=1e-9)


def test_distillation_is_least_at_the_whole_flow():
    family = reflowed(distil=True)
    assert int(family.phase) == 2

    class Map(nn.Module):
        def forward(self, t, x):
            return M + (S - 1) * x

    family.network = Map()
    assert family.loss(torch.zeros(500, 2, dtype=torch.float64)).item() < 1e-5


def test_straightness_is_the_curvature_of_the_flow():
    """Along x_t = t m + sqrt(S_t) z the velocity is m + (sqrt S_t)' z: a number by quadrature."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    root = ((1 - t) ** 2 + t**2 * S**2).sqrt()
    slope = (t * S**2 - (1 - t)) / root
    wanted = (S - 1 - slope).square().mean().item()
    # E z^2 over 4000 elements has a relative standard error of .022.
    assert exact("rectified_flow").straightness(2000) == pytest.approx(wanted, rel=0.1)


def test_pairs_do_not_depend_on_when_they_are_asked_for():
    a, b = reflowed(), reflowed()
    b._flown()
    g = [torch.Generator().manual_seed(2) for _ in range(2)]
    x = torch.zeros(7, 2, dtype=torch.float64)
    assert a.loss(x, g[0]).item() == b.loss(x, g[1]).item()


def test_a_base_that_is_not_gaussian_is_refused():
    with pytest.raises(OptionError, match="gaussian_base"):
        adapters.create("flow_matching", (2,), path=schedules.brownian_bridge(1.0))


@pytest.mark.parametrize("name", ["flow_matching", "vae", "gan", "meanflow", "jko"])
def test_numbers_and_labels_that_are_none_are_named(name):
    family = adapters.create(name, (2,)).eval()
    for n in (-1, 2.5):
        with pytest.raises(OptionError, match="number of rows"):
            family.sample(n, seed=0)
    with pytest.raises(DataError, match="labels of a batch are a list"):
        family.loss({"x": torch.zeros(2, 2), "label": [0, 1]})
    labelled = adapters.create("flow_matching", (2,), classes=3)
    with pytest.raises(OptionError, match="label='one'"):
        labelled.sample(2, seed=0, label="one")
    with pytest.raises(OptionError, match="guidance='2'"):
        labelled.sample(2, seed=0, label=1, guidance="2")
