"""A solver as a programme: what it does with each output of a model, read off the solver itself.

A method on a fixed grid is linear in its start, in the outputs of the model and in its normals, with
numbers that the grid alone decides. So one run over the basis vectors of (start, output 0, output 1, ...)
tells them: the model's j-th answer is the j-th unit vector, and the point at which it is asked next holds
the coefficients. What a loop that is not ours has to do after output j is then

    x_(j+1) = kept x_j + sum_i weight_i output_i + sum_k scale_k z_k

for every method of `interp.solve`, Runge-Kutta, multistep or stochastic, with nothing stated twice.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import Unsupported
from ..interpolant import Interpolant
from ..noise import BrownianPath
from ..solvers import solve
from ..solvers.catalogue import find

_ROUNDING = 1e-10  # of coefficients that are sums of a thousand float64 products
Weights = tuple[tuple[int, float], ...]
"""(number, coefficient) pairs."""


@dataclass(frozen=True)
class Stage:
    """One question to the model, and what its answer makes of the point.

    Attributes:
        t: where the model is asked.
        kept: what the next point keeps of this one.
        outputs: what it takes of the model's outputs, by number.
        normals: what it takes of unit normals, by number; one number is one normal.
    """

    t: float
    kept: float
    outputs: Weights
    normals: Weights = ()


@dataclass(frozen=True)
class Programme:
    """The stages of a run.

    Attributes:
        stages: in order.
        order: stages a step; step i begins with stage i order.
        last_use: the last stage that takes an output, by the output's number.
        last_normal: the same of a normal.
    """

    stages: tuple[Stage, ...]
    order: int
    last_use: dict[int, int] = field(default_factory=dict)
    last_normal: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for j, stage in enumerate(self.stages):
            self.last_use.update((i, j) for i, _ in stage.outputs)
            self.last_normal.update((k, j) for k, _ in stage.normals)


class _Recorder:
    """A model that writes down where it is asked, and answers with unit vectors or with zeros."""

    exact_time = True

    def __init__(self, basis: bool) -> None:
        self.basis = basis
        self.times: list[float] = []
        self.points: list[Tensor] = []

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        answer = torch.zeros_like(x)
        self.times.append(float(t))
        self.points.append(x[0].detach().clone())
        if self.basis:
            answer[0, len(self.times)] = 1.0
        return answer


def programme(
    path: Interpolant, view: str, method: str, grid: list[float], options: Mapping[str, Any]
) -> Programme:
    """The programme of ``method`` over ``grid`` for a model of ``view`` on ``path``.

    Args:
        path: where the points lie.
        view: what the model returns.
        method: a name of `interp.methods()`.
        grid: the times of the steps.
        options: of the method; ``diffusion`` of an SDE's, "reverse" where it is left out.

    Raises:
        Unsupported: a method whose normals are not those of its Brownian path, or an implicit one.
        OptionError, UnknownName, TimeError: as `interp.solve`.
    """
    if find(method).implicit:
        raise Unsupported(
            f"{method} solves for its stages, and asks the model as often as that takes, which a "
            "scheduler's loop cannot. Use interp.solve, or an explicit method."
        )
    if "data_hook" in options:
        raise Unsupported(
            "a scheduler's programme is linear in the model's answers, and data_hook is not. Say "
            "clip_sample or thresholding in the scheduler's configuration, which are kept."
        )
    order = _order(path, view, method, grid, options)
    # The start, all outputs, one or two at the end; and more than there are normals, to tell them apart.
    width = order * len(grid) + 64
    found, drawn = _run(path, view, method, grid, options, width, basis=True)
    rows = found.points
    noise: list[Weights] = [()] * len(found.times)
    if drawn is not None:
        silent, _ = _run(path, view, method, grid, options, width, basis=False)
        rows = [p - q for p, q in zip(rows, silent.points, strict=True)]
        kept = [_kept(p, q) for p, q in itertools.pairwise(rows)]
        pairs = itertools.pairwise(silent.points)
        taken = [q - a * p for a, (p, q) in zip(kept, pairs, strict=True)]
        noise = _normals(method, taken, silent.times, grid, order, drawn)
    stages = []
    for j, (here, there) in enumerate(itertools.pairwise(rows)):
        a = _kept(here, there)
        rest = (there - a * here)[1:]
        small = _ROUNDING * max(1.0, float(there.abs().max()))
        used = [(int(i), float(rest[i])) for i in (rest.abs() > small).nonzero().flatten()]
        stages.append(Stage(found.times[j], a, tuple(used), noise[j]))
    return Programme(tuple(stages), order)


def _order(
    path: Interpolant, view: str, method: str, grid: list[float], options: Mapping[str, Any]
) -> int:
    """How often a step asks the model: what one more step at the beginning of a short run adds."""
    short, shorter = (
        len(_run(path, view, method, grid[-n:], options, 64, basis=False)[0].times) if n > 1 else 0
        for n in (min(len(grid), 6), min(len(grid), 6) - 1)
    )
    return short - shorter


def _run(
    path: Interpolant, view: str, method: str, grid: list[float], options: Mapping[str, Any],
    width: int, basis: bool,
) -> tuple[_Recorder, int | None]:  # fmt: skip
    """One run of a row of ``width``, from the unit vector 0 or from 0; the depth of its noise, if any."""
    model = _Recorder(basis)
    x = torch.zeros(1, width, dtype=torch.float64)
    x[0, 0] = float(basis)
    options = dict(options)
    if find(method).kind == "sde":
        eps = options.pop("diffusion", "reverse")
        term: Any = path.sde(model, view=view, time="t", diffusion=eps)
    else:
        term = path.ode(model, view=view, time="t")
    with torch.no_grad():
        ends = (grid[0], grid[-1])
        solution = solve(term, x, ends, method, grid=grid, seed=0, **options)
    model.points.append(solution.x[0])
    return model, solution.stats.depth


def _kept(here: Tensor, there: Tensor) -> float:
    """What the next point keeps of this one: the oldest that is left in it says so, the start first."""
    left = (here.abs() > 1e-8 * here.abs().max()).nonzero().flatten()
    return float(there[left[0]] / here[left[0]]) if len(left) else 0.0


def _normals(
    method: str, taken: list[Tensor], times: list[float], grid: list[float], order: int, depth: int
) -> list[Weights]:
    """The noise that each stage takes, in unit normals of the Brownian path over parts of its step.

    Those of the steps before are among them: a multistep method that looks back at a state of before,
    for the data estimate there, finds it without the noise since. The realised normals are known, so
    that their coefficients follow by least squares, exactly.
    """
    path = BrownianPath(1, len(taken[0]), 0, depth=depth)
    next_times = [*times[1:], grid[-1]]
    marks = sorted({*times, *grid})
    number = {t: k for k, t in enumerate(marks)}
    w = [path.at(t)[0] for t in marks]
    found: list[Weights] = []
    for j, noise in enumerate(taken):
        size = float(noise.abs().max())
        if size < _ROUNDING:  # of points of size 1
            found.append(())
            continue
        # A step with fewer answers than the others, at an infinite log-SNR, leaves j // order behind.
        i = min(max(j // order, bisect.bisect_left(grid, next_times[j]) - 1), len(grid) - 2)
        low, high = sorted((number[grid[i]], number[grid[i + 1]]))
        for parts in (range(low, high), range(high)):
            units = [(w[k + 1] - w[k]) / math.sqrt(marks[k + 1] - marks[k]) for k in parts]
            matrix = torch.stack(units, 1)
            shares = torch.linalg.lstsq(matrix, noise[:, None]).solution[:, 0]
            if float((matrix @ shares - noise).abs().max()) < 1e-6 * size:
                break
        else:
            raise Unsupported(
                f"{method} draws normals that are not those of its steps on the Brownian path, which a "
                "scheduler's loop has no place for. Use interp.solve, or another method."
            )
        pairs = zip(parts, shares.tolist(), strict=True)
        found.append(tuple((k, c) for k, c in pairs if abs(c) > 1e-9 * size))
    return found
