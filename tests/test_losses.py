"""The regression and its weights, in expectation: by quadrature on an exact Gaussian, not by drawing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import losses, schedules, times
from interp.errors import FieldError, OptionError, ScheduleError, UndeterminedView, UnknownName
from interp.exact import Gaussian
from interp.losses import Learned, Regression, Weight
from interp.noise import normal_like
from interp.views import VIEWS

F64 = torch.float64
MEAN, STD = 0.7, 0.6
LAW = Gaussian(MEAN, STD**2)
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "variance_preserving": schedules.variance_preserving(),
    "latent": interp.Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.5 * t * (1 - t)),
}
#: Laws of time that every path has.
LAWS = [name for name in times.names() if name != "nodes"]

BRIDGE = interp.Interpolant(
    lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(t * (1 - t)), gaussian_base=False
)
FIXED = [name for name in losses.weights() if name not in ("simple", "learned")]
GAUSSIAN_VIEWS = [view for view in VIEWS if view != "base"]  # equal to noise, or without a slope


def hermite(n: int = 5) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal, exact for polynomials of degree 2 n - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(x), torch.from_numpy(w / math.sqrt(2 * math.pi))


def ends() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes (n, 1) of x0, x1 and z and weights (n,), exact for polynomials of degree 9 in each."""
    x, w = hermite()
    x0, x1, z = (v.reshape(-1, 1) for v in torch.meshgrid(x, MEAN + STD * x, x, indexing="ij"))
    return x0, x1, z, (w[:, None, None] * w[:, None] * w).flatten()


def gauss(low: float, high: float, n: int) -> list[tuple[float, float]]:
    x, w = np.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    return [(low + half * (a + 1), half * b) for a, b in zip(x, w, strict=True)]


def expected(loss: Regression, model, t: float) -> Tensor:
    """The expectation of a row's loss at t, exact for models that are polynomials in x."""
    x0, x1, z, q = ends()
    z = None if loss.path.gamma is None else z
    return loss.rows(model, torch.full((len(q),), t, dtype=F64), x0, x1, z) @ q


def exact_view(path, view):
    return lambda t, x: path.convert(LAW.data(path)(t, x), "data", view, x, t)


# The target


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PATHS)
def test_the_target_has_the_view_as_its_mean_given_the_point(name, view):
    """E[(target - view) x^j] = 0 exactly: a hundred products of size 100, 1e-12 of them."""
    path = PATHS[name]
    loss = Regression(path, view)
    x0, x1, z, q = ends()
    z = None if path.gamma is None else z
    for t in (0.05, 0.4, 0.95):
        time = torch.full((len(q),), t, dtype=F64)
        point, target = loss.target(time, x0, x1, z)
        torch.testing.assert_close(point, path.at(time, x0, x1, z), rtol=1e-14, atol=1e-14)
        error = target - exact_view(path, view)(time, point)
        size = target.abs().max()
        for j in range(4):
            assert abs(((error * point**j)[:, 0] @ q).item()) < 1e-12 * size


def test_two_sided_targets_are_those_of_the_latent_for_a_dependent_base():
    """x0 = -0.4 + 0.9 x1 + noise: E[target | x] against the covariances of one Gaussian."""
    x, w = hermite()
    u, v, z = (a.reshape(-1, 1) for a in torch.meshgrid(x, x, x, indexing="ij"))
    q = (w[:, None, None] * w[:, None] * w).flatten()
    x1 = MEAN + STD * u
    x0 = -0.4 + 0.9 * x1 + 0.5 * v
    t = torch.full((len(q),), 0.3, dtype=F64)
    k = BRIDGE.coefficients(0.3)
    variance = (k.alpha * 0.9 + k.beta) ** 2 * STD**2 + (k.alpha * 0.5) ** 2 + k.gamma**2
    slopes = {
        "noise": k.gamma / variance,
        "score": -1 / variance,
        "energy_gradient": 1 / variance,
        "data": (k.alpha * 0.9 + k.beta) * STD**2 / variance,
    }
    for view, wanted in slopes.items():
        point, target = Regression(BRIDGE, view).target(t, x0, x1, z)
        centred = point[:, 0] - point[:, 0] @ q
        slope = (target[:, 0] * centred) @ q / (centred**2 @ q)
        assert slope.item() == pytest.approx(wanted.item(), rel=1e-12), view
    rate = Regression(BRIDGE).target(t, x0, x1, z)[1]
    torch.testing.assert_close(rate, BRIDGE.rate(t, x0, x1, z), rtol=1e-14, atol=1e-14)
    with pytest.raises(UndeterminedView, match="two functions"):
        Regression(BRIDGE, "v_prediction")
    with pytest.raises(UndeterminedView, match="flow_prediction mixes"):
        Regression(BRIDGE, "flow_prediction")
    straight = interp.Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    with pytest.raises(UndeterminedView, match="without a gamma"):
        Regression(straight, "score")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PATHS)
