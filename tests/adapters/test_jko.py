"""JKO's maps and critics, exact on normal laws, and one small run of each kind."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import adapters
import interp
from adapters import jko
from interp.errors import OptionError, UnknownName
from interp.exact import Gaussian, jko_step

F64 = torch.float64
M, S = 1.2, 0.6
TARGET = Gaussian(M, S * S)


class Affine(nn.Module):
    """x + this = slope x + shift."""

    def __init__(self, slope=1.0, shift=0.0):
        super().__init__()
        self.slope, self.shift = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (slope, shift))

    def forward(self, t, x):
        return (self.slope - 1) * x + self.shift


class Ratio(nn.Module):
    """log(nu / rho) between the data and N(mean, var), times a factor."""

    def __init__(self, mean, var):
        super().__init__()
        self.mean, self.var = mean, var
        self.factor = nn.Parameter(torch.ones((), dtype=F64))
        self.shift = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t, x):
        nu = -0.5 * ((x - M).square() / S**2 + math.log(S**2))
        rho = -0.5 * ((x - self.mean).square() / self.var + math.log(self.var))
        return self.factor * (nu - rho).flatten(1).sum(1) + self.shift


def solved(h, steps=1, semi_dual=False):
    """A family in its last step, all of whose maps and whose critic are the exact ones."""
    law, maps = Gaussian(0.0, 1.0), []
    for _ in range(steps):
        end = jko_step(law, h, TARGET)
        slope = (end.cov / law.cov).sqrt().item()
        maps.append(Affine(slope, (end.mean - slope * law.mean).item()))
        law = end
    critic = Ratio(law.mean.item(), law.cov.item())
    family = adapters.create(
        "jko",
        (1,),
        Affine(),
        critic=critic,
        h=h,
        maps=steps,
        one_map=semi_dual,
        semi_dual=semi_dual,
    ).double()
    if semi_dual:
        whole = Gaussian(0.0, 1.0)
        for k in range(steps):
            end = jko_step(whole, h, TARGET)
            family.networks[0].slope.data.copy_(end.cov.sqrt().squeeze())
            family.networks[0].shift.data.copy_(end.mean.squeeze())
            whole = end
            if k < steps - 1:
                family.after_stage(k, steps)
    else:
        for k in range(steps):
            family.networks[k].load_state_dict(maps[k].state_dict())
        for k in range(steps - 1):
            family.after_stage(k, steps)
    return family, law


def data(n=4000):
    return M + S * torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("semi_dual", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("h", [0.1, 2.0])
def test_the_exact_step_is_stationary_at_every_point(h, steps, semi_dual):
    """(y - x) / h + grad f'(rho / nu) = 0, so the map's loss has no slope on any sample."""
    family, law = solved(h, steps, semi_dual)
    loss = family.map_loss(data(100), torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad(loss, list(family.networks[-1].parameters()))
    assert max(s.abs().item() for s in slopes) < 1e-10
    # And the maps end where the closed form does.
    x = family.sample(20_000, seed=0)
    assert x.mean().item() == pytest.approx(law.mean.item(), abs=0.03)
    assert x.std().item() == pytest.approx(law.cov.sqrt().item(), rel=0.03)


@pytest.mark.parametrize("semi_dual", [False, True])
def test_the_exact_ratio_has_the_least_critic_loss(semi_dual):
    """Both critics have one optimum."""
    family, _ = solved(0.5, 1, semi_dual)

    def at(factor, shift):
        family.critic.factor.data.fill_(factor), family.critic.shift.data.fill_(shift)
        return family.critic_loss(data(20_000), torch.Generator().manual_seed(1)).item()

    least = at(1.0, 0.0)
    # Means over the same 20 000 pairs; a tenth of the ratio is worth some 1e-3.
    assert all(at(1 + f, s) > least for f, s in [(0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3)])


DIVERGENCES = {
    "kl": lambda r: r * r.log() - r + 1,
    "reverse_kl": lambda r: -r.log() + r - 1,
    "js": lambda r: 0.5 * (r * r.log() - (1 + r) * ((1 + r) / 2).log()),
    "chi2": lambda r: (r - 1).square(),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_first_variations_are_slopes(name):
    """f'(r) at r = exp(-l), up to a constant."""
    r = torch.linspace(0.1, 4, 40, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(DIVERGENCES[name](r).sum(), r)
    gap = jko._FIRST_VARIATIONS[name](-r.detach().log()) - slope
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["kl", "chi2"])
def test_conjugates_are_suprema(name):
    """sup_r r s - f(r) on a fine grid of r >= 0."""
    r = torch.linspace(1e-9, 12, 200_001, dtype=F64)
    s = torch.tensor([-4.0, -2.5, -1.0, 0.0, 0.5, 1.5], dtype=F64)
    wanted = (r * s[:, None] - DIVERGENCES[name](r)).amax(1)
    torch.testing.assert_close(jko._CONJUGATES[name](s), wanted, rtol=0, atol=1e-6)


