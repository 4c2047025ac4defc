"""The closed forms of Gaussians and mixtures, each against something that is not itself."""

import math

import mpmath as mp
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from interp import Interpolant, schedules
from interp.errors import OptionError, TimeError, Unsupported
from interp.exact import Gaussian, Mixture


def at(t):
    return torch.tensor(t, dtype=torch.float64)


# Three dimensions: in two, the eigenvectors of a matrix may make a symmetric matrix of their own.
A = at([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.8]])
B = at([[0.4, -0.2, 0.0], [-0.2, 0.9, 0.3], [0.0, 0.3, 0.6]])
C = at([0.3, 1.2, 0.7])
WEIGHTS, MEANS = at([0.3, 0.5, 0.2]), at([[1.0, 2.0, 0.0], [-1.0, 0.0, 1.0], [0.5, -1.5, -1.0]])
STARTS = at([[2.0, 0.0, 0.5], [-1.0, 1.0, -0.5]])

TARGETS = {
    "mixture": Mixture(WEIGHTS, MEANS, [A, B, C]),
    "diagonal mixture": Mixture([0.4, 0.6], MEANS[:2], [C, 0.2]),
    "isotropic mixture": Mixture([0.4, 0.6], MEANS[:2], [0.4, 1.3]),
    "matrix": Gaussian(MEANS[0], A),
    "diagonal": Gaussian(MEANS[1], C),
}
BASES = {
    "standard": None,
    "mixture base": Mixture([0.5, 0.5], STARTS, [B, A]),
    "isotropic base": Mixture([0.3, 0.7], STARTS, [0.5, 1.5]),
    "diagonal base": Gaussian(at([0.5, -0.5, 0.0]), at([0.7, 1.1, 0.9])),
}
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(2.0),
    "variance_preserving": schedules.variance_preserving(),
    "latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t))),
}


def points(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator)


# The laws


@pytest.mark.parametrize("name", TARGETS)
def test_log_prob_is_that_of_torch(name):
    """To 1e-12: sums of a few terms of size 10, each rounded to 1e-16, over eigenvalues of 0.3."""
    target, x = TARGETS[name], points(20)
    parts = MultivariateNormal(target.means, target.covs)
    reference = MixtureSameFamily(Categorical(target.weights), parts)
    torch.testing.assert_close(target.log_prob(x), reference.log_prob(x), rtol=1e-12, atol=1e-12)
    assert target.log_prob(x.float()).dtype == torch.float32


def test_log_prob_far_out_is_finite():
    """A component 1e4 deviations away has a density of exp(-5e7), and a log density all the same."""
    target = Mixture([0.5, 0.5], [-1.0, 1.0], [1.0, 1.0])
    far = at([[1e4]])
    wanted = -0.5 * (1e4 - 1) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(2)
    assert target.log_prob(far).item() == pytest.approx(wanted, rel=1e-15)
    assert target.score(schedules.linear())(1.0, far).item() == pytest.approx(1 - 1e4, rel=1e-15)


def test_covariances_come_back_as_matrices():
    mixture = TARGETS["mixture"]
    torch.testing.assert_close(mixture.covs, torch.stack([A, B, C.diag()]), rtol=1e-14, atol=1e-15)
    assert Gaussian(0.5, [1.0, 2.0]).mean.tolist() == [0.5, 0.5]
    assert Gaussian(MEANS[0], 2.0).dim == 3
    assert "3 dimensions" in repr(TARGETS["mixture"])


@pytest.mark.parametrize("name", TARGETS)
def test_sample_moments_are_the_targets(name):
    """Five standard errors: of the mean sd / sqrt(n); of a product of coordinates its own."""
    target, n = TARGETS[name], 40_000
    x = target.sample(n, seed=11, dtype=torch.float64)
    mean = target.weights @ target.means
    second = torch.einsum("k,kde->de", target.weights, target.covs)
    second = second + torch.einsum("k,kd,ke->de", target.weights, target.means, target.means)
    assert ((x.mean(0) - mean).abs() <= 5 * x.std(0) / math.sqrt(n)).all()
    products = x[:, :, None] * x[:, None, :]
    assert ((products.mean(0) - second).abs() <= 5 * products.std(0) / math.sqrt(n)).all()


