"""What a best schedule is best at, each as a sum of squares.

    end_error        E |x_N - x(1)|^2, where a run of the solver ends less where the flow does
    local_error      E sum_k |e_k|^2, e_k the error of step k carried to the end by the flow: then
                     x_N - x(1) = sum_k e_k (Lady Windermere's fan; Hairer, Norsett, Wanner,
                     Solving ODEs I, II.3), so that errors may not cancel as they may above
    kinetic_energy   int E |v|^2 dt: straight and even motion
    lipschitz        int E |dv/dx|^2 dt: a field that changes little from point to point
    likelihood       the nats that ancestral sampling on the grid loses of the likelihood bound

Errors are those of the given solver, whichever takes a grid, by its runs alone. The others are the
path's own, worked out from `Moments`. On a grid the two integrals are those of the clock that takes
even steps: N sum_k (int_k sqrt(E |v|^2) dt)^2, least where all steps are equally long.

The likelihood bound of N steps (Kingma, Salimans, Poole, Ho 2021, 2107.00630) exceeds that of
infinitely many by

    (1/2) sum_k int_k (mmse(t_k) - mmse) dSNR,

which for an exact posterior mean is also the bound on the KL divergence that `Align Your Steps`
minimises for a first-order solver of the SDE (Sabour, Fidler, Kreis 2024, 2404.14507); the
last step decodes by a normal law of the variance mmse. Scales of x do not enter it.

Sources: kinetic energy, Shaul, Chen, Nickel, Le, Lipman 2023 (2306.06626); lipschitz, averaged and
squared, Chen, Vanden-Eijnden, Xu 2025 (2509.01629), there of the spectral norm, here of the Frobenius
norm per element, which is a sum over the data and so is measured with one vector a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..arguments import host
from ..coefficients import Coefficients
from ..errors import SolveError
from .flows import Flow
from .moments import Moments, moments
from .spaces import Candidate, of_a_path

_POINTS = 512  # of a quadrature over a path
_CARRY = 3  # steps of rk4 that carry an error over one step of the grid


class Objective(Protocol):
    """Residuals whose sum of squares is the cost, and the cost as it is shown."""

    unit: str

    def __call__(self, candidate: Candidate) -> Tensor: ...

    def shown(self, cost: float) -> float: ...


class EndError:
    """Residuals of the ends, over all flows; shown as a root mean square per element."""

    unit = "RMS error at the end"

    def __init__(self, flows: Sequence[Flow], solver: str, half: int = 0) -> None:
        self.flows, self.solver, self.half = flows, solver, half

    def __call__(self, candidate: Candidate) -> Tensor:
        return _joined(
            flow.error(candidate.path, self.solver, candidate.grid, self.half)
            for flow in self.flows
        )

    def shown(self, cost: float) -> float:
        """The root of the mean."""
        return math.sqrt(cost)


class LocalError:
    """Residuals of the steps, each carried to the end; shown as a root mean square per element."""

    unit = "RMS of local errors at the end"

    def __init__(self, flows: Sequence[Flow], solver: str) -> None:
        self.flows, self.solver = flows, solver

    def __call__(self, candidate: Candidate) -> Tensor:
        # The number of steps stays outside the mean: a sum over steps.
        steps = len(candidate.grid) - 1
        fans = _joined(fan(flow, self.solver, candidate) for flow in self.flows)
        return fans * math.sqrt(steps)

    def shown(self, cost: float) -> float:
        """The root of the mean over rows of the sum over steps."""
        return math.sqrt(cost)


def _joined(parts: object) -> Tensor:
    """Residuals whose sum of squares is the mean square of the parts."""
    flat = torch.cat([part.flatten() for part in parts])  # type: ignore[attr-defined]
    return flat / math.sqrt(max(1, flat.numel()))


@torch.no_grad()
def fan(flow: Flow, solver: str, candidate: Candidate) -> Tensor:
    """The error of each step of a run, carried to the end by the flow: (steps, *x.shape), float64.

    States of the run are carried together, one more from each node on; the states themselves are
    carried by a few steps of rk4 for each step of the run.
    """
    from ..solvers import solve

    term, grid = flow.on(candidate.path), candidate.grid
    x, cond = flow.halves[0]
    run = solve(
        term, x, t=(grid[0], grid[-1]), method=solver, grid=grid, save_at=grid[1:], cond=cond
    )
    carried = x
    for k, (t, end) in enumerate(itertools.pairwise(grid)):
        many = {name: _repeated(v, len(x), k + 1) for name, v in cond.items()}
        regular = end != grid[-1] or getattr(term, "coordinates", None) is None
        how: dict[str, object] = (
            {"method": "rk4", "steps": _CARRY}
            if regular
            else {"rtol": flow.tolerance, "atol": flow.tolerance}
        )
        carried = solve(term, carried, t=(t, end), cond=many, **how).x  # type: ignore[arg-type]
        carried = torch.cat([carried, run.xs[k]])
    return carried.double().cpu().reshape(len(grid), *x.shape).diff(dim=0)


def _repeated(value: object, rows: int, times: int) -> object:
    per_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    return value.repeat(times, *(1,) * (value.ndim - 1)) if per_row else value  # type: ignore[attr-defined]


class Speed:
    """An integral over the path of the square of a speed, from the moments of the flows."""

    def __init__(
        self, laws: Sequence[Moments], speed: Callable[[Moments, Coefficients], Tensor], unit: str,
        on_grid: bool,
    ) -> None:  # fmt: skip
        self.laws, self.speed, self.unit, self.on_grid = laws, speed, unit, on_grid

    def __call__(self, candidate: Candidate) -> Tensor:
        path, grid = of_a_path(candidate), host(candidate.grid)
        edges = torch.linspace(grid[0], grid[-1], _POINTS + 1, dtype=torch.float64)
        h = edges[1] - edges[0]
        with torch.no_grad():
            k = path.coefficients(edges[:-1] + h / 2)
        squared = torch.stack([self.speed(law, k) for law in self.laws]).mean(0)
        if not bool(squared.isfinite().all()):
            raise SolveError(
                "the speed of this path is infinite inside (0, 1). Choose a smoother one.",
                time=0.0, step=0, rows=[], last=squared, reason="non_finite",
            )  # fmt: skip
        if not self.on_grid:
            return (squared * h.abs()).sqrt()
        length = torch.cat([edges.new_zeros(1), (squared.sqrt() * h.abs()).cumsum(0)])
        place = (grid - grid[0]) / h
        below = place.long().clamp(max=_POINTS - 1)
        at = torch.lerp(length[below], length[below + 1], place - below)
        return at.diff() * math.sqrt(len(grid) - 1)

    def shown(self, cost: float) -> float:
        """Per element."""
        return cost


class Likelihood:
    """Nats per element that N ancestral steps lose, one residual a step."""

    unit = "nats per element above the bound"

    def __init__(self, laws: Sequence[Moments]) -> None:
        self.laws = laws
        self.tables = [_information(law) for law in laws]

    def __call__(self, candidate: Candidate) -> Tensor:
        path = of_a_path(candidate)
        with torch.no_grad():
            lam = path.log_snr(host(candidate.grid))
        losses = torch.stack([
            _lost(law, table, lam) for law, table in zip(self.laws, self.tables, strict=True)
        ]).mean(0)  # fmt: skip
        return losses.clamp(min=0).sqrt()

    def shown(self, cost: float) -> float:
        """Nats per element."""
        return cost


Table = tuple[Tensor, Tensor, Tensor]


def _information(law: Moments) -> Table:
    """Angles, falling, the information int mmse dSNR from pure noise to each, and mmse there."""
    angle = torch.linspace(0.5 * math.pi, float(law.angle[0]), 4097, dtype=torch.float64)
    middle = (angle[1:] + angle[:-1]) / 2
    rate = 2 * law.at("P", middle) * torch.cos(middle) / torch.sin(middle)
    info = torch.cat([angle.new_zeros(1), (rate * -angle.diff()).cumsum(0)])
    return angle, info, law.mmse(angle)


def _lost(law: Moments, table: Table, lam: Tensor) -> Tensor:
    """What each of the steps between ``lam`` loses: (steps,)."""
    angle, info, mmse = table
    node = torch.atan2(torch.exp(-0.5 * lam), torch.ones_like(lam)).clamp(min=float(angle[-1]))
    place = (angle[0] - node) / (angle[0] - angle[1])
    below = place.long().clamp(0, len(angle) - 2)
    at = torch.lerp(info[below], info[below + 1], place - below)
    snr = torch.tan(node) ** -2
    m = law.mmse(node)
    between = m[:-2] * snr[1:-1].diff(prepend=snr[:1]) - at[:-1].diff()
    # The decoder: the entropy of a normal law of the last mmse, less the entropy that is left.
    last = torch.log(m[-2] / mmse[-1]) - (info[-1] - at[-2])
    return 0.5 * torch.cat([between, last[None]])


Maker = Callable[[Sequence[Flow], str, bool, int], Objective]


def _kinetic(flows: Sequence[Flow], solver: str, on_grid: bool, seed: int) -> Objective:
    laws = [moments(flow, seed) for flow in flows]
    return Speed(laws, Moments.energy, "kinetic energy per element", on_grid)


def _lipschitz(flows: Sequence[Flow], solver: str, on_grid: bool, seed: int) -> Objective:
    laws = [moments(flow, seed) for flow in flows]
    return Speed(laws, Moments.lipschitz, "squared Lipschitz constant per element", on_grid)


OBJECTIVES: Mapping[str, Maker] = {
    "end_error": lambda flows, solver, on_grid, seed: EndError(flows, solver),
    "local_error": lambda flows, solver, on_grid, seed: LocalError(flows, solver),
    "kinetic_energy": _kinetic,
    "lipschitz": _lipschitz,
    "likelihood": lambda flows, solver, on_grid, seed: Likelihood(
        [moments(flow, seed) for flow in flows]
    ),
}