def test_in_float32_a_batch_of_any_view_gives_a_finite_loss_and_gradient(name, view):
    path = PATHS[name]
    slope = torch.ones((), requires_grad=True)
    x1 = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    loss = Regression(path, view)(
        lambda t, x: slope * x, x1, generator=torch.Generator().manual_seed(1)
    )
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    (grad,) = torch.autograd.grad(loss, slope)
    assert loss.isfinite()
    assert grad.isfinite()


# Which losses are the same


def wrong(theta: Tensor, path):
    """A data estimate that is off by a polynomial in x."""
    exact = LAW.data(path)
    return lambda t, x: exact(t, x) + theta[0] + theta[1] * x - theta[2] * x * x


@pytest.mark.parametrize("weight", FIXED)
@pytest.mark.parametrize("name", PATHS)
def test_one_weight_on_any_view_is_one_loss(name, weight):
    """The gradients in expectation agree to 1e-9, the conversions' rounding (conditions to 1e4).

    The losses themselves differ by what no model can change, the variance of the target.
    """
    path = PATHS[name]
    for t in (0.02, 0.3, 0.98):
        found = {}
        for view in GAUSSIAN_VIEWS:
            theta = torch.tensor([0.3, -0.2, 0.1], dtype=F64, requires_grad=True)
            data = wrong(theta, path)

            def model(t, x, data=data, view=view):
                return path.convert(data(t, x), "data", view, x, t)

            loss = expected(Regression(path, view, weight), model, t)
            found[view] = torch.autograd.grad(loss, theta)[0]
        scale = found["data"].abs().max()
        for view, gradient in found.items():
            assert (gradient - found["data"]).abs().max() < 1e-9 * scale, (t, view)


def test_simple_losses_of_two_views_are_not_the_same_but_differ_by_the_squared_ratio():
    """|dn|^2 = SNR |dD|^2 and |dv|^2 = (W / sigma)^2 |dD|^2 at fixed x; 1e-9 as above."""
    path, t = PATHS["trigonometric"], 0.3
    k = path.coefficients(t)
    W = k.dbeta * k.sigma - k.beta * k.dsigma
    ratios = {
        "data": 1.0, "noise": (k.beta / k.sigma) ** 2, "velocity": (W / k.sigma) ** 2,
        "score": (k.beta / k.sigma**2) ** 2,
        "v_prediction": ((k.beta**2 + k.sigma**2) / k.sigma) ** 2,
        "flow_prediction": ((k.beta + k.sigma) / k.sigma) ** 2,
    }  # fmt: skip
    found = {}
    for view in ratios:
        theta = torch.tensor([0.3, -0.2, 0.1], dtype=F64, requires_grad=True)
        data = wrong(theta, path)
        model = lambda t, x, d=data, v=view: path.convert(d(t, x), "data", v, x, t)  # noqa: E731
        found[view] = torch.autograd.grad(expected(Regression(path, view), model, t), theta)[0]
    for view, ratio in ratios.items():
        torch.testing.assert_close(found[view], found["data"] * ratio, rtol=1e-9, atol=0)


def weight_on(weight, path, view, t):
    loss = Regression(path, view, weight)
    return loss.weight.on(path.coefficients(t), view)


