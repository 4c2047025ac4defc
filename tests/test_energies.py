"""Arithmetic on energies is that of their unnormalised densities, in closed form for normal laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.errors import OptionError, Unsupported

X = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
numbers = st.floats(-2, 2)
widths = st.floats(0.3, 2)


def normal(m, s, temperature=1.0, by_hand=False):
    """N(m, s^2) at a temperature: U = T (x - m)^2 / (2 s^2)."""
    gradient = (lambda x: temperature * (x - m) / s**2) if by_hand else None
    return interp.Energy(
        lambda x: temperature * 0.5 * ((x - m) / s).square().sum(1), temperature, gradient
    )


def log_density(m, s, x=X):
    return -0.5 * ((x[:, 0] - m) / s).square() - math.log(s * math.sqrt(2 * math.pi))


def at(energy, x=X):
    """-U / T and its slope."""
    value, slope = energy.value_and_gradient(x, (), {})
    return -value / energy.temperature, -slope / energy.temperature


def assert_proportional(energy, wanted):
    """Log densities that differ by a constant."""
    gap = at(energy)[0] - wanted
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=50)
@given(numbers, widths, numbers, widths, st.floats(0.2, 3), st.booleans())
def test_a_product_of_normals_adds_precisions(m, s, n, r, temperature, by_hand):
    precision = 1 / s**2 + 1 / r**2
    mean = (m / s**2 + n / r**2) / precision
    both = normal(m, s, temperature, by_hand) * normal(n, r)
    assert_proportional(both, log_density(mean, precision**-0.5))


@settings(deadline=None, max_examples=50)
@given(numbers, st.floats(0.3, 0.9), numbers, st.floats(1, 2), st.floats(0.2, 3))
def test_a_quotient_of_normals_subtracts_precisions(m, s, n, r, temperature):
    precision = 1 / s**2 - 1 / r**2
    mean = (m / s**2 - n / r**2) / precision
    without = normal(m, s, temperature) / normal(n, r)
    assert_proportional(without, log_density(mean, precision**-0.5))


@settings(deadline=None, max_examples=50)
@given(numbers, widths, st.floats(0.1, 5), st.floats(0.2, 3))
def test_a_power_is_a_temperature(m, s, power, temperature):
    assert_proportional(normal(m, s, temperature) ** power, log_density(m, s / power**0.5))


@settings(deadline=None, max_examples=50)
@given(numbers, widths, numbers, widths, st.floats(0.1, 0.9), st.booleans())
def test_a_mixture_of_normals_weighs_them_by_their_integrals(m, s, n, r, w, by_hand):
    """w f_a + (1 - w) f_b with f = exp(-(x - m)^2 / 2 s^2) = sqrt(2 pi) s N(m, s^2)."""
    mixed = w * normal(m, s, 0.5, by_hand) + normal(n, r) * (1 - w)
    a, b = (log_density(m, s) + math.log(s * w), log_density(n, r) + math.log(r * (1 - w)))
    assert_proportional(mixed, torch.logaddexp(a, b))


@settings(deadline=None, max_examples=50)
@given(numbers, widths, numbers, widths, st.sampled_from(["*", "/", "+"]))
def test_slopes_by_hand_are_those_of_autograd(m, s, n, r, sign):
    combine = {"*": lambda a, b: a * b, "/": lambda a, b: a / b, "+": lambda a, b: a + 2.0 * b}[
        sign
    ]
    slopes = [at(combine(normal(m, s, 0.7, by_hand), normal(n, r)))[1] for by_hand in (False, True)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-10)


def test_a_chain_samples_a_product():
    """N(-1, 1) N(1, 1/2) is N(1/3, 1/3)."""
    energy = normal(-1.0, 1.0) * normal(1.0, 0.5**0.5)
    start = torch.zeros(4000, 1, dtype=torch.float64)
    x = interp.solve(energy, start, method="hmc", steps=20, step_size=0.3, seed=0).x
    # Standard errors .009 and .0075 of 4000 independent chains.
    assert x.mean().item() == pytest.approx(1 / 3, abs=0.035)
    assert x.var().item() == pytest.approx(1 / 3, abs=0.03)


def test_gradients_alone_make_products_and_no_mixtures():
    a, b = interp.Energy(None, gradient=lambda x: x - 1), normal(0.0, 1.0)
    value, slope = (a * b).value_and_gradient(X, (), {})
    assert value is None
    torch.testing.assert_close(slope, 2 * X - 1)
    with pytest.raises(Unsupported, match="take a product"):
        a + b


def test_parts_are_told_what_a_chain_tells():
    """The level of annealed Langevin, and cond."""
    energy = interp.Energy(lambda x, level, shift=0.0: level * (x - shift).square().sum(1))
    value, slope = (energy * energy).value_and_gradient(X, (3.0,), {"shift": 1.0})
    torch.testing.assert_close(value, 6 * (X[:, 0] - 1).square())
    torch.testing.assert_close(slope, 12 * (X - 1))


@pytest.mark.parametrize("power", [0, -1.0, math.nan, "2"])
def test_a_power_is_positive(power):
    with pytest.raises(OptionError, match="power"):
        normal(0.0, 1.0) ** power


@pytest.mark.parametrize("weight", [0, -1.0, math.inf])
def test_a_weight_is_positive(weight):
    with pytest.raises(OptionError, match="weight"):
        weight * normal(0.0, 1.0)


def test_arithmetic_with_something_else_is_a_type_error():
    for combine in (lambda a: a * "x", lambda a: a / 2.0, lambda a: a + 1):
        with pytest.raises(TypeError):
            combine(normal(0.0, 1.0))
