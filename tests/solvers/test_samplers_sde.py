"""Samplers of a path's SDE: the law that they leave, exactly, and the noise of their stages."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError
from interp.solvers import ancestral, multistep, singlestep
from interp.solvers.exponential import Levels
from interp.solvers.programme import Move
from interp.solvers.recurrence import Sampler
from interp.solvers.singlestep import EULER, HEUN3, MIDPOINT

F64 = torch.float64
PATHS = {"linear": schedules.linear(), "variance_preserving": schedules.variance_preserving()}
MIXTURE = interp.exact.Mixture([0.4, 0.6], [[-1.0], [0.7]], [0.1, 0.3])
SAMPLERS: dict[str, Sampler] = {
    "ddpm": ancestral.ddpm,
    "dpm++2m_sde": multistep.dpmpp_2m_sde,
    "dpm++3m_sde": multistep.dpmpp_3m_sde,
    "dpm++2s_sde": singlestep.dpmpp_2s_sde,
    "dpm++3s_sde": singlestep.dpmpp_3s_sde,
    "seeds1": singlestep.seeds_1,
    "seeds2": singlestep.seeds_2,
    "seeds3": singlestep.seeds_3,
}
STAGED = {
    "dpm++2s_sde": "dpm++2s",
    "dpm++3s_sde": "dpm++3s",
    "seeds1": "dpm1",
    "seeds2": "dpm2",
    "seeds3": "dpm3",
}
ORDERS = {m.name: m.order for m in interp.methods("path")}
Data = Callable[[float, Tensor], Tensor]


def states(
    moves: list[Move], path: interp.Interpolant, data: Data, x: Tensor, normals: Iterator[Tensor]
) -> list[Tensor]:
    """The state after each move from ``x``, with given normals: the moves as they are written."""
    begun = here = x
    answers: list[Tensor] = []
    made = []
    for move in moves:
        assert move.at is not None
        k = path.coefficients(move.at)
        told = data(move.at, here)
        answers.append(told if move.kind == "data" else (here - k.beta * told) / k.sigma)
        sums = [move.start * begun, move.here * here]
        sums += [c * answers[j] for j, c in move.slopes.items()]
        for size, s, r, area in move.noise:
            assert r is not None
            assert area == 0.0
            sums.append(size * math.sqrt(abs(r - s)) * next(normals))
        here = functools.reduce(torch.add, sums)
        begun = here if move.end is not None else begun
        made.append(here)
    return made


def even(path: interp.Interpolant, ends: tuple[float, float], n: int) -> Levels:
    return Levels.of(path, np.linspace(*ends, n + 1).tolist())


# Weak order


def bias(name: str, path: interp.Interpolant, n: int) -> float:
    """What the variance of N(0, 0.25) lacks after n steps from 0.2 to 0.9, by linearity."""
    variance, ends = 0.25, (0.2, 0.9)

    def data(t: float, x: Tensor) -> Tensor:
        k = path.coefficients(t)
        return k.beta * variance / (k.beta**2 * variance + k.sigma**2) * x

    begin, end = (path.coefficients(t) for t in ends)
    moves = SAMPLERS[name](even(path, ends, n), {})
    units = torch.eye(1 + sum(len(move.noise) for move in moves), dtype=F64)
    x = (begin.beta**2 * variance + begin.sigma**2).sqrt() * units[0]
    left = states(moves, path, data, x, iter(units[1:]))[-1].square().sum()
    return float(left - (end.beta**2 * variance + end.sigma**2))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_weak_order_on_a_gaussian(name: str, path: interp.Interpolant) -> None:
    """Of the variance, on steps even in t; the mean is that of the same steps without noise."""
    coarse, fine = (bias(name, path, n) for n in (80, 160))
    assert ORDERS[name] - 0.2 < math.log2(abs(coarse / fine)) < ORDERS[name] + 0.7


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(8)


def expected(moves: list[Move], path: interp.Interpolant, x: float) -> Tensor:
    """E x^2, E x^4 and E cos 3 x after the moves from x, by Gauss-Hermite quadrature over all normals."""
    model = MIXTURE.data(path)
    count = sum(len(move.noise) for move in moves)
    z = torch.from_numpy(np.stack(np.meshgrid(*[NODES] * count), -1).reshape(-1, count, 1))
    w = torch.from_numpy(functools.reduce(np.multiply.outer, [WEIGHTS] * count).ravel())
    begin = torch.full((len(z), 1), x, dtype=F64)
    end = states(
        moves, path, lambda t, y: model(torch.tensor(t, dtype=F64), y), begin, iter(z.unbind(1))
    )[-1].squeeze(1)
    values = torch.stack([end**2, end**4, (3 * end).cos()])
    return values @ w / w.sum()


@pytest.mark.parametrize("name", STAGED)
def test_weak_order_of_a_step_on_a_mixture(name: str) -> None:
    """The error of one step, against two of half its length: 2^(order + 1) less when both are halved.

    The drift is not linear here, so that the variance of the stages counts, and not their sum alone.
    """
    path, x, at = PATHS["linear"], 0.3, 0.55
    errors = []
    for h in (0.02, 0.01, 0.005):
        one, two = (
            expected(SAMPLERS[name](even(path, (at, at + h), n), {}), path, x) for n in (1, 2)
        )
        errors.append((one - two).abs())
    for coarse, fine in itertools.pairwise(errors):
        # The least of the three, each of which may meet a zero of its leading term from one side.
        observed = (coarse / fine).log2().min()
        assert ORDERS[name] + 0.6 < float(observed)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["dpm++3s_sde", "dpm++3m_sde", "seeds3"])
def test_an_estimate_on_a_line_in_lambda_is_integrated_exactly(name: str, eta: float) -> None:
    """The mean after two steps, by the closed forms of x / sigma; for 3m the second corrects the first."""
    path, ends, x = PATHS["linear"], (0.5, 0.8), 0.7
    levels = Levels.of(path, [0.5, 0.65, 0.8])
    moves = SAMPLERS[name](levels, {"eta": eta})

    def line(t: float, x: Tensor) -> Tensor:
        k = path.coefficients(t)
        lam = torch.log(k.beta / k.sigma)
        return lam * torch.ones_like(x) if name != "seeds3" else (x - k.sigma * lam) / k.beta

    silent = itertools.repeat(torch.zeros(1, dtype=F64))
    mean = states(moves, path, line, torch.tensor([x], dtype=F64), silent)[-1].item()
    begin, end = levels.lam[0], levels.lam[-1]
    (s, r), h, m = (float(path.coefficients(t).sigma) for t in ends), end - begin, 1 + eta
    if name == "seeds3":
        wanted = math.exp(h) * x / s + m * (end + 1 - math.exp(h) * (begin + 1))
    else:
        held = math.exp(-m * h) * (begin - 1 / m)
        wanted = math.exp(-eta * h) * x / s + math.exp(end) * (end - 1 / m - held)
    assert mean == pytest.approx(r * wanted, rel=1e-12)


# The noise of the stages


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("stages", [EULER, MIDPOINT, HEUN3])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_the_stages_of_a_step_share_a_path(
    kind: str, stages: tuple[tuple[float, tuple[int, ...]], ...], eta: float
) -> None:
    """With an estimate that is 0, the covariance of the states inside a step is the SDE's own.

    Of stages at a <= b of the step, for x_t = 0: for D = 0 it is the damped noise
    sigma_a sigma_b exp(-eta (b - a) h) (1 - exp(-2 eta a h)); for n = 0 the noise that grows with x,
    sigma_a sigma_b exp((b - a) h) eta (exp(2 a h) - 1).
    """
    path, ends = PATHS["linear"], (0.5, 0.7)
    levels = Levels.of(path, list(ends))
    moves = singlestep.singlestep(levels if kind == "data" else levels.other, stages, eta)
    units = torch.eye(sum(len(move.noise) for move in moves), dtype=F64)

    def data(t: float, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if kind == "data" else x / path.coefficients(t).beta

    made = states(moves, path, data, torch.zeros(len(units), dtype=F64), iter(units))
    h, c = float(levels.lam[1] - levels.lam[0]), [at for at, _ in stages]
    sigma = [float(s) for s in levels.at(levels.lam[0] + np.array(c) * h).sigma]
    for i, j in itertools.combinations_with_replacement(range(len(c)), 2):
        lag, old = (c[j] - c[i]) * h, 2 * c[i] * h
        wanted = sigma[i] * sigma[j] * (
            math.exp(-eta * lag) * -math.expm1(-eta * old)
            if kind == "data"
            else math.exp(lag) * eta * math.expm1(old)
        )  # fmt: skip
        assert float(made[i] @ made[j]) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", STAGED)
def test_without_noise_it_is_the_sampler_of_the_flow(name: str) -> None:
    for path in PATHS.values():
        term = path.ode(MIXTURE.data(path), view="data")
        x = interp.noise.normal((4, 1), seed=0, dtype=F64)
        ours = interp.solve(term, x, method=name, steps=7, eta=0.0)
        assert torch.equal(ours.x, interp.solve(term, x, method=STAGED[name], steps=7).x)
        assert ours.stats.seed is None  # nothing was drawn


def test_without_noise_three_answers_are_those_of_the_flow() -> None:
    path = PATHS["linear"]
    term = path.ode(MIXTURE.data(path), view="data")
    x = interp.noise.normal((4, 1), seed=0, dtype=F64)
    for published in (True, False):
        runs = [
            interp.solve(term, x, method=name, steps=7, published=published, **options)  # type: ignore[arg-type]
            for name, options in (("dpm++3m_sde", {"eta": 0.0}), ("dpm++3m", {}))
        ]
        assert torch.equal(runs[0].x, runs[1].x)


@pytest.mark.parametrize("name", STAGED)
def test_the_noise_is_that_of_the_row(name: str) -> None:
    """Whatever the batch: a row alone has the normals that it has among others."""
    path = PATHS["linear"]
    term = path.ode(MIXTURE.data(path), view="data")
    x = interp.noise.normal((5, 1), seed=0, dtype=F64)
    for backend in ("rust", "torch"):
        run = {"method": name, "steps": 6, "seed": 4, "backend": backend}
        alone = interp.solve(term, x[2:3], first_row=2, **run).x  # type: ignore[arg-type]
        # To rounding: torch's exp of one number may differ from that of five in the last bit.
        assert torch.allclose(alone, interp.solve(term, x, **run).x[2:3], rtol=0, atol=1e-13)  # type: ignore[arg-type]


def test_times_inside_a_step_have_leaves_of_their_own() -> None:
    """The tree is as deep as the times at which noise is drawn ask, and not the grid's alone."""
    path = PATHS["linear"]
    term = path.ode(MIXTURE.data(path), view="data")
    x, grid = torch.zeros(2, 1, dtype=F64), [0.2, 0.50001, 0.5009, 0.9]
    depths = {
        name: interp.solve(term, x, (0.2, 0.9), name, grid=grid, seed=0).stats.depth
        for name in ("ddpm", "seeds2", "dpm++3s_sde")
    }
    assert depths["ddpm"] is not None
    assert depths["seeds2"] is not None
    assert depths["dpm++3s_sde"] is not None
    assert depths["ddpm"] < depths["seeds2"] <= depths["dpm++3s_sde"]


def test_what_makes_no_sense() -> None:
    path = PATHS["linear"]
    term, x = path.ode(MIXTURE.data(path), view="data"), torch.zeros(2, 1, dtype=F64)
    with pytest.raises(OptionError, match=r"seeds2 with eta > 0 goes from noise to data"):
        interp.solve(term, x, (0.9, 0.2), "seeds2", steps=3)
    with pytest.raises(OptionError, match="eta=-1"):
        interp.solve(term, x, method="dpm++2s_sde", steps=3, eta=-1)
    with pytest.raises(OptionError, match="eta='a'"):
        interp.solve(term, x, method="dpm++3m_sde", steps=3, eta="a")
