"""Exact laws along paths of one schedule an element, in any orthonormal basis."""

import math

import pytest
import torch

from interp import Interpolant
from interp.errors import OptionError, TimeError, Unsupported
from interp.exact import Empirical, Gaussian, Mixture, Product

F64 = torch.float64
SPEEDS = torch.tensor([1.0, 2.0, 1.5], dtype=F64)
VIEWS = ("velocity", "score", "data", "base", "latent")
A = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.8]], dtype=F64)
B = torch.tensor([[0.4, -0.2, 0.0], [-0.2, 0.9, 0.3], [0.0, 0.3, 0.6]], dtype=F64)
CROSS = torch.tensor([[0.2, 0.1, 0.0], [-0.2, 0.25, 0.1], [0.0, -0.1, 0.3]], dtype=F64)


def one(s):
    """The path of a single element of speed s."""
    return Interpolant(lambda t: (1 - t) ** s, lambda t: t**s, lambda t: s * t * (1 - t))


def by_element(gaussian_base=True):
    return Interpolant(
        lambda t: (1 - t[..., None]) ** SPEEDS,
        lambda t: t[..., None] ** SPEEDS,
        lambda t: SPEEDS * (t * (1 - t))[..., None],
        gaussian_base,
    )


def cosines(n):
    k, i = torch.meshgrid(torch.arange(n).double(), torch.arange(n).double(), indexing="ij")
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


V = cosines(3)


def by_frequency(gaussian_base=True):
    return by_element(gaussian_base).in_basis(lambda x: x @ V.to(x).mT, lambda x: x @ V.to(x))


PATHS = {"element": by_element, "frequency": by_frequency}
TARGETS = {
    "matrices": Mixture([0.3, 0.7], [[1.0, 2.0, 0.0], [-1.0, 0.0, 1.0]], [A, B]),
    "diagonal": Mixture([0.4, 0.6], [[1.0, 0.0, 0.5], [-1.0, 0.5, 0.0]], [[0.3, 1.2, 0.7], 0.4]),
    "isotropic": Gaussian([1.0, 0.0, -0.5], 0.7),
    "matrix": Gaussian([1.0, 0.0, -0.5], A),
}
BASES = {
    "standard": None,
    "isotropic": Gaussian([0.5, 0.0, 0.0], 0.6),
    "diagonal": Gaussian([0.5, 0.0, 0.0], [0.6, 0.9, 1.2]),
    "matrices": Mixture([0.5, 0.5], [[2.0, 0.0, 0.5], [-1.0, 1.0, -0.5]], [B, A]),
}


