"""Two normal ends that are not independent: transport, Schroedinger bridges, any joint covariance."""

import math

import pytest
import torch

from interp import Interpolant, couplings, schedules
from interp.errors import OptionError, TimeError, Unsupported
from interp.exact import Gaussian, Mixture, schroedinger_plan, transport_plan


def at(t):
    return torch.tensor(t, dtype=torch.float64)


A = at([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.8]])
B = at([[0.4, -0.2, 0.0], [-0.2, 0.9, 0.3], [0.0, 0.3, 0.6]])
START, END = Gaussian([2.0, 0.0, 0.5], B), Gaussian([1.0, 2.0, -1.0], A)
CROSS = at([[0.2, 0.1, 0.0], [-0.2, 0.25, 0.1], [0.0, -0.1, 0.3]])


def bridge(sigma):
    return Interpolant(
        lambda t: 1 - t, lambda t: t, lambda t: sigma * torch.sqrt(t * (1 - t)), gaussian_base=False
    )


def points(n=5):
    generator = torch.Generator().manual_seed(1)
    return 1.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator)


def joint(base, target, cross):
    return torch.cat([torch.cat([base.cov, cross], 1), torch.cat([cross.mT, target.cov], 1)])


# The plans


def test_transport_is_a_gradient_map_that_carries_one_law_to_the_other():
    """T symmetric, positive and T C0 T = C1: what Brenier's theorem asks for. To 1e-13."""
    T = torch.linalg.solve(B, transport_plan(B, A))
    torch.testing.assert_close(T, T.mT, rtol=1e-13, atol=1e-13)
    assert torch.linalg.eigvalsh(T).min() > 0
    torch.testing.assert_close(T @ B @ T, A, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 30.0])
def test_the_bridges_plan_is_a_heat_kernel_between_potentials(sigma):
    """Its density is f(x0) g(x1) exp(-|x0 - x1|^2 / (2 sigma^2)): the precision couples by -1/sigma^2.

    The joint covariance is inverted, so 1e-15 times its condition, which grows like 1 / sigma^2.
    """
    J = joint(START, END, schroedinger_plan(B, A, sigma))
    precision = torch.linalg.inv(J)[:3, 3:] * sigma**2
    torch.testing.assert_close(
        precision, -torch.eye(3).double(), rtol=0, atol=1e-14 * float(torch.linalg.cond(J)) + 1e-12
    )


def test_the_bridges_plan_on_the_line_is_the_published_number():
    """c = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2 (Mallasto, Gerolin, Minh 2020)."""
    found = schroedinger_plan(at([[0.49]]), at([[0.36]]), 0.8).item()
    assert found == pytest.approx((math.sqrt(4 * 0.49 * 0.36 + 0.8**4) - 0.8**2) / 2, rel=1e-14)


# The laws


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_drift_of_a_schroedinger_bridge_is_that_of_its_pinned_process(sigma):
    """v + (sigma^2 / 2) s = (E[x1 | x] - x) / (1 - t), and backwards likewise; to 1e-12."""
    path, x = bridge(sigma), points()
    cross = schroedinger_plan(B, A, sigma)
    views = (getattr(END, v)(path, START, cross) for v in ("velocity", "score", "data", "base"))
    velocity, score, data, base = views
    for t in (0.1, 0.5, 0.9):
        forward = velocity(t, x) + sigma**2 / 2 * score(t, x)
        torch.testing.assert_close(forward, (data(t, x) - x) / (1 - t), rtol=1e-12, atol=1e-12)
        backward = velocity(t, x) - sigma**2 / 2 * score(t, x)
        torch.testing.assert_close(backward, (x - base(t, x)) / t, rtol=1e-12, atol=1e-12)