@pytest.mark.parametrize("t", [0.01, 0.5, 0.99])
def test_each_weight_is_the_published_one_on_its_view(t):
    """To 1e-12: differences of the schedules' own rounding."""
    path = PATHS["variance_preserving"]
    k = path.coefficients(t)
    snr, s = (k.beta / k.sigma) ** 2, k.sigma / k.beta
    u = 1 - t
    G2 = 0.1 + u * 19.9  # Song et al.: beta(u)
    dlam = G2 / k.sigma**2
    published = {
        ("snr", "data"): snr,
        ("snr", "noise"): 1.0,
        ("snr", "v_prediction"): k.sigma**2 * snr,  # SNR / (SNR + 1)
        ("min_snr", "data"): torch.minimum(snr, torch.tensor(5.0)),
        ("min_snr", "noise"): torch.minimum(snr, torch.tensor(5.0)) / snr,
        ("min_snr", "v_prediction"): torch.minimum(snr, torch.tensor(5.0)) / (snr + 1),
        ("edm", "data"): (s**2 + 0.25) / (s * 0.5) ** 2,
        ("likelihood", "score"): G2 / 2,
        ("likelihood", "noise"): dlam / 2,
        ("likelihood", "data"): snr * dlam / 2,  # SNR' / 2
        ("sigmoid", "noise"): dlam / 2 * torch.sigmoid(2 - snr.log()),
    }
    for (weight, view), wanted in published.items():
        found = weight_on(weight, path, view, t)
        assert found.item() == pytest.approx(float(wanted), rel=1e-12), (weight, view)
    learned = weight_on("learned", path, "data", t)
    assert learned == weight_on("edm", path, "data", t)
    assert weight_on("simple", path, "data", t) is None
    options = {"name": "min_snr", "gamma": 2.0}
    assert weight_on(options, path, "data", 0.99).item() == pytest.approx(2.0, rel=1e-12)
    own = weight_on(lambda lam: lam.exp(), path, "noise", t)
    assert own.item() == pytest.approx(snr.item(), rel=1e-12)
    assert weight_on(Weight(lambda lam, _: 3 + 0 * lam, "data"), path, "data", t) == 3


