"""Whether a run was held back by stability rather than accuracy: looked at after it, at no cost before.

A field is stiff where it has a component that decays much faster than the solution moves. Steps of an
explicit method are then as long as stability allows, h rho of some two to six with rho the fastest rate
of decay, and a tolerance hardly changes them (Hairer and Wanner, Solving ODEs II, IV.2). rho is found
by the power method on differences of the field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..terms.model import Field
from .plan import Plan
from .problem import Report

#: Fewer steps are nobody's trouble.
MANY = 200
ITERATIONS = 12


def complaint(made: Plan, report: Report) -> tuple[str, str] | None:
    """What is wrong with a run whose steps were as long as stability allows, and what to do about it.

    Of rows with steps of their own, the one that took most is looked at. None of any other run.
    """
    problem, each, goal = made.problem, report.get("each"), made.arguments[-1]
    accepted, rejected, clock = report["accepted"], report["rejected"], report["t"]
    y, status, whose = report["y"], report["status"], "a component"
    if each is not None:
        row = max(range(len(y)), key=lambda r: each["accepted"][r] + each["rejected"][r])
        accepted, rejected = each["accepted"][row], each["rejected"][row]
        clock, y, status = each["t"][row], y[row : row + 1], each["status"][row]
        whose = f"a component of row {row}"
    if status not in ("done", "too_many_steps") or accepted + rejected < MANY:
        return None
    if each is None:
        told, field = problem.told(clock), problem.field
    else:
        told = problem.told_rows([clock])
        field = problem.field if problem.cut is None else problem.cut([row])
    step = abs(clock - goal.from_) / max(accepted, 1)
    rate = fastest_decay(field, told, y.detach())
    if not 1.5 < step * rate < float("inf"):
        return None
    return (
        f"the field is stiff: {whose} decays at the rate {rate:.1e}, which holds the steps at "
        f"{step:.1e} whatever the tolerance",
        'Use an implicit method, e.g. method="kencarp4".',
    )


@torch.no_grad()
def fastest_decay(field: Field, told: Tensor, y: Tensor) -> float:
    """The largest rate of decay of the field at y; 0 where the fastest component does not decay."""
    still = field(told, y.clone())
    size = float(y.double().norm())
    small = torch.finfo(y.dtype).eps ** 0.5 * max(size, 1.0)
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y)
    rate = 0.0
    for _ in range(ITERATIONS):
        way = way / way.norm().clamp_min(torch.finfo(y.dtype).tiny)
        change = (field(told, y + small * way) - still) / small
        along, speed = float((way * change).sum()), float(change.norm())
        if not 0 < speed < float("inf"):
            return 0.0
        rate = -along if along < -0.7 * speed else 0.0
        way = change
    return rate