def test_neither_player_moves_the_other():
    family, _ = solved(0.5)
    both = family.loss(data(64), torch.Generator().manual_seed(0))
    for term, mine, other in (
        ("map", family.networks, family.critic),
        ("critic", family.critic, family.networks),
    ):
        slopes = torch.autograd.grad(
            both[term], [*mine.parameters(), *other.parameters()], allow_unused=True
        )
        count = len([*mine.parameters()])
        assert all(s is not None for s in slopes[:count])
        assert all(s is None for s in slopes[count:])


def test_the_discrepancy_is_half_the_energy_distance():
    """For N(a, 1) and N(0, 1): E|X - Y| of N(a, 2), less E|Y - Y'| = 2 / sqrt(pi), by quadrature."""
    x = torch.randn(1500, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(1500, 1, dtype=F64, generator=torch.Generator().manual_seed(1)) + 1.0
    z = torch.linspace(-9, 9, 20_001, dtype=F64)
    weight = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    across = torch.trapezoid((1 + math.sqrt(2) * z).abs() * weight, z)
    # Less E|X - X'| / 2 as well, which no map changes.
    wanted = (across - 1 / math.sqrt(math.pi)).item()
    assert jko._half_discrepancy(y, x).item() == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"maps": 2, "functional": "kl"},
        {"maps": 2, "functional": "kl", "one_map": True},
        {"maps": 2, "functional": "mmd", "h": 30.0},
        {"maps": 2, "functional": "kl", "network": "convex", "lr": 1e-2},
        {"maps": 2, "functional": "mmd", "h": 30.0, "network": "convex", "lr": 1e-2},
    ],
)
def test_it_learns_a_mixture(options):
    """Better than a normal fit by a third, in the energy distance to held-out data."""
    target = interp.exact.Mixture([0.3, 0.7], [[-1.2, 0.0], [0.9, 0.6]], [0.05, 0.08])
    torch.manual_seed(0)
    family = adapters.create("jko", (2,), width=32, **{"lr": 3e-3, **options})
    interp.train(family, target.sample(4000, seed=0), 200, progress=False)
    assert int(family.phase) == 1
    real = target.sample(1000, seed=1).double()
    fit = interp.exact.Gaussian(real.mean(0), real.T.cov()).sample(1000, seed=2, dtype=F64)
    found = family.sample(1000, seed=3)
    assert _distance(found.double(), real) < 2 / 3 * _distance(fit, real)
    part = family.sample(2, seed=3, first_row=5)
    torch.testing.assert_close(part, found[5:7], rtol=1e-4, atol=1e-4)


