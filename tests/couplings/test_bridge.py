"""The Schroedinger bridge between its ends: points, velocity, score, drift."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import couplings
from interp.errors import OptionError, TimeError

quick = settings(deadline=None, max_examples=25)


@quick
@given(
    st.floats(0.1, 3.0), st.floats(0.01, 0.99), st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)  # fmt: skip
def test_points_and_targets_are_those_of_the_brownian_bridge(sigma, t, dtype, per_row):
    gen = torch.Generator().manual_seed(0)
    x0, x1, z = (torch.randn(5, 3, dtype=torch.float64, generator=gen) for _ in range(3))
    time = torch.full((5,), t, dtype=torch.float64) if per_row else t
    bridge = couplings.schroedinger_bridge(sigma)
    x, velocity, score = bridge.between(time, x0.to(dtype), x1.to(dtype), z.to(dtype))
    gamma = sigma * math.sqrt(t * (1 - t))
    mean = (1 - t) * x0 + t * x1
    # [SF]2M (2307.03672): u = (1 - 2t) (x - mu) / (2 t (1 - t)) + x1 - x0, s = (mu - x) / gamma^2.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    u = (1 - 2 * t) * gamma * z / (2 * t * (1 - t)) + x1 - x0
    torch.testing.assert_close(x, (mean + gamma * z).to(dtype), **close)
    torch.testing.assert_close(velocity, u.to(dtype), **close)
    torch.testing.assert_close(score, (-z / gamma).to(dtype), **close)
    # The SDE's drift pulls to the end: (x1 - x) / (1 - t).
    drift = velocity + sigma**2 / 2 * score
    rough = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(drift, (x1 - x).to(dtype) / (1 - t), **rough)


def test_the_velocity_is_the_points_derivative():
    bridge = couplings.schroedinger_bridge(0.5)
    x0, x1, z = (torch.randn(4, 2, dtype=torch.float64) for _ in range(3))
    h = 1e-6
    ahead, behind = (bridge.between(0.3 + s * h, x0, x1, z).x for s in (1, -1))
    # Central differences: h^2 and rounding 1e-16 / h.
    torch.testing.assert_close(
        (ahead - behind) / (2 * h), bridge.between(0.3, x0, x1, z).velocity, rtol=1e-7, atol=1e-7
    )


def test_it_is_the_path_of_the_schedules():
    bridge = couplings.schroedinger_bridge(0.7)
    assert bridge.path.config == interp.schedules.brownian_bridge(0.7).config
    assert not bridge.path.gaussian_base
    assert bridge.reg == pytest.approx(2 * 0.49)


def test_the_law_between_normals_is_the_published_one():
    # Pairs from the coupling and points of the bridge: var_t = (1-t)^2 v0 + t^2 v1 + 2 t (1-t) c
    # + sigma^2 t (1-t) with c = (sqrt(4 v0 v1 + sigma^4) - sigma^2) / 2 (2202.05722).
    sigma, t, rows = 0.8, 0.4, 512
    share = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    x0 = torch.special.ndtri(share)[:, None]
    x1 = 1.5 * x0.flip(0)
    bridge, gen = couplings.schroedinger_bridge(sigma), torch.Generator().manual_seed(0)
    points = []
    for _ in range(20):
        a, b = bridge(x0, x1, generator=gen)
        z = torch.randn(a.shape, dtype=torch.float64, generator=gen)
        points.append(bridge.between(t, a, b, z).x)
    c = (math.sqrt(4 * 2.25 + sigma**4) - sigma**2) / 2
    wanted = (1 - t) ** 2 + t**2 * 2.25 + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
    # Five standard errors of a variance from 10240 draws, and 0.5 % for the quantiles' own variance.
    assert torch.cat(points).var().item() == pytest.approx(
        wanted, rel=5 * math.sqrt(2 / (20 * rows)) + 5e-3
    )


@pytest.mark.parametrize("t", [0.0, 1.0, torch.tensor([0.5, 1.0])])
def test_the_ends_are_refused(t):
    x = torch.zeros(2, 3)
    with pytest.raises(TimeError, match=r"infinite.*Draw t inside"):
        couplings.schroedinger_bridge(1.0).between(t, x, x, x)
    with pytest.raises(TimeError, match="outside"):
        couplings.schroedinger_bridge(1.0).between(1.5, x, x, x)
    with pytest.raises(OptionError, match="Match them"):
        couplings.schroedinger_bridge(1.0).between(0.5, x, x[:1], x)