def points(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.2 * torch.randn(n, 3, dtype=F64, generator=generator)


def test_independent_elements_are_paths_of_their_own():
    """A diagonal target and its coordinates one by one, to 1e-13; also a time for each row."""
    path, mean, var, x = by_element(), [1.0, 0.0, -0.5], [0.3, 1.2, 0.7], points()
    whole = Gaussian(mean, var)
    parts = [(one(s), Gaussian(m, v)) for s, m, v in zip(SPEEDS.tolist(), mean, var, strict=True)]
    close = {"rtol": 1e-13, "atol": 1e-13}
    for t in (0.0, 0.3, torch.tensor([0.1, 0.4, 0.6, 1.0], dtype=F64)):
        for view in VIEWS:
            columns = [
                getattr(law, view)(p)(t, x[:, i : i + 1]) for i, (p, law) in enumerate(parts)
            ]
            found = getattr(whole, view)(path)(t, x)
            torch.testing.assert_close(found, torch.cat(columns, 1), **close)
        rho = sum(law.log_density(p)(t, x[:, i : i + 1]) for i, (p, law) in enumerate(parts))
        torch.testing.assert_close(whole.log_density(path)(t, x), rho, **close)
        spread = [
            law.posterior_cov(p)(t, x[:, i : i + 1])[:, 0, 0] for i, (p, law) in enumerate(parts)
        ]
        torch.testing.assert_close(
            whole.posterior_cov(path)(t, x), torch.diag_embed(torch.stack(spread, 1)), **close
        )
    flows = [law.flow(p)(0.1, 0.8, x[:, i : i + 1]) for i, (p, law) in enumerate(parts)]
    torch.testing.assert_close(whole.flow(path)(0.1, 0.8, x), torch.cat(flows, 1), **close)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_density_velocity_and_score_are_of_one_law(name, target, base):
    """Continuity by autograd in t and x, and the score as the slope: to 1e-9 of the terms."""
    path, target, base = PATHS[name](), TARGETS[target], BASES[base]
    log_rho, velocity, score = (
        getattr(target, v)(path, base) for v in ("log_density", "velocity", "score")
    )
    for t in (0.2, 0.7):
        x = points().requires_grad_()
        time = torch.tensor(t, dtype=F64, requires_grad=True)
        v = velocity(t, x)
        divergence = sum(
            torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3)
        )
        change = torch.stack(
            [torch.autograd.grad(log_rho(time, row[None])[0], time)[0] for row in x.detach()]
        )
        (slope,) = torch.autograd.grad(log_rho(t, x).sum(), x)
        torch.testing.assert_close(score(t, x.detach()), slope, rtol=1e-10, atol=1e-10)
        along = (v * slope).sum(1)
        size = 1 + change.abs() + divergence.abs() + along.abs()
        assert ((change + divergence + along).abs() <= 1e-9 * size).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_parts_add_up_and_the_covariance_is_the_slope(name, target, base):
    """x = alpha E[x0] + beta E[x1] + gamma E[z]; Cov[x1 | x] = (dD/dx) B^-1 Sigma where x0 ~ N(0, 1)."""
    path, target, base, x = PATHS[name](), TARGETS[target], BASES[base], points()
    for t in (0.3, torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)):
        k = path.coefficients(t)
        parts = [getattr(target, v)(path, base)(t, x) for v in ("base", "data", "latent")]
        point = path.combine((k.alpha, k.beta, k.gamma), parts)
        torch.testing.assert_close(point, x, rtol=1e-12, atol=1e-12)
    if base is None:
        found = target.posterior_cov(path)(0.3, x)
        k = path.coefficients(0.3)
        rows = [
            torch.autograd.functional.jacobian(lambda r: target.data(path)(0.3, r[None])[0], row)
            for row in x
        ]
        basis = torch.eye(3, dtype=F64) if name == "element" else V
        wanted = torch.stack(rows) @ basis.mT @ (k.sigma**2 / k.beta).diag() @ basis
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_marginals_are_those_of_the_matrices(name):
    """mu = A m0 + B m1 and S = A C0 A + B C1 B + G^2 + A K B + B K^T A with A = V^T alpha V; 1e-13."""
    path, target, base = PATHS[name](False), TARGETS["matrix"], Gaussian([0.5, 0.0, 0.0], B)
    k, basis = path.coefficients(0.35), torch.eye(3, dtype=F64) if name == "element" else V
    a, b, g = (basis.mT @ c.diag() @ basis for c in (k.alpha, k.beta, k.gamma))
    law = target.marginal(path, 0.35, base, CROSS)
    S = a @ B @ a + b @ A @ b + g @ g + a @ CROSS @ b + b @ CROSS.mT @ a
    torch.testing.assert_close(law.mean, a @ base.mean + b @ target.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(law.cov, S, rtol=1e-13, atol=1e-13)
    x = points()
    torch.testing.assert_close(
        law.log_prob(x), target.log_density(path, base, CROSS)(0.35, x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("coupling", ["independent", "cross"])
@pytest.mark.parametrize("name", PATHS)
def test_the_flow_follows_the_velocity(name, coupling):
    """A central difference of step 1e-4: 1e-8 x v'' of up to 30."""
    path, x, h = PATHS[name](False), points(), 1e-4
    target, base = TARGETS["matrix"], Gaussian([0.5, 0.0, 0.0], B)
    K = CROSS if coupling == "cross" else None
    flow, v = target.flow(path, base, K), target.velocity(path, base, K)
    rate = (flow(0.2, 0.7 + h, x) - flow(0.2, 0.7 - h, x)) / (2 * h)
    torch.testing.assert_close(rate, v(0.7, flow(0.2, 0.7, x)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow(0.7, 0.2, flow(0.2, 0.7, x)), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_a_data_set_is_its_mixture_of_kernels(name):
    """To 1e-12, with and without a time for each row."""
    path, data, x = PATHS[name](), points(7, seed=3), points()
    kernels, mixture = Empirical(data, 0.4, chunk=3), Mixture([1 / 7] * 7, data, [0.16] * 7)
    for t in (0.3, torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)):
        for view in (*VIEWS, "log_density", "posterior_cov"):
            found, wanted = (getattr(law, view)(path)(t, x) for law in (kernels, mixture))
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, msg=view)


def test_channels_of_images():
    """One schedule a channel, (2, 1, 1) beside rows (2, 2, 3): as two paths of six elements each."""
    speeds = SPEEDS[:2, None, None]
    path = Interpolant(
        lambda t: (1 - t[..., None, None, None]) ** speeds,
        lambda t: t[..., None, None, None] ** speeds,
    )
    var = torch.linspace(0.3, 1.4, 12, dtype=F64)
    whole, x = Gaussian(torch.zeros(12), var), torch.randn(5, 2, 2, 3, dtype=F64)
    data = torch.randn(6, 2, 2, 3, dtype=F64)
    for c, s in enumerate(SPEEDS[:2].tolist()):
        alone = Interpolant(lambda t, s=s: (1 - t) ** s, lambda t, s=s: t**s)
        part = Gaussian(torch.zeros(6), var[6 * c : 6 * c + 6])
        for view in ("velocity", "noise"):
            found = getattr(whole, view)(path)(0.4, x)[:, c]
            wanted = getattr(part, view)(alone)(0.4, x[:, c])
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    denoised = Empirical(data).data(path)(0.5, x.float())
    assert (denoised.shape, denoised.dtype) == (x.shape, torch.float32)


def test_what_has_no_such_elements_is_refused():
    path, target = by_element(), TARGETS["matrix"]
    with pytest.raises(OptionError, match="3 dimensions"):
        target.velocity(path)(0.5, torch.zeros(2, 4))
    with pytest.raises(OptionError, match=r"\(3,\)"):
        Gaussian(torch.zeros(4), 1.0).velocity(path)(0.5, torch.zeros(2, 4))
    with pytest.raises(TimeError):
        target.velocity(path)(torch.rand(3), points())
    with pytest.raises(Unsupported, match="blocks"):
        Product([target, Gaussian(0.0, 1.0)]).score(path)
    with pytest.raises(Unsupported, match="kernels of many widths"):
        Empirical(points()).marginal(path, 0.5)
    with pytest.raises(TimeError, match="no noise"):
        Empirical(points()).score(path)(1.0, points())
    steep = Interpolant(
        lambda t: (1 - t[..., None]).sqrt() ** SPEEDS.sign(), lambda t: t[..., None] ** SPEEDS
    )
    base = BASES["matrices"]
    with pytest.raises(TimeError, match="infinite at t = 1"):
        target.velocity(steep, base)(1.0, points())
