"""The last step to clean data, of second order where it is asked for."""

from __future__ import annotations

import math

import pytest
import torch

import interp
from interp import schedules
from interp.errors import OptionError

F64 = torch.float64
METHODS = [m.name for m in interp.methods("path") if "last_order" in m.options]
LAW = interp.exact.Mixture([0.4, 0.6], [[-1.0, 0.0], [0.7, 0.5]], [0.1, 0.3])


def end(method: str, path: interp.Interpolant, levels: list[float], order: int, **options) -> float:
    """The largest distance from the flow's end, over sigma / beta = levels and then clean data."""
    start = path.time_at_log_snr(-2 * math.log(levels[0])).item()
    x = interp.noise.normal((6, 2), seed=0, dtype=F64) * path.sigma(start).item()
    term = path.ode(LAW.data(path), view="data")
    flow = path.ode(LAW.velocity(path))
    true = interp.solve(flow, x, (start, 1.0), "dop853", rtol=1e-11, atol=1e-12).x
    grid = ("sigmas", [*levels, 0.0])
    run = interp.solve(term, x, method=method, grid=grid, last_order=order, **options)
    return float((run.x - true).abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path", [schedules.linear(), schedules.trigonometric()], ids=["linear", "trigonometric"]
)
def test_the_last_step_is_of_second_order(method: str, path: interp.Interpolant) -> None:
    """Over forty levels from 2 s to s near data, whose own errors are a hundredth of the last step's: D is
    off by s^2 / 2 times the score, so that half the s leaves a quarter; and the line by the next term, s^4.
    """
    near, nearer = ([s * (2 - k / 39) for k in range(40)] for s in (0.04, 0.02))
    first = [end(method, path, levels, 1) for levels in (near, nearer)]
    assert 3.5 < first[0] / first[1] < 4.5
    assert end(method, path, nearer, 2) < 0.05 * first[1]


def test_it_changes_the_last_step_alone() -> None:
    """And nothing in a run that ends before clean data, or in one of a single step."""
    path = schedules.linear()
    term = path.ode(LAW.data(path), view="data")
    x = interp.noise.normal((3, 2), seed=0, dtype=F64)
    for method in METHODS:
        a, b = (
            interp.solve(term, x, method=method, steps=6, last_order=k, save_at=[5 * (1 / 6), 1.0])
            for k in (1, 2)
        )
        assert torch.allclose(a.xs[0], b.xs[0], rtol=0, atol=1e-13)  # sums in another order
        assert not torch.equal(a.x, b.x)
        for run in ({"t": (0.1, 0.9), "steps": 5}, {"steps": 1}):
            a, b = (interp.solve(term, x, method=method, last_order=k, **run) for k in (1, 2))
            assert torch.equal(a.x, b.x)
    with pytest.raises(OptionError, match="last_order=3"):
        interp.solve(term, x, method="unipc", steps=4, last_order=3)
