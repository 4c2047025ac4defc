"""The observed order of every fixed-step method, by halving the step, on nonlinear problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy.special import ellipj
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

F64 = torch.float64


@dataclass(frozen=True)
class Nonlinear:
    """An initial value problem whose solution is a closed form."""

    field: Callable[[Tensor, Tensor], Tensor]
    truth: Callable[[float], Tensor]
    ends: tuple[float, float]

    @property
    def start(self) -> Tensor:
        return self.truth(self.ends[0])

    @property
    def end(self) -> Tensor:
        return self.truth(self.ends[1])


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


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


def along(
    field: Callable[[Tensor, Tensor], Tensor], truth: Callable[[float], Tensor], *ends: float
) -> Nonlinear:
    """The problem that ``truth`` solves, from one end to the other."""
    return Nonlinear(field, truth, (ends[0], ends[1]))


def rigid(t: float) -> Tensor:
    """Jacobi's elliptic functions of modulus k^2 = 0.51."""
    return row(*(float(v) for v in ellipj(t, 0.51)[:3]))


def spin(t: Tensor, x: Tensor) -> Tensor:
    """Euler's equations of a rigid body: problem B5 of DETEST."""
    a, b, c = x.unbind(-1)
    return torch.stack([b * c, -a * c, -0.51 * a * b], -1)


def turning(t: Tensor, x: Tensor) -> Tensor:
    """A rotation whose speed is t."""
    return t * torch.stack([-x[..., 1], x[..., 0]], -1)


# A1 to A4, B5 and D2 are those of DETEST (Hull, Enright, Fellen, Sedgwick 1972), on shorter runs.
PROBLEMS = {
    "A1": along(lambda t, x: -x, lambda t: row(math.exp(-t)), 0.0, 2.0),
    "A2": along(lambda t, x: -(x**3) / 2, lambda t: row(1 / math.sqrt(1 + t)), 0.0, 2.0),
    "A3": along(lambda t, x: x * t.cos(), lambda t: row(math.exp(math.sin(t))), 0.0, 2.0),
    "A4": along(
        lambda t, x: x / 4 * (1 - x / 20), lambda t: row(20 / (1 + 19 * math.exp(-t / 4))), 0.0, 8.0
    ),
    "B5": along(spin, rigid, 0.0, 3.0),
    "D2": along(circle, lambda t: ellipse(0.3, t), 0.0, 2.0),
    # The field depends on t, and the run goes backwards.
    "riccati": along(lambda t, x: t.cos() * x * x, lambda t: row(1 / (2 - math.sin(t))), 1.2, -0.4),
    "logarithm": along(lambda t, x: torch.exp(-x), lambda t: row(math.log(1 + t)), 0.0, 3.0),
    "bell": along(lambda t, x: -2 * t * x, lambda t: row(math.exp(-t * t)), -1.0, 1.5),
    "turning": along(
        turning, lambda t: row(math.cos(t * t / 2), math.sin(t * t / 2)), 0.0, 2.0
    ),
    "quadrature": along(lambda t, x: torch.exp(t) + 0 * x, lambda t: row(math.exp(t)), 0.0, 2.0),
}  # fmt: skip

# Steps of the coarser run: small enough for the leading term to rule.
STEPS = {1: 800, 2: 160, 3: 80, 4: 48, 5: 32, 8: 32}
# Errors of a run down here may be rounding's.
ROUNDING = 1e-13


def observed(name: str, problem: Nonlinear) -> float:
    """The order between the finest two runs, a factor 2 apart, that stand above rounding.

    The largest error at the quarters of the run: at one time alone it may pass through 0.
    """
    start, stop = problem.ends
    quarters = [*(start + k / 4 * (stop - start) for k in range(1, 4)), stop]
    truth = torch.stack([problem.truth(t) for t in quarters])

    def error(steps: int) -> float:
        sol = interp.solve(
            problem.field, problem.start, problem.ends, name, steps=steps, save_at=quarters
        )
        return float((sol.xs - truth).abs().max())

    steps = 20 if METHODS[name].implicit else STEPS[METHODS[name].order]
    coarse, fine = error(steps), error(2 * steps)
    while fine < ROUNDING * float(problem.end.abs().max()):
        steps //= 2
        coarse, fine = error(steps), coarse
    return math.log2(coarse / fine)


@pytest.mark.parametrize("name", [m.name for m in interp.methods("ode")])
def test_observed_order(name: str) -> None:
    orders = {key: observed(name, problem) for key, problem in PROBLEMS.items()}
    order = METHODS[name].order
    assert len(orders) > 10
    # The next term of the error is some multiple of h of the leading one: a few tenths at these h.
    assert min(orders.values()) > order - 0.4, orders
    assert sorted(orders.values())[1] < order + 0.4, orders


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_backends_agree_to_rounding(problem: Nonlinear) -> None:
    for method in interp.methods("ode"):
        if "rust" in method.backends:
            ours, theirs = (
                interp.solve(problem.field, problem.start, problem.ends, method.name, backend, 7).x
                for backend in ("rust", "torch")
            )
            assert float((ours - theirs).abs().max()) < 1e-13  # seven steps of rounding


@pytest.mark.parametrize("name", [m.name for m in interp.methods("ode") if m.adaptive])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_adaptive_error_follows_the_tolerance(name: str, problem: Nonlinear) -> None:
    for tolerance in (1e-4, 1e-6) if METHODS[name].implicit else (1e-4, 1e-6, 1e-8):
        sol = interp.solve(
            problem.field, problem.start, problem.ends, name, rtol=tolerance, atol=tolerance
        )
        # Local errors of size tol (1 + |x|), |x| up to 7, add up over the run: a few of them.
        assert float((sol.x - problem.end).abs().max()) < 40 * tolerance
