"""The observed order of every fixed-step method, by halving the step, on nonlinear problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

F64 = torch.float64


@dataclass(frozen=True)
class Nonlinear:
    """An initial value problem whose solution is a closed form."""

    field: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    ends: tuple[float, float]
    end: Tensor


def circle(t: Tensor, x: Tensor) -> Tensor:
    """Kepler's problem: position and velocity."""
    position, velocity = x[..., :2], x[..., 2:]
    pull = -position / position.square().sum(-1, keepdim=True) ** 1.5
    return torch.cat([velocity, pull], -1)


def ellipse(eccentricity: float, t: float) -> Tensor:
    """Kepler's orbit from its nearest point, by Newton on E - e sin E = t."""
    e, E = eccentricity, t
    for _ in range(50):
        E -= (E - e * math.sin(E) - t) / (1 - e * math.cos(E))
    b, rate = math.sqrt(1 - e * e), 1 / (1 - e * math.cos(E))
    return torch.tensor(
        [[math.cos(E) - e, b * math.sin(E), -math.sin(E) * rate, b * math.cos(E) * rate]], dtype=F64
    )


PROBLEMS = {
    # x = 20 / (1 + 19 exp(-t / 4)): problem A4 of DETEST (Hull, Enright, Fellen, Sedgwick 1972).
    "logistic": Nonlinear(
        lambda t, x: x / 4 * (1 - x / 20), torch.ones(1, 1, dtype=F64), (0.0, 4.0),
        torch.full((1, 1), 20 / (1 + 19 * math.exp(-1)), dtype=F64),
    ),
    # x = 1 / (2 - sin t): the field depends on t, and the run goes backwards.
    "riccati": Nonlinear(
        lambda t, x: t.cos() * x * x, torch.full((1, 1), 1 / (2 - math.sin(1.2)), dtype=F64),
        (1.2, -0.4), torch.full((1, 1), 1 / (2 - math.sin(-0.4)), dtype=F64),
    ),
    "kepler": Nonlinear(circle, ellipse(0.3, 0.0), (0.0, 2.0), ellipse(0.3, 2.0)),
}  # fmt: skip

# Steps of the coarser run: small enough for the leading term to rule, large enough for the error
# to stand well above the 1e-15 of rounding.
STEPS = {1: 800, 2: 160, 3: 80, 4: 48, 5: 24}


def observed(name: str, problem: Nonlinear, backend: str) -> float:
    errors = []
    for steps in (STEPS[METHODS[name].order], 2 * STEPS[METHODS[name].order]):
        sol = interp.solve(
            problem.field, problem.start, problem.ends, name, backend=backend, steps=steps
        )
        errors.append(float((sol.x - problem.end).abs().max()))
    assert errors[0] > 1e-12
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("name", [m.name for m in interp.methods("ode")])
def test_observed_order(name: str, backend: str) -> None:
    orders = [observed(name, problem, backend) for problem in PROBLEMS.values()]
    order = METHODS[name].order
    # The next term of the error is some multiple of h of the leading one: a few tenths at these h.
    assert min(orders) > order - 0.3, orders
    assert min(orders) < order + 0.5, orders


@pytest.mark.parametrize("name", ["bosh3", "dopri5"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_adaptive_error_follows_the_tolerance(name: str, problem: Nonlinear) -> None:
    for tolerance in (1e-4, 1e-6, 1e-8):
        sol = interp.solve(
            problem.field, problem.start, problem.ends, name, rtol=tolerance, atol=tolerance
        )
        # Local errors of size tol (1 + |x|), |x| up to 7, add up over the run: a few of them.
        assert float((sol.x - problem.end).abs().max()) < 40 * tolerance
