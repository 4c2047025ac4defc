"""The curl of fields whose Jacobian is known, and the energy of those that are gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import schedules
from interp.errors import FieldError, OptionError

F64 = torch.float64


def matrix(d, seed):
    return torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def relative(a):
    return ((a - a.T).norm() / a.norm()).item()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_curl_of_a_linear_field_is_that_of_its_matrix(d, seed):
    a = matrix(d, seed)
    found = interp.curl(lambda x: x @ a.T, torch.randn(3, d, dtype=F64))
    torch.testing.assert_close(found, torch.full((3,), relative(a), dtype=F64), rtol=0, atol=1e-12)


def test_it_is_of_the_point():
    """s = (x y, 0) has J = [[y, x], [0, 0]]: |J - J^T| / |J| = sqrt(2) |x| / |(x, y)|."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]], dtype=F64)
    found = interp.curl(lambda x: torch.stack([x[:, 0] * x[:, 1], 0 * x[:, 0]], 1), x)
    torch.testing.assert_close(found, math.sqrt(2) * torch.tensor([1.0, 0.0, 0.6], dtype=F64))


def test_a_rotation_has_two_and_a_constant_none():
    x = torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close(
        interp.curl(lambda x: torch.stack([-x[:, 1], x[:, 0]], 1), x),
        torch.full((4,), 2.0, dtype=F64),
    )
    assert interp.curl(torch.ones_like, x).tolist() == [0.0] * 4


@pytest.mark.parametrize("probes", [None, 1, 5])
def test_a_gradient_has_none_by_any_probe(probes):
    target = interp.exact.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, [0.3, 0.2]])
    path = schedules.linear()
    x = target.sample(20, seed=0, dtype=F64)
    assert interp.curl(lambda x: target.score(path)(0.7, x), x, probes).max() < 1e-10


def test_probes_estimate_it():
    """100 elements: |J - J^T|^2 and |J|^2 by 400 probes, each to about sqrt(2 / 400) of itself at most."""
    a = matrix(100, 0)
    found = interp.curl(lambda x: x @ a.T, torch.zeros(2, 100, dtype=F64), 400)
    torch.testing.assert_close(found, torch.full((2,), relative(a), dtype=F64), rtol=0.1, atol=0)


def test_rows_are_numbered():
    a = matrix(5, 1)
    x = torch.randn(4, 5, dtype=F64)
    whole = interp.curl(lambda x: x @ a.T, x, 2, seed=3)
    part = interp.curl(lambda x: x @ a.T, x[2:], 2, seed=3, first_row=2)
    torch.testing.assert_close(whole[2:], part, rtol=1e-14, atol=0)


def test_the_energy_of_a_score_is_its_log_density_up_to_a_constant():
    """Of a mixture on a path at t = 1/2; the rule is good to 1e-8 on so smooth a score."""
    target = interp.exact.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, [0.3, 0.2]])
    path = schedules.linear()
    law = target.marginal(path, 0.5)
    x = law.sample(200, seed=0, dtype=F64)
    energy = interp.energy_of_score(lambda x: target.score(path)(0.5, x), x, 1e-6, nodes=64)
    value, slope = energy.value_and_gradient(x, (), {})
    gap = value + law.log_prob(x)
    torch.testing.assert_close(gap, gap.mean().expand_as(gap), rtol=0, atol=1e-6)
    torch.testing.assert_close(slope, -target.score(path)(0.5, x))


def test_a_chain_accepts_by_it():
    energy = interp.energy_of_score(lambda x: -(x - 1) / 0.25, torch.zeros(4, 1, dtype=F64))
    sol = interp.solve(
        energy, torch.zeros(4000, 1, dtype=F64), method="mala", steps=40, step_size=0.1, seed=0
    )
    # Of N(1, 1/4): standard errors .008 and .0056.
    assert sol.x.mean().item() == pytest.approx(1, abs=0.03)
    assert sol.x.var().item() == pytest.approx(0.25, abs=0.02)


def test_a_field_that_is_no_gradient_is_refused_with_its_curl():
    """[[1, a], [-a, 1]] has 2 a / sqrt(1 + a^2) = 0.199 at a = 0.1."""
    a = torch.tensor([[1.0, 0.1], [-0.1, 1.0]], dtype=F64)
    with pytest.raises(FieldError, match=r"is 0\.199 .*energy_matching"):
        interp.energy_of_score(lambda x: -x @ a.T, torch.randn(5, 2, dtype=F64))
    interp.energy_of_score(lambda x: -x @ a.T, torch.randn(5, 2, dtype=F64), 0.2)


@pytest.mark.parametrize(
    ("field", "x", "options", "error", "match"),
    [
        (lambda x: x[:, :1], torch.zeros(2, 3), {}, FieldError, "the field"),
        (lambda x: x, torch.zeros(0, 3), {}, OptionError, "rows"),
        (lambda x: x, torch.zeros(3), {}, OptionError, "rows"),
        (lambda x: x, torch.zeros(2, 3), {"probes": 0}, OptionError, "probes"),
        (lambda x: x, torch.zeros(2, 3, dtype=torch.int64), {}, OptionError, "floating"),
    ],
)
def test_bad_input(field, x, options, error, match):
    with pytest.raises(error, match=match):
        interp.curl(field, x, **options)
