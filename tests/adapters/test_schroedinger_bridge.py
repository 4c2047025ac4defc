"""Schroedinger bridges between N(0, 1) and N(M, S^2), where plan, marginals and drifts are closed forms.

With c = Cov[x0, x1] and V = (1 - t)^2 + t^2 S^2 + 2 t (1 - t) c + sigma^2 t (1 - t),

    f = M + (t S^2 + (1 - 2t) c - (1 - t) - sigma^2 t) / V (x - t M)
    b = -M + ((1 - t) - (1 - 2t) c - t S^2 - sigma^2 (1 - t)) / V (x - t M)

and the bridge's own c = (sqrt(4 S^2 + sigma^4) - sigma^2) / 2 (Bunne et al. 2202.05722).
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import adapters
import interp
from interp.errors import DataError, OptionError, UnknownName, Unsupported

M, S, SIGMA = 0.4, 0.5, 0.8
C = (math.sqrt(4 * S**2 + SIGMA**4) - SIGMA**2) / 2
WAYS = ("sf2m", "dsbm")


def slopes(t, c=C, sigma=SIGMA):
    """V and the slopes of f and b in x - t M."""
    V = (1 - t) ** 2 + t**2 * S**2 + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
    f = (t * S**2 + (1 - 2 * t) * c - (1 - t) - sigma**2 * t) / V
    b = ((1 - t) - (1 - 2 * t) * c - t * S**2 - sigma**2 * (1 - t)) / V
    return V, f, b


class Exact(nn.Module):
    """One of the heads: "sf2m" both of that method, "f", "b", or "i2sb" in its clock."""

    def __init__(self, kind, c=C):
        super().__init__()
        self.kind, self.c = kind, c
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x, label=None):
        t = t.double().reshape(-1, 1)
        if self.kind == "i2sb":
            tau = I2SB.path.beta(t)
            _, f, _ = slopes(tau, self.c, I2SB.sigma)
            return self.one * -(1 - tau).sqrt() * (M + f * (x - tau * M)) / I2SB.sigma
        _, f, b = slopes(t, self.c)
        f, b = M + f * (x - t * M), -M + b * (x - t * M)
        both = {"sf2m": torch.cat([(f - b) / 2, (f + b) / 2], 1), "f": f, "b": b}
        return self.one * both[self.kind]


I2SB = adapters.create("schroedinger_bridge", (1,), method="i2sb", base="pairs", width=8)


def exact(method, c=C, **options):
    network = Exact({"dsbm": "f"}.get(method, method), c)
    options = {"sigma": SIGMA, **options}
    f = adapters.create("schroedinger_bridge", (1,), network, method=method, **options).double()
    if method == "dsbm":
        f.back.kind = "b"
    return f


def pairs(n, c=C, seed=0):
    """Rows of two correlated normals."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x0 = z[:, :1]
    return x0, M + c * x0 + math.sqrt(S**2 - c**2) * z[:, 1:]


def cov(a, b):
    return ((a - a.mean()) * (b - b.mean())).mean().item()


# The bridge from exact drifts


@pytest.mark.parametrize("method", WAYS)
def test_velocity_and_score_are_those_of_the_core(method):
    f = exact(method)
    one = torch.ones(1, 1, dtype=torch.float64)
    base, target = (
        interp.exact.Gaussian(0 * one[0], one),
        interp.exact.Gaussian(M * one[0], S**2 * one),
    )
    plan = interp.couplings.schroedinger_bridge(SIGMA)
    x = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        v, s = f.model(time, x)
        torch.testing.assert_close(v, target.velocity(f.path, base, plan)(t, x))
        torch.testing.assert_close(s, target.score(f.path, base, plan)(t, x))


@pytest.mark.parametrize("method", WAYS)
def test_the_sde_carries_each_end_to_the_other_under_the_plan(method):
    """Law of the end and Cov[x0, x1] = c, both ways: 8000 rows, standard errors of .006 to .011."""
    f = exact(method)
    x0, x1 = pairs(8000)
    options = {"method": "euler_maruyama", "steps": 60, "seed": 1}
    ahead, behind = f.reverse(x0, **options), f.forward(x1, **options)
    # A step is exact but for the change of the estimate within it, of first order: .01 at 60 steps.
    assert ahead.mean().item() == pytest.approx(M, abs=0.03)
    assert ahead.std().item() == pytest.approx(S, abs=0.03)
    assert cov(x0, ahead) == pytest.approx(C, abs=0.04)
    assert behind.mean().item() == pytest.approx(0, abs=0.05)
    assert behind.std().item() == pytest.approx(1, abs=0.05)
    assert cov(x1, behind) == pytest.approx(C, abs=0.04)