def by_quadrature(path, t, x, mean, J):
    """E of velocity, x1, x0, z at x and log rho, by a trapezium rule over (x0, x1).

    z is what remains, (x - alpha x0 - beta x1) / gamma. 401 points over 9 deviations: the rule
    converges like exp(-c / h) and is exact to rounding here.
    """
    k = path.coefficients(t)
    span = torch.linspace(-9, 9, 401, dtype=torch.float64)
    x0, x1 = torch.meshgrid(
        mean[0] + math.sqrt(J[0, 0]) * span, mean[1] + math.sqrt(J[1, 1]) * span, indexing="ij"
    )
    r = torch.stack([x0 - mean[0], x1 - mean[1]], -1)
    exponent = -0.5 * torch.einsum("ijd,de,ije->ij", r, torch.linalg.inv(J), r)
    z = (x - k.alpha * x0 - k.beta * x1) / k.gamma
    weight = torch.exp(exponent - z * z / 2)
    rate = k.dalpha * x0 + k.dbeta * x1 + k.dgamma * z
    total = weight.sum()
    step = (x0[1, 0] - x0[0, 0]) * (x1[0, 1] - x1[0, 0])
    log_rho = (total * step / (k.gamma * (2 * math.pi) ** 1.5)).log() - torch.linalg.det(
        J
    ).log() / 2
    means = {"velocity": rate, "data": x1, "base": x0, "latent": z}
    found = {name: ((weight * v).sum() / total).item() for name, v in means.items()}
    spread = ((weight * (x1 - found["data"]) ** 2).sum() / total).item()
    return {**found, "log_density": log_rho.item(), "posterior_cov": spread}


@pytest.mark.parametrize("cross", [0.0, 0.3, -0.25])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_posterior_means_between_correlated_ends_are_the_integrals_that_define_them(cross, t):
    """To 1e-11: an integral in float64 over 160000 points."""
    path = bridge(0.9)
    base, target = Gaussian(0.5, 0.49), Gaussian(-0.7, 0.36)
    J = at([[0.49, cross], [cross, 0.36]])
    for x in (-1.1, 0.3):
        wanted = by_quadrature(path, t, x, (0.5, -0.7), J)
        for view, value in wanted.items():
            found = getattr(target, view)(path, base, at([[cross]]))(t, at([[x]]))
            assert found.item() == pytest.approx(value, rel=1e-11, abs=1e-12), view


PATHS = {"bridge": bridge(0.6), "trigonometric": schedules.trigonometric(2.0)}
COUPLINGS = {"cross": CROSS, "transport": "optimal_transport"}


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_of_correlated_ends_carries_their_density(name, coupling):
    """d log rho / dt + div v + v . score = 0; the time derivative by differences, 1e-6 as elsewhere."""
    path, coupling, h = PATHS[name], COUPLINGS[coupling], 1e-3
    field, log_rho = (getattr(END, v)(path, START, coupling) for v in ("velocity", "log_density"))
    score = END.score(path, START, coupling)
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    for t in (0.2, 0.55, 0.9):
        x = points().requires_grad_()
        v = field(t, x)
        divergence = sum(
            torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3)
        )
        change = sum(w * log_rho(t + k * h, x) for k, w in weights.items()) / h
        residual = change + divergence + (v * score(t, x)).sum(1)
        assert (residual.abs() <= 1e-6 * (1 + divergence.abs() + change.abs())).all()


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", PATHS)
def test_sampled_pairs_have_the_marginal(name, coupling):
    """Covariances of 40000 points I_t from sampled (x0, x1, z), to five standard errors."""
    path, K = PATHS[name], COUPLINGS[coupling]
    cross = transport_plan(B, A) if isinstance(K, str) else K
    J = joint(START, END, cross)
    # x1 = T x0 makes J singular: the root of a positive semidefinite matrix.
    values, vectors = torch.linalg.eigh(J)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(40_000, 9, dtype=torch.float64, generator=generator)
    pairs = z[:, :6] @ (vectors * values.clamp(min=0).sqrt()).mT
    x0, x1 = START.mean + pairs[:, :3], END.mean + pairs[:, 3:]
    law = END.marginal(path, 0.4, START, K)
    x = path.at(0.4, x0, x1, z[:, 6:]) - law.mean
    products = x[:, :, None] * x[:, None, :]
    assert (x.mean(0).abs() <= 5 * x.std(0) / 200).all()
    assert ((products.mean(0) - law.cov).abs() <= 5 * products.std(0) / 200).all()


def test_transport_between_normal_laws_moves_in_straight_lines():
    """On the linear path without latent v(t, X_t) is x1 - x0, whatever t; and the flow is T."""
    path = Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    T = torch.linalg.solve(B, transport_plan(B, A))
    x0 = points()
    x1 = END.mean + (x0 - START.mean) @ T.mT
    velocity = END.velocity(path, START, "optimal_transport")
    flow = END.flow(path, START, "optimal_transport")
    for t in (0.0, 0.3, 1.0):
        x = path.at(t, x0, x1)
        torch.testing.assert_close(velocity(t, x), x1 - x0, rtol=1e-12, atol=1e-12)
        # The integrated flow: 1e-12 a step, a few steps.
        torch.testing.assert_close(flow(0.0, t, x0), x, rtol=1e-10, atol=1e-10)


