"""The observed order of convergence of a method."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..errors import OptionError
from ..exact import Gaussian, Mixture
from ..exact.target import Target
from ..solvers import solve
from ..solvers.catalogue import find

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """An initial value problem and its solution at the end, float64."""

    field: Field
    start: Tensor
    interval: tuple[float, float]
    end: Tensor

    def error(self, method: str, steps: int, **options: Any) -> float:
        """The largest error at the end after ``steps`` even steps."""
        sol = solve(self.field, self.start, self.interval, method, steps=steps, **options)
        return float((sol.x - self.end).abs().max())


@dataclass(frozen=True)
class PathProblem:
    """An exact law on a path, and its flow's end: what a sampler of paths is measured on.

    On the linear path from t = 0.2 to 0.9, steps even in t and so uneven in log-SNR.
    """

    law: Target
    start: Tensor

    interval = (0.2, 0.9)

    @functools.cached_property
    def end(self) -> Tensor:
        """The flow's own, a closed form."""
        return self.law.flow(schedules.linear())(*self.interval, self.start)

    def error(self, method: str, steps: int, **options: Any) -> float:
        """The largest error at the end after ``steps`` even steps."""
        path = schedules.linear()
        term = path.ode(self.law.data(path), view="data")
        sol = solve(term, self.start, self.interval, method, steps=steps, **options)
        return float((sol.x - self.end).abs().max())


def _row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


#: Nonlinear problems whose solutions are closed forms; the second depends on t and runs backwards.
PROBLEMS = {
    "logistic": Problem(  # x = 20 / (1 + 19 exp(-t / 4)): A4 of DETEST (Hull et al. 1972)
        lambda t, x: x / 4 * (1 - x / 20), _row(1.0), (0.0, 4.0), _row(20 / (1 + 19 / math.e))
    ),
    "riccati": Problem(  # x = 1 / (2 - sin t)
        lambda t, x: t.cos() * x * x,
        _row(1 / (2 - math.sin(1.2))),
        (1.2, -0.4),
        _row(1 / (2 - math.sin(-0.4))),
    ),
}

#: Laws whose flow is a closed form: the mixture's, on a line, by its quantiles.
PATH_PROBLEMS = {
    "gaussian": PathProblem(Gaussian([0.3, -0.2], [0.25, 0.09]), _row(0.8, -0.4)),
    "mixture": PathProblem(
        Mixture([0.4, 0.6], [[-1.0], [0.7]], [0.1, 0.3]), _row(-0.96, -0.24, 0.32, 0.88).mT
    ),
}

# Steps of the coarser run by order: few enough that the error stands above the 1e-15 of rounding.
_STEPS = {1: 800, 2: 160, 3: 80, 4: 48, 5: 24}


def assert_order(
    method: str,
    problem: Problem | PathProblem | str | None = None,
    *,
    order: float | None = None,
    steps: int | None = None,
    slack: float = 0.3,
    backend: str = "auto",
    **options: Any,
) -> float:
    """Assert that the error of ``method`` falls by 2^order when its steps are halved.

    Args:
        method: a name of `interp.methods("ode")`, or of `interp.methods("path")` that draws no noise.
        problem: a `Problem` or `PathProblem` of your own; a name of `PROBLEMS`, or for a sampler of paths
            of `PATH_PROBLEMS`; or None for each of these in turn.
        order: the order to find; None is the one the table of methods states.
        steps: steps of the coarser run; None chooses by the order.
        slack: what the observed order may lack, for the next term of the error's expansion; it may
            exceed the order by 0.2 more, since that term can help.
        backend: where to run.
        **options: further arguments of `interp.solve`.

    Returns:
        The lowest observed order.

    Raises:
        AssertionError: the observed order is another; or the errors are so small, below 1e-13 of
            the solution, that rounding hides it (take fewer steps).
        OptionError: a method whose error is a random number, or an unknown problem.
    """
    known = find(method)
    if known.kind not in ("ode", "path") or known.noisy:
        raise OptionError(
            f"{method} integrates no ODE, whose error is no random number. assert_order measures methods "
            "of ODEs and samplers of a path's flow."
        )
    wanted = known.order if order is None else order
    coarse = steps or _STEPS.get(math.ceil(wanted), 12)
    observed = {
        name: _observed(name, p, method, coarse, backend=backend, **options)
        for name, p in _chosen(problem, known.kind).items()
    }
    for name, found in observed.items():
        if not wanted - slack <= found <= wanted + slack + 0.2:
            raise AssertionError(
                f"{method} shows order {found:.2f} on the problem {name!r} from {coarse} to "
                f"{2 * coarse} steps, not {wanted:g} within {slack:g}."
            )
    return min(observed.values())


def _chosen(
    problem: Problem | PathProblem | str | None, kind: str
) -> Mapping[str, Problem | PathProblem]:
    known: Mapping[str, Problem | PathProblem] = PATH_PROBLEMS if kind == "path" else PROBLEMS
    if problem is None:
        return known
    if not isinstance(problem, str):
        return {"given": problem}
    if problem not in known:
        raise OptionError(f"problem={problem!r}. Give a problem or one of {', '.join(known)}.")
    return {problem: known[problem]}


def _observed(
    name: str, problem: Problem | PathProblem, method: str, steps: int, **options: Any
) -> float:
    coarse, fine = (problem.error(method, n, **options) for n in (steps, 2 * steps))
    if fine < 1e-13 * float(problem.end.abs().max()):
        raise AssertionError(
            f"the error of {method} on the problem {name!r} is {fine:.1e} after {2 * steps} steps, "
            "which is rounding. Take fewer steps."
        )
    return math.log2(coarse / fine)