@pytest.mark.parametrize("eps", [0.4, lambda t: 1 - t])
def test_any_sde_of_the_same_marginals_runs_both_ways(eps):
    f = exact("sf2m")
    x0, x1 = pairs(8000)
    options = {"method": "euler_maruyama", "steps": 100, "seed": 1, "diffusion": eps}
    assert f.reverse(x0, **options).std().item() == pytest.approx(S, abs=0.03)
    assert f.forward(x1, **options).std().item() == pytest.approx(1, abs=0.05)
    x = f.sample(8000, **options)
    assert (x.mean().item(), x.std().item()) == pytest.approx((M, S), abs=0.03)


@pytest.mark.parametrize("method", WAYS)
def test_the_flow_is_monotone_transport_between_the_marginals(method):
    """In one dimension x_t = t M + sqrt(V_t) x0, whatever c, and back; its density is the data's."""
    f = exact(method)
    x0, _ = pairs(5)
    tol = {"rtol": 1e-9, "atol": 1e-9}
    there = f.reverse(x0, **tol)
    torch.testing.assert_close(there, M + S * x0, rtol=0, atol=1e-7)
    torch.testing.assert_close(f.forward(there, **tol), x0, rtol=0, atol=1e-7)
    law = torch.distributions.Normal(M, S)
    density = f.log_prob(there, **tol)
    torch.testing.assert_close(density, law.log_prob(there)[:, 0], rtol=0, atol=1e-6)


def test_one_step_is_the_posterior_of_a_bridge():
    """From x at t to r, given E[x1 | x] = D: N(x + h (D - x), sigma^2 h (1 - r)), h = (r - t) / (1 - t)."""
    f = exact("sf2m")
    x = torch.full((40_000, 1), 0.7, dtype=torch.float64)
    for t, r in ((0.0, 0.3), (0.3, 0.8), (0.8, 1.0)):
        term = f.term(diffusion=SIGMA)
        y = interp.solve(term, x, t=(t, r), method="euler_maruyama", steps=1, seed=2).x
        h = (r - t) / (1 - t)
        D = 0.7 + (1 - t) * (M + slopes(t)[1] * (0.7 - t * M))
        # Standard errors of at most .004 and .003.
        assert y.mean().item() == pytest.approx(0.7 + h * (D - 0.7), abs=0.02)
        assert y.std().item() == pytest.approx(SIGMA * math.sqrt(h * (1 - r)), abs=0.015)


# What is regressed


@pytest.mark.parametrize("method", ["sf2m", "dsbm", "i2sb"])
def test_the_loss_is_least_at_the_exact_drifts(method):
    """Its gradient along the network's scale is 0 there, to five standard errors, and not at 10 % off."""
    f = exact(method, base="pairs", **({"sigma": None} if method == "i2sb" else {}))
    x0, x1 = pairs(40_000)
    loss = lambda: f.loss({"x": x1, "x0": x0}, torch.Generator().manual_seed(1))  # noqa: E731

    def slope():
        found = loss()
        total = sum(found.values()) if isinstance(found, dict) else found
        return torch.autograd.grad(total, f.network.one)[0].item()

    assert slope() == pytest.approx(0, abs=0.03)
    with torch.no_grad():
        f.network.one.mul_(1.2)
    assert slope() > 0.03


def test_the_plan_of_the_batch_is_the_entropic_one():
    f = exact("sf2m")
    g = torch.Generator().manual_seed(0)
    found = []
    for k in range(10):
        _, x1 = pairs(400, seed=k)
        batch = f.prepare({"x": x1}, g)
        found.append(cov(batch["x0"], batch["x"]))
    # Ten batches of 400: .01 a covariance; an empirical law's plan is a little tighter.
    assert sum(found) / 10 == pytest.approx(C, abs=0.04)