def test_a_gaussian_base_may_be_coupled_too():
    path, given = schedules.linear(), Gaussian(torch.zeros(3), 1.0)
    own = END.velocity(path, coupling="optimal_transport")(0.3, points())
    wanted = END.velocity(path, given, "optimal_transport")(0.3, points())
    torch.testing.assert_close(own, wanted, rtol=0, atol=0)


def test_couplings_are_taken_as_they_are():
    """Objects, names and configs of `interp.couplings`, each the plan that it stands for."""
    path, x = bridge(0.8), points()

    def velocity(coupling):
        return END.velocity(path, START, coupling)(0.4, x)

    plan, transport = schroedinger_plan(B, A, 0.8), transport_plan(B, A)
    for coupling, matrix in (
        (couplings.independent(), None),
        ("independent", None),
        (couplings.schroedinger_bridge(0.8), plan),
        ({"name": "schroedinger_bridge", "sigma": 0.8}, plan),
        (couplings.optimal_transport(), transport),
        (couplings.optimal_transport(reg=2 * 0.8**2), plan),
        ("optimal_transport", transport),
    ):
        torch.testing.assert_close(velocity(coupling), velocity(matrix), rtol=1e-12, atol=1e-12)
    for coupling in (
        couplings.unbalanced(),
        couplings.optimal_transport(cost=lambda x, y: x @ y.T),
    ):
        with pytest.raises(Unsupported, match="no closed form"):
            velocity(coupling)


# Flows without a common eigenbasis


@pytest.mark.parametrize("coupling", [None, *COUPLINGS])
@pytest.mark.parametrize("name", PATHS)
def test_the_integrated_flow_follows_the_velocity_and_carries_the_law(name, coupling):
    """A central difference of step 1e-4: 1e-7 from third derivatives below 50, 1e-8 from rounding."""
    path, coupling, x, h = PATHS[name], COUPLINGS.get(coupling), points(), 1e-4
    flow, v = END.flow(path, START, coupling), END.velocity(path, START, coupling)
    rate = (flow(0.2, 0.7 + h, x) - flow(0.2, 0.7 - h, x)) / (2 * h)
    torch.testing.assert_close(rate, v(0.7, flow(0.2, 0.7, x)), rtol=1e-6, atol=1e-6)
    # x -> mu + Phi (x - m): the columns of Phi C0 Phi^T are C1, to the 1e-12 of the integration.
    origin = flow(0.0, 1.0, START.mean[None])
    torch.testing.assert_close(origin[0], END.mean, rtol=1e-10, atol=1e-10)
    Phi = (flow(0.0, 1.0, START.mean + torch.eye(3).double()) - origin).mT
    torch.testing.assert_close(Phi @ B @ Phi.mT, A, rtol=1e-10, atol=1e-10)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: END.velocity(p, START, 2 * CROSS.abs() + 1), OptionError, "eigenvalue -"),
        (lambda p: END.velocity(p, START, CROSS[:2]), OptionError, r"\(2, 3\)"),
        (lambda p: END.velocity(p, START, CROSS * math.nan), OptionError, "finite"),
        (lambda p: END.velocity(p, START, "unbalanced"), Unsupported, "unbalanced"),
        (lambda p: END.velocity(p, START, 3), Unsupported, "3"),
        (
            lambda p: END.velocity(p, Mixture([0.5, 0.5], [[0.0] * 3] * 2, [1.0, 2.0]), CROSS),
            Unsupported,
            "between mixtures",
        ),
        (lambda p: END.flow(p, START, CROSS)(at([0.1]), 0.2, points(1)), TimeError, "two numbers"),
        (lambda p: schroedinger_plan(A, B, -1.0), OptionError, "-1"),
        (lambda p: schroedinger_plan(A, B[:2], 1.0), OptionError, r"\(2, 3\)"),
        (lambda p: transport_plan(A, -B), OptionError, "positive definite"),
    ],
)
def test_what_is_no_coupling_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(bridge(1.0))


def test_an_infinite_velocity_of_correlated_ends_is_refused_where_it_is():
    """alpha'(1) is infinite on the variance-preserving path, and E[x0 | x1] is not 0."""
    path = schedules.variance_preserving()
    centred = Gaussian(torch.zeros(3), B)
    assert END.velocity(path, centred)(1.0, points()).isfinite().all()
    with pytest.raises(TimeError, match="infinite at t = 1"):
        END.velocity(path, centred, CROSS)(1.0, points())
