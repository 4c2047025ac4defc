"""Hooks on the data estimate of semi-linear samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import hooks, schedules
from interp.errors import FieldError, OptionError, UnknownName

F64 = torch.float64
MIXTURE = interp.exact.Mixture([0.4, 0.6], [[-1.0, 0.0], [0.7, 0.5]], [0.1, 0.3])
SAMPLERS = [m.name for m in interp.methods("path")]
PATHS = {"linear": schedules.linear(), "edm": schedules.edm(sigma_min=0.002)}


def start(path: interp.Interpolant, t: float = 0.0) -> Tensor:
    return path.coefficients(t).sigma.item() * interp.noise.normal((4, 2), seed=0, dtype=F64)


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("view", ["velocity", "noise"])
def test_a_hook_that_changes_nothing_changes_nothing(method: str, name: str, view: str) -> None:
    """Whichever estimate the method asks for, and on the step to clean data as well."""
    path = PATHS[name]
    term, ends = path.ode(getattr(MIXTURE, view)(path), view=view), (0.1, 1.0)
    x = start(path, 0.1)
    plain = interp.solve(term, x, ends, method, steps=6, seed=1, save_at=[0.55, 1.0])
    for backend in ("rust", "torch"):
        same = interp.solve(
            term, x, ends, method, backend, 6, seed=1, save_at=[0.55, 1.0], data_hook=lambda t, d: d
        )
        # D = (x - sigma n) / beta and back: numbers of x's size in the last digit, a few times over.
        assert float((same.xs - plain.xs).abs().max()) < 1e-13 * max(1.0, float(x.abs().max()))
        assert same.stats.nfe == plain.stats.nfe


@pytest.mark.parametrize("method", [m for m in SAMPLERS if m != "pndm"])
@pytest.mark.parametrize("name", PATHS)
def test_clipped_samples_are_in_the_box(method: str, name: str) -> None:
    """All of these end with a first-order step, whose end is the clipped estimate or in between (pndm's
    extrapolates over its last step as well).
    """
    path = PATHS[name]
    term = path.ode(MIXTURE.velocity(path), view="velocity")
    x = start(path)
    free = interp.solve(term, x, method=method, steps=8, seed=1).x
    held = [
        interp.solve(term, x, (0, 1), method, backend, 8, seed=1, data_hook=hooks.clip(-0.2, 0.3)).x
        for backend in ("rust", "torch")
    ]
    assert not ((free > -0.2) & (free < 0.3)).all()
    assert float((held[0] - held[1]).abs().max()) < 1e-12 * max(1.0, float(x.abs().max()))
    low, high = float(held[0].min()), float(held[0].max())
    assert low > -0.2 - 1e-12, (low, high)
    assert high < 0.3 + 1e-12, (low, high)


def test_the_hook_is_told_when_and_sees_the_estimate() -> None:
    path = schedules.variance_preserving()
    data, seen = MIXTURE.data(path), []

    def hook(t: Tensor, d: Tensor) -> Tensor:
        seen.append((t, d))
        return d

    # A float32 state, and a model that is told something else than t: the hook is told t itself.
    term = path.ode(lambda s, x: data(1 - s, x), view="data", time="noise")
    grid = [0.0, 0.3, 0.7, 1.0]
    interp.solve(term, start(path).float(), method="ddim", grid=grid, data_hook=hook)
    assert [float(t) for t, _ in seen] == grid[:-1]
    assert all(t.dtype == F64 and d.dtype == torch.float32 for t, d in seen)


def test_a_replaced_estimate_is_where_the_run_ends() -> None:
    """A constant D is sampled exactly by every method, whatever the model says."""
    path, target = schedules.linear(), torch.tensor([0.3, -2.0], dtype=F64)
    term = path.ode(MIXTURE.velocity(path), view="velocity")
    for method in SAMPLERS:
        sol = interp.solve(
            term, start(path), method=method, steps=5, seed=2,
            data_hook=lambda t, d: target.expand_as(d),
        )  # fmt: skip
        assert float((sol.x - target).abs().max()) < 1e-13


def test_gradients_go_through_a_hook() -> None:
    path = schedules.linear()
    term = path.ode(MIXTURE.velocity(path), view="velocity")
    grads = []
    for gradient in ("direct", "checkpointed"):
        x = start(path).requires_grad_()
        sol = interp.solve(
            term, x, method="ddim", steps=4, gradient=gradient, data_hook=hooks.threshold(0.5)
        )
        grads.append(torch.autograd.grad(sol.x.sum(), x)[0])
    assert torch.equal(*grads)
    assert float(grads[0].abs().max()) > 1e-3


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 4, 4), (2, 1), (6,), ()])
def test_thresholding_is_the_definition(quantile: float, shape: tuple[int, ...]) -> None:
    data = 3 * interp.noise.normal((math.prod(shape),), seed=3, dtype=F64).reshape(shape)
    found = hooks.threshold(quantile)(torch.tensor(0.5, dtype=F64), data)
    assert found.shape == data.shape
    rows = data.reshape(len(data) if shape else 1, -1)
    for row, ours in zip(rows, found.reshape(rows.shape), strict=True):
        s = max(1.0, float(np.quantile(row.abs().numpy(), quantile)))
        assert float((ours - row.clamp(-s, s) / s).abs().max()) < 1e-14
    assert float(found.abs().max()) <= 1


def test_rows_are_thresholded_apart_and_small_ones_are_left_alone() -> None:
    data = torch.tensor([[0.5, -0.9], [4.0, -2.0]], dtype=F64)
    found = hooks.threshold(1.0)(torch.tensor(0.5), data)
    assert torch.equal(found, torch.tensor([[0.5, -0.9], [1.0, -0.5]], dtype=F64))
    assert hooks.threshold()(torch.tensor(0.5), data[:0]).shape == (0, 2)


def test_bad_hooks_are_refused() -> None:
    path = schedules.linear()
    term = path.ode(MIXTURE.velocity(path), view="velocity")

    def run(hook: object, t: tuple[float, float] = (0.0, 1.0), method: str = "ddim") -> None:
        interp.solve(term, start(path), t, method, steps=3, data_hook=hook)

    with pytest.raises(OptionError, match="not a function"):
        run("clip")
    with pytest.raises(FieldError, match="data_hook returned a tensor of shape"):
        run(lambda t, d: d[:1])
    with pytest.raises(FieldError, match="data_hook returned a NoneType"):
        run(lambda t, d: None)
    with pytest.raises(OptionError, match="begins at clean data"):
        run(hooks.clip(), (1.0, 0.1))
    with pytest.raises(UnknownName, match="data_hook"):
        run(hooks.clip(), method="heun")
    for low, high in ((1.0, -1.0), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(OptionError):
            hooks.clip(low, high)
    for quantile in (0.0, 1.5, math.nan):
        with pytest.raises(OptionError):
            hooks.threshold(quantile)
