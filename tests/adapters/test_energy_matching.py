"""Energy matching: the dynamics and the losses with a potential in closed form, and one small run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from interp.errors import OptionError, UnknownName, Unsupported

F64 = torch.float64
M, K = 0.4, 0.5


class Quadratic(nn.Module):
    """V = |x - m|^2 / (2 k)."""

    def __init__(self, m=M, k=K):
        super().__init__()
        self.m, self.k = nn.Parameter(torch.tensor(m, dtype=F64)), k

    def forward(self, t, x):
        return (x - self.m).square().flatten(1).sum(1) / (2 * self.k)


def quadratic(**config):
    return adapters.create("energy_matching", (2,), Quadratic(), temperature=0.2, **config).double()


def variance(t, cutoff, s0=1.0, eps=0.2, steps=2000):
    """S' = -2 S / k + 2 eps(t), S(0) = s0, by small steps."""
    s, h = s0, t / steps
    for i in range(steps):
        now = (i + 0.5) * h
        ramp = min(1.0, max(0.0, (now - cutoff) / (1 - cutoff)))
        s += h * (-2 * s / K + 2 * eps * ramp)
    return s


def test_the_dynamics_have_their_variance_and_mean():
    """m (1 - e^{-t / k}) and S' = -2 S / k + 2 eps(t), at t = 1.4 of a cutoff at 1 / 2."""
    family = quadratic(cutoff=0.5, until=1.4)
    x = family.sample(4000, seed=0, steps=140)
    # Standard errors of 8000 elements: .004 and 1.6 %; steps of .01 bring 2 % more.
    assert x.mean().item() == pytest.approx(M * (1 - math.exp(-1.4 / K)), abs=0.015)
    assert x.var().item() == pytest.approx(variance(1.4, 0.5), rel=0.08)


@pytest.mark.parametrize("method", ["mala", "hmc", "langevin", "underdamped"])
def test_chains_end_at_the_boltzmann_law(method):
    """N(m, eps k): .1 in variance."""
    x = quadratic().sample(
        5000, seed=0, method=method, steps=60, step_size=0.05 if method != "hmc" else 0.2
    )
    assert x.mean().item() == pytest.approx(M, abs=0.02)
    # Standard error 1.8 %; Langevin's steps of h widen by h / (2 k) = 5 %.
    assert x.var().item() == pytest.approx(0.1, rel=0.1)


def test_the_flow_is_the_closed_form_and_is_undone():
    family = quadratic()
    z = torch.randn(5, 2, dtype=F64)
    x = family.reverse(z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x, M + (z - M) * math.exp(-1 / K), rtol=0, atol=1e-7)
    torch.testing.assert_close(family.forward(x, rtol=1e-9, atol=1e-9), z, rtol=0, atol=1e-6)
    heun = family.sample(5, seed=0, method="heun", steps=50)
    wanted = family.reverse(interp.noise.normal((5, 2), seed=0, dtype=F64))
    torch.testing.assert_close(heun, wanted, rtol=0, atol=2e-3)


def test_the_slope_is_minus_the_temperature_times_the_score():
    """grad V = -eps grad log p, for V = -eps log p of a mixture; and it has no curl."""
    target = interp.exact.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, [0.3, 0.2]])

    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.eps = nn.Parameter(torch.tensor(0.2, dtype=F64))

        def forward(self, t, x):
            return -self.eps * target.log_prob(x)

    family = adapters.create("energy_matching", (2,), Exact(), temperature=0.2).double()
    x = target.sample(50, seed=0, dtype=F64)
    score = target.score(interp.schedules.linear())(1.0, x)
    velocity = family.velocity(torch.zeros(()), x)
    torch.testing.assert_close(velocity, 0.2 * score, rtol=1e-9, atol=1e-9)
    assert interp.curl(lambda x: family.velocity(x, x), x).max() < 1e-12
    # The Boltzmann law is the target's, up to the constant.
    value = family.boltzmann().value_and_gradient(x, (), {})[0] / 0.2
    torch.testing.assert_close(-value, target.log_prob(x), rtol=0, atol=1e-9)


