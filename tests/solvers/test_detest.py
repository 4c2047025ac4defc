"""Problems of DETEST (Hull, Enright, Fellen, Sedgwick 1972) against SciPy's DOP853 at 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import interp

F64 = torch.float64
Field = Callable[[Tensor, Tensor], Tensor]
METHODS = [m.name for m in interp.methods("ode") if m.adaptive and not m.implicit]


def columns(rule: Callable[..., list[Tensor]]) -> Field:
    return lambda t, x: torch.stack(rule(t, *x.unbind(-1)), -1)


def bodies(eccentricity: float) -> list[float]:
    e = eccentricity
    return [1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))]


def gravity(t: Tensor, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> list[Tensor]:
    cube = (x * x + y * y) ** 1.5
    return [u, v, -x / cube, -y / cube]


def chain(t: Tensor, x: Tensor) -> Tensor:
    """C1: a radioactive decay chain."""
    flow = torch.cat([-x[:, :-1], torch.zeros(len(x), 1, dtype=x.dtype)], 1)
    return flow - torch.cat([torch.zeros(len(x), 1, dtype=x.dtype), flow[:, :-1]], 1)


# Each to t = 20, as published.
PROBLEMS: dict[str, tuple[Field, list[float]]] = {
    "A2": (lambda t, x: -(x**3) / 2, [1.0]),
    "A3": (lambda t, x: x * t.cos(), [1.0]),
    "A4": (lambda t, x: x / 4 * (1 - x / 20), [1.0]),
    "A5": (lambda t, x: (x - t) / (x + t), [4.0]),
    "B1": (columns(lambda t, x, y: [2 * (x - x * y), -(y - x * y)]), [1.0, 3.0]),
    "B2": (columns(lambda t, x, y, z: [y - x, x - 2 * y + z, y - z]), [2.0, 0.0, 1.0]),
    "B3": (columns(lambda t, x, y, z: [-x, x - y * y, y * y]), [1.0, 0.0, 0.0]),
    "B4": (
        columns(
            lambda t, x, y, z: [
                -y - x * z / (x * x + y * y).sqrt(),
                x - y * z / (x * x + y * y).sqrt(),
                x / (x * x + y * y).sqrt(),
            ]
        ),
        [3.0, 0.0, 0.0],
    ),
    "B5": (columns(lambda t, x, y, z: [y * z, -x * z, -0.51 * x * y]), [0.0, 1.0, 1.0]),
    "C1": (chain, [1.0, *[0.0] * 9]),
    "D1": (columns(gravity), bodies(0.1)),
    "D3": (columns(gravity), bodies(0.5)),
    "D5": (columns(gravity), bodies(0.9)),
    "E2": (columns(lambda t, x, y: [y, (1 - x * x) * y - x]), [2.0, 0.0]),
}


@pytest.fixture(scope="module")
def truths() -> dict[str, Tensor]:
    def solved(field: Field, start: list[float]) -> Tensor:
        def plain(t: float, y: np.ndarray) -> np.ndarray:
            return field(torch.tensor(t, dtype=F64), torch.from_numpy(y.copy())[None])[0].numpy()

        peer = solve_ivp(plain, (0.0, 20.0), start, "DOP853", rtol=1e-12, atol=1e-12)
        return torch.tensor(peer.y[:, -1], dtype=F64)

    return {name: solved(*problem) for name, problem in PROBLEMS.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_adaptive_method_agrees(name: str, truths: dict[str, Tensor]) -> None:
    field, start = PROBLEMS[name]
    x = torch.tensor([start], dtype=F64)
    # Errors of one step grow with the run: by the square of t on an orbit, whose nearest point is
    # (1 - e) away and passed at a speed that goes as its inverse root.
    amplified = {"D1": 1e3, "D3": 3e3, "D5": 3e5, "B1": 1e3}.get(name, 100.0)
    for method in METHODS:
        tolerance = 1e-7 if method == "bosh3" else 1e-10
        sol = interp.solve(field, x, (0.0, 20.0), method, rtol=tolerance, atol=tolerance)
        gap = float((sol.x[0] - truths[name]).abs().max())
        assert gap < amplified * tolerance, (method, gap)
        back = interp.solve(field, sol.x, (20.0, 0.0), method, rtol=tolerance, atol=tolerance)
        if name in ("B5", "D1", "D3"):  # elsewhere the way back amplifies by e^20 or more
            assert float((back.x[0] - x[0]).abs().max()) < 3 * amplified * tolerance, method


def test_more_elements_than_an_int32_counts_are_one_count() -> None:
    """2^31 elements and more on the meta device, which has shapes and no memory."""
    x = torch.empty(3, 2**30, device="meta")
    sol = interp.solve(lambda t, x: -x, x, method="rk4", steps=1)
    assert sol.x.shape == x.shape
    assert sol.x.device.type == "meta"
