"""Adams-Bashforth methods: one evaluation a step, by the slopes of the steps before.

    y_{i+1} = y_i + int P dt over the step,   P the polynomial through the last p slopes,

integrated exactly on steps of any lengths. The first p - 1 steps are of a Runge-Kutta method of order p,
whose first stages are the slopes that the others look back at.

Source: Bashforth, Adams 1883; Hairer, Norsett, Wanner 1993, III.1 and III.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..terms import ODE, PathODE
from . import dense, rust_backend, tableaus, torch_backend
from .plan import Engine, Plan, Request
from .problem import Observer
from .programme import Move, compiled
from .runge_kutta import laid_out
from .tableaus import Numbers

_ENGINES: dict[str, Engine] = {
    "rust": rust_backend.recurrence,
    "torch": torch_backend.recurrence,
}
_STARTS = {
    2: Numbers.of(tableaus.HEUN),
    3: Numbers.of(tableaus.SSPRK3),
    4: Numbers.of(tableaus.RK4),
}
# Gauss's two points of [0, 1], exact up to degree 3.
_POINTS = (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12))


def adams_bashforth(
    term: ODE | PathODE, x: Tensor, request: Request, observer: Observer | None
) -> Plan:
    """The run of the method's order, on a grid, in the coordinates in which the view is regular."""
    laid = laid_out(term, x, request, bounded(term))
    taus, problem = laid.taus or [], laid.problem
    between = dense.in_clock(taus, problem.saves)
    if between is not None:
        problem.saves = between.nodes
        problem.xs = x.new_empty((len(between.nodes), *x.shape))
    programme = compiled(steps(taus, request.method.order), taus[0], problem.saves)
    made = laid.plan(_ENGINES[request.backend], (programme, None), observer)
    made.between = between
    return made


class _Turned:
    """A term's v_prediction, as a model that is told t."""

    view, exact_time = "v_prediction", True

    def __init__(self, term: PathODE) -> None:
        self.term = term

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        return self.term.as_view("v_prediction", t, x, cond)


def bounded(term: ODE | PathODE) -> ODE | PathODE:
    """The term in a clock that ends.

    That of a view of the data, beta / sigma, does not: its steps grow on the way to clean data, and to
    extrapolate over longer and longer ones is unstable. The angle of v_prediction has both ends.
    """
    if isinstance(term, PathODE) and term.view == "data" and term.coordinates is not None:
        return PathODE(term.path, _Turned(term), "v_prediction", "t")
    return term


def steps(t: Sequence[float], order: int) -> list[Move]:
    """The moves over a grid."""
    moves: list[Move] = []
    firsts: list[int] = []  # numbers of the slopes at the steps' beginnings, the newest last
    for i in range(len(t) - 1):
        number = firsts[-1] + 1 if i >= order else (firsts[-1] + len(_STARTS[order].b) if i else 0)
        firsts = [*firsts[1 - order :], number]
        if i < order - 1:
            moves += one_step(_STARTS[order], t[i], t[i + 1], number)
            continue
        h = t[i + 1] - t[i]
        nodes = [(t[i - j] - t[i]) / h for j in range(order)]
        slopes = {k: h * w for k, w in zip(reversed(firsts), weights(nodes), strict=True)}
        moves.append(Move(t[i], start=1.0, slopes=slopes, end=t[i + 1]))
    return moves


def one_step(numbers: Numbers, t: float, end: float, number: int) -> list[Move]:
    """A step of an explicit Runge-Kutta method, whose first slope has this number."""
    h, moves = end - t, list[Move]()
    for i, row in enumerate([*numbers.a[1:], numbers.b]):
        c = numbers.c[i]
        at = end if c == 1.0 else t + c * h
        slopes = {number + j: h * a for j, a in enumerate(row)}
        moves.append(Move(at, start=1.0, slopes=slopes))
    moves[-1].end = end
    return moves


def weights(nodes: Sequence[float]) -> list[float]:
    """w with sum_j w_j P(node_j) = int_0^1 P(s) ds for each polynomial P through four nodes at most."""

    def basis(j: int, s: float) -> float:
        others = [node for k, node in enumerate(nodes) if k != j]
        return math.prod((s - node) / (nodes[j] - node) for node in others)

    return [sum(basis(j, s) for s in _POINTS) / 2 for j in range(len(nodes))]
