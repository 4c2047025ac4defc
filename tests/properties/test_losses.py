"""Random schedules, targets and views: losses whose minimum is the exact view, in expectation."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.losses import Regression
from interp.testing import paths, schedules, targets, times

FEW = settings(deadline=None, max_examples=12)
DTYPES = st.sampled_from([torch.float32, torch.float64])
VIEWS = ("velocity", "data", "noise", "base", "v_prediction", "flow_prediction", "score")


def exact(target, path, view):
    if not view.endswith("prediction"):
        return getattr(target, view)(path)

    def prediction(t, x):
        k = path.coefficients(t)
        beta, sigma = (c[:, None] if c.ndim else c for c in (k.beta, k.sigma))
        if view == "flow_prediction":
            beta = sigma = 1.0
        return beta * target.noise(path)(t, x) - sigma * target.data(path)(t, x)

    return prediction


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(paths(two_sided=False), targets(), st.sampled_from(VIEWS), times(0.02), DTYPES)
def test_what_a_model_is_regressed_on_has_the_exact_view_as_its_mean(path, target, view, t, dtype):
    """The target is linear in (x0, x1, z); its mean given I_t is that of the exact ends.

    So the loss is least at the exact view, for every law of the data. To 1e-11 of the parts; in single
    precision each share is rounded once or twice, 6e-8.
    """
    loss, one, none = (
        Regression(path, view=view),
        torch.ones(1, 1, dtype=dtype),
        torch.zeros(1, 1, dtype=dtype),
    )
    z = (none, none, one) if path.gamma is not None else (None,) * 3
    ends = ((one, none, z[0]), (none, one, z[1]), (none, none, z[2]))
    shares = [
        float(loss.target(at(t), *parts)[1]) for parts in ends[: 3 if z[2] is not None else 2]
    ]
    x = target.marginal(path, t).sample(4, seed=1, dtype=torch.float64)
    means = [getattr(target, v)(path)(t, x) for v in ("base", "data", "latent")]
    parts = [share * mean for share, mean in zip(shares, means, strict=False)]
    wanted = exact(target, path, view)(t, x)
    size = 1 + sum(part.abs().max() for part in parts)
    rounding = 1e-11 if dtype is torch.float64 else 1.2e-7
    assert (sum(parts) - wanted).abs().max() <= rounding * size


@FEW
@given(
    schedules(["linear", "trigonometric", "cosine", "monotone"]),
    targets(),
    st.sampled_from(["uniform", "logit_normal"]),
    st.floats(-0.3, 0.3),
    DTYPES,
)
def test_every_law_of_time_estimates_the_loss_of_uniform_time(path, target, law, shift, dtype):
    """With its weight: the data loss of a model that is off by ``shift``, over 40 batches.

    Both are means of independent batches; their difference is 0 within six standard errors.
    """
    exact_data, x1 = target.data(path), target.sample(4000, seed=7, dtype=dtype)

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
