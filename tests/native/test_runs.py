"""Solves of compiled models: the same numbers as in torch, without Python on the way."""

from __future__ import annotations

import pytest
import torch

import interp
from adapters.networks import MLP
from interp import schedules


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = MLP((6,), width=24, depth=2, classes=3).double().eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():
            p.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def compiled(network):
    return interp.compile(network)


TERMS = {
    "field": lambda m: m,
    "by hand": interp.ODE,
    "velocity": lambda m: schedules.linear().ode(m),
    "noise time": lambda m: schedules.linear().ode(m, time="noise"),
    "data": lambda m: schedules.linear().ode(m, view="data"),
    "noise": lambda m: schedules.variance_preserving().ode(m, view="noise"),
    "score": lambda m: schedules.variance_exploding(0.1, 10.0).ode(m, view="score"),
    "v": lambda m: schedules.trigonometric().ode(m, view="v_prediction"),
    "bridge": lambda m: schedules.brownian_bridge(0.5).ode(m, time="noise"),
    "sde by hand": lambda m: interp.SDE(m, 0.3),
    "reverse": lambda m: schedules.linear().sde(m, view="data", diffusion="reverse"),
    "sde": lambda m: schedules.linear().sde(m, time="noise", diffusion=0.5),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_run_is_that_of_the_model_in_torch(name, network, compiled):
    x = torch.randn(5, 6, dtype=torch.float64)
    sde = "sde" in name or name == "reverse"
    options = {"method": "euler_maruyama", "seed": 1} if sde else {"method": "rk4"}
    t = (0.05, 0.95) if name in ("noise", "score", "bridge") else None
    run = {"t": t, "steps": 6, "cond": {"label": torch.arange(5) % 3}, "save_at": t, **options}
    ours, theirs = (interp.solve(TERMS[name](m), x, **run) for m in (compiled, network))
    # Two dozen evaluations in float64, of sums in another order.
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.xs, theirs.xs, rtol=1e-11, atol=1e-11)
    assert ours.stats.nfe == theirs.stats.nfe
    assert not compiled.uncompiled


def test_a_run_does_not_enter_python(network):
    calls = []
    compiled = interp.compile(network)
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled(torch.tensor(0.5, dtype=torch.float64), x)
    network.register_forward_hook(lambda *_: calls.append(1))
    sol = interp.solve(
        schedules.linear().ode(compiled, view="data", time="log_snr"), x, t=(0.1, 0.9)
    )
    assert sol.stats.nfe > 6
    assert not calls
    network._forward_hooks.clear()