def test_the_bridge_tends_to_transport_as_sigma_vanishes():
    """Velocities of the plan of sigma and of exact transport, two correlated laws: apart by O(sigma^4)."""
    cov0 = torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=torch.float64)
    cov1 = torch.tensor([[0.5, -0.2], [-0.2, 0.9]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    base, target = interp.exact.Gaussian(zero, cov0), interp.exact.Gaussian(zero + M, cov1)
    x = torch.tensor([[1.0, -0.5], [0.2, 0.7]], dtype=torch.float64)
    ot = interp.schedules.linear()
    straight = target.velocity(ot, base, interp.couplings.optimal_transport())(0.4, x)
    gaps = []
    for sigma in (0.2, 0.1, 0.05):
        path = interp.schedules.brownian_bridge(sigma)
        plan = interp.couplings.schroedinger_bridge(sigma)
        gaps.append((target.velocity(path, base, plan)(0.4, x) - straight).abs().max().item())
    assert gaps[-1] < 0.01
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(16, rel=0.1)


# Iterative Markovian fitting


def markovian(c):
    """Cov[x0, x1] of the SDE of f for a mixture of bridges of covariance c: exp(int slope dt)."""
    t = (np.arange(20_000) + 0.5) / 20_000
    return math.exp(slopes(t, c)[1].mean())


def test_markovian_fitting_from_independent_ends_converges_to_the_bridge():
    c, gaps = 0.0, []
    for _ in range(8):
        c = markovian(c)
        gaps.append(abs(c - C))
    assert gaps[0] > gaps[3] > gaps[7]
    assert gaps[7] < 1e-3
    assert markovian(C) == pytest.approx(C, abs=1e-6)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_pairs_made_anew_are_one_step_of_markovian_fitting(way):
    """One end kept as it came, the other of the right law, the covariance the next one."""
    f = exact("dsbm", c=0.0, simulation_steps=200)
    x0, x1 = pairs(8000, c=0.0)
    a, b = f.pair(way, x0, x1, generator=torch.Generator().manual_seed(1))
    kept = (b, x1) if way == "forward" else (a, x0)
    torch.testing.assert_close(*kept, rtol=0, atol=0)
    # Standard errors of .006; first-order steps: .01 at 200.
    assert cov(a, b) == pytest.approx(markovian(0.0), abs=0.04)
    assert b.std().item() == pytest.approx(S, abs=0.03)
    assert a.std().item() == pytest.approx(1, abs=0.04)


def test_phases_alternate_and_train_one_network_each():
    f = adapters.create("schroedinger_bridge", (1,), method="dsbm", iterations=2, width=8)
    assert list(f.stages()) == ["backward 1", "forward 1", "backward 2", "forward 2"]
    for step, way in enumerate(["backward", "forward"] * 2):
        (one,) = f.objectives(step, 4)
        assert one.name == way
        net = f.network if way == "forward" else f.back
        assert {id(p) for p in one.parameters} == {id(p) for p in net.parameters()}
        one.evaluate(torch.randn(8, 1), torch.Generator().manual_seed(0)).backward()


# I2SB


def test_the_clock_is_that_of_the_papers_table():
    """1000 steps of beta / 1000, sqrt-linear from 1e-4 to .3 / 1000, the first half and its mirror."""
    half = (torch.linspace(1e-4**0.5, (0.3 / 1000) ** 0.5, 1000, dtype=torch.float64) ** 2)[:500]
    past = torch.cat([half, half.flip(0)]).cumsum(0)
    assert I2SB.sigma**2 == pytest.approx(past[-1].item(), rel=1e-3)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # A sum of left ends against an integral: an error of a step's change.
    torch.testing.assert_close(I2SB.path.beta(t), past / past[-1], rtol=0, atol=1e-3)
    # The motion's own size is sqrt(beta), also where it turns: half the way from sqrt(.1) to sqrt(.3).
    size = I2SB.exact().diffusion(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    low, high = math.sqrt(0.1), math.sqrt(0.3)
    roots = [low + (high - low) * share for share in (0.0, 0.25, 0.5, 0.0)]
    torch.testing.assert_close(size, torch.tensor(roots, dtype=torch.float64))
    k = I2SB.path.coefficients(torch.tensor(0.3, dtype=torch.float64))
    assert k.gamma.item() == pytest.approx(I2SB.sigma * math.sqrt(k.beta * (1 - k.beta)))


def test_i2sb_restores_in_law():
    f = exact("i2sb", base="pairs", sigma=None, c=0.3)
    x0, x1 = pairs(8000, c=0.3)
    y = f.reverse(x0, seed=3, method="euler_maruyama", steps=100)
    assert (y.mean().item(), y.std().item()) == pytest.approx((M, S), abs=0.03)
    for call in (lambda: f.forward(x1), lambda: f.reverse(x0, method="heun", steps=3),
                 lambda: f.model, lambda: f.log_prob(x1)):  # fmt: skip
        with pytest.raises(Unsupported):
            call()
    assert not f.supports("forward")
    assert f.supports("sample")


# Trained


class Line(nn.Module):
    """Heads a(t) + k(t) x, each a polynomial of degree 5 in t: the exact drifts to 1 %."""

    def __init__(self, heads):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, 2, 6))

    def forward(self, t, x, label=None):
        s = 2 * t.reshape(-1, 1).to(x.dtype) - 1
        k = torch.arange(6, dtype=x.dtype)
        basis = torch.cos(k * torch.acos(s.clamp(-1, 1)))
        a, b = torch.einsum("hik,nk->ihn", self.weight, basis)
        return (a + b * x.T).T.expand(len(x), -1)


@pytest.mark.parametrize("method", ["sf2m", "dsbm", "i2sb"])
def test_a_linear_model_trained_by_each_method_reaches_the_closed_form(method):
    """The rms error of E[x1 | x] over t and the law there; that of an untrained f = 0 is above .5."""
    torch.manual_seed(0)
    heads, base = (2 if method == "sf2m" else 1), "pairs" if method == "i2sb" else "normal"
    f = adapters.create(
        "schroedinger_bridge", (1,), Line(heads), method=method, base=base, lr=0.05,
        sigma=None if method == "i2sb" else SIGMA, **({"iterations": 2} if method == "dsbm" else {}),
    )  # fmt: skip
    c = 0.3 if method == "i2sb" else C
    x0, x1 = (x.float() for x in pairs(20_000, c=c, seed=5))
    data = {"x": x1, "x0": x0} if base == "pairs" else x1
    steps = {"sf2m": 200, "dsbm": 480, "i2sb": 200}[method]
    interp.train(f, data, steps, batch_size=256, ema=0.95, progress=False)
    reference = exact(method, c, base=base, sigma=None if method == "i2sb" else SIGMA)
    total = 0.0
    for t in (0.05, 0.25, 0.5, 0.75, 0.95):
        time = torch.tensor(t, dtype=torch.float64)
        mean, V = t * M, slopes(t)[0]
        x = mean + math.sqrt(V) * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        error = f._data(time.float(), x.float()) - reference._data(time, x)
        total += error.square().mean().item() / 5
    # Stochastic gradients of 256 rows, and the simulation's steps: .04 (sf2m) and .05 (dsbm) seen.
    assert math.sqrt(total) < 0.08


# Bases that batches bring


def test_samples_start_from_what_training_saw_and_go_with_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    make = {"method": "dsbm", "base": "samples", "iterations": 1, "simulation_steps": 2, "width": 8}
    f = adapters.create("schroedinger_bridge", (2,), **make)
    with pytest.raises(OptionError, match="has seen none"):
        f.sample(2)
    x0 = torch.randint(0, 5, (64, 2)).float() + 100
    data = {"x": torch.randn(64, 2), "x0": x0}
    interp.train(f, data, 4, tmp_path / "run", batch_size=16, progress=False)
    again, _ = interp.training.load(tmp_path / "run")
    start = again.start(50, seed=0)
    assert all(any(torch.equal(row, known) for known in x0) for row in start)
    torch.testing.assert_close(again.start(20, 0, 30), start[30:], rtol=0, atol=0)
    whole, part = again.sample(6, seed=1), again.sample(2, seed=1, first_row=4)
    torch.testing.assert_close(whole[4:], part, rtol=1e-4, atol=1e-4)
    own = again.sample(6, seed=1, x0=x0[:6])
    assert own.shape == whole.shape
    assert not again.supports("log_prob")
    with pytest.raises(Unsupported):
        again.log_prob(whole)


@pytest.mark.parametrize("method", WAYS)
def test_from_a_shape_alone_with_labels_and_from_its_config(method):
    for shape in ((1, 8, 8), (3,)):
        f = adapters.create("schroedinger_bridge", shape, method=method)
        sum(f.loss(torch.rand(16, *shape)).values()).backward()
        assert f.sample(2, seed=0, steps=2).isfinite().all()
    f = adapters.create("schroedinger_bridge", (2,), method=method, classes=2, width=8)
    label = torch.tensor([0, 1] * 8)
    sum(f.loss({"x": torch.randn(16, 2), "label": label}).values()).backward()
    again = adapters.create("schroedinger_bridge", **json.loads(json.dumps(f.config)))
    again.load_state_dict(f.state_dict())
    assert again.config == f.config
    for options in ({}, {"method": "heun", "steps": 3}, {"diffusion": 0.3}):
        a, b = (one.sample(2, seed=0, label=1, guidance=2.0, **options) for one in (f, again))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_makes_no_sense_is_refused():
    make = lambda **options: adapters.create("schroedinger_bridge", (2,), width=8, **options)  # noqa: E731
    with pytest.raises(OptionError, match='base="pairs"'):
        make(method="i2sb")
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OptionError, match="sigma"):
            make(sigma=sigma)
    with pytest.raises(UnknownName, match="dsbm"):
        make(method="dsb")
    with pytest.raises(UnknownName, match="pairs"):
        make(base="pair")
    with pytest.raises(OptionError, match="plan"):
        make(coupling="optimal_transport")
    with pytest.raises(OptionError, match="iterations"):
        make(method="dsbm", iterations=0)
    f, x = make(base="pairs"), torch.randn(4, 2)
    with pytest.raises(DataError, match='no "x0"'):
        f.loss(x)
    with pytest.raises(DataError, match="3 rows"):
        f.loss({"x": x, "x0": x[:3]})
    with pytest.raises(DataError, match="shape"):
        f.loss({"x": x, "x0": torch.randn(4, 3)})
    with pytest.raises(OptionError, match="as many rows"):
        f.sample(3, x0=x)
