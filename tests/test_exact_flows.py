"""Flows on the line, entropies, posterior covariances and products of targets."""

import math

import mpmath as mp
import pytest
import torch

import interp
from interp import Interpolant, schedules
from interp.errors import OptionError, Unsupported
from interp.exact import Empirical, Gaussian, Mixture, Product


def at(t):
    return torch.tensor(t, dtype=torch.float64)


BRIDGE = Interpolant(
    lambda t: 1 - t, lambda t: t, lambda t: 0.7 * torch.sqrt(t * (1 - t)), gaussian_base=False
)
LINE = Mixture([0.2, 0.5, 0.3], [-2.0, 0.5, 1.5], [0.1, 0.6, 0.04])
START = Mixture([0.6, 0.4], [1.0, -1.0], [0.3, 0.2])


# The flow on the line


@pytest.mark.parametrize(
    ("path", "base"),
    [
        (schedules.linear(), None),
        (schedules.variance_preserving(), None),
        (schedules.linear(), START),
        (BRIDGE, START),
    ],
    ids=["linear", "vp", "linear from a mixture", "bridge"],
)
def test_points_keep_their_quantile_and_follow_the_velocity(path, base):
    """The rate by a central difference of step 1e-5: 1e-10 v'' and 1e-16 / 1e-5 of rounding."""
    flow, v = LINE.flow(path, base), LINE.velocity(path, base)
    x, h = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None], 1e-5
    for t, r in ((0.02, 0.5), (0.9, 0.3)):
        rate = (flow(t, r + h, x) - flow(t, r - h, x)) / (2 * h)
        torch.testing.assert_close(rate, v(r, flow(t, r, x)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(flow(r, t, flow(t, r, x)), x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(flow(t, t, x), x, rtol=1e-14, atol=1e-14)


def test_the_flow_on_the_line_is_what_a_solver_finds():
    """dopri5 at 1e-10: a hundred times that after the run."""
    path = schedules.linear()
    x = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]
    sol = interp.solve(path.ode(LINE.velocity(path)), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(LINE.flow(path)(0.0, 1.0, x), sol.x, rtol=0, atol=1e-8)


def test_quantiles_far_out_are_those_of_40_digits():
    """30 deviations out, where 1 - F is 1e-197: the nearer tail is used on both sides."""
    path, x = schedules.linear(), at([[-30.0], [30.0], [3.0]])
    found = LINE.flow(path)(0.0, 1.0, x)
    parts = list(zip((0.2, 0.5, 0.3), (-2.0, 0.5, 1.5), LINE.covs.flatten().tolist(), strict=True))
    with mp.workdps(230):
        for one, point in zip(found.flatten().tolist(), x.flatten().tolist(), strict=True):
            side = -1 if point > 0 else 1  # the tail beyond the point
            tail = mp.ncdf(mp.mpf(side * point))
            y = mp.mpf(one)
            cdf = sum(
                mp.mpf(w) * mp.ncdf(side * (y - mp.mpf(m)) / mp.sqrt(mp.mpf(C)))
                for w, m, C in parts
            )
            # log F has slopes of up to 100 here, so that 1e-15 in x is 1e-13 in log F.
            assert abs(mp.log(cdf) - mp.log(tail)) < 1e-12


def test_rows_may_have_their_own_times():
    flow, x = LINE.flow(schedules.linear()), at([[-1.0], [0.3], [2.0]])
    t, r = at([0.0, 0.5, 1.0]), at([1.0, 0.5, 0.2])
    each = torch.cat([flow(t[i], r[i], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(flow(t, r, x), each, rtol=1e-14, atol=1e-14)
    assert flow(0.0, 1.0, x.float()).dtype == torch.float32
    assert flow(0.0, 1.0, torch.zeros(0, 1)).shape == (0, 1)


# Entropy


def test_entropy_of_a_normal_law_is_torchs():
    C = at([[1.0, 0.3], [0.3, 0.5]])
    reference = torch.distributions.MultivariateNormal(torch.zeros(2).double(), C).entropy()
    found = Gaussian([0.0, 1.0], C).entropy()
    assert float(found) == pytest.approx(reference.item(), rel=1e-14)
    assert (found.error, found.how) == (0.0, "closed form")


@pytest.mark.parametrize("target", [LINE, START, Mixture([0.5, 0.5], [0.0, 9.0], [1.0, 1e-4])])
def test_entropy_on_the_line_is_the_integral(target):
    """To 1e-12 against a quadrature in 20 digits, and within the error it states."""
    parts = list(
        zip(
            target.weights.tolist(), target.means.flatten().tolist(),
            target.covs.flatten().sqrt().tolist(), strict=True,
        )
    )  # fmt: skip

    def density(x):
        return sum(w * mp.npdf(x, m, s) for w, m, s in parts)

    breaks = sorted(m + k * s for _, m, s in parts for k in (-13, -6, -3, 0, 3, 6, 13))
    with mp.workdps(20):
        wanted = -mp.quad(lambda x: density(x) * mp.log(density(x)), breaks)
    found = target.entropy()
    assert found.how == "quadrature"
    assert found.value == pytest.approx(float(wanted), rel=1e-12)
    assert found.error < 1e-12


def test_entropy_in_more_dimensions_is_sampled_and_says_so():
    """Components 100 apart: the mean of their entropies plus that of the weights; 5 errors."""
    target = Mixture([0.3, 0.7], [[0.0, 0.0], [100.0, 0.0]], [0.5, [1.0, 2.0]])
    apart = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    inside = 0.3 * math.log(0.5) + 0.7 * 0.5 * math.log(2.0) + 1 + math.log(2 * math.pi)
    found = target.entropy(n=20_000, seed=3)
    assert found.how == "Monte Carlo"
    assert 0 < found.error < 0.01
    assert abs(found.value - apart - inside) <= 5 * found.error
    assert target.entropy(n=20_000, seed=3) == found


def test_entropy_on_the_line_is_sampled_where_no_grid_would_do():
    """Widths of 1e-6 and 1, far apart: the mean of two entropies and log 2; 5 errors."""
    found = Mixture([0.5, 0.5], [0.0, 50.0], [1e-12, 1.0]).entropy()
    assert found.how == "Monte Carlo"
    wanted = 0.5 * (1 + math.log(2 * math.pi)) + 0.5 * math.log(1e-6) + math.log(2)
    assert abs(found.value - wanted) <= 5 * found.error


# Posterior covariance


PLANE = Mixture([0.3, 0.7], [[1.0, -1.0], [-0.5, 0.5]], [at([[0.5, 0.2], [0.2, 0.4]]), [0.2, 0.6]])
TARGETS = {
    "matrix mixture": PLANE,
    "diagonal": Mixture([0.3, 0.7], [[1.0, -1.0], [-0.5, 0.5]], [[0.3, 0.8], 0.5]),
    "gaussian": Gaussian([1.0, 0.0], at([[0.5, 0.2], [0.2, 0.4]])),
    "data": Empirical(at([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0], [0.5, 0.7]]), chunk=3),
    "kernels": Empirical(at([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), 0.3, chunk=2),
    "product": Product([LINE, Gaussian(0.3, 0.5)]),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("path", [schedules.linear(), schedules.variance_preserving()])
def test_posterior_covariance_is_the_slope_of_the_denoiser(path, name):
    """Cov[x1 | x] = (sigma^2 / beta) d D / dx (Efron 2011; Meng et al. 2021): to 1e-11 by autograd."""
    target, x = TARGETS[name], at([[0.3, -0.2], [1.0, 0.8], [-1.5, 0.1]])
    denoise = target.data(path)

    def slope(time, row):
        return torch.autograd.functional.jacobian(lambda r: denoise(time, r[None])[0], row)

    for t in (at(0.2), at([0.3, 0.6, 0.9])):
        k = path.coefficients(t)
        slopes = torch.stack([slope(*pair) for pair in zip(t.expand(3), x, strict=True)])
        factor = (k.sigma**2 / k.beta).expand(3)[:, None, None]
        found = target.posterior_cov(path)(t, x)
        torch.testing.assert_close(found, factor * slopes, rtol=1e-11, atol=1e-12)


# Products


def test_a_product_of_normals_is_the_normal_of_both():
    """Blocks against one Gaussian with a block-diagonal covariance, to 1e-13."""
    C = at([[0.5, 0.2], [0.2, 0.4]])
    both = torch.zeros(3, 3).double()
    both[:2, :2], both[2, 2] = C, 0.7
    whole, parts = (
        Gaussian([1.0, 0.0, -1.0], both),
        Product([Gaussian([1.0, 0.0], C), Gaussian(-1.0, 0.7)]),
    )
    base, bases = (
        Gaussian([0.5, 0.0, 0.2], [0.3, 0.3, 0.9]),
        Product([Gaussian([0.5, 0.0], 0.3), Gaussian(0.2, 0.9)]),
    )
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (parts.dim, parts.entropy().how) == (3, "closed form")
    assert float(parts.entropy()) == pytest.approx(float(whole.entropy()), rel=1e-13)
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(parts.log_prob(x), whole.log_prob(x), **close)
    views = ("velocity", "score", "data", "base", "latent", "posterior_cov", "log_density")
    for t in (0.3, torch.rand(5, dtype=torch.float64)):
        for view in views:
            for path, b0, b1 in ((schedules.linear(), None, None), (BRIDGE, base, bases)):
                one = getattr(parts, view)(path, b1)(t, x)
                torch.testing.assert_close(one, getattr(whole, view)(path, b0)(t, x), **close)
        torch.testing.assert_close(
            parts.noise(schedules.linear())(t, x), whole.noise(schedules.linear())(t, x), **close
        )
    law = parts.marginal(BRIDGE, 0.4, bases)
    torch.testing.assert_close(
        law.log_prob(x), whole.marginal(BRIDGE, 0.4, base).log_prob(x), **close
    )
    found = parts.flow(schedules.linear())(0.2, 0.9, x)
    torch.testing.assert_close(found, whole.flow(schedules.linear())(0.2, 0.9, x), **close)


def test_blocks_of_a_product_are_drawn_apart():
    """Two blocks of one law: 20000 products of coordinates, of mean zero to five standard errors."""
    twice = Product([Gaussian(0.0, 1.0), Gaussian(0.0, 1.0)])
    x = twice.sample(20_000, seed=1, dtype=torch.float64)
    product = x[:, 0] * x[:, 1]
    assert abs(product.mean()) <= 5 * product.std() / math.sqrt(20_000)
    assert torch.equal(x[5:], twice.sample(19_995, seed=1, first_row=5, dtype=torch.float64))
    assert twice.sample(3).shape == (3, 2)


def test_what_is_no_product_is_refused():
    path, parts = schedules.linear(), Product([LINE, Gaussian(0.3, 0.5)])
    assert "2 dimensions" not in repr(parts)
    with pytest.raises(OptionError, match="none"):
        Product([])
    with pytest.raises(OptionError, match="float"):
        Product([LINE, 1.0])
    with pytest.raises(OptionError, match=r"blocks of \[1, 1\]"):
        parts.velocity(path, Gaussian([0.0, 0.0], 1.0))
    with pytest.raises(Unsupported, match="matrix"):
        parts.velocity(path, coupling=torch.eye(2))
    with pytest.raises(OptionError, match="2 dimensions"):
        parts.log_prob(torch.zeros(2, 3))
