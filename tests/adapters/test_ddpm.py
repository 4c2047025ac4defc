"""DDPM's bound, its variances and its steps, against Gaussian data and by enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import adapters
from adapters.ddpm import _log_likelihood
from interp.errors import OptionError, UnknownName

S = 0.5
BETAS = [0.002, 0.01, 0.03, 0.08, 0.15, 0.25, 0.35, 0.45]


class Best(nn.Module):
    """For data N(0, S^2): the exact noise, and the share that gives the exact variance of a step back."""

    def __init__(self, betas=BETAS, best=True):
        super().__init__()
        self.betas = torch.tensor(betas, dtype=torch.float64)
        self.abar = (1 - self.betas).cumprod(0)
        self.best = best
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, x):
        k = (u.double() * len(self.betas)).round().long().reshape(-1, *(1,) * (x.ndim - 1)) - 1
        abar, beta = self.abar[k], self.betas[k]
        before = torch.where(k > 0, self.abar[(k - 1).clamp(min=0)], 1.0)
        total = abar * S**2 + 1 - abar
        noise = (1 - abar).sqrt() / total * x
        # Var(x_{k-1} | x_k): (1/(before S^2 + 1 - before) + (1 - beta)/beta)^-1, x1 at k = 0.
        exact = 1 / (1 / (before * S**2 + 1 - before) + (1 - beta) / beta)
        small = beta * (1 - before) / (1 - abar)
        first = self.betas[1] * self.betas[0] / (1 - self.abar[1])
        low, high = torch.where(k > 0, small, first).log(), beta.log()
        share = (exact.log() - low) / (high - low) if self.best else torch.ones_like(low)
        raw = (2 * share - 1).expand_as(x)
        return torch.cat([self.one * noise, raw], dim=1)


def learned(**options):
    return adapters.create(
        "ddpm", (2,), Best(), table=BETAS, variance="learned", **options
    ).double()


def test_the_bound_of_the_exact_chain_is_the_likelihood():
    """With the exact reverse chain E elbo = -H(data) - KL(q(x_T) || N(0, 1)): nothing else is lost."""
    family = learned()
    x = S * torch.randn(8000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = family.elbo(x, generator=torch.Generator().manual_seed(1))
    abar = math.prod(1 - b for b in BETAS)
    total = abar * S**2 + 1 - abar
    wanted = -0.5 * math.log(2 * math.pi * math.e * S**2) - 0.5 * (total - 1 - math.log(total))
    # The spread of a row's elbo over sqrt(rows): one standard error, of which four.
    error = 4 * found.std().item() / math.sqrt(len(found))
    assert found.mean().item() == pytest.approx(2 * wanted, abs=error)
    assert error < 0.1


@pytest.mark.parametrize("variance", ["fixedsmall", "fixedlarge"])
def test_a_fixed_variance_loses_something(variance):
    """The same mean and data, a variance that is not the chain's: the bound falls by sums of KLs."""

    class Mean(Best):
        def forward(self, u, x):
            return super().forward(u, x).chunk(2, dim=1)[0]

    x = S * torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fixed = adapters.create("ddpm", (2,), Mean(), table=BETAS, variance=variance).double()
    a, b = (
        f.elbo(x, generator=torch.Generator().manual_seed(1)).mean() for f in (fixed, learned())
    )
    assert a < b - 0.05


@pytest.mark.parametrize("std", [1e-3, 0.05, 0.5, 20.0])
def test_the_cells_of_the_grey_levels_hold_all_the_mass(std):
    levels = 17
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    mean = torch.linspace(-3, 3, 31, dtype=torch.float64)[None]
    log_var = torch.full_like(mean, 2 * math.log(std))
    found = _log_likelihood(x, mean, log_var, levels)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(0), torch.ones(31, dtype=torch.float64))


def test_the_cells_deep_in_the_tails_are_those_of_mpmath():
    import mpmath

    x = torch.tensor([0.5, -0.5, 1.0, -1.0], dtype=torch.float64)
    mean = torch.tensor([-0.8, 0.7, -0.9, 0.9], dtype=torch.float64)
    found = _log_likelihood(x, mean, torch.full((4,), 2 * math.log(0.05), dtype=torch.float64), 17)
    with mpmath.workdps(400):
        half, wanted = mpmath.mpf(1) / 16, []
        for a, m in zip(x.tolist(), mean.tolist(), strict=True):
            lo = mpmath.mpf("-inf") if a == -1 else (mpmath.mpf(a) - m - half) / mpmath.mpf("0.05")
            hi = mpmath.mpf("inf") if a == 1 else (mpmath.mpf(a) - m + half) / mpmath.mpf("0.05")
            wanted.append(float(mpmath.log(mpmath.ncdf(hi) - mpmath.ncdf(lo))))
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_hybrid_moves_the_mean_by_l_simple_alone():
    torch.manual_seed(0)
    family = adapters.create("ddpm", (1, 8, 8), variance="learned", width=8)
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    terms = family.loss(x, torch.Generator().manual_seed(0))
    assert set(terms) == {"simple", "vlb"}
    last = family.network.last.weight  # (2 channels, ...): the noise, then the variance
    (by_vlb,) = torch.autograd.grad(terms["vlb"], last, retain_graph=True)
    (by_simple,) = torch.autograd.grad(terms["simple"], last)
    assert not by_vlb[0].any()
    assert by_vlb[1].any()
    assert by_simple[0].any()
    assert not by_simple[1].any()