def test_v_and_the_noised_point_are_diffusers_s():
    """DDPMScheduler's add_noise and get_velocity at its own table: float32, 1e-5 of sums of size 3."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    path = schedules.from_betas(scheduler.betas.double())
    index = torch.tensor([0, 10, 500, 999])
    t = 1 - (index.double() + 1) / 1000
    x0, x1 = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    point, target = Regression(path, "v_prediction").target(t, x0, x1)
    torch.testing.assert_close(point, scheduler.add_noise(x1, x0, index), rtol=0, atol=1e-5)
    torch.testing.assert_close(target, scheduler.get_velocity(x1, x0, index), rtol=0, atol=1e-5)


def test_point_and_velocity_are_torchcfm_s_and_flow_matching_s():
    """At given times, on the linear path: float32, 1e-6 of sums of size 3."""
    x0, x1 = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, 6)
    point, target = Regression(PATHS["linear"]).target(t, x0, x1)
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    _, theirs, velocity = torchcfm.ConditionalFlowMatcher(
        sigma=0.0
    ).sample_location_and_conditional_flow(x0, x1, t)
    torch.testing.assert_close(point, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(target, velocity, rtol=0, atol=1e-6)
    paths = pytest.importorskip("flow_matching.path")
    sample = paths.CondOTProbPath().sample(x_0=x0, x_1=x1, t=t)
    torch.testing.assert_close(point, sample.x_t, rtol=0, atol=1e-6)
    torch.testing.assert_close(target, sample.dx_t, rtol=0, atol=1e-6)


def test_the_likelihood_weight_makes_the_excess_loss_a_divergence():
    """KL(p_b | q_b) - KL(p_a | q_a) = 1/2 int_a^b G^2 E_p |s_p - s_q|^2 dt, for Gaussians p and q.

    (Song, Durkan, Murray, Ermon, 2101.09258, theorem 1, where s_q is a score.) Gauss-Legendre of 30
    nodes: 1e-9.
    """
    path, other = PATHS["trigonometric"], Gaussian(-0.3, 0.9**2)
    loss = Regression(path, "score", "likelihood")

    def divergence(t: float) -> float:
        k = path.coefficients(t)
        p, q = ((k.beta * STD) ** 2 + k.sigma**2, (k.beta * 0.9) ** 2 + k.sigma**2)
        gap = k.beta * (MEAN + 0.3)
        return (0.5 * (p / q - 1 - (p / q).log() + gap**2 / q)).item()

    a, b = 0.1, 0.9
    excess = sum(
        w * (expected(loss, other.score(path), t) - expected(loss, LAW.score(path), t)).item()
        for t, w in gauss(a, b, 30)
    )
    assert excess == pytest.approx(divergence(b) - divergence(a), abs=1e-9)


def test_the_least_loss_of_flow_matching_is_s_pi_over_2():
    """FAMILIES: independent pairs on the linear path; Gauss-Legendre of 40 nodes, 1e-9."""
    path = PATHS["linear"]
    loss = Regression(path)
    least = sum(w * expected(loss, LAW.velocity(path), t).item() for t, w in gauss(0, 1, 40))
    assert least == pytest.approx(STD * math.pi / 2, abs=1e-9)


# A batch


def batch(n: int = 64) -> Tensor:
    return MEAN + STD * torch.randn(n, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(7))


def off(t, x):
    """A model that is wrong, so that all weights matter."""
    return 0.3 * x + t.reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize("weight", losses.weights())
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("view", ["velocity", "data"])
def test_a_batch_is_the_mean_of_its_rows_at_the_times_drawn(weight, law, view):
    """Bit for bit but for the order of a sum, 1e-13."""
    path, x1 = PATHS["latent"], batch()
    loss = Regression(path, view, weight, law)
    found = loss(off, x1, generator=torch.Generator().manual_seed(3))
    again = Regression(path, view, weight, law)
    g = torch.Generator().manual_seed(3)
    x0 = normal_like(x1, g)
    z = normal_like(x1, g)
    t = again.times.draw(len(x1), generator=g)
    correction = again.times.weight(t)
    rows = again.rows(off, t, x0, x1, z)
    if law == "importance":
        rows = rows * correction
    assert found.item() == pytest.approx(rows.mean().item(), rel=1e-13)
    corrected = Regression(path, view, weight, law, unbiased=True)
    value = corrected(off, x1, generator=torch.Generator().manual_seed(3)).item()
    rows = rows if law == "importance" else rows * correction
    assert value == pytest.approx(rows.mean().item(), rel=1e-13)


def test_the_seed_is_the_run_and_nothing_else_is_drawn():
    state = torch.get_rng_state()
    coupling = shuffled
    loss = Regression(PATHS["latent"], coupling=coupling, times="importance")
    a, b, c = (
        loss.__class__(PATHS["latent"], coupling=coupling, times="importance")(
            off, batch(), generator=torch.Generator().manual_seed(s)
        ).item()
        for s in (3, 3, 4)
    )
    assert a == b != c
    assert torch.equal(state, torch.get_rng_state())


def test_float64_times_reach_only_what_asks_for_them():
    seen = []

    class Model:
        def __call__(self, t, x, **cond):
            seen.append((t.dtype, t, sorted(cond)))
            return x

    x1 = batch().float()
    for convention in ("t", "noise", "sigma", "log_snr", ("index", 100)):
        seen.clear()
        model = Model()
        Regression(PATHS["linear"], time=convention)(
            model, x1, generator=torch.Generator().manual_seed(0)
        )
        model.exact_time = True
        Regression(PATHS["linear"], time=convention)(
            model, x1, cond={"label": 1}, generator=torch.Generator().manual_seed(0)
        )
        (low, single, none), (high, double, label) = seen
        assert (low, high) == (torch.float32, F64)
        assert torch.equal(double.float(), single)
        assert (none, label) == ([], ["label"])
        t = times.Uniform()  # the same draw after the base's
        g = torch.Generator().manual_seed(0)
        normal_like(x1, g)
        told = interp.terms.told(PATHS["linear"], convention, t.draw(len(x1), generator=g))
        assert torch.equal(double, told)


def test_near_an_infinite_rate_no_time_is_drawn_for_a_velocity():
    path = PATHS["variance_preserving"]
    assert Regression(path, "velocity").interval == (0.0, 1 - 1e-5)
    assert Regression(path, "data").interval == (0.0, 1.0)
    assert Regression(PATHS["linear"]).interval == (0.0, 1.0)
    assert Regression(BRIDGE).interval == (1e-5, 1 - 1e-5)
    narrow = Regression(path, times=times.Uniform().within(0.2, 1.0))
    assert narrow.interval == (0.2, 1 - 1e-5)
    for law in LAWS:
        t = Regression(path, times=law).times.draw(1000, generator=torch.Generator().manual_seed(0))
        assert t.max() <= 1 - 1e-5


# One schedule an element


def powers(t):
    return torch.stack([t, t**2], -1)


@pytest.mark.parametrize("weight", ["simple", "min_snr", "edm", "likelihood"])
@pytest.mark.parametrize("view", ["velocity", "noise", "data", "v_prediction", "flow_prediction"])
def test_with_a_schedule_for_each_element_the_loss_is_each_one_s_own(view, weight):
    """The mean over two elements of two losses; and the same in a rotated basis. To 1e-12."""
    both = interp.Interpolant(lambda t: powers(1 - t), powers)
    alone = [interp.Interpolant(lambda t, s=s: (1 - t) ** s, lambda t, s=s: t**s) for s in (1, 2)]
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 20, 2, dtype=F64, generator=g)
    t = torch.linspace(0.05, 0.95, 20, dtype=F64)
    found = Regression(both, view, weight).rows(off, t, x0, x1)
    parts = [
        Regression(path, view, weight).rows(off, t, x0[:, i : i + 1], x1[:, i : i + 1])
        for i, path in enumerate(alone)
    ]
    torch.testing.assert_close(found, sum(parts) / 2, rtol=1e-12, atol=0)
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=F64)
    turned = both.in_basis(lambda x: x @ turn.to(x).mT, lambda x: x @ turn.to(x))
    model = lambda t, x: off(t, x @ turn.mT) @ turn  # noqa: E731
    rotated = Regression(turned, view, weight).rows(model, t, x0 @ turn, x1 @ turn)
    torch.testing.assert_close(rotated, found, rtol=1e-12, atol=0)
    with pytest.raises(OptionError, match=r"\(2,\)"):
        Regression(both, view)(off, batch())
    with pytest.raises(OptionError, match="learned"):
        Regression(both, view, "learned")


# Couplings


def shuffled(x0, x1, labels=None, generator=None):
    order = torch.randperm(len(x1), generator=generator)
    return (x0, x1[order]) if labels is None else (x0, x1[order], labels[order])


def test_couplings_by_name_pair_as_they_do_by_hand():
    x1 = batch()
    config = {"name": "optimal_transport", "reg": 50.0}
    by_name = Regression(PATHS["linear"], coupling=config)
    by_hand = Regression(PATHS["linear"], coupling=interp.couplings.from_config(config))
    plain = Regression(PATHS["linear"])
    a, b, c = (
        loss(off, x1, generator=torch.Generator().manual_seed(5)).item()
        for loss in (by_name, by_hand, plain)
    )
    assert a == b != c
    with pytest.raises(UnknownName, match="optimal_transport"):
        Regression(PATHS["linear"], coupling="optimal_transprot")
    Regression(PATHS["linear"], "score", coupling="independent")


def test_a_coupling_pairs_and_carries_the_labels():
    x1 = batch()
    label = torch.arange(len(x1))
    seen = []

    def model(t, x, label=None):
        seen.append((x, label))
        return x

    loss = Regression(
        PATHS["linear"], "data", coupling=shuffled, times=times.Uniform(stratified=True)
    )
    loss(model, x1, cond={"label": label}, generator=torch.Generator().manual_seed(5))
    x, moved = seen[0]
    assert not torch.equal(moved, label)
    g = torch.Generator().manual_seed(5)
    x0 = normal_like(x1, g)
    torch.randperm(len(x1), generator=g)
    t = loss.times.draw(len(x1), generator=g)
    torch.testing.assert_close(x, PATHS["linear"].at(t, x0, x1[moved]), rtol=1e-14, atol=1e-14)
    with pytest.raises(OptionError, match="label alone"):
        loss(model, x1, cond={"image": x1})


def test_under_a_coupling_only_what_has_a_target_is_trained():
    for view in ("score", "energy_gradient"):
        with pytest.raises(UndeterminedView, match="gaussian_base=False"):
            Regression(PATHS["linear"], view, coupling=shuffled)
    with pytest.raises(UndeterminedView):
        Regression(PATHS["latent"], "noise", coupling=shuffled)
    for view in ("velocity", "data", "base", "noise", "v_prediction", "flow_prediction"):
        Regression(PATHS["linear"], view, coupling=shuffled)


# The learned weight


def test_a_learned_weight_starts_as_its_base_and_ends_at_the_loss_itself():
    """exp(u) fits any loss that is smooth in log-SNR: here constant, 3, to the optimiser's 1 %."""
    path = PATHS["linear"]
    k = path.coefficients(torch.linspace(0.05, 0.95, 40, dtype=F64))
    learned = Learned({"name": "edm", "sigma_data": 0.6})
    assert not learned.log_scale(k).any()
    model = LAW.data(path)
    plain = Regression(path, "data", {"name": "edm", "sigma_data": 0.6})
    assert expected(Regression(path, "data", learned), model, 0.4) == expected(plain, model, 0.4)
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        u = learned.log_scale(k)
        value = (3 * torch.exp(-u) + u).mean()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(
        learned.log_scale(k).detach(), torch.full((40,), math.log(3.0)).double(), rtol=0, atol=0.01
    )
    assert list(Regression(path, weight=learned).parameters())  # for the optimizer and checkpoints


