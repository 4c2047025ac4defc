"""The law that a stochastic sampler leaves on Gaussian data, without a sample.

With data N(m, s^2) the model is E[x1 | x] = p x + q, and every sampler is linear in its start and its
normals. So a run on the vector of their coefficients, in which the i-th normal is the i-th unit vector,
ends with the exact mean and variance of what it would sample, in any number of dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import host, real, whole
from ..errors import InterpError, OptionError
from ..terms import PathODE, PathSDE
from . import grids, reversible_heun, torch_backend
from .plan import Plan, Request
from .programme import Noise
from .torch_backend.recurrence import Stepper
from .torch_backend.run import Run
from .torch_backend.stochastic import Step

if TYPE_CHECKING:
    from ..interpolant import Interpolant
    from .catalogue import Method


@dataclass(frozen=True)
class BiasRow:
    """What a sampler leaves.

    Attributes:
        name: of the method.
        noise: its diffusion, or its own option.
        means, stds: for each number of steps; NaN where it cannot run.
    """

    name: str
    noise: str
    means: tuple[float, ...]
    stds: tuple[float, ...]


@dataclass(frozen=True)
class BiasTable:
    """The rows, the law of the data, and the numbers of steps; prints as a table."""

    rows: tuple[BiasRow, ...]
    mean: float
    std: float
    steps: tuple[int, ...]

    def __str__(self) -> str:
        head = ("name", "noise", *(f"{n} steps" for n in self.steps))
        cells = [(r.name, r.noise, *(f"{s:.4f}" for s in r.stds)) for r in self.rows]
        table = [head, *cells]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in table]
        title = f"standard deviation left on N({self.mean:g}, {self.std**2:g}), true {self.std:.4f}"
        return "\n".join([title, *(line.rstrip() for line in lines)])

    __repr__ = __str__


def bias(
    methods: Mapping[str, Method], steps: Sequence[int], mean: float, variance: float,
    path: Interpolant | None,
) -> BiasTable:  # fmt: skip
    """The table for every stochastic sampler of a path; see `interp.methods`."""
    from .. import schedules

    counts = tuple(whole("steps", n, 1) for n in steps)
    mean, variance = real("mean", mean, low=-math.inf), real("variance", variance)
    path = schedules.linear() if path is None else path
    if not path.gaussian_base or path.element:
        raise OptionError(
            "the bias table is of a path with a Gaussian base and one coefficient for all elements, "
            "e.g. schedules.linear(). Give such a path."
        )
    rows = []
    for method, diffusion, options in _samplers(methods):
        found = [_left(method, path, diffusion, options, n, mean, variance) for n in counts]
        if all(math.isnan(s) for _, s in found):
            continue
        said = ", ".join(f"{k}={v:g}" for k, v in options.items()) or f"eps={diffusion}"
        means, stds = zip(*found, strict=True)
        rows.append(BiasRow(method.name, said, means, stds))
    return BiasTable(tuple(rows), mean, math.sqrt(variance), counts)


_Sampler = tuple["Method", "float | str | None", dict[str, Any]]


def _samplers(methods: Mapping[str, Method]) -> list[_Sampler]:
    """Every way to draw noise: diffusions of an SDE's methods, and own options of a path's."""
    found: list[_Sampler] = []
    for method in methods.values():
        if method.kind == "sde":
            found += [(method, eps, {}) for eps in (0.5, 1.0, "reverse")]
        elif "eta" in method.options:
            found += [(method, None, {"eta": 1.0})]
        elif "s_churn" in method.options:
            found += [(method, None, {"s_churn": 10.0})]
        elif method.kind == "path" and method.noisy:
            found += [(method, "reverse", {})]
    return found


def _left(
    method: Method, path: Interpolant, diffusion: float | str | None, options: dict[str, Any],
    steps: int, mean: float, variance: float,
) -> tuple[float, float]:  # fmt: skip
    """Mean and standard deviation at the end; NaN where the method cannot run."""
    size = 2 + 4 * steps  # the start's coefficient, the constant, and more normals than any draws

    def data(t: Tensor, x: Tensor) -> Tensor:
        """E[x1 | x] of N(mean, variance), on coefficients."""
        k = path.coefficients(t.double())
        gain = k.beta * variance / (k.beta**2 * variance + k.sigma**2)
        answer = gain * x
        answer[:, 1] += mean * (1 - gain * k.beta)
        return answer

    term: PathODE | PathSDE
    if diffusion is None:
        term = path.ode(data, view="data")
    else:
        term = path.sde(data, view="data", diffusion=diffusion)
    grid = grids.grid_times(steps, None, (0.0, 1.0))
    x = torch.zeros(1, size, dtype=torch.float64)
    x[0, 0] = 1.0
    request = Request(
        method, "torch", (0.0, 1.0), grid, 1e-5, 1e-5, [], [], 0, 0, {}, options
    )  # fmt: skip
    try:
        with torch.no_grad():
            made = method.scheme(term, x, request, None)
            left = made.state(made.stop, _run(made))
            if made.last is not None:
                at = host(made.stop)
                left = term.first_order(at, host(made.last), left, term.call(at, left, {}))
            end = left[0]
    except InterpError:
        return math.nan, math.nan
    start = float(path.coefficients(host(0.0)).sigma)
    squares = end.square()
    spread = start**2 * squares[0] + squares[2:].sum()
    return float(end[1]), math.sqrt(float(spread)) if spread.isfinite() else math.nan


class _Units:
    """Normals that are unit vectors, one after the other."""

    def __init__(self, size: int) -> None:
        self.size, self.next = size, 2

    def unit(self, scale: float) -> Tensor:
        """The next one, scaled."""
        z = torch.zeros(1, self.size, dtype=torch.float64)
        z[0, self.next] = scale
        self.next += 1
        return z

    def draw(self, draw: Noise) -> Tensor:
        """What a stage draws: of W and H over (s, r), or a fresh normal."""
        size, s, r, area = draw
        if isinstance(size, Tensor):
            raise OptionError("a sampler whose noise differs between elements has no table.")
        if r is None:
            return self.unit(size)
        h = abs(r - s)
        both = self.unit(size * math.sqrt(h))
        return both if area == 0.0 else both + self.unit(area * math.sqrt(h / 12))


def _run(plan: Plan) -> Tensor:
    """The end of a run on the vector of coefficients."""
    problem = plan.problem
    if problem.y is None:
        raise ValueError("a plan without a state")
    units = _Units(problem.y.shape[1])
    if plan.engine is torch_backend.recurrence:
        programme = plan.arguments[0]
        steps = [
            (s, r) for stage in programme.stages for _, s, r, _ in stage.noise if r is not None
        ]
        if any(a[1] > b[0] for a, b in itertools.pairwise(steps)):
            raise OptionError("a sampler whose normals overlap has no table. Leave it out.")
        normals: Any = units
        stepper = Stepper(programme, problem.y, normals)
        while (stage := stepper.stage) is not None:
            asked = stage.evaluation
            answer = None if asked is None else problem.field(problem.told(asked[0]), stepper.here)
            stepper.advance(answer)
        return stepper.start
    if plan.engine is reversible_heun.kept:
        return _pair(plan, units)
    if plan.engine is not torch_backend.stochastic:
        raise OptionError("a sampler that is no recurrence of its own has no table. Leave it out.")
    scheme, _, _, grid, _ = plan.arguments
    run = Run(problem)
    for t, end in itertools.pairwise(grid):
        h = end - t
        w, area = units.unit(math.sqrt(h)), units.unit(math.sqrt(h / 12))
        run.y = Step(run, scheme, t, end, w, area).make()
    return run.y


def _pair(plan: Plan, units: _Units) -> Tensor:
    """The same of the pair of states of the reversible Heun method."""
    run, grid = Run(plan.problem), plan.arguments[2]
    steps, state = reversible_heun.Steps(run), torch.stack([run.y, run.y])
    at = steps.slopes(grid[0], run.y)
    for t, end in itertools.pairwise(grid):
        state, at = steps.ahead(t, end, state, units.unit(math.sqrt(end - t)), at)
    return state[0]
