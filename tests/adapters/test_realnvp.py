"""Real NVP: its inverse, its determinant by another route, its density as a density."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import make_moons

import adapters
import interp
from adapters.realnvp import masks
from interp.errors import DataError, OptionError, UnknownName
from interp.exact import Gaussian
from interp.likelihood import dequantise

SHAPES = [
    ((1,), {}),
    ((5,), {}),
    ((2, 3), {}),
    ((1, 4, 4), {}),
    ((2, 3, 5), {}),
    ((1, 4, 4), {"levels": 5}),
]


def shaken(shape, **options):
    """A flow far from the identity."""
    torch.manual_seed(0)
    family = adapters.create("realnvp", shape, width=16, layers=7, **options).double()
    for p in family.parameters():
        p.data.normal_(0, 0.1 if len(shape) == 3 else 0.3)
    return family


def points(shape, levels=None, rows=4):
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1)).double()
    if levels is None:
        return x
    grid = ((x.clamp(-1, 1) + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    return dequantise(grid, levels, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_reverse_undoes_forward(shape, options):
    family, x = shaken(shape, **options), points(shape, **options)
    z = family.forward(x)
    assert (z - x).abs().max() > 0.1
    # Float64, seven layers whose scales are of order one; with levels a logit and back.
    torch.testing.assert_close(family.reverse(z), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_the_log_determinant_is_that_of_the_jacobian(shape, options):
    family, x = shaken(shape, **options), points(shape, **options)
    normal = torch.distributions.Normal(0.0, 1.0)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(
            lambda v: family.forward(v.reshape(1, *shape)).flatten(), row.flatten()
        )
        _, log_det = torch.linalg.slogdet(jacobian)
        wanted = normal.log_prob(family.forward(row[None])).sum() + log_det
        torch.testing.assert_close(family.log_prob(row[None])[0], wanted, rtol=0, atol=1e-9)


def test_the_density_has_mass_one_on_the_line_and_in_the_plane():
    grid = torch.linspace(-25, 25, 501).double()
    cell = (grid[1] - grid[0]).item()
    line = shaken((1,)).log_prob(grid[:, None]).exp().sum().item() * cell
    both = torch.cartesian_prod(grid, grid)
    plane = shaken((2,)).log_prob(both).exp().sum().item() * cell**2
    # Smooth densities on a grid of spacing 1/10; what is lost are their tails past 25.
    assert line == pytest.approx(1, abs=1e-3)
    assert plane == pytest.approx(1, abs=5e-3)


def test_the_density_of_grey_levels_has_mass_one_on_what_the_logit_reaches():
    """One pixel; p in (0, 1) is the span of all cells and a little more at both ends."""
    family = shaken((1, 1, 1), levels=3)
    p = (torch.arange(20_000).double() + 0.5) / 20_000
    x = (p - family.margin) / (1 - 2 * family.margin) - 0.5
    x = x * family._span
    inside = x.abs() <= family._span / 2
    share = (
        family.log_prob(x[inside].reshape(-1, 1, 1, 1)).exp().sum().item() * (x[1] - x[0]).item()
    )
    z = family.forward(family._span / 2 * torch.tensor([-1.0, 1.0]).double().reshape(2, 1, 1, 1))
    wanted = torch.special.ndtr(z.max()) - torch.special.ndtr(z.min())
    # The midpoint rule on 20,000 cells of a smooth function.
    assert share == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_a_flow_starts_as_the_identity(shape, options):
    family = adapters.create("realnvp", shape, width=8, **options).double()
    x = points(shape, **options)
    z = family.forward(x)
    if "levels" not in options:
        assert torch.equal(z, x)
    else:
        w = 2 / (options["levels"] - 1)
        u = (x + 1 + w / 2) / (2 + w)
        torch.testing.assert_close(torch.sigmoid(z), 0.05 + 0.9 * u)


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 3), (1, 4, 4), (3, 5, 7)])
def test_masks_keep_something_move_something_and_take_turns(shape):
    cycle = masks(shape, 6)
    for one, other in zip(cycle[::2], cycle[1::2], strict=True):
        assert one.shape == shape
        assert torch.equal(one + other, torch.ones(shape))
        assert 0 < one.sum() < math.prod(shape)


def test_training_on_moons_beats_the_best_gaussian():
    x, _ = make_moons(3000, noise=0.05, random_state=0)
    x = torch.tensor(x)
    torch.manual_seed(0)
    family = adapters.create("realnvp", (2,), width=48, layers=6, lr=5e-3)
    interp.train(family, x[:2000].float(), 300, batch_size=256, ema=0.95, progress=False)
    held = x[2000:]
    gaussian = Gaussian(x[:2000].mean(0), x[:2000].T.cov()).log_prob(held).mean().item()
    with torch.no_grad():
        found = family.log_prob(held.float()).mean().item()
    # Two arcs of length pi and breadth .05 have about -log(2 pi) - log(.05 sqrt(2 pi e)) = -.26 nats,
    # the Gaussian about -2.0; halfway is a wide margin over noise of .02 in the mean of 1000 rows.
    assert found > gaussian + 0.9


def test_bits_are_counted_with_the_determinant_of_the_logit():
    """A flow that is the identity gives z = logit(p): its density by hand."""
    family = adapters.create("realnvp", (1, 4, 4), levels=17, width=8).double()
    x = points((1, 4, 4), levels=17)
    w = 1 / 8
    p = 0.05 + 0.9 * (x + 1 + w / 2) / (2 + w)
    z = (p / (1 - p)).log()
    each = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) + math.log(0.9 / (2 + w)) - (p * (1 - p)).log()
    torch.testing.assert_close(family.log_prob(x), each.flatten(1).sum(1))
    grid = ((x + 1) * 8).round() / 8 - 1
    assert family.bits_per_dim(grid).shape == (4,)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (OptionError, "margin is", {"margin": 0.5}),
        (OptionError, "layers=0", {"layers": 0}),
        (OptionError, "levels=1", {"levels": 1}),
        (OptionError, "width=0", {"width": 0}),
        (UnknownName, "mlp", {"network": "mpl"}),
        (OptionError, "images", {"network": "conv"}),
        (OptionError, "layer 0, layer 1", {"network": (torch.nn.Identity(),), "layers": 2}),
    ],
)
def test_options_that_make_no_sense_are_refused_when_made(error, message, options):
    with pytest.raises(error, match=message):
        adapters.create("realnvp", (4,), **options)


def test_images_outside_their_levels_are_refused():
    family = adapters.create("realnvp", (1, 4, 4), levels=17, width=8)
    with pytest.raises(DataError, match="outside"):
        family.log_prob(torch.full((1, 1, 4, 4), 1.2))
    with pytest.raises(DataError, match="outside"):
        family.loss(torch.full((1, 1, 4, 4), 1.05))
    with pytest.raises(OptionError, match="no option 'steps'"):
        family.sample(1, steps=3)
