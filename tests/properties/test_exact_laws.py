"""Random paths and targets: density, velocity, score and posterior means are one law's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import Interpolant
from interp.exact import Gaussian
from interp.testing import paths, schedules, targets, times

#: Many cheap examples, without a clock: the machine may be busy.
MANY = settings(deadline=None, max_examples=40)


def points(dim: int, n: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.2 * torch.randn(n, dim, dtype=torch.float64, generator=generator)


def where_it_lies(target, path, t, base=None, n=4):
    """Points of the law of I_t, float64, and a little off it."""
    x = target.marginal(path, t, base).sample(n, seed=1, dtype=torch.float64)
    return x + 0.1 * x.std() * points(target.dim, n)


def divergence(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sum(
        torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])
    )


KINDS = ("gaussian", "mixture", "empirical", "product")


def law_of(path, target, base):
    """Density, velocity and score as functions of (t, x); the base only where it is asked for."""
    return tuple(getattr(target, v)(path, base) for v in ("log_density", "velocity", "score"))


@st.composite
def laws(draw, kinds=("gaussian", "mixture"), **which):
    """A path, a target, and a base where the path needs one or now and then besides."""
    path, target = draw(paths(**which)), draw(targets(kinds=kinds))
    if not path.gaussian_base or (set(kinds) == {"gaussian", "mixture"} and draw(st.booleans())):
        return path, target, draw(targets(dim=target.dim))
    return path, target, None


@MANY
@given(laws(), times())
def test_continuity_equation(drawn, t):
    """d log rho / dt + div v + v . s = 0, every derivative by autograd: 1e-9 of its largest term.

    Terms are functions of matrices of condition below 1e3 and of alpha', beta', gamma' which the
    paths give apart from alpha, beta and gamma: this is where they must be the derivatives.
    """
    path, target, base = drawn
    log_rho, velocity, score = law_of(path, target, base)
    x = where_it_lies(target, path, t, base).requires_grad_()
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    v = velocity(t, x)
    spread = divergence(v, x)
    changes = [torch.autograd.grad(log_rho(time, row[None])[0], time)[0] for row in x.detach()]
    change, along = torch.stack(changes), (v * score(t, x)).sum(1)
    size = 1 + change.abs() + spread.abs() + along.abs()
    assert ((change + spread + along).abs() <= 1e-9 * size).all()


@MANY
@given(laws(kinds=("empirical",), two_sided=False), times())
def test_continuity_equation_of_a_data_set(drawn, t):
    """As above; exponents grow like 1 / S, so that 1e-7."""
    path, target, _ = drawn
    log_rho, velocity, score = law_of(path, target, None)
    x = where_it_lies(target, path, t).requires_grad_()
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    v = velocity(t, x)
    spread = divergence(v, x)
    changes = [torch.autograd.grad(log_rho(time, row[None])[0], time)[0] for row in x.detach()]
    change, along = torch.stack(changes), (v * score(t, x)).sum(1)
    size = 1 + change.abs() + spread.abs() + along.abs()
    assert ((change + spread + along).abs() <= 1e-7 * size).all()


@MANY
@given(schedules(["monotone", "trigonometric", "cosine"]), targets(kinds=KINDS), times(0.1))
def test_continuity_equation_by_differences(path, target, t):
    """The time derivative by a fourth-order difference of step 1e-4, without autograd.

    Its error is h^4 times a fifth derivative, 1e-16 x 1e5 at most for these smooth paths inside
    [0.1, 0.9], and rounding, 1e-15 |log rho| / 1e-4.
    """
    log_rho, velocity, score = law_of(path, target, None)
    x = where_it_lies(target, path, t).requires_grad_()
    h, stencil = 1e-4, {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    v = velocity(t, x)
    spread = divergence(v, x)
    change = sum(w * log_rho(t + k * h, x.detach()) for k, w in stencil.items()) / h
    along = (v * score(t, x)).sum(1)
    size = 1 + change.abs() + spread.abs() + along.abs() + log_rho(t, x).abs()
    assert ((change + spread + along).abs() <= 1e-7 * size).all()


@MANY
@given(laws(), times(), st.floats(0.0, 2.0))
def test_fokker_planck_equation_of_the_paths_sde(drawn, t, eps):
    """d log rho / dt = -div f - f . s + (eps^2 / 2) (div s + |s|^2) with the drift f of `path.sde`.

    The SDE's own drift and eps, with a score of its own; derivatives by autograd, 1e-9.
    """
    path, target, base = drawn
    log_rho, velocity, score = law_of(path, target, base)
    term = path.sde(velocity, diffusion=lambda s: eps * (1 + s), score=score)
    x = where_it_lies(target, path, t, base).requires_grad_()
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    f, s = term.drift_field({})(torch.tensor(t, dtype=torch.float64), x), score(t, x)
    half = float(term.eps(torch.tensor(t, dtype=torch.float64))) ** 2 / 2
    assert half == pytest.approx((eps * (1 + t)) ** 2 / 2, rel=1e-14)
    changes = [torch.autograd.grad(log_rho(time, row[None])[0], time)[0] for row in x.detach()]
    change, flow = torch.stack(changes), divergence(f, x) + (f * s).sum(1)
    noise = half * (divergence(s, x) + (s * s).sum(1))
    size = 1 + change.abs() + flow.abs() + noise.abs() + half * (s * s).sum(1)
    assert ((change + flow - noise).abs() <= 1e-9 * size).all()


@MANY
@given(schedules(), targets(), times())
def test_reverse_diffusion_is_that_of_the_noising_process(path, target, t):
    """ "reverse" is G of dX = f X du + G dW: the drift of log rho in u = 1 - t has no score in it.

    In u the law obeys Fokker-Planck with drift f x and diffusion G: -d log rho / dt = -d f - f x . s
    + (G^2 / 2) (div s + |s|^2), with f = -beta' / beta. To 1e-9 of the largest term.
    """
    log_rho, velocity, score = law_of(path, target, None)
    time = torch.tensor(t, dtype=torch.float64)
    half = float(path.sde(velocity, diffusion="reverse").eps(time)) ** 2 / 2
    k = path.coefficients(t)
    f = -(k.dbeta / k.beta)
    x = where_it_lies(target, path, t).requires_grad_()
    s, moving = score(t, x), time.clone().requires_grad_()
    changes = [torch.autograd.grad(log_rho(moving, row[None])[0], moving)[0] for row in x.detach()]
    change, carried = torch.stack(changes), f * (target.dim + (x * s).sum(1))
    noise = half * (divergence(s, x) + (s * s).sum(1))
    size = 1 + change.abs() + carried.abs() + noise.abs() + half * (s * s).sum(1)
    assert ((-change + carried - noise).abs() <= 1e-9 * size).all()


@MANY
@given(laws(kinds=("gaussian", "mixture")), times(0.005))
def test_score_is_the_slope_of_the_density(drawn, t):
    """To 1e-10 of the score's size."""
    path, target, base = drawn
    log_rho, _, score = law_of(path, target, base)
    x = where_it_lies(target, path, t, base).requires_grad_()
    (wanted,) = torch.autograd.grad(log_rho(t, x).sum(), x)
    found = score(t, x.detach())
    assert (found - wanted).abs().max() <= 1e-10 * (1 + wanted.abs().max())