def test_samples_fall_to_the_components_by_weight():
    """Components 40 deviations apart: counts are multinomial, five deviations of each."""
    n, weights = 20_000, [0.1, 0.6, 0.3]
    x = Mixture(weights, [-40.0, 0.0, 40.0], [1.0, 1.0, 1.0]).sample(n, seed=3)[:, 0]
    counts = [(x < -20).sum(), ((x >= -20) & (x <= 20)).sum(), (x > 20).sum()]
    for count, w in zip(counts, weights, strict=True):
        assert abs(count.item() - n * w) <= 5 * math.sqrt(n * w * (1 - w))


def test_samples_are_numbered_rows_of_their_seed():
    target = TARGETS["mixture"]
    whole = target.sample(7, seed=4)
    assert whole.shape == (7, 3)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[3:], target.sample(4, seed=4, first_row=3))
    assert not torch.equal(whole, target.sample(7, seed=5))
    assert target.sample(0, seed=4).shape == (0, 3)


# Along a path


def posterior_by_quadrature(path, parts, t, x):
    """Velocity, data and density at x for data sum w N(m, s^2) and base N(0, 1), by integration.

    With sigma the noise's scale and n = (x - beta x1) / sigma, the law of x1 given I_t = x has the
    density rho(x1) phi(n) up to a factor, and dI/dt has the mean beta' x1 + sigma' n there.
    """
    k = path.coefficients(t)
    beta, sigma, db, ds = (mp.mpf(v.item()) for v in (k.beta, k.sigma, k.dbeta, k.dsigma))

    def weight(x1):
        n = (x - beta * x1) / sigma
        rho = sum(w * mp.npdf(x1, m, s) for w, m, s in parts)
        return rho * mp.npdf(n) / sigma, n

    ends = [-8, -2, -1, 0, 1, 2, 3, 8]
    mass = mp.quad(lambda u: weight(u)[0], ends)
    data = mp.quad(lambda u: u * weight(u)[0], ends) / mass
    noise = mp.quad(lambda u: weight(u)[1] * weight(u)[0], ends) / mass
    return db * data + ds * noise, data, noise, mass


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.25, 0.7])
def test_posterior_means_are_the_integrals_that_define_them(name, t):
    """To 1e-12: float64 against a quadrature in 20 digits."""
    path = PATHS[name]
    parts = [(0.3, -1.0, 0.4), (0.7, 1.2, 0.7)]
    target = Mixture([0.3, 0.7], [-1.0, 1.2], [0.4**2, 0.7**2])
    for x in (-1.3, 0.4, 2.0):
        with mp.workdps(20):
            velocity, data, noise, mass = posterior_by_quadrature(path, parts, t, x)
        point = at([[x]])
        found = {
            "velocity": (target.velocity(path)(t, point), velocity),
            "data": (target.data(path)(t, point), data),
            "noise": (target.noise(path)(t, point), noise),
            "score": (target.score(path)(t, point), -noise / path.coefficients(t).sigma.item()),
            "density": (target.marginal(path, t).log_prob(point), mp.log(mass)),
        }
        for one, wanted in found.values():
            assert one.item() == pytest.approx(float(wanted), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_density_and_velocity_obey_the_continuity_equation(name, target, base):
    """d log rho / dt + div v + v . grad log rho = 0, divergence and gradient by autograd.

    The time derivative is a fourth-order difference of step 1e-3: error about
    (1e-3)^4 times a fifth derivative, 1e-6 at most here, and rounding, 1e-15 / 1e-3.
    """
    path, target, base = PATHS[name], TARGETS[target], BASES[base]
    field = target.velocity(path, base=base)
    h, weights = 1e-3, {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    for t in (0.2, 0.55, 0.9):
        x = points(4).requires_grad_()
        v = field(t, x)
        divergence = sum(
            torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3)
        )
        log_rho = target.marginal(path, t, base=base).log_prob(x)
        (gradient,) = torch.autograd.grad(log_rho.sum(), x)
        change = sum(
            w * target.marginal(path, t + k * h, base=base).log_prob(x) for k, w in weights.items()
        )
        residual = change / h + divergence + (v * gradient).sum(1)
        scale = 1 + divergence.abs() + (change / h).abs()
        assert (residual.abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
def test_score_is_the_gradient_of_the_log_density(target, base):
    """To 1e-11, two float64 routes to one number with matrices of condition 10."""
    target, base = TARGETS[target], BASES[base]
    for name, path in PATHS.items():
        for t in (0.0, 0.3, 1.0):
            x = points().requires_grad_()
            log_rho = target.marginal(path, t, base=base).log_prob(x)
            (wanted,) = torch.autograd.grad(log_rho.sum(), x)
            found = target.score(path, base=base)(t, x.detach())
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_views_agree_under_the_paths_own_conversion(name, target):
    """To 1e-11: conditions below 1e3 at these times (sigma'/sigma, 1 / beta) times 1e-15."""
    path, target = PATHS[name], TARGETS[target]
    x, t = points(5), at([0.1, 0.3, 0.5, 0.8, 0.97])
    names = ("velocity", "score", "data", "noise")
    views = {view: getattr(target, view)(path)(t, x) for view in names}
    for source, value in views.items():
        for sought, wanted in views.items():
            found = path.convert(value, source, sought, x, t)
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_time_per_row_is_a_call_per_row(target, base):
    """To 1e-13: the same operations, but summed by other kernels."""
    target, base, x = TARGETS[target], BASES[base], points(5)
    times = at([0.0, 0.2, 0.5, 0.9, 1.0])
    path = PATHS["linear"]
    for field in (target.velocity(path, base), target.score(path, base), target.data(path, base)):
        together = field(times, x)
        for i, t in enumerate(times):
            torch.testing.assert_close(
                together[i], field(t, x[i : i + 1])[0], rtol=1e-13, atol=1e-13
            )
            torch.testing.assert_close(together[i], field(float(t), x)[i], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_at_both_ends_the_velocity_is_finite_and_continuous(name, target):
    """v is smooth in t though alpha' or gamma' may be infinite: 1e-3 for a slope of up to 1e3."""
    path, field, x = PATHS[name], TARGETS[target].velocity(PATHS[name]), points()
    for end, beside in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        v = field(end, x)
        assert v.isfinite().all()
        torch.testing.assert_close(v, field(beside, x), rtol=0, atol=1e-3)
    assert path.alpha(at(1.0)) == 0
    # At t = 1 the score is the data's own, and the data estimate is the point.
    torch.testing.assert_close(TARGETS[target].data(path)(1.0, x), x, rtol=1e-13, atol=1e-13)


def test_near_the_ends_a_gaussian_is_right_to_the_last_digits():
    """Velocity at 1e-6 and 1 - 1e-6 by definition in 40 digits; nothing cancels: relative 1e-13."""
    m, s = 0.7, 0.6
    target = Gaussian(m, at(s) ** 2)
    for t in (1e-6, 1 - 1e-6):
        with mp.workdps(40):
            T, M, variance = mp.mpf(t), mp.mpf(m), mp.mpf((at(s) ** 2).item())
            S = (1 - T) ** 2 + T**2 * variance
            r = (mp.mpf(0.8) - T * M) / S
            velocity, score = M + (T * variance - (1 - T)) * r, -r
        x = at([[0.8]])
        assert abs(target.velocity(PATHS["linear"])(t, x).item() - velocity) <= 1e-13 * abs(
            velocity
        )
        assert abs(target.score(PATHS["linear"])(t, x).item() - score) <= 1e-13 * abs(score)


def test_a_standard_base_given_is_the_standard_base():
    given = Gaussian(torch.zeros(3), 1.0)
    for path in PATHS.values():
        for t in (0.0, 0.4, 1.0):
            for target in TARGETS.values():
                v = target.velocity(path, base=given, coupling="independent")(t, points())
                torch.testing.assert_close(
                    v, target.velocity(path)(t, points()), rtol=1e-12, atol=1e-12
                )


def test_data_to_data_needs_no_gaussian_base():
    """Two Gaussians on a straight bridge: v at t = 0 is E[x1] - x0, at t = 1 it is x1 - E[x0]."""
    bridge = Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    target, base, x = TARGETS["matrix"], BASES["diagonal base"], points()
    v = target.velocity(bridge, base=base)
    torch.testing.assert_close(v(0.0, x), target.mean - x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(v(1.0, x), x - base.mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
def test_marginals_are_made_of_every_pair_of_components(target, base):
    """Weights, means and covariances pair by pair, to 1e-13: a few sums and an eigenbasis."""
    target, base = TARGETS[target], BASES[base] or Gaussian(torch.zeros(3), 1.0)
    k, found = PATHS["latent"].coefficients(0.3), target.marginal(PATHS["latent"], 0.3, base=base)
    pairs = [(i, j) for i in range(len(base.weights)) for j in range(len(target.weights))]
    assert len(found.weights) == len(pairs)
    assert isinstance(found, Gaussian) == (len(pairs) == 1)
    assert found.sample(2, seed=0).shape == (2, 3)
    eye = k.gamma**2 * torch.eye(3).double()
    for row, (i, j) in enumerate(pairs):
        mean = k.alpha * base.means[i] + k.beta * target.means[j]
        cov = k.alpha**2 * base.covs[i] + k.beta**2 * target.covs[j] + eye
        weight = base.weights[i] * target.weights[j]
        torch.testing.assert_close(found.weights[row], weight, rtol=1e-13, atol=0)
        torch.testing.assert_close(found.means[row], mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found.covs[row], cov, rtol=1e-13, atol=1e-13)


# The flow


@pytest.mark.parametrize("name", PATHS)
def test_the_flow_follows_the_velocity(name):
    """d X(t, r, x) / dr = v(r, X) by a central difference of step 1e-5: 1e-8 relative to v'' < 100."""
    path, target, x, h = PATHS[name], TARGETS["matrix"], points(), 1e-5
    flow, v = target.flow(path), target.velocity(path)
    for t, r in ((0.0, 0.4), (0.9, 0.3), (1.0, 0.6)):
        rate = (flow(t, r + h, x) - flow(t, r - h, x)) / (2 * h)
        torch.testing.assert_close(rate, v(r, flow(t, r, x)), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(flow(r, t, flow(t, r, x)), x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flow(t, t, x), x, rtol=1e-14, atol=1e-14)


def test_the_flow_carries_the_base_to_the_target():
    """Linear path, one dimension: x -> m + s x (Liu et al. 2022). Rows may each have their times."""
    flow = Gaussian(0.7, 0.36).flow(schedules.linear())
    x = at([[-1.0], [0.0], [2.0]])
    torch.testing.assert_close(flow(0.0, 1.0, x), 0.7 + 0.6 * x, rtol=1e-15, atol=1e-15)
    t, r = at([0.0, 0.5, 1.0]), at([1.0, 0.5, 0.0])
    each = torch.cat([flow(t[i], r[i], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(flow(t, r, x), each, rtol=1e-15, atol=1e-15)


# What goes in and comes out


def test_rows_keep_their_shape_and_dtype():
    path = schedules.linear()
    image = Gaussian(torch.zeros(12), torch.linspace(0.5, 2, 12))
    x = torch.randn(5, 3, 2, 2)
    for field in (image.velocity(path), image.score(path), image.data(path), image.noise(path)):
        assert field(0.3, x).shape == x.shape
        assert field(0.3, x).dtype == torch.float32
        assert torch.equal(field(0.3, x).flatten(1), field(0.3, x.flatten(1)))
    assert image.flow(path)(0.0, 1.0, x).shape == x.shape
    assert image.log_prob(x).shape == (5,)
    line = Gaussian(0.0, 1.0)
    assert line.velocity(path)(torch.rand(4), torch.randn(4)).shape == (4,)
    assert line.log_prob(torch.randn(4)).shape == (4,)
    for target in (image, TARGETS["mixture"]):
        empty = torch.zeros(0, target.dim)
        assert target.velocity(path)(0.5, empty).shape == empty.shape
        assert target.velocity(path)(torch.zeros(0), empty).shape == empty.shape
        assert target.log_prob(empty).shape == (0,)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixture([0.5, 0.6], [0.0, 1.0], [1.0, 1.0]), "sum 1"),
        (lambda: Mixture([0.5, math.nan], [0.0, 1.0], [1.0, 1.0]), "positive"),
        (lambda: Mixture([1.0], [0.0, 1.0], [1.0, 1.0]), "2 means"),
        (lambda: Mixture([0.5, 0.5], [0.0, 1.0], [1.0]), "1 cov"),
        (lambda: Mixture([0.5, 0.5], [[0.0], [1.0, 2.0]], [1.0, 1.0]), r"dimensions \[1, 2\]"),
        (lambda: Gaussian(0.0, 0.0), "eigenvalue 0"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(2, 2)), "positive definite"),
        (lambda: Gaussian(torch.zeros(2), at([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), r"\(2,\).*\(3,\)"),
        (lambda: Gaussian(torch.zeros(2, 2), 1.0), r"\(2, 2\)"),
        (lambda: Gaussian(math.inf, 1.0), "finite"),
        (lambda: Gaussian(0.0, math.nan), "finite"),
        (lambda: Gaussian(0.0, 1.0).sample(-1, seed=0), "-1"),
        (lambda: Gaussian(0.0, 1.0).sample(2.5, seed=0), "2.5"),
        (lambda: Gaussian(torch.zeros(2), 1.0).log_prob(torch.zeros(3)), r"\(3,\).*2 dim"),
        (lambda: Gaussian(0.0, 1.0).log_prob(torch.zeros(3, 1, dtype=torch.int64)), "int64"),
    ],
)
def test_what_is_no_law_is_refused(make, says):
    with pytest.raises(OptionError, match=says):
        make()


def test_what_has_no_closed_form_is_refused():
    path, target = schedules.linear(), TARGETS["matrix"]
    bridge = Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    with pytest.raises(Unsupported, match=r"unbalanced.*independent"):
        target.velocity(path, coupling="unbalanced")
    with pytest.raises(Unsupported, match="between mixtures"):
        TARGETS["mixture"].velocity(path, coupling="optimal_transport")
    with pytest.raises(Unsupported, match="solve"):
        TARGETS["mixture"].flow(path)
    with pytest.raises(OptionError, match="base="):
        target.velocity(bridge)
    with pytest.raises(OptionError, match=r"1 dimensions.*target 3"):
        target.velocity(path, base=Gaussian(0.0, 1.0))
    with pytest.raises(OptionError, match="base is a float"):
        target.velocity(path, base=1.0)
    with pytest.raises(TimeError, match="one time"):
        target.marginal(path, torch.rand(2))
    for t in (1.5, torch.rand(3), torch.rand(6, 2)):
        with pytest.raises(TimeError):
            target.velocity(path)(t, points())


def test_an_infinite_velocity_is_refused_where_it_is():
    """On the variance-preserving path alpha'(1) is infinite, and E[x0] = m0 is times it."""
    field = TARGETS["matrix"].velocity(PATHS["variance_preserving"], base=BASES["diagonal base"])
    assert field(1 - 1e-9, points()).isfinite().all()
    with pytest.raises(TimeError, match="infinite at t = 1"):
        field(1.0, points())


@pytest.mark.parametrize("view", ["velocity", "score", "noise", "data", "base", "log_density"])
@pytest.mark.parametrize("cov", [0.5, [[0.5, 0.1], [0.1, 0.3]]], ids=["number", "matrix"])
def test_a_path_that_starts_at_a_point_has_no_density_there(view, cov):
    dim = 1 if isinstance(cov, float) else 2
    target = Mixture([0.4, 0.6], [[0.0] * dim, [1.0] * dim], [cov, 0.2])
    field, x = getattr(target, view)(schedules.foellmer()), torch.zeros(3, dim)
    with pytest.raises(TimeError, match="point 0 and has no density"):
        field(0.0, x)
    assert field(1e-3, x).isfinite().all()
