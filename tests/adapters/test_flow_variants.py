"""I-CFM, OT-CFM, SB-CFM and VE-CFM on N(M, S^2), where each coupling's velocity is a line in x.

With c = Cov[x0, x1] of the coupling (Tong et al. 2302.00482; Bunne et al. 2202.05722 for the bridge)

    v(t, x) = M + ((1 - 2t) c + t S^2 - (1 - t) + gamma gamma') / V (x - t M)
    V = (1 - t)^2 + t^2 S^2 + 2 t (1 - t) c + gamma^2
"""

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
SIGMA = {"cfm": 0.3, "ot_cfm": 0.3, "sb_cfm": 0.8}
COVARIANCE = {"cfm": 0.0, "ot_cfm": S, "sb_cfm": (math.sqrt(4 * S**2 + 0.8**4) - 0.8**2) / 2}


def line(name, t):
    """(intercept, slope) of the velocity at t."""
    c, sigma = COVARIANCE[name], SIGMA[name]
    bridge = name == "sb_cfm"
    g2 = sigma**2 * (t * (1 - t) if bridge else 1.0)
    gdg = sigma**2 * (1 - 2 * t) / 2 if bridge else 0.0
    total = (1 - t) ** 2 + t**2 * S**2 + 2 * t * (1 - t) * c + g2
    slope = ((1 - 2 * t) * c + t * S**2 - (1 - t) + gdg) / total
    return M - slope * t * M, slope


class Exact(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x, label=None):
        a, b = line(self.name, t.reshape(-1, 1))
        return self.one * (a + b * x)


def family(name, network=None):
    return adapters.create("flow_matching", (1,), network, variant=name, sigma=SIGMA[name])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("name", SIGMA)
def test_what_is_regressed_has_the_mean_of_the_closed_form(name, t):
    """The line through the targets of batches coupled by the family itself."""
    f = family(name)
    g = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(20):
        x = M + S * torch.randn(500, 1, generator=g, dtype=torch.float64)
        batch = f.prepare({"x": x}, g) if f.prepares else {"x": x, "x0": torch.randn_like(x)}
        z = torch.randn(x.shape, generator=g, dtype=torch.float64)
        rows.append(torch.cat(f.regression.target(t, batch["x0"], batch["x"], z), 1))
    x, v = torch.cat(rows).T
    design = torch.stack([torch.ones_like(x), x], 1)
    found = torch.linalg.lstsq(design, v[:, None]).solution[:, 0]
    # Residuals of scale 1 to 1.5 over 10 000 points: standard errors of .01 to .025; a batch of 500
    # points is an empirical law, whose plan is off by about 1 / sqrt(500) of a slope each.
    torch.testing.assert_close(found.tolist(), [*line(name, t)], rtol=0, atol=0.08)


@pytest.mark.parametrize("name", SIGMA)
def test_the_lines_are_those_of_the_core(name):
    f = family(name)
    one = torch.ones(1, 1, dtype=torch.float64)
    coupling = None if name == "cfm" else f.regression.coupling
    target = interp.exact.Gaussian(M * one[0], S**2 * one)
    v = target.velocity(f.path, interp.exact.Gaussian(0 * one[0], one), coupling)
    for t in (0.1, 0.5, 0.8):
        a, b = line(name, t)
        x = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
        torch.testing.assert_close(v(t, x), a + b * x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SIGMA)
def test_the_exact_network_samples_the_smoothed_data(name):
    """From N(0, 1 + sigma^2) to N(M, S^2 + sigma^2) where sigma is constant; the bridge ends sharp."""
    f = family(name, Exact(name)).double()
    smooth = 0.0 if name == "sb_cfm" else SIGMA[name] ** 2
    assert f.base.scale == pytest.approx(math.sqrt(1 + smooth))
    ends = math.sqrt(S**2 + smooth)
    z = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
    wanted = M + z * ends / f.base.scale
    found = f.reverse(z, rtol=1e-9, atol=1e-9, t=(0.0, 1.0))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    law = torch.distributions.Normal(M, ends)
    density = f.log_prob(wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density, law.log_prob(wanted)[:, 0], rtol=0, atol=1e-6)
    x = f.sample(4000, seed=0)
    # Standard errors .009 and .006.
    assert x.mean().item() == pytest.approx(M, abs=0.04)
    assert x.std().item() == pytest.approx(ends, abs=0.03)


def test_ve_cfm_is_the_velocity_of_its_path_up_to_a_constant():
    """|v_a - v_b| = log(sigma_max / sigma_min) |D_a - D_b| for every t, so one loss trains both."""
    f = adapters.create("flow_matching", (1,), variant="ve_cfm")
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    x, a, b = (torch.randn(11, 1, dtype=torch.float64) for _ in range(3))
    va, vb = (f.path.convert(d, "data", "velocity", x, t) for d in (a, b))
    torch.testing.assert_close((va - vb).abs(), math.log(5000) * (a - b).abs())
    assert (f.path.sigma(0.0), f.path.sigma(1.0)) == (pytest.approx(50), pytest.approx(0.01))


def test_a_coupling_leaves_the_base_of_each_label():
    """Two classes far apart: a plan over all rows would give them the two halves of the base."""
    f = adapters.create("flow_matching", (1,), variant="ot_cfm", classes=2)
    g = torch.Generator().manual_seed(0)
    label = torch.randint(2, (2000,), generator=g)
    x = torch.where(label == 1, 5.0, -5.0)[:, None] + torch.randn(2000, 1, generator=g)
    batch = f.prepare({"x": x, "label": label}, g)
    for k in (0, 1):
        # 1000 normals: .032; the halves have means of -.8 and .8.
        assert batch["x0"][batch["label"] == k].mean().item() == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("name", ["cfm", "ot_cfm", "sb_cfm", "ve_cfm"])
def test_a_variant_is_rebuilt_from_its_config(name):
    f = adapters.create("flow_matching", (2,), variant=name, classes=2, width=8)
    again = adapters.create("flow_matching", **json.loads(json.dumps(f.config)))
    again.load_state_dict(f.state_dict())
    assert again.config == f.config
    a, b = (one.sample(2, seed=0, steps=2, label=1) for one in (f, again))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_contradicts_itself_is_refused():
    make = lambda **options: adapters.create("flow_matching", (2,), **options)  # noqa: E731
    with pytest.raises(UnknownName, match="ot_cfm"):
        make(variant="otcfm")
    for given in ({"path": "cosine"}, {"coupling": "optimal_transport"}):
        with pytest.raises(OptionError, match="of its own"):
            make(variant="cfm", **given)
    with pytest.raises(OptionError, match="ve_cfm"):
        make(variant="ve_cfm", sigma=0.1)
    for sigma in (-1.0, math.nan):
        with pytest.raises(OptionError, match="sigma"):
            make(sigma=sigma)
    with pytest.raises(OptionError, match="sigma"):
        make(variant="sb_cfm", sigma=0.0)
    with pytest.raises(OptionError, match="gamma"):
        make(path={"name": "with_gamma", "path": {"name": "linear"}}, sigma=0.1)
