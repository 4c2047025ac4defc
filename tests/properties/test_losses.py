"""Random schedules, targets and views: losses whose minimum is the exact view, in expectation."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.losses import Regression
from interp.testing import schedules, targets, times

FEW = settings(deadline=None, max_examples=12)
VIEWS = ("velocity", "data", "noise", "base", "v_prediction", "score")
ROWS = 4000


def exact(target, path, view):
    if view != "v_prediction":
        return getattr(target, view)(path)

    def v_prediction(t, x):
        k = path.coefficients(t)
        beta, sigma = (c[:, None] if c.ndim else c for c in (k.beta, k.sigma))
        return beta * target.noise(path)(t, x) - sigma * target.data(path)(t, x)

    return v_prediction


def batch(target, dim):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(ROWS, dim, dtype=torch.float64, generator=generator)
    return x0, target.sample(ROWS, seed=7, dtype=torch.float64)


def within(residuals, deviations=6.0):
    """Whether means are 0 within six standard errors: 2e-9 each, and a few hundred of them."""
    error = residuals.std(0) / math.sqrt(len(residuals))
    return bool((residuals.mean(0).abs() <= deviations * error + 1e-12).all())


@FEW
@given(schedules(), targets(), st.sampled_from(VIEWS), times(0.05))
def test_the_gradient_of_the_loss_at_the_exact_view_is_zero(path, target, view, t):
    """E[(target - view(I_t)) f(I_t)] = 0 for f = 1, x and cos x: the loss is unbiased for the view.

    And not for another view: moved by three standard errors' worth it is seen.
    """
    x0, x1 = batch(target, target.dim)
    point, sought = Regression(path, view=view).target(at(t), x0, x1)
    left = sought - exact(target, path, view)(at(t), point)
    centred = (point - point.mean(0)) / point.std(0)
    for f in (torch.ones_like(point), centred, centred.cos()):
        assert within(left * f)
    assert not within(left + 10 * left.std() / math.sqrt(ROWS))


@FEW
@given(
    schedules(["linear", "trigonometric", "cosine", "monotone"]),
    targets(),
    st.sampled_from(["uniform", "logit_normal"]),
    st.floats(-0.3, 0.3),
)
def test_every_law_of_time_estimates_the_loss_of_uniform_time(path, target, law, shift):
    """With its weight: the data loss of a model that is off by ``shift``, over 40 batches.

    Both are means of independent batches; their difference is 0 within six standard errors.
    """
    exact_data, x1 = target.data(path), batch(target, target.dim)[1]

    def losses(times_, seed):
        loss = Regression(path, view="data", times=times_, unbiased=True)
        generator = torch.Generator().manual_seed(seed)
        return torch.tensor(
            [
                float(loss(lambda t, x: exact_data(t, x) + shift, rows, generator=generator))
                for rows in x1.split(100)
            ],
            dtype=torch.float64,
        )

    one, other = losses(law, 1), losses(None, 2)
    error = math.hypot(float(one.std()), float(other.std())) / math.sqrt(len(one))
    assert abs(float(one.mean() - other.mean())) <= 6 * error


def at(t):
    return torch.tensor(t, dtype=torch.float64)