# Bad input


def test_names_that_do_not_exist():
    path = PATHS["linear"]
    assert losses.weights() == (
        "edm", "learned", "likelihood", "min_snr", "sigmoid", "simple", "snr",
    )  # fmt: skip
    for options, near in (
        ({"weight": "minsnr"}, "min_snr"),
        ({"weight": {"name": "edm", "sigma": 1.0}}, "sigma_data"),
        ({"view": "velocty"}, "velocity"),
        ({"times": "lognormal"}, "log_normal"),
        ({"time": "snr"}, "log_snr"),
    ):
        with pytest.raises(UnknownName, match=near):
            Regression(path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": {"name": "edm", "sigma_data": 0}},
        {"weight": {"name": "min_snr", "gamma": 0}},
        {"weight": {"name": "sigmoid", "bias": math.nan}},
        {"weight": {"name": "learned", "base": "learned"}},
        {"weight": {"name": "learned", "features": 0}},
        {"weight": 3},
    ],
)
def test_weights_that_cannot_be(options):
    with pytest.raises(OptionError):
        Regression(PATHS["linear"], **options)


def test_weights_that_mean_nothing_on_a_path():
    hill = interp.Interpolant(lambda t: 1 + 0 * t, lambda t: 1.1 + torch.sin(6 * t))
    with pytest.raises(ScheduleError, match="falls"):
        Regression(hill, weight="likelihood")
    Regression(hill, weight="min_snr")
    with pytest.raises(OptionError, match="does not tell"):
        Regression(BRIDGE, weight="min_snr")
    Regression(BRIDGE, "noise", weight="min_snr")


