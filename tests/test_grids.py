"""Grids: published levels, ends, order, and every one on every path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import grids, schedules
from interp.errors import OptionError, UnknownName, Unsupported
from interp.grids.named import NAMED
from interp.testing import schedules as random_paths

TABLE = schedules.from_betas("scaled_linear")
EDM = schedules.edm(sigma_min=0.0)
IN_T = ("uniform", "quadratic", "beta", "shift")
IN_TABLE = ("leading", "linspace", "trailing")


def levels(path: interp.Interpolant, times: list[float]) -> list[float]:
    return [float(path.noise_scale(t)) for t in times]


def test_karras_from_the_paper() -> None:
    """sigma_i = (80^(1/7) + i / (N - 1) (.002^(1/7) - 80^(1/7)))^7, then 0 (2206.00364, eq. 5)."""
    found = levels(EDM, grids.karras()(EDM, (0.0, 1.0), 18))
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    assert found == pytest.approx([*expected, 0.0], rel=1e-9)


def test_align_your_steps_from_the_paper() -> None:
    """The path's own range is 14.615 to 0.0292, that of the published numbers to their digits."""
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    found = levels(TABLE, grids.ays()(TABLE, (0.0, 1.0), 10))
    assert found == pytest.approx(published, rel=6e-3)  # 0.029 for 0.0292, spread over the range
    again = levels(TABLE, grids.ays(sigma_min=0.029)(TABLE, (0.0, 1.0), 20))
    assert again[::2] == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ],
)
def test_spacings_of_a_table(name: str, indices: list[int]) -> None:
    """Lin et al. 2305.08891, table 2, in the indices 0 to 999."""
    times = NAMED[name]()(TABLE, (0.0, 1.0), 10)
    assert [1000 * (1 - t) - 1 for t in times[:-1]] == pytest.approx(indices, abs=1e-9)
    assert times[-1] == 1.0
    offset = grids.leading(offset=1)(TABLE, (0.0, 1.0), 10)
    assert 1000 * (1 - offset[0]) - 1 == pytest.approx(901)


def test_the_straight_path_shows_what_the_spacings_in_t_do() -> None:
    """u = 1 - t: quadratic u^2, shift c u / (1 + (c - 1) u), which multiplies sigma / beta by c."""
    linear = schedules.linear()
    u = [1 - i / 8 for i in range(9)]
    quadratic, shift = (NAMED[name]()(None, (0.0, 1.0), 8) for name in ("quadratic", "shift"))
    assert [1 - t for t in quadratic] == pytest.approx([v * v for v in u], abs=1e-15)
    plain = levels(linear, [1 - v for v in u])
    assert levels(linear, shift)[1:] == pytest.approx([3 * s for s in plain[1:]], abs=1e-12)
    beta = grids.beta(1.0, 1.0)(None, (0.0, 1.0), 8)
    assert beta == pytest.approx([1 - v for v in u], abs=1e-12)  # Beta(1, 1) is uniform


def test_even_in_log_snr_and_in_the_angle() -> None:
    path = schedules.variance_preserving()
    lam = path.log_snr(torch.tensor(grids.exponential()(path, (0.0, 0.9), 7), dtype=torch.float64))
    assert torch.allclose(lam.diff(), lam.diff()[0], rtol=1e-7)
    times = grids.cosine()(schedules.trigonometric(), (0.0, 1.0), 7)
    assert times == pytest.approx([i / 7 for i in range(8)], abs=1e-12)
    assert grids.polyexponential(1.0)(path, (0.1, 0.9), 7) == pytest.approx(
        grids.exponential()(path, (0.1, 0.9), 7), abs=1e-12
    )


@settings(deadline=None, max_examples=60)
@given(
    path=random_paths(),
    name=st.sampled_from([n for n in NAMED if n not in IN_TABLE]),
    steps=st.integers(1, 40),
    ends=st.sampled_from(
        [(0.0, 1.0), (0.25, 1.0), (0.0, 0.75), (0.1, 0.6), (0.9, 0.2), (1.0, 0.0)]
    ),
)
def test_every_grid_on_every_path(
    path: interp.Interpolant, name: str, steps: int, ends: tuple[float, float]
) -> None:
    """Between the ends, strictly towards the second one, without repetition."""
    times = NAMED[name]()(path, ends, steps)
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == ends
    sign = 1 if ends[1] > ends[0] else -1
    assert all((r - s) * sign > 0 for s, r in zip(times[:-1], times[1:], strict=True))


@pytest.mark.parametrize("name", NAMED)
def test_a_grid_serves_any_method(name: str) -> None:
    law = interp.exact.Gaussian(0.5, 0.3)
    term = TABLE.ode(law.data(TABLE), view="data")
    for method in ("heun", "ddim"):
        sol = interp.solve(term, torch.ones(2, 1).double(), method=method, steps=40, grid=name)
        assert sol.stats.steps == 40
        # From x = 1, near the base's mean plus one, to the law's: the first-order error of 40 steps.
        assert float(sol.x.mean()) == pytest.approx(0.5 + math.sqrt(0.3), abs=0.1)


def test_bad_grids() -> None:
    linear = schedules.linear()
    term, x = linear.ode(lambda t, x: x), torch.ones(2, 1)
    for grid in (lambda: grids.karras(rho=0), lambda: grids.shift(-1), lambda: grids.beta(a=0.0)):
        with pytest.raises(OptionError):
            grid()
    with pytest.raises(UnknownName, match="sdxl"):
        grids.ays("sdlx")
    with pytest.raises(UnknownName, match="karras"):
        interp.solve(term, x, method="heun", steps=4, grid="karas")
    with pytest.raises(OptionError, match="steps=N"):
        interp.solve(term, x, method="heun", grid="karras")
    with pytest.raises(Unsupported, match=r"sigma / beta.*uniform"):
        interp.solve(lambda t, x: x, x, method="heun", steps=4, grid="karras")
    with pytest.raises(Unsupported, match="table of a path"):
        interp.solve(term, x, method="heun", steps=4, grid="trailing")
    with pytest.raises(OptionError, match="Leave t out"):
        interp.solve(TABLE.ode(lambda t, x: x), x, (0.0, 1.0), "heun", steps=4, grid="trailing")
    with pytest.raises(OptionError, match="1001 are more than the 1000"):
        interp.solve(TABLE.ode(lambda t, x: x), x, method="heun", steps=1001, grid="trailing")
    with pytest.raises(OptionError, match="sigma_min"):
        grids.karras(sigma_min=-1.0)