@MANY
@given(laws(kinds=KINDS, two_sided=False), times())
def test_posterior_covariance_is_the_slope_of_the_denoiser(drawn, t):
    """Cov[x1 | x] = (sigma^2 / beta) d D / dx for a Gaussian base, to 1e-8 of the size of either."""
    path, target, _ = drawn
    x, k = where_it_lies(target, path, t).requires_grad_(), path.coefficients(t)
    denoised = target.data(path)(t, x)
    rows = [
        torch.autograd.grad(denoised[:, i].sum(), x, retain_graph=True)[0]
        for i in range(target.dim)
    ]
    wanted = float(k.sigma**2 / k.beta) * torch.stack(rows, 1)
    found = target.posterior_cov(path)(t, x.detach())
    assert (found - wanted).abs().max() <= 1e-8 * (1 + found.abs().max())


@MANY
@given(laws(kinds=KINDS, two_sided=False), times())
def test_the_parts_of_a_point_add_up(drawn, t):
    """x = alpha E[x0 | x] + beta E[x1 | x] + gamma E[z | x], and so do the rates; 1e-11 of the sums."""
    path, target, base = drawn
    k = path.coefficients(t)
    x = where_it_lies(target, path, t, base)
    x0, x1, z = (getattr(target, v)(path, base)(t, x) for v in ("base", "data", "latent"))
    parts = (k.alpha * x0, k.beta * x1, k.gamma * z)
    size = 1 + sum(p.abs().max() for p in parts)
    assert (sum(parts) - x).abs().max() <= 1e-11 * size
    rates = (k.dalpha * x0, k.dbeta * x1, k.dgamma * z)
    size = 1 + sum(r.abs().max() for r in rates)
    assert (sum(rates) - target.velocity(path, base)(t, x)).abs().max() <= 1e-11 * size


@MANY
@given(laws(kinds=KINDS, two_sided=False), times())
def test_float32_is_float64_rounded(drawn, t):
    """The work is done in float64: at a float32 point both give the same number, cast at the end."""
    path, target, base = drawn
    x = where_it_lies(target, path, t, base).float()
    for view in ("velocity", "score", "data", "log_density", "posterior_cov"):
        field = getattr(target, view)(path, base)
        assert torch.equal(field(t, x), field(t, x.double()).float()), view


@MANY
@given(paths(two_sided=False), targets(), times())
def test_a_standard_base_given_is_the_one_assumed(path, target, t):
    """The same path between any two laws, from N(0, 1): all answers agree to 1e-11."""
    between = Interpolant(path.alpha, path.beta, path.gamma, gaussian_base=False)
    given_base = Gaussian(torch.zeros(target.dim), 1.0)
    x = where_it_lies(target, path, t)
    for view in ("velocity", "score", "data", "base", "latent", "posterior_cov", "log_density"):
        one = getattr(target, view)(path)(t, x)
        two = getattr(target, view)(between, given_base)(t, x)
        assert (one - two).abs().max() <= 1e-11 * (1 + one.abs().max()), view
