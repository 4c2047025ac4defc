"""JKO steps, gradient flows and DiffFlow's particles between normal laws: closed forms by other routes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.errors import OptionError
from interp.exact import Gaussian, gradient_flow, jko_step, particle_law

F64 = torch.float64
seeds = st.integers(0, 10**6)


def law(d, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=g, dtype=F64)
    return Gaussian(torch.randn(d, generator=g, dtype=F64), a @ a.T / d + 0.2 * torch.eye(d).to(a))


def close(a, b, tol):
    torch.testing.assert_close(a.mean, b.mean, rtol=tol, atol=tol)
    torch.testing.assert_close(a.cov, b.cov, rtol=tol, atol=tol)


@pytest.mark.parametrize("h", [1e-3, 0.3, 5.0])
def test_a_step_in_one_dimension(h):
    """m+ = m / (1 + h / s^2) and std+ = (c / h + sqrt(c^2 / h^2 + 4 A)) / (2 A), A = 1 / s^2 + 1 / h."""
    m, c, s = 0.7, 1.4, 0.5
    step = jko_step(Gaussian(m, c * c), h, Gaussian(0.0, s * s))
    a = 1 / s**2 + 1 / h
    std = (c / h + math.sqrt(c * c / h**2 + 4 * a)) / (2 * a)
    assert step.mean.item() == pytest.approx(m / (1 + h / s**2), rel=1e-12)
    assert step.cov.item() == pytest.approx(std**2, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), seeds, st.floats(0.01, 10), st.booleans())
def test_a_step_is_where_the_force_is_the_way(d, seed, h, entropy):
    """(y - x) / h = -grad dF/drho at y for the optimal map y(x): the step's own condition, at points."""
    start, target = law(d, seed), None if entropy else law(d, seed + 1)
    end = jko_step(start, h, target)
    x = torch.randn(5, d, dtype=F64)
    # The optimal map of normal laws: C0^-1/2 (C0^1/2 C+ C0^1/2)^1/2 C0^-1/2.
    w, v = torch.linalg.eigh(start.cov)
    root, inverse = (v * w.sqrt()) @ v.T, (v / w.sqrt()) @ v.T
    w, v = torch.linalg.eigh(root @ end.cov @ root)
    y = end.mean + (x - start.mean) @ (inverse @ (v * w.sqrt()) @ v.T @ inverse).T
    force = (y - end.mean) @ torch.linalg.inv(end.cov)
    if target is not None:
        force = force - (y - target.mean) @ torch.linalg.inv(target.cov)
    # Roundings grown by condition numbers of some hundreds each.
    torch.testing.assert_close((y - x) / h, force, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("entropy", [False, True])
def test_small_steps_are_the_flow_with_an_error_of_the_first_order(entropy):
    start, target = law(3, 0), None if entropy else law(3, 1)
    wanted, gaps = gradient_flow(start, 0.5, target), []
    for n in (64, 128):
        now = start
        for _ in range(n):
            now = jko_step(now, 0.5 / n, target)
        gaps.append((now.cov - wanted.cov).norm().item())
    # Half of it with half the step; the next order is a hundredth of it.
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)
    assert gaps[1] < 0.02


def test_the_target_stays():
    target = law(3, 1)
    close(jko_step(target, 0.7, target), target, 1e-12)
    close(gradient_flow(target, 0.7, target), target, 1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), seeds, st.floats(0.3, 2), st.floats(0, 1))
def test_the_particles_law_solves_its_equation(d, seed, drift, share):
    """C' and m' by central differences in time."""
    start, target, noise = law(d, seed), law(d, seed + 1), share * math.sqrt(2 * drift) * 0.99
    early, now, late = (particle_law(start, t, target, drift, noise) for t in (0.299, 0.3, 0.301))
    pull = torch.linalg.inv(target.cov)
    rate = -drift * (pull @ now.cov + now.cov @ pull) + (2 * drift - noise**2) * torch.eye(d).to(
        pull
    )
    # The difference's error is 1e-6 / 6 of the third derivative, up to (2 B / 0.2)^3 of the law itself.
    torch.testing.assert_close((late.cov - early.cov) / 2e-3, rate, rtol=0, atol=2e-2)
    torch.testing.assert_close(
        (late.mean - early.mean) / 2e-3, -drift * pull @ (now.mean - target.mean), rtol=0, atol=2e-2
    )


@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("g", [1.0, 1.2, math.sqrt(2)])
def test_particles_have_one_law_whatever_g(g, noise):
    """DiffFlow's SDE with the exact logit and score of its own law, for L <= g and B = 1."""
    start, target, t1 = Gaussian(1.5, 0.3), Gaussian(0.0, 0.64), 0.8

    def drift(t, x):
        p = particle_law(start, float(t), target, 1.0, noise) if t > 0 else start
        of_p, of_q = (-(x - law.mean) / law.cov[0] for law in (p, target))
        return (of_q - of_p) + g * g / 2 * of_p

    term = interp.SDE(drift, math.sqrt(g * g - noise * noise))
    x = start.sample(4000, seed=0, dtype=F64)
    x = interp.solve(term, x, t=(0.0, t1), method="euler_maruyama", steps=80, seed=1).x
    wanted = particle_law(start, t1, target, 1.0, noise)
    # Standard errors of 4000 rows are 0.013 and 2 %; eighty steps are a further 1 %.
    assert x.mean().item() == pytest.approx(wanted.mean.item(), abs=0.05)
    assert x.var().item() == pytest.approx(wanted.cov.item(), rel=0.09)


def test_where_particles_end():
    """V = s^2 (1 - L^2 / (2 B))."""
    end = particle_law(Gaussian(1.0, 2.0), 50.0, Gaussian(-0.5, 0.64), 0.8, 0.9)
    assert end.cov.item() == pytest.approx(0.64 * (1 - 0.81 / 1.6), rel=1e-9)
    assert end.mean.item() == pytest.approx(-0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, b: jko_step(a, 0.0, a), "h=0"),
        (lambda a, b: jko_step(a, -1.0), "h=-1.0"),
        (lambda a, b: jko_step(a, 1.0, b), "dimensions"),
        (lambda a, b: gradient_flow(a, 0.0), "time"),
        (lambda a, b: particle_law(a, 1.0, a, 0.5, 1.1), "less noise"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(OptionError, match=match):
        call(law(2, 0), law(3, 0))
