"""Score matching on N(M, S^2): the smoothed score, its loss, and the law that each sampler ends in."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from interp.errors import OptionError, UnknownName

M, S = 0.4, 0.5
LEVELS = {"sigma_min": 0.05, "sigma_max": 2.0, "scales": 6}


class Noise(nn.Module):
    """E[z | x + sigma z] for N(M, S^2), in the family's units, from the papers' formulas."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, told, scaled, label=None):
        sigma = torch.exp(4 * told.reshape(-1, 1))
        x = scaled * (sigma**2 + 0.25).sqrt()
        return self.one * (x - M) * sigma / (S**2 + sigma**2)


def exact(**options):
    return adapters.create("score_matching", (2,), Noise(), **{**LEVELS, **options}).double()


def data(n, seed=0):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return M + S * z


def test_the_levels_are_geometric_and_the_score_is_the_smoothed_one():
    f = exact()
    wanted = [0.05 * 40 ** (k / 5) for k in range(6)]
    assert f.sigmas == pytest.approx(wanted)
    x = data(4)
    for sigma in f.sigmas:
        found = f.score(x, sigma)
        torch.testing.assert_close(found, -(x - M) / (S**2 + sigma**2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["denoising", "sliced", "sliced_vr"])
def test_the_least_loss_is_known_and_is_at_the_smoothed_score(objective):
    """s1^2 / (s1^2 + sigma^2) in the mean over the levels; 1 less for the sliced losses."""
    f = exact(objective=objective)
    least = sum(S**2 / (S**2 + s**2) for s in f.sigmas) / 6 - (objective != "denoising")
    g = torch.Generator().manual_seed(3)
    x = data(20_000)
    # A squared normal varies by sqrt(2): 40 000 elements, five standard errors.
    assert f.loss(x, g).item() == pytest.approx(least, abs=0.03)
    (slope,) = torch.autograd.grad(f.loss(x, g), f.network.one)
    # The mean of the gradient at a minimiser is 0; off it by 10 % it is about .1.
    assert slope.item() == pytest.approx(0, abs=0.05)


def test_the_two_sliced_losses_differ_by_their_variance_alone():
    plain, reduced = (
        torch.stack([exact(objective=o).loss(data(200), torch.Generator().manual_seed(i))
                     for i in range(20)])
        for o in ("sliced", "sliced_vr")
    )  # fmt: skip
    assert reduced.std() < plain.std()


def test_annealed_samples_have_the_law_of_the_data():
    """Standard errors of 4000 numbers: .008 and .006."""
    x = exact().sample(2000, seed=1, steps=100)
    assert x.mean().item() == pytest.approx(M, abs=0.03)
    assert x.std().item() == pytest.approx(S, abs=0.03)


def test_fewer_longer_steps_go_as_far_as_the_papers():
    """N(M, 1/4) at the paper's levels, by the linear recursion of the variance and by samples."""
    f = adapters.create("score_matching", (2,), Noise()).double()
    widths = []
    for steps, share in ((100, 0.2), (25, 0.8)):
        variance = f.sigmas[-1] ** 2
        for sigma in f.sigmas[::-1]:
            for _ in range(steps):
                kept = 1 - share * sigma**2 / (S**2 + sigma**2)
                variance = kept**2 * variance + 2 * share * sigma**2
        low = f.sigmas[0] ** 2
        widths.append(math.sqrt(variance) * S**2 / (S**2 + low))
    assert widths == pytest.approx([1.0145 * S, 1.0188 * S], rel=1e-4)
    # A standard error of 8000 numbers is .8 %.
    assert f.sample(4000, seed=1).std().item() == pytest.approx(widths[1], rel=0.025)


def test_the_flow_begins_at_the_least_level_where_the_network_was_told_one():
    """From N(M, S^2 + low^2) to N(0, high^2) and back: affine, of the ratio of the deviations."""
    f = exact()
    x, low, high = data(5), f.sigmas[0], f.sigmas[-1]
    z = f.forward(x, rtol=1e-9, atol=1e-9)
    ratio = math.sqrt((S**2 + high**2) / (S**2 + low**2))
    torch.testing.assert_close(z, M + ratio * (x - M), rtol=1e-6, atol=1e-6)
    expected = torch.distributions.Normal(0, high).log_prob(z).sum(1) + 2 * math.log(ratio)
    torch.testing.assert_close(f.log_prob(x, rtol=1e-9, atol=1e-9), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"method": "heun", "steps": 40}, {"method": "ddim", "steps": 80}]
)
def test_the_flow_keeps_what_its_start_leaves_out(options):
    """From N(0, 2^2) instead of the data plus that: a chain forgets where it started, the flow does not."""
    x = exact().sample(2000, seed=1, **options)
    kept = 2.0 / math.hypot(2.0, S)
    # The same standard errors; first-order steps are 2 % narrow.
    assert x.mean().item() == pytest.approx(M * (1 - kept * S / 2), abs=0.03)
    assert x.std().item() == pytest.approx(S * kept, abs=0.03)


