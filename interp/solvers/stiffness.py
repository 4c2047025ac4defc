"""Whether a run was held back by stability rather than accuracy: looked at after it, at no cost before.

A field is stiff where it has a component that decays much faster than the solution moves. Steps of an
explicit method are then as long as stability allows, h rho of some two to six with rho the fastest rate
of decay, and a tolerance hardly changes them (Hairer and Wanner, Solving ODEs II, IV.2). rho is found
by the power method on differences of the field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .plan import Plan
from .problem import Report

#: Fewer steps are nobody's trouble.
MANY = 200
ITERATIONS = 12


def complaint(made: Plan, report: Report) -> str | None:
    """What to say of a run whose steps were as long as stability allows; None of any other."""
    tried = report["accepted"] + report["rejected"]
    if report["status"] not in ("done", "too_many_steps") or tried < MANY or "each" in report:
        return None
    goal = made.arguments[-1]
    step = abs(report["t"] - goal.from_) / max(report["accepted"], 1)
    rate = fastest_decay(made, report["t"], report["y"].detach())
    if not 1.5 < step * rate < float("inf"):
        return None
    return (
        f"the field is stiff: a component decays at the rate {rate:.1e}, which holds the steps at "
        f"{step:.1e} whatever the tolerance. "
        'Use an implicit method, e.g. method="kencarp4".'
    )


@torch.no_grad()
def fastest_decay(made: Plan, clock: float, y: Tensor) -> float:
    """The largest rate of decay of the field at y; 0 where the fastest component does not decay."""
    problem = made.problem
    told, still = problem.told(clock), problem.field(problem.told(clock), y.clone())
    size = float(y.double().norm())
    small = torch.finfo(y.dtype).eps ** 0.5 * max(size, 1.0)
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y)
    rate = 0.0
    for _ in range(ITERATIONS):
        way = way / way.norm().clamp_min(torch.finfo(y.dtype).tiny)
        change = (problem.field(told, y + small * way) - still) / small
        along, speed = float((way * change).sum()), float(change.norm())
        if not 0 < speed < float("inf"):
            return 0.0
        rate = -along if along < -0.7 * speed else 0.0
        way = change
    return rate