def test_batches_that_cannot_be():
    loss, x1 = Regression(PATHS["linear"]), batch()
    for bad in (x1[:0], torch.tensor(1.0), torch.ones(3, 2, dtype=torch.long)):
        with pytest.raises(OptionError):
            loss(off, bad)
    with pytest.raises(OptionError, match="x0"):
        loss(off, x1, x1[:3])
    with pytest.raises(OptionError, match="loss\\(model, x1, x0\\)"):
        Regression(BRIDGE)(off, x1)
    assert Regression(BRIDGE)(off, x1, torch.zeros_like(x1)).isfinite()
    for model in (lambda t, x: x[:1], lambda t, x: None, lambda t, x: x.mean()):
        with pytest.raises(FieldError, match=r"\(64, 2, 3\)"):
            loss(model, x1)


def test_a_loss_that_is_not_a_number_is_not_hidden():
    for weight, law in itertools.product(losses.weights(), LAWS):
        loss = Regression(PATHS["linear"], weight=weight, times=law)
        assert loss(lambda t, x: x * math.nan, batch()).isnan()


# Learned schedules, and what a path's form may not change


@pytest.mark.parametrize("weight", ["simple", "min_snr"])
@pytest.mark.parametrize("view", ["velocity", "data", "noise", "v_prediction", "flow_prediction"])
def test_the_gradient_reaches_a_schedule_that_is_learned(view, weight):
    """d loss / d p for alpha = (1 - t)^p, beta = t^p, by central differences: 1e-7 of it."""
    p = torch.tensor(1.3, dtype=F64, requires_grad=True)
    path = interp.Interpolant(lambda t: (1 - t) ** p, lambda t: t**p)
    loss = Regression(path, view, weight)

    def value() -> Tensor:
        return loss(off, batch(), generator=torch.Generator().manual_seed(0))

    (found,) = torch.autograd.grad(value(), p)
    h = 1e-5
    with torch.no_grad():
        p += h
        above = value()
        p -= 2 * h
        below = value()
    slope = (above - below) / (2 * h)
    assert found.item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("view", VIEWS)
def test_the_straight_path_by_one_pass_is_the_one_by_formula(view):
    """`linear` and the same functions given as plain callables: 1e-13, the order of roundings."""
    by_formula = interp.Interpolant(lambda t: 1 - t, lambda t: t)
    a, b = (
        Regression(path, view)(off, batch(), generator=torch.Generator().manual_seed(0)).item()
        for path in (PATHS["linear"], by_formula)
    )
    assert a == pytest.approx(b, rel=1e-13)


def test_data_and_base_points_of_the_caller_are_left_as_they_were():
    x0, x1 = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    kept = x0.clone(), x1.clone()
    for path, view in itertools.product((PATHS["linear"], PATHS["trigonometric"]), VIEWS):
        Regression(path, view)(off, x1, x0)
        Regression(path, view)(off, x1)
        Regression(path, view, coupling="given" if view == "velocity" else None)(off, x1, x0)
    assert torch.equal(x0, kept[0])
    assert torch.equal(x1, kept[1])
