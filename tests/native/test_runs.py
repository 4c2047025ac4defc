"""Solves of compiled models: the same numbers as in torch, without Python on the way."""

from __future__ import annotations

import copy

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


SDES = {
    "number": lambda m: interp.SDE(m, 0.3, "stratonovich"),
    "of t": lambda m: interp.SDE(m, lambda t: 0.3 + t, "stratonovich"),
    "of t and x": lambda m: interp.SDE(m, lambda t, x, **_: (0.3 + t) * x.cos(), "stratonovich"),
    "ito": lambda m: interp.SDE(m, lambda t, x, **_: (0.3 + t) * x.cos()),
    "velocity": lambda m: schedules.linear().sde(m, diffusion=lambda t: 0.5 + t),
    "data": lambda m: schedules.linear().sde(m, view="data", diffusion=0.5),
    "score": lambda m: schedules.variance_preserving().sde(m, view="score", diffusion=1.5),
    "noise": lambda m: schedules.trigonometric().sde(m, view="noise", time="log_snr", diffusion=1.0),
}  # fmt: skip
ITO, STRATONOVICH = ("euler_maruyama", "srk"), ("heun_stratonovich", "reversible_heun")
FORMS = [
    (name, method)
    for name in SDES
    for method in ("milstein", *ITO, *STRATONOVICH)
    if not (name == "ito" and method in STRATONOVICH)
    and not (name == "of t and x" and method in ITO)
    and not (method == "euler_maruyama" and name in ("number", "of t"))  # says it is of Ito
]


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_stochastic_runs_are_those_of_the_model_in_torch(name, method, network, compiled):
    """The drift without Python, the diffusion with it, both told their time."""
    x = torch.randn(5, 6, dtype=torch.float64)
    calls = []
    run = {"method": method, "t": (0.1, 0.9), "steps": 6, "seed": 1, "save_at": [0.1, 0.9]}
    run["cond"] = {"label": torch.arange(5) % 3}
    interp.solve(SDES[name](compiled), x, **run)  # compiles
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    ours = interp.solve(SDES[name](compiled), x, **run)
    assert not calls
    theirs = interp.solve(SDES[name](network), x, backend="torch", **run)
    hook.remove()
    # Two dozen evaluations in float64, of sums in another order.
    torch.testing.assert_close(ours.xs, theirs.xs, rtol=1e-11, atol=1e-11)
    assert ours.stats.nfe == theirs.stats.nfe


@pytest.mark.parametrize("name", ["field", "noise time", "data", "noise", "bridge"])
def test_rows_with_steps_of_their_own(name, network, compiled):
    """Rows far from one another: as in torch, each with its own steps, condition and end."""
    x = (
        interp.noise.normal((5, 6), seed=1, dtype=torch.float64)
        * torch.tensor([0.1, 1.0, 30.0, 0.5, 5.0])[:, None]
    )
    # Nearer to where sigma / beta is infinite the error estimate is rounding, and so are the steps.
    t = {"noise": (0.6, 0.95), "bridge": (0.4, 0.95)}.get(name, (0.0, 1.0))
    run = {
        "t": t, "per_row": True, "cond": {"label": torch.arange(5) % 3}, "rtol": 1e-4, "atol": 1e-4,
        "save_at": [t[0], 0.8, t[1]],
    }  # fmt: skip
    interp.solve(TERMS[name](compiled), x, **run)  # compiles
    calls = []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    ours = interp.solve(TERMS[name](compiled), x, **run)
    in_python = len(calls)
    theirs = interp.solve(TERMS[name](network), x, backend="torch", **run)
    hook.remove()
    assert in_python == 0 or name == "data"  # the step to clean data is the model's own
    for field in ("accepted", "rejected", "nfe"):
        assert torch.equal(getattr(ours.stats.rows, field), getattr(theirs.stats.rows, field))
    assert len(ours.stats.rows.nfe.unique()) > 1 or name in ("noise", "bridge")
    # Steps follow the error estimates, and of a small one rounding is no small part: a hundredth of
    # the tolerance.
    torch.testing.assert_close(ours.xs, theirs.xs, rtol=1e-6, atol=1e-6)


def test_weights_changed_by_a_callback_are_seen_by_every_row(network):
    changed = copy.deepcopy(network)
    compiled = interp.compile(changed)
    x = torch.randn(3, 6, dtype=torch.float64)

    def run(model):
        with torch.no_grad():
            changed.load_state_dict(network.state_dict())
        seen = []

        def callback(state):
            seen.append(state.step)
            if len(seen) == 2:
                with torch.no_grad():
                    [p.mul_(0.5) for p in changed.parameters()]

        return interp.solve(model, x, per_row=True, callback=callback).x

    torch.testing.assert_close(run(compiled), run(changed), rtol=1e-10, atol=1e-10)


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