def test_the_vlb_is_an_unbiased_draw_of_the_bound():
    """L_vlb = T E_k L_k: with KL at the end left out, -elbo / d in the mean."""
    family = learned(objective="vlb")
    x = S * torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = family.loss(x, torch.Generator().manual_seed(3)).item()
    abar = math.prod(1 - b for b in BETAS)
    rest = 1 - abar
    prior = 0.5 * (abar * x**2 + rest - 1 - math.log(rest)).sum(1)
    bound = (-family.elbo(x, generator=torch.Generator().manual_seed(4)) - prior).mean().item() / 2
    # 20 000 rows at one k each; the terms vary by a few nats over k: .03 a standard error.
    assert found == pytest.approx(bound, abs=0.12)


def test_the_learned_steps_keep_the_exact_law():
    """From the exact last marginal the chain ends at the data: var 1/4 here up to N(0, 1)'s excess."""
    family = learned()
    x = family.sample(20_000, seed=0)
    abar = math.prod(1 - b for b in BETAS)
    total = abar * S**2 + 1 - abar
    # Linear steps: Var = s^2 + r^2 (1 - total), r = Cov(x1, x_T) / total.
    wanted = S**2 + (math.sqrt(abar) * S**2 / total) ** 2 * (1 - total)
    # The last mean is the data estimate without noise, and loses Var(x1 | x_0).
    wanted -= 1 / (1 / S**2 + (1 - BETAS[0]) / BETAS[0])
    assert x.var().item() == pytest.approx(
        wanted, rel=0.03
    )  # 40 000 elements: .7 % a standard error
    part = family.sample(5, seed=0, first_row=7)
    torch.testing.assert_close(part, x[7:12], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("variance", "std"), [("fixedsmall", 0.49611), ("fixedlarge", 0.50075)])
def test_a_thousand_steps_leave_their_known_width(variance, std):
    class Mean(Best):
        def forward(self, u, x):
            return super().forward(u, x).chunk(2, dim=1)[0]

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    family = adapters.create("ddpm", (20,), Mean(betas), variance=variance).double()
    x = family.sample(2000, seed=1)
    # 40 000 elements: .0018 a standard error, of which four.
    assert x.std().item() == pytest.approx(std, abs=0.0072)


def test_fifty_implicit_steps_leave_their_known_width():
    class Mean(Best):
        def forward(self, u, x):
            return super().forward(u, x).chunk(2, dim=1)[0]

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    family = adapters.create("ddim", (20,), Mean(betas)).double()
    z = family.path.base.sample((50, 20), seed=1, dtype=torch.float64)
    x = family.sample(50, seed=1)
    # Deterministic and linear: x = .47192 z to the digits that are published.
    torch.testing.assert_close(x, 0.47192 * z, rtol=2e-5, atol=0)


def test_an_index_is_told_exactly():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, k, x):
            seen.append(k.double())
            return self.one * x

    family = adapters.create("ddpm", (2,), Net(), index=True, steps=50)
    family.loss(torch.zeros(64, 2), torch.Generator().manual_seed(0))
    family.sample(2, seed=0)
    told = torch.cat([k.reshape(-1) for k in seen])
    assert (told == told.round()).all()
    assert told.min() == 0
    assert told.max() == 49


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"variance": "learned", "objective": "simple"}, OptionError, "hybrid"),
        ({"objective": "vlb"}, OptionError, 'variance="learned"'),
        ({"variance": "lerned"}, UnknownName, "learned"),
        ({"prediction": "epsilon"}, UnknownName, "noise"),
        ({"table": "cosin"}, UnknownName, "cosine"),
        ({"steps": 0}, OptionError, "steps"),
    ],
)
def test_contradictions_are_refused_when_it_is_made(options, error, said):
    with pytest.raises(error, match=said):
        adapters.create("ddpm", (2,), **options)