def test_the_flow_loss_is_its_formula():
    """E w(t) |grad V(x_t) + x1 - x0|^2 at given pairs, with w from 1 at the cutoff to 0 at t = 1."""
    family = quadratic(cutoff=0.5, coupling=None)
    x1 = torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.3
    found = family.loss(x1, torch.Generator().manual_seed(1))["flow"].item()
    x0 = torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    t = torch.rand(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
    point, w = (1 - t) * x0 + t * x1, ((1 - t) / 0.5).clamp(max=1)
    wanted = (w * ((point - M) / K + x1 - x0).square()).mean().item()
    assert found == pytest.approx(
        wanted, rel=0.06
    )  # two means over 4000 rows: standard error 1.5 % each


def test_the_weights_move_by_the_slope():
    """d/dm of |grad V + u|^2 goes through the gradient by x: without create_graph it would be none."""
    family = quadratic(coupling=None)
    loss = family.loss(torch.zeros(64, 2, dtype=F64), torch.Generator().manual_seed(0))["flow"]
    (slope,) = torch.autograd.grad(loss, family.network.m)
    assert slope.abs() > 0.1


def test_the_contrast_pulls_down_at_data_and_pushes_up_at_negatives():
    family = quadratic(chain_steps=100, step_size=0.05, negatives=2000, contrast=1.0)
    family.after_stage(0, 10)
    x1 = 1.0 + 0.2 * torch.randn(1000, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    losses = family.loss(x1, torch.Generator().manual_seed(1))
    # Half the negatives are N(m, eps k) by then, and the others nearly: they began at t = 0 and cooled.
    at_data = (x1 - M).square().sum(1).mean().item() / (2 * K)
    (slope,) = torch.autograd.grad(losses["contrast"], family.network.m)
    negatives = family._negatives(x1, torch.Generator().manual_seed(2))
    gap = at_data - family.energy(negatives).mean().item()
    assert losses["contrast"].item() == pytest.approx(gap, abs=0.04)  # of 2000 energies, std .2
    # d/dm (E V(data) - E V(neg)) = -(mean data - mean neg) / k a dimension: m moves to the data.
    assert slope.item() == pytest.approx(-2 * (x1.mean() - negatives.mean()).item() / K, rel=0.05)


def test_phases_and_their_share():
    family = quadratic(contrast_share=0.25)
    assert family.stages() == ("flow", "contrast")
    assert [family.stage(k, 8) for k in (0, 5, 6, 7)] == ["flow", "flow", "contrast", "contrast"]
    assert quadratic(contrast_share=0.0).stages() == ("flow",)


def test_it_learns_a_mixture_and_its_weights():
    """Better than a normal fit by half, in the energy distance to held-out data."""
    target = interp.exact.Mixture([0.3, 0.7], [[-1.2, 0.0], [0.9, 0.6]], [0.05, 0.08])
    torch.manual_seed(0)
    family = adapters.create(
        "energy_matching", (2,), width=32, chain_steps=20, lr=4e-3, temperature=0.1, contrast=0.1
    )
    interp.train(family, target.sample(4000, seed=0), 200, progress=False)
    real = target.sample(1000, seed=1).double()
    fit = interp.exact.Gaussian(real.mean(0), real.T.cov()).sample(1000, seed=2, dtype=F64)
    found = family.sample(1000, seed=3)
    assert _distance(found.double(), real) < 0.5 * _distance(fit, real)
    part = family.sample(2, seed=3, first_row=5)
    torch.testing.assert_close(part, found[5:7], rtol=1e-4, atol=1e-4)


def _distance(x, y):
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_it_is_made_from_a_shape_alone_and_again_from_its_config(shape):
    torch.manual_seed(0)
    family = adapters.create("energy_matching", shape=shape, width=8)
    x = torch.rand(16, *shape) * 2 - 1
    sum(family.loss(x).values()).backward()
    assert family.sample(2, seed=0).isfinite().all()
    again = adapters.create("energy_matching", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())
    assert torch.equal(again.energy(x), family.energy(x))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0}, {"cutoff": 0.0}, {"cutoff": 1.5}, {"contrast_share": 1.0},
        {"until": 0.5}, {"negatives": 1}, {"chain_steps": 0}, {"step_size": -1.0}, {"clamp": 0},
    ],
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        adapters.create("energy_matching", (2,), **options)


def test_what_it_has_not():
    family = quadratic()
    assert family.supports("log_prob") is False
    with pytest.raises(Unsupported, match="log_prob"):
        family.log_prob(torch.zeros(1, 2))
    with pytest.raises(UnknownName, match="coupling"):
        adapters.create("energy_matching", (2,), coupling="optimal_transprt")
