"""log_prob and sample_and_log_prob: every estimate, path, view, shape and derivative."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import interp
from interp import exact, schedules, views
from interp.divergence import estimator
from interp.errors import OptionError, SolveError, UnknownName, Unsupported

F64 = torch.float64
BASE = schedules.linear().base


def mixture():
    mean = torch.tensor([0.6, -0.9], dtype=F64)
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    return exact.Mixture([0.3, 0.7], torch.stack([mean, -mean]), torch.stack([cov, cov / 2]))


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, t, x):
        return self.last(torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], 1))))


# Estimates of the divergence


def estimates(a, name, n=4000, **options):
    """n estimates of tr A, one a row, by the flow dx/dt = A x over [0, 1] from x = 0."""
    x = torch.zeros(n, len(a), dtype=F64)
    found = interp.log_prob(
        interp.ODE(lambda t, x: x @ a.T), x, BASE, name, method="euler", steps=1, **options
    )
    return BASE.log_prob(x) - found


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_has_the_mean_and_variance_of_its_probes(probe, probes):
    a, n = normals(5, 5) / 3, 4000
    found = estimates(a, "hutchinson", n, probe=probe, probes=probes)
    symmetric = (a + a.T) / 2
    variance = 2 * symmetric.square().sum() / probes
    if probe == "rademacher":
        variance = variance - 2 * symmetric.diagonal().square().sum() / probes
    assert abs(found.mean() - a.trace()) < 5 * (variance / n).sqrt()
    # Of a quadratic form in five elements: a kurtosis of at most some 15, so 14 / n for var / var.
    assert found.var().item() == pytest.approx(variance.item(), rel=5 * math.sqrt(14 / n))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutch_plus_plus_is_exact_up_to_its_rank_and_unbiased_beyond(probe):
    u, v = normals(6, 2), normals(6, 2, seed=1)
    low = u @ v.T
    found = estimates(low, "hutch++", 50, probe=probe, probes=2)
    torch.testing.assert_close(found, low.trace().expand(50), rtol=1e-12, atol=1e-12)
    a = low + normals(6, 6, seed=2) / 5
    found = estimates(a, "hutch++", probe=probe, probes=2)
    assert abs(found.mean() - a.trace()) < 5 * found.std() / math.sqrt(len(found))
    same_cost = estimates(a, "hutchinson", probe=probe, probes=6)
    assert found.std() < 0.8 * same_cost.std()  # deflation pays where two directions rule


def test_one_noise_serves_a_solve_whatever_its_steps():
    a = normals(4, 4) / 3
    runs = [
        interp.log_prob(
            interp.ODE(lambda t, x: x @ a.T), normals(3, 4), BASE, name, seed=3, method="rk4",
            steps=steps,
        )
        for name in ("hutchinson", "hutch++") for steps in (20, 40)
    ]  # fmt: skip
    # The estimates of one linear field differ by the steps' error alone, 1e-7; by their noise else.
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(runs[2], runs[3], rtol=0, atol=1e-6)
    assert float((runs[0] - runs[2]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["exact", "hutchinson", "hutch++"])
def test_a_network_that_is_zero_has_no_divergence_and_finite_gradients(name):
    net = Net().double()
    nn.init.zeros_(net.last.weight), nn.init.zeros_(net.last.bias)
    x = normals(4, 2)
    found = interp.log_prob(interp.ODE(net), x, BASE, name, method="heun", steps=2)
    torch.testing.assert_close(found, BASE.log_prob(x))
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert net.last.weight.grad.abs().max() > 0


# Closed forms


PATHS = {
    "linear": schedules.linear(), "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(), "cosine": schedules.cosine(),
    "sub_variance_preserving": schedules.sub_variance_preserving(),
    "variance_exploding": schedules.variance_exploding(0.02, 20.0),
    "edm": schedules.edm(), "table": schedules.from_betas(torch.linspace(1e-4, 0.02, 1000)),
    "warped": schedules.linear().warp(lambda t: t * t * (3 - 2 * t)),
}  # fmt: skip


def usable(path, view):
    """Where a view tells the flow: the earliest and the latest t, as near to the ends as it can."""
    leaks = float(path.beta(torch.tensor(0.0, dtype=F64))) > 0
    first = 0.02 if view in views.NOISE_LIKE and not leaks else 0.0
    clean = path.boundary.ends_clean
    # sigma' or log-SNR's slope is infinite at clean data, and base needs what is gone there.
    return first, 0.999 if clean and view in ("velocity", "base") else 1.0


CASES = [("variance_preserving", view) for view in views.VIEWS] + [
    (name, view)
    for name in PATHS if name != "variance_preserving"
    for view in ("velocity", "noise" if name in ("linear", "edm", "table") else "data")
]  # fmt: skip


@pytest.mark.parametrize(("name", "view"), CASES)
def test_every_path_and_view_has_the_density_of_the_mixture(name, view):
    path, target = PATHS[name], mixture()
    score = target.score(path)

    def model(t, x):
        if view in ("data", "velocity"):  # which the score does not tell at every end
            return getattr(target, view)(path)(t, x)
        return path.convert(score(t, x), "score", view, x, t)

    model.exact_time = True
    first, last = usable(path, view)
    law = target.marginal(path, last)
    x = law.sample(5, 1, dtype=F64)
    found = interp.log_prob(
        path.ode(model, view=view), x, target.marginal(path, first), t=(last, first),
        method="dop853", rtol=1e-7, atol=1e-7,
    )  # fmt: skip
    torch.testing.assert_close(found, law.log_prob(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("view", ["velocity", "data"])
def test_samples_come_with_their_density(view):
    path, target = schedules.linear(), mixture()
    model = getattr(target, view)(path)
    term, z = path.ode(model, view=view), path.base.sample((6, 2), 0, dtype=F64)
    options = {"method": "dop853", "rtol": 1e-7, "atol": 1e-7}
    x, density = interp.sample_and_log_prob(term, z, **options)
    # The first-order step of a data view leaves a hundredth of the tolerance; the run 1e-7.
    torch.testing.assert_close(x, interp.solve(term, z, **options).x, atol=1e-6, rtol=0)
    torch.testing.assert_close(density, target.log_prob(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(density, interp.log_prob(term, x, **options), atol=1e-5, rtol=0)


def test_without_a_base_the_law_is_that_of_the_end():
    path, target = schedules.linear(), exact.Gaussian([0.0], [1.0])
    x = normals(4, 1)
    term = path.ode(target.score(path), view="score")
    found = interp.log_prob(term, x, t=(0.9, 0.05), rtol=1e-8, atol=1e-8)
    wanted = interp.log_prob(
        term, x, interp.base.IsotropicNormal(0.95), t=(0.9, 0.05), rtol=1e-8, atol=1e-8
    )
    assert torch.equal(found, wanted)


def test_an_adapted_model_starts_from_the_base_of_its_interval():
    path, other, target = schedules.linear(), schedules.variance_preserving(), mixture()
    model = path.adapt(target.noise(other), trained_on=other, view="noise", to="velocity")
    term = path.ode(model)
    low, high = term.interval
    x = target.marginal(path, high).sample(4, 0, dtype=F64)
    found = interp.log_prob(term, x, rtol=1e-8, atol=1e-8)
    # The base N(0, sigma^2) leaves out the data that are in the law there: beta^2 of 4e-5.
    torch.testing.assert_close(found, target.marginal(path, high).log_prob(x), atol=0.03, rtol=0)
    exactly = interp.log_prob(term, x, target.marginal(path, low), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(exactly, target.marginal(path, high).log_prob(x), atol=1e-5, rtol=0)


# Shapes and steps


@pytest.mark.parametrize("name", ["exact", "hutchinson", "hutch++"])
@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 2, 2), (5, 1, 2, 2), (0, 3)])
def test_any_shape_is_its_flat_one(shape, name):
    if name == "hutch++" and shape == (5,):
        pytest.skip("a sketch of one dimension is refused")
    x = normals(*shape)
    options = {"divergence": name, "method": "rk4", "steps": 4}
    d = math.prod(shape[1:])

    def field(t, x):
        return (
            torch.sin(2 * x) + x.reshape(len(x), d).sum(1).reshape(-1, *[1] * (x.ndim - 1))
        ).cos()

    found = interp.log_prob(interp.ODE(field), x, BASE, **options)
    flat = interp.log_prob(interp.ODE(field), x.reshape(len(x), d), BASE, **options)
    assert found.shape == (shape[0],)
    torch.testing.assert_close(found, flat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["rms", "rows", "max"])
@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_without_control_of_the_determinant_steps_are_those_of_the_state(backend, norm):
    target, path, calls = mixture(), schedules.linear(), []
    velocity = target.velocity(path)

    def counted(t, x):
        calls.append(float(t))
        return velocity(t, x)

    x = target.sample(8, 0, dtype=F64)
    options = {"rtol": 1e-6, "atol": 1e-6, "backend": backend, "norm": norm}
    term, found = path.ode(counted), {}
    with torch.no_grad():
        for control in (True, False):
            calls.clear()
            density = interp.log_prob(term, x, control_log_det=control, **options)
            found[control] = list(calls)
            # Without control its error is whatever the steps of the state leave.
            torch.testing.assert_close(density, target.log_prob(x), atol=1e-3, rtol=0)
        calls.clear()
        interp.solve(term, x, (1.0, 0.0), **options)
    assert found[False] == pytest.approx(calls, abs=1e-7)
    assert found[True] != pytest.approx(calls, abs=1e-3)


def test_a_grid_is_in_the_time_of_the_path():
    path, target = schedules.variance_preserving(), mixture()
    seen = []

    def model(t, x):
        seen.append(float(t))
        return target.noise(path)(t, x)

    x = target.sample(3, 0, dtype=F64)
    interp.log_prob(
        path.ode(model, view="noise"), x, target.marginal(path, 0.5), t=(1.0, 0.5),
        method="euler", grid=[1.0, 0.9, 0.5], gradient="direct",
    )  # fmt: skip
    assert seen == pytest.approx([1.0, 0.9], abs=1e-9)


# Derivatives


@pytest.mark.parametrize("gradient", [None, "direct", "checkpointed", "adjoint", "reversible"])
def test_the_derivative_by_x_is_the_score(gradient):
    path, target = schedules.linear(), mixture()
    x = target.sample(4, 2, dtype=F64).requires_grad_()
    density = interp.log_prob(
        path.ode(target.velocity(path)), x, gradient=gradient, method="dopri5", steps=20
    )
    (found,) = torch.autograd.grad(density.sum(), x)
    wanted = target.score(path)(1.0, x.detach())
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)  # 20 steps of order 5


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        (name, gradient)
        for name in ("exact", "hutchinson")
        for gradient in (None, "checkpointed", "adjoint", "reversible")
        if (name, gradient) != ("hutchinson", "checkpointed")
    ],
)
def test_derivatives_by_parameters_are_those_of_finite_differences(name, gradient):
    torch.manual_seed(0)
    net, x = Net().double(), normals(5, 2)

    def value():
        density = interp.log_prob(
            interp.ODE(net), x, BASE, name, gradient=gradient, method="dopri5", steps=8, seed=4
        )
        return density.mean()

    found = torch.autograd.grad(value(), list(net.parameters()))
    h = 1e-5
    for i, (p, by) in enumerate(zip(net.parameters(), found, strict=True)):
        direction, ends = normals(*p.shape, seed=i), []
        for sign in (1, -1):
            p.data += sign * h * direction
            with torch.no_grad():
                ends.append(value())
            p.data -= sign * h * direction
        slope = float(ends[0] - ends[1]) / (2 * h)
        # h^2 and rounding over h; the adjoint's own steps, of order 5: 1e-6.
        assert float((by * direction).sum()) == pytest.approx(slope, rel=3e-6, abs=3e-7)


@pytest.mark.parametrize("name", ["hutchinson", "hutch++"])
def test_estimated_derivatives_are_unbiased(name):
    a = normals(4, 4)
    x = torch.zeros(4000, 4, dtype=F64)
    leaf = a.clone().requires_grad_()
    _, estimate = estimator(name, x, "gaussian", 1, 0, 0)(lambda t, x: x @ leaf.T)(
        torch.ones(()), x
    )
    direction = normals(4, 4, seed=1)
    # The derivative of tr A along a direction is the direction's trace, row by row.
    rows = torch.autograd.grad(
        estimate, leaf, torch.eye(len(x)).double()[:500], is_grads_batched=True
    )
    along = (rows[0] * direction).sum((1, 2))
    error = along.std() / math.sqrt(len(along))
    assert abs(along.mean() - direction.trace()) < 5 * error


def test_a_plain_density_is_recorded_only_where_somebody_wants_it():
    net, x = Net().double(), normals(3, 2)
    options = {"method": "heun", "steps": 2}
    assert interp.log_prob(interp.ODE(net), x, BASE, **options).requires_grad
    with torch.no_grad():
        assert not interp.log_prob(interp.ODE(net), x, BASE, **options).requires_grad
    net.requires_grad_(False)
    assert not interp.log_prob(interp.ODE(net), x, BASE, **options).requires_grad
    z, density = interp.sample_and_log_prob(interp.ODE(net.requires_grad_()), x, BASE, **options)
    assert z.requires_grad
    assert density.requires_grad


def test_maximum_likelihood_fits_a_mixture():
    torch.manual_seed(0)
    target = exact.Mixture(
        [0.5, 0.5], torch.tensor([[1.0, 0.5], [-1.0, -0.5]]), torch.full((2, 2), 0.2)
    )
    net = Net(32)
    term, adam = interp.ODE(net), torch.optim.Adam(net.parameters(), lr=2e-2)
    options = {"t": (1.0, 0.0), "method": "midpoint", "steps": 6}
    for step in range(150):
        x = target.sample(256, step)
        loss = -interp.log_prob(term, x, BASE, **options).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    x = target.sample(2000, 10_000)
    with torch.no_grad():
        divergence = (target.log_prob(x) - interp.log_prob(term, x, BASE)).mean()
    untrained = (target.log_prob(x) - BASE.log_prob(x)).mean()
    # Nats between target and fit; 150 steps reach some 0.02, from 0.5.
    assert divergence < 0.06 < 0.3 < untrained


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": 3.0}, OptionError, "log_prob"),
        ({"x": torch.tensor(1.0)}, OptionError, "single number"),
        ({"x": [[1.0]]}, OptionError, "a list"),
        ({"x": torch.full((2, 3), torch.nan)}, OptionError, "NaN"),
        ({"divergence": "hutch+"}, UnknownName, r"hutch\+\+"),
        ({"probe": "gausian"}, UnknownName, "gaussian"),
        ({"probes": 0}, OptionError, "probes=0"),
        ({"divergence": "hutch++", "probes": 3}, OptionError, 'divergence="exact"'),
        ({"divergence": "hutchinson", "gradient": "checkpointed"}, Unsupported, "reversible"),
        ({"gradient": "ajoint"}, UnknownName, "adjoint"),
        ({"control_log_det": False, "atol": 0.0}, OptionError, "atol"),
        ({"rtoll": 1e-3}, UnknownName, "rtoll"),
        ({"seed": -1, "divergence": "hutchinson"}, OptionError, "seed"),
        ({"term": lambda t, x: x / 0}, SolveError, "NaN or infinite"),
        ({"term": schedules.linear().ode(torch.mul), "t": (1.0, 0.5), "base": None}, None, ""),
        (
            {"term": schedules.brownian_bridge(1.0).ode(torch.mul), "base": None},
            Unsupported,
            "base",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(change, error, message):
    given = {"term": lambda t, x: x, "x": torch.ones(2, 3), "base": BASE} | change
    term, x = given.pop("term"), given.pop("x")
    if error is None:
        assert interp.log_prob(term, x, **given).isfinite().all()
        return
    with pytest.raises(error, match=message):
        interp.log_prob(term, x, **given)
