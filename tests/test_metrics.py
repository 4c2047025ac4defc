"""Distances between samples: against closed forms, and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import metrics, noise
from interp.errors import OptionError
from interp.training.evaluation import gaussian_fit


def normals(n: int, d: int, seed: int) -> torch.Tensor:
    return noise.normal((n, d), seed=seed, dtype=torch.float64)


def test_energy_distance_of_two_normals_on_the_line() -> None:
    # E|N(m, v)| = sqrt(2 v / pi) e^{-m^2 / 2v} + m erf(m / sqrt(2 v)); X - Y has variance 2.
    m, v = 1.5, 2.0
    folded = math.sqrt(2 * v / math.pi) * math.exp(-m * m / (2 * v)) + m * math.erf(
        m / math.sqrt(2 * v)
    )
    exact = 2 * folded - 2 * math.sqrt(2 * v / math.pi)
    found = metrics.energy_distance(normals(4000, 1, 0), normals(4000, 1, 1) + m)
    assert found == pytest.approx(exact, abs=0.06)  # three standard errors of 4000 rows


def test_energy_distance_of_one_law_is_zero_in_the_mean() -> None:
    found = [
        metrics.energy_distance(normals(200, 3, 2 * k), normals(300, 3, 2 * k + 1))
        for k in range(60)
    ]
    values = torch.tensor(found)
    assert values.mean().abs() < 3.5 * values.std() / math.sqrt(len(values))
    assert values.min() < 0 < values.max()


def test_energy_distance_in_chunks_is_that_of_all_pairs() -> None:
    x, y = normals(1500, 2, 0), normals(2100, 2, 1) * 1.1
    n, m = len(x), len(y)
    pairs = [torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").sum().item() for a, b in
             ((x, y), (x, x), (y, y))]  # fmt: skip
    exact = 2 * pairs[0] / (n * m) - pairs[1] / (n * (n - 1)) - pairs[2] / (m * (m - 1))
    assert metrics.energy_distance(x, y) == pytest.approx(exact, abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 1000))
def test_sliced_wasserstein_on_the_line_is_the_best_plan(n: int, m: int, seed: int) -> None:
    # Rows repeated to a common number: sorted against sorted is the best plan on the line.
    a, b = normals(n, 1, seed), normals(m, 1, seed + 1) + 0.3
    gaps = a.repeat_interleave(m, 0).sort(0).values - b.repeat_interleave(n, 0).sort(0).values
    found = metrics.sliced_wasserstein(a, b, directions=3)
    assert found == pytest.approx(gaps.square().mean().sqrt().item(), rel=1e-9)


def test_sliced_wasserstein_of_a_shift() -> None:
    x, shift = normals(50, 4, 0), torch.tensor([3.0, 0.0, -4.0, 0.0], dtype=torch.float64)
    found = metrics.sliced_wasserstein(x, x + shift, directions=4000)
    # |m| / sqrt(d) = 2.5; <u, m>^2 has relative spread about 1, so 1.6 % of the square in the mean.
    assert found == pytest.approx(2.5, rel=0.03)
    assert metrics.sliced_wasserstein(x, x) == 0
    assert metrics.sliced_wasserstein(x.reshape(50, 2, 2), x.reshape(50, 2, 2) + 1) > 0


def test_near_copies_of_new_data_of_repeated_data_and_of_far_data() -> None:
    seen, held_out, new = normals(500, 2, 0), normals(400, 2, 1), normals(4000, 2, 2)
    assert metrics.near_copies(held_out, seen, held_out) == 1
    assert metrics.near_copies(new, seen, held_out) == pytest.approx(1, abs=0.5)  # of 40 rows
    assert metrics.near_copies(seen, seen, held_out) == pytest.approx(10)
    assert metrics.near_copies(new + 100, seen, held_out) == 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(3, 2), "at least two rows"),
        (torch.zeros(3, 2), torch.tensor(0.0), "at least two rows"),
        (torch.zeros(3, 2), torch.zeros(3, 1), "one shape"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_named(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    for distance in (metrics.energy_distance, metrics.sliced_wasserstein, metrics.nearest):
        with pytest.raises(OptionError, match=message):
            distance(x, y)


def test_numbers_out_of_range_are_named() -> None:
    x = normals(5, 2, 0)
    with pytest.raises(OptionError, match="directions is 0"):
        metrics.sliced_wasserstein(x, x, directions=0)
    with pytest.raises(OptionError, match="share is 1"):
        metrics.near_copies(x, x, x, share=1)


def test_a_gaussian_fit_has_the_data_s_moments_whatever_their_rank() -> None:
    data = normals(300, 2, 0) @ torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]]).double() + 3
    fit = gaussian_fit(data.reshape(300, 3, 1), 40_000, seed=0)
    assert fit.shape == (40_000, 3, 1)
    flat = fit.flatten(1)
    # 40 000 rows: standard errors of a mean .011, of a covariance .04 at most.
    assert torch.allclose(flat.mean(0), data.mean(0), atol=0.05)
    assert torch.allclose(flat.T.cov(), data.T.cov(correction=0), atol=0.15)
    assert torch.linalg.matrix_rank(flat - flat.mean(0)) == 2