def test_a_step_is_that_of_the_papers_code():
    """x += h s + sqrt(2 h) z with h = step (sigma / sigma_min)^2: a line in x, of known slope."""
    f = exact()
    n, step = 3, 0.001
    options = {"steps": 1, "step_size": step, "denoise": False, "seed": 4}
    noise = None
    for shift in (0.0, 1.0):
        start = f.start(n, 4) + shift
        f.start = lambda *a, start=start: start
        x = f.sample(n, **options)
        if noise is None:
            noise = x
        else:
            kept = math.prod(1 - step * (s / 0.05) ** 2 / (S**2 + s**2) for s in f.sigmas)
            torch.testing.assert_close(x - noise, torch.full_like(x, kept), rtol=0, atol=1e-9)
    assert math.isclose(
        adapters.create("score_matching", (2,)).sigmas[0] ** 2 * 0.2, 2e-5 * 4
    )  # the paper's 2e-5 at sigma_min = .01, for images twice as wide


def test_chunks_are_the_whole_and_the_config_rebuilds_it():
    f = adapters.create("score_matching", (3,), width=8, scales=3, classes=2, objective="sliced_vr")
    options = {"seed": 5, "steps": 3, "guidance": 1.5}
    whole = f.sample(4, label=[0, 1, 1, 0], **options)
    part = f.sample(2, first_row=2, label=[1, 0], **options)
    torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-4)  # another batch size
    again = adapters.create("score_matching", **json.loads(json.dumps(f.config)))
    again.load_state_dict(f.state_dict())
    a = again.sample(4, label=[0, 1, 1, 0], **options)
    torch.testing.assert_close(a, whole, rtol=0, atol=0)


def test_it_is_made_from_a_shape_alone():
    f = adapters.create("score_matching", (1, 8, 8))
    f.loss(torch.rand(4, 1, 8, 8)).backward()
    x = f.sample(2, seed=0, steps=1)
    assert x.shape == (2, 1, 8, 8)
    assert x.isfinite().all()


@pytest.mark.parametrize("objective", ["denoising", "sliced_vr"])
def test_it_learns_a_mixture_better_than_a_normal_fit(objective):
    torch.manual_seed(0)
    f = adapters.create(
        "score_matching", (1,), width=32, objective=objective, scales=5, sigma_min=0.1,
        sigma_data=1.0, sigma_max=3.0, lr=1e-2,
    )  # fmt: skip
    x = torch.randn(2000, 1).sign() + 0.1 * torch.randn(2000, 1)
    interp.train(f, x, 200, ema=0.95, progress=False)
    y = f.sample(500, seed=0, steps=20)
    # Between the modes, |x| < 1/2, a normal fit of variance 1.01 has 38 % and the data nothing.
    assert (y.abs() < 0.5).float().mean().item() < 0.1
    assert abs((y > 0).float().mean().item() - 0.5) < 0.2


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UnknownName, match="sliced"):
        adapters.create("score_matching", (2,), objective="slice")
    for bad in ({"sigma_min": 0.0}, {"sigma_max": 0.01}, {"sigma_max": math.inf}):
        with pytest.raises(OptionError, match="levels go from"):
            adapters.create("score_matching", (2,), **bad)
    with pytest.raises(OptionError, match="scales"):
        adapters.create("score_matching", (2,), scales=1)
