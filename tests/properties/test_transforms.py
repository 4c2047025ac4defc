"""Random paths, warped, rescaled and reversed: the marginals and the model are kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interp.errors import OutOfRange
from interp.testing import (
    assert_equivalent,
    assert_same_marginals,
    composed,
    paths,
    schedules,
    targets,
    times,
)
from interp.testing.made import rising

MANY = settings(deadline=None, max_examples=30)
FEW = settings(deadline=None, max_examples=8)
RISES = st.lists(st.floats(0.2, 2.0), min_size=2, max_size=5)


def drawn(target, path, t):
    return target.marginal(path, t).sample(4, seed=1, dtype=torch.float64) + 0.05


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@MANY
@given(paths(two_sided=False), targets(), RISES, times())
def test_a_warped_path_has_the_marginals_of_the_other_clock(path, target, rises, t):
    """rho_t of the warped is rho_tau(t), to 1e-10; and its velocity is tau' times that there."""
    tau = rising(rises)[0]
    warped, there = path.warp(tau), float(tau(at(t)))
    x = drawn(target, path, there)
    one, other = target.log_density(warped)(t, x), target.log_density(path)(there, x)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    slope = torch.func.grad(tau)(at(t))
    v = target.velocity(path)(there, x) * slope
    torch.testing.assert_close(
        target.velocity(warped)(t, x), v, rtol=1e-10, atol=1e-10 * float(1 + v.abs().max())
    )


@MANY
@given(paths(two_sided=False), targets(), st.floats(-1, 1), times())
def test_a_rescaled_path_has_the_marginals_of_the_scaled_points(path, target, tilt, t):
    """log rho(c x) = log rho(x) - d log c, and the data estimate is the same: to 1e-10."""
    c = math.exp(tilt * (1 - t))
    scaled = path.rescale(lambda s: torch.exp(tilt * (1 - s)))
    x = drawn(target, path, t)
    one, other = target.log_density(scaled)(t, c * x), target.log_density(path)(t, x)
    torch.testing.assert_close(one, other - target.dim * math.log(c), rtol=1e-10, atol=1e-10)
    data, wanted = target.data(scaled)(t, c * x), target.data(path)(t, x)
    torch.testing.assert_close(data, wanted, rtol=1e-9, atol=1e-9)
    # d(c x)/dt = c' x + c v, c' = -tilt c
    v = c * (target.velocity(path)(t, x) - tilt * x)
    torch.testing.assert_close(
        target.velocity(scaled)(t, c * x), v, rtol=1e-9, atol=1e-9 * float(1 + v.abs().max())
    )


@MANY
@given(paths(two_sided=False), targets(), times())
def test_a_reversed_path_has_the_marginals_of_the_other_end(path, target, t):
    """rho_t of the reversed is rho_(1 - t), the velocity its negative: to 1e-10."""
    back, x = path.reverse(), drawn(target, path, 1 - t)
    for view in ("score", "noise", "data", "log_density"):
        one, other = getattr(target, view)(back)(t, x), getattr(target, view)(path)(1 - t, x)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    v = target.velocity(path)(1 - t, x)
    torch.testing.assert_close(
        target.velocity(back)(t, x), -v, rtol=1e-9, atol=1e-9 * float(1 + v.abs().max())
    )


@FEW
@given(schedules(), targets(), RISES, st.floats(-1, 1))
def test_runs_on_a_path_and_on_its_change_end_in_one_law(path, target, rises, tilt):
    """Warped by tau and rescaled by exp(tilt (0.9 - t)), which is 1 where the run ends.

    Paired rows of both runs, each by dopri5 at 1e-7; affine flows without chance.
    """
    tau = rising(rises)[0]
    other = path.warp(tau).rescale(lambda t: torch.exp(tilt * (0.9 - t)))
    ends = tuple(float(tau(at(t))) for t in (0.1, 0.9))
    found = assert_same_marginals(
        path.ode(target.velocity(path)),
        other.ode(target.velocity(other)),
        target.marginal(path, ends[0]),
        target.marginal(other, 0.1),
        t=ends,
        t_b=(0.1, 0.9),
        n=256,
        tol=1e-4,
    )
    assert found.exact == (len(target.weights) == 1)


