"""Unbalanced transport: the law of the pairs between Diracs and Gaussians, its flow, and outliers."""

from __future__ import annotations

import json
import math

import pytest
import torch

import adapters
import interp
from interp.errors import OptionError, UnknownName, Unsupported

B, Q = 1.5, 0.49  # the data are N(B, Q), the base N(0, 1)


def paired(tau, relax, batches=10, rows=400):
    f = adapters.create("unbalanced_ot", (1,), tau=tau, relax=relax, reg=0.02, width=8)
    g = torch.Generator().manual_seed(0)
    ends = []
    for _ in range(batches):
        x = B + math.sqrt(Q) * torch.randn(rows, 1, generator=g)
        batch = f.prepare({"x": x}, g)
        ends.append(torch.cat([batch["x0"], batch["x"]], 1))
    return torch.cat(ends).T


def both_ends(tau):
    """(mean, variance) of pi_0 and pi_1 where both give way, of N(0, 1) and N(B, Q)."""
    r = math.sqrt((1 + 2 / tau) / (1 / Q + 2 / tau))
    D = -B / (1 + 2 * (1 + Q) / tau)
    v0 = 1 / (1 + 2 * (1 - r) / tau)
    return (-2 * D / tau, v0), (B + 2 * Q * D / tau, r * r * v0)


def data_end(tau):
    """Of pi_1 where the base stays: the least of m^2 + (s - 1)^2 + tau KL(N(m, s^2) | N(B, Q))."""
    s = (1 + math.sqrt(1 + tau * (2 + tau / Q))) / (2 + tau / Q)
    return tau * B / (tau + 2 * Q), s * s


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_pairs_between_gaussians_have_the_law_of_the_closed_form(tau):
    """4000 rows: standard errors of .016 a mean and .02 a variance; the entropy's blur is .02."""
    x0, x1 = paired(tau, "both")
    wanted0, wanted1 = both_ends(tau)
    for x, (mean, variance) in ((x0, wanted0), (x1, wanted1)):
        assert x.mean().item() == pytest.approx(mean, abs=0.08)
        assert x.var().item() == pytest.approx(variance, abs=0.1)
    assert abs(wanted0[0]) > 0.2  # far from the base itself


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_a_base_that_is_kept_leaves_the_data_end_to_give_way(tau):
    x0, x1 = paired(tau, "data")
    mean, variance = data_end(tau)
    assert (x0.mean().item(), x0.var().item()) == pytest.approx((0, 1), abs=0.08)
    assert x1.mean().item() == pytest.approx(mean, abs=0.08)
    assert x1.var().item() == pytest.approx(variance, abs=0.1)


@pytest.mark.parametrize("d", [0.5, 2.0])
def test_between_two_diracs_the_mass_is_exp_of_minus_the_cost_over_two_tau(d):
    """One point an end: mass m minimises m c + (2 tau + reg) (m log m - m)."""
    f = adapters.create("unbalanced_ot", (1,), tau=1.5, relax="both", reg=1e-3, width=8)
    plan = f.regression.coupling.plan(torch.zeros(1, 1), torch.full((1, 1), d))
    assert plan.item() == pytest.approx(-(d**2) / (2 * 1.5 + 1e-3), abs=1e-3)


def test_the_learned_base_is_that_of_the_pairs():
    """r = log d pi_0 / d mu of two normals; points by rejection have the law of pi_0."""
    torch.manual_seed(0)
    tau = 1.0
    (mean, variance), _ = both_ends(tau)
    f = adapters.create("unbalanced_ot", (1,), tau=tau, relax="both", reg=0.05, width=8, lr=5e-3)
    x = B + math.sqrt(Q) * torch.randn(4000, 1)
    interp.train(f, x, 150, batch_size=256, ema=0.9, progress=False)
    z = f.start(4000, 0)
    # What is learned of a ratio from 150 batches of 256 is good to about .1.
    assert z.mean().item() == pytest.approx(mean, abs=0.15)
    assert z.std().item() == pytest.approx(math.sqrt(variance), abs=0.15)
    torch.testing.assert_close(f.start(10, 0, 100), z[100:110], rtol=1e-4, atol=1e-4)
    assert not f.supports("log_prob")
    with pytest.raises(Unsupported):
        f.log_prob(x[:2])


def outliers(n, seed):
    """95 % of two normals about (-1, 0) and (1, 0), 5 % about (0, 9)."""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, 2, generator=g)
    x[:, 0] += torch.rand(n, generator=g).sub(0.5).sign()
    x[: n // 20] += torch.tensor([0.0, 9.0])
    return x


def test_outliers_are_left_behind():
    """The share of samples above 4.5, of 5 % in the data: beside that of balanced OT-CFM."""
    shares = {}
    for name, options in (
        ("flow_matching", {"variant": "ot_cfm"}),
        ("unbalanced_ot", {}),
    ):
        torch.manual_seed(0)
        f = adapters.create(name, (2,), width=32, lr=1e-2, **options)
        interp.train(f, outliers(2000, 0), 200, ema=0.9, progress=False)
        x = f.sample(2000, seed=1, steps=10)
        shares[name] = (x[:, 1] > 4.5).float().mean().item()
        assert (x[:, 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert shares["flow_matching"] > 0.025
    assert shares["unbalanced_ot"] < 0.005


def test_from_a_shape_alone_with_labels_and_from_its_config():
    for shape in ((1, 8, 8), (3,)):
        f = adapters.create("unbalanced_ot", shape)
        f.loss(torch.rand(16, *shape)).backward()
        assert f.sample(2, seed=0, steps=2).isfinite().all()
    for options in ({"classes": 2}, {"relax": "both", "tau": 3.0}):
        f = adapters.create("unbalanced_ot", (2,), width=8, **options)
        again = adapters.create("unbalanced_ot", **json.loads(json.dumps(f.config)))
        again.load_state_dict(f.state_dict())
        assert again.config == f.config
        a, b = (one.sample(3, seed=0, steps=2) for one in (f, again))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    x, label = torch.randn(16, 2), torch.tensor([0, 1] * 8)
    adapters.create("unbalanced_ot", (2,), classes=2, width=8).loss(
        {"x": x, "label": label}
    ).backward()


def test_what_makes_no_sense_is_refused():
    make = lambda **options: adapters.create("unbalanced_ot", (2,), width=8, **options)  # noqa: E731
    for bad in ({"tau": 0.0}, {"tau": -1.0}, {"tau": math.nan}, {"reg": 0.0}):
        with pytest.raises(OptionError, match=next(iter(bad))):
            make(**bad)
    with pytest.raises(UnknownName, match="data"):
        make(relax="date")
    with pytest.raises(OptionError, match="of its own"):
        make(coupling="optimal_transport")
    with pytest.raises(OptionError, match="label"):
        make(relax="both", classes=3)