def _distance(x, y):
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@pytest.mark.parametrize("semi_dual", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_it_is_made_from_a_shape_alone_and_again_from_its_config(shape, semi_dual):
    torch.manual_seed(0)
    family = adapters.create("jko", shape=shape, width=8, one_map=semi_dual, semi_dual=semi_dual)
    z = torch.randn(4, *shape)
    assert torch.equal(family.reverse(z), z)  # before training every map is the identity
    sum(family.loss(torch.rand(8, *shape) * 2 - 1).values()).backward()
    assert family.sample(2, seed=0).isfinite().all()
    again = adapters.create("jko", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())


@pytest.mark.parametrize("h", [0.1, 2.0])
def test_a_convex_map_learns_the_closed_form_of_a_step(h):
    """With the exact critic of the step's end, whose map is the only one of least loss at every point."""
    exact_end = jko_step(Gaussian(0.0, 1.0), h, TARGET)
    # m+ = m (1 - 1 / (1 + h / s^2)) from 0, and the root of the quadratic of std+, written out.
    A = 1 / S**2 + 1 / h
    mean, std = M * (1 - 1 / (1 + h / S**2)), (1 / h + math.sqrt(1 / h**2 + 4 * A)) / (2 * A)
    critic = Ratio(exact_end.mean.item(), exact_end.cov.item())
    torch.manual_seed(0)
    family = adapters.create("jko", (1,), "convex", critic=critic, h=h, maps=1, width=16).double()
    adam, g = torch.optim.Adam(family.networks.parameters(), 0.02), torch.Generator().manual_seed(1)
    for step in range(300):
        adam.param_groups[0]["lr"] = 0.02 * (1 - step / 300)
        adam.zero_grad()
        family.map_loss(data(128), g).backward()
        adam.step()
    z = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
    # The map is mean + std z, at every point of the bulk and not in its two moments alone.
    torch.testing.assert_close(family.reverse(z), mean + std * z, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 4, 4)])
@pytest.mark.parametrize("learned", [False, True])
def test_a_convex_map_is_the_gradient_of_a_convex_function(shape, learned):
    torch.manual_seed(0)
    family = adapters.create("jko", shape, "convex", width=16).double()
    network = family.networks[0]
    if learned:  # any weights, of either sign
        for p in network.parameters():
            p.data.normal_(0, 2)
    x, y = torch.randn(2, 500, *shape, dtype=F64)
    middle = network.potential((x + y) / 2)
    ends = (network.potential(x) + network.potential(y)) / 2
    assert (middle < ends).all()
    moved = [family.reverse(at, steps=1) for at in (x, y)]
    assert ((moved[1] - moved[0]) * (y - x)).flatten(1).sum(1).min() > 0
    jacobian = torch.func.jacrev(lambda at: family.reverse(at[None], steps=1)[0].flatten())(x[0])
    jacobian = jacobian.reshape(len(jacobian), -1)
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).min() > 0
    if not learned:  # near the identity
        assert (moved[0] - x).norm() < 0.03 * x.norm()


def test_convex_maps_come_back_from_their_config():
    family = adapters.create("jko", (3,), "convex", width=8, maps=2)
    sum(family.loss(torch.randn(8, 3)).values()).backward()
    assert all(p.grad is not None for p in family.networks[0].parameters())
    again = adapters.create("jko", **json.loads(json.dumps(family.config)))
    again.load_state_dict(family.state_dict())
    assert again.config == family.config
    assert torch.equal(again.sample(3, seed=0), family.sample(3, seed=0))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"functional": "jsd"}, UnknownName, "mean js"),
        ({"functional": "mmd", "semi_dual": True}, OptionError, "semi_dual=False"),
        ({"h": 0.0}, OptionError, "h=0"),
        ({"maps": 0}, OptionError, "maps"),
        ({"critic_steps": 0}, OptionError, "critic_steps"),
        ({"network": "convex", "one_map": True}, OptionError, "one_map=False"),
        ({"network": "konvex"}, UnknownName, "mean convex"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        adapters.create("jko", (2,), **options)


def test_maps_have_no_solver():
    with pytest.raises(UnknownName, match="method"):
        adapters.create("jko", (2,), width=8).sample(1, method="heun")