@FEW
@given(
    schedules(["linear", "trigonometric", "cosine", "monotone"]),
    targets(kinds=["gaussian"]),
    st.sampled_from(["data", "noise", "score"]),
)
def test_terms_of_every_view_leave_the_same_law(path, target, view):
    """Without chance, since these flows are affine: tolerance 1e-4 of the law's size."""
    start, t = target.marginal(path, 0.02), (0.02, 0.98)
    field = getattr(target, view)(path)
    velocity, other = path.ode(target.velocity(path)), path.ode(field, view=view)
    assert assert_same_marginals(velocity, other, start, t=t, tol=1e-4).exact
    shifted = path.ode(lambda t, x: field(t, x) + 0.1, view=view)
    with pytest.raises(AssertionError, match="mean"):
        assert_same_marginals(velocity, shifted, start, t=t, tol=1e-4)


@MANY
@given(
    schedules(),
    schedules(),
    targets(),
    st.sampled_from(["velocity", "data", "noise", "score"]),
    times(),
)
def test_a_model_of_one_path_is_adapted_to_any_other(path, trained_on, target, view, t):
    """The exact view of the other path, adapted, is the exact view of this one: 1e-8 of its size.

    Within the common range of log-SNR, without which it is refused; the matched time is right to
    1e-16 / slope of log-SNR.
    """
    ends = [(p.log_snr(0.0), p.log_snr(1.0)) for p in (path, trained_on)]
    if max(low for low, _ in ends) >= min(high for _, high in ends):
        with pytest.raises(OutOfRange):
            path.adapt(target.data(trained_on), trained_on=trained_on, view="data")
        return
    adapted = path.adapt(getattr(target, view)(trained_on), trained_on=trained_on, view=view)
    low, high = adapted.interval
    inside = low + (high - low) * t
    x = drawn(target, path, inside)
    found, wanted = adapted(at(inside), x), getattr(target, view)(path)(inside, x)
    assert (found - wanted).abs().max() <= 1e-8 * (1 + wanted.abs().max())


@MANY
@given(
    schedules(), schedules(), targets(), st.sampled_from(["data", "noise", "score"]), times(0.05)
)
def test_a_model_is_adapted_in_single_precision(path, trained_on, target, view, t):
    """At float32 points: 8 roundings of 6e-8 of the view, and of the points through its slope."""
    ends = [(p.log_snr(0.0), p.log_snr(1.0)) for p in (path, trained_on)]
    assume(max(low for low, _ in ends) < min(high for _, high in ends))
    adapted = path.adapt(getattr(target, view)(trained_on), trained_on=trained_on, view=view)
    low, high = adapted.interval
    inside = low + (high - low) * t
    x = drawn(target, path, inside).float()
    point = x.double().requires_grad_()
    wanted = getattr(target, view)(path)(inside, point)
    slope = sum(
        torch.autograd.grad(wanted[:, i].sum(), point, retain_graph=True)[0].abs().max()
        for i in range(target.dim)
    )
    found = adapted(at(inside), x)
    assert found.dtype == torch.float32
    size = wanted.abs().max() + slope * x.abs().max()
    assert (found - wanted).abs().max() <= 8 * 6e-8 * size


@MANY
@given(paths(two_sided=False), RISES, st.floats(-1, 1))
def test_a_path_and_its_change_are_one(path, rises, tilt):
    """To 1e-7 radians: the inverse of log-SNR where its slope is least."""
    if not path.monotone:
        return
    assert_equivalent(path, composed(path, rises, tilt), tol=1e-7)
