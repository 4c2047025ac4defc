"""Posterior and classifier guidance against exact posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters
import interp
from interp import exact, guidance, metrics, schedules
from interp.errors import FieldError, OptionError, UndeterminedView, UnknownName

F64 = torch.float64
PATHS = {
    "linear": schedules.linear(),
    "trigonometric": schedules.trigonometric(),
    "cosine": schedules.cosine(),
    "vp": schedules.variance_preserving(),
    "ve": schedules.variance_exploding(0.01, 50.0),
}
VIEWS = ("velocity", "data", "noise", "score")
MEAN = torch.tensor([0.3, -0.5, 0.8], dtype=F64)
COV = torch.tensor([[0.5, 0.2, 0.1], [0.2, 0.4, -0.1], [0.1, -0.1, 0.3]], dtype=F64)
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]], dtype=F64)
Y, NOISE = torch.tensor([0.7, 0.2], dtype=F64), 0.3


def operator(x):
    return x @ A.T.to(x)


def given_y(mean, cov, a, y, noise):
    """N(mean, cov) given y = a x + noise z, and log p(y): the Gaussian formulas."""
    S = a @ cov @ a.T + noise**2 * torch.eye(len(a), dtype=F64)
    gain = cov @ a.T @ torch.linalg.inv(S)
    evidence = exact.Gaussian(a @ mean, S).log_prob(y[None]).item()
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov, evidence


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PATHS)
def test_it_is_exact_for_gaussian_data_on_every_path_in_every_view(name, view):
    path, prior = PATHS[name], exact.Gaussian(MEAN, COV)
    mean, cov, _ = given_y(MEAN, COV, A, Y, NOISE)
    model = getattr(prior, view)(path)
    truth = getattr(exact.Gaussian(mean, cov), view)(path)
    t = torch.tensor([0.05, 0.4, 0.8, 0.97], dtype=F64)
    x = path.at(t, *(torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(k))
                     for k in (0, 1)))  # fmt: skip
    guided = guidance.posterior(model, path, operator, Y, NOISE, view=view)
    torch.testing.assert_close(guided(t, x), truth(t, x), rtol=1e-7, atol=1e-7)
    for covariance in ("isotropic", "none"):  # neither is the truth for this covariance
        coarse = guidance.posterior(model, path, operator, Y, NOISE, covariance, view=view)
        assert not torch.allclose(coarse(t, x), truth(t, x), rtol=1e-3)


def test_isotropic_is_exact_for_a_standard_normal_and_none_for_a_point():
    path, t = PATHS["vp"], torch.tensor([0.3, 0.7], dtype=F64)
    x = torch.tensor([[0.4, -1.0, 0.2], [1.0, 0.3, -0.7]], dtype=F64)
    for scale, covariance in ((1.0, "isotropic"), (1e-9, "none")):
        prior_cov = scale * torch.eye(3, dtype=F64)
        mean, cov, _ = given_y(0 * MEAN, prior_cov, A, Y, NOISE)
        model = exact.Gaussian(0 * MEAN, prior_cov).data(path)
        guided = guidance.posterior(model, path, operator, Y, NOISE, covariance, view="data")
        truth = exact.Gaussian(mean, cov).data(path)(t, x)
        torch.testing.assert_close(guided(t, x), truth, rtol=1e-8, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(["linear", "vp", "ve"]))
def test_random_gaussians_and_measurements(seed, measured, name):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=g, dtype=F64)
    mean, cov = torch.randn(4, generator=g, dtype=F64), root @ root.T + 0.1 * torch.eye(4)
    a, y = (torch.randn(measured, *s, generator=g, dtype=F64) for s in ((4,), ()))
    post, post_cov, _ = given_y(mean, cov, a, y, 0.2)
    path, t = PATHS[name], torch.rand(5, generator=g, dtype=F64) * 0.9 + 0.05
    x = torch.randn(5, 4, generator=g, dtype=F64)
    model = exact.Gaussian(mean, cov).data(path)
    guided = guidance.posterior(model, path, lambda x: x @ a.T, y, 0.2, view="data")
    # Conjugate gradients of a matrix whose condition may reach 1e4.
    torch.testing.assert_close(
        guided(t, x), exact.Gaussian(post, post_cov).data(path)(t, x), rtol=1e-6, atol=1e-6
    )


def test_samples_of_a_gaussian_posterior_by_any_solver():
    path, prior = PATHS["linear"], exact.Gaussian(MEAN, COV)
    mean, cov, _ = given_y(MEAN, COV, A, Y, NOISE)
    model = guidance.posterior(prior.velocity(path), path, operator, Y, NOISE)
    x = path.at(
        1e-3, interp.noise.normal((2000, 3), seed=0, dtype=F64), prior.sample(2000, 1, dtype=F64)
    )
    for options in ({"rtol": 1e-6, "atol": 1e-6}, {"method": "dpm++2m", "steps": 40}):
        ends = interp.solve(path.ode(model), x, t=(1e-3, 1.0), **options).x
        # Standard errors of 2000 rows: .012 of a mean, .009 of a variance of .3.
        assert torch.allclose(ends.mean(0), mean, atol=0.05)
        assert torch.allclose(ends.T.cov(), cov, atol=0.05)


def test_inpainting_a_mixture_comes_near_to_the_exact_posterior():
    weights, covs = [0.5, 0.3, 0.2], [0.05, 0.1, 0.08]
    means = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.8, -1.2]], dtype=F64)
    prior, path = exact.Mixture(weights, list(means), covs), PATHS["linear"]
    a, y, noise = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([0.9], dtype=F64), 0.1
    parts = [given_y(m, c * torch.eye(2, dtype=F64), a, y, noise)
             for m, c in zip(means, covs, strict=True)]  # fmt: skip
    after = torch.tensor([w * math.exp(e) for w, (_, _, e) in zip(weights, parts, strict=True)])
    truth = exact.Mixture(after / after.sum(), [p[0] for p in parts], [p[1] for p in parts])
    wanted = truth.sample(1500, 0)
    x = path.at(
        1e-3, interp.noise.normal((1500, 2), seed=0, dtype=F64), prior.sample(1500, 1, dtype=F64)
    )
    far = {}
    for covariance in guidance.inverse.COVARIANCES:
        model = guidance.posterior(
            prior.data(path), path, lambda x: x[..., :1], y, noise, covariance, view="data"
        )
        term = path.sde(model, view="data", diffusion=0.5)
        ends = interp.solve(term, x, t=(1e-3, 1.0), method="euler_maruyama", steps=150, seed=0).x
        far[covariance] = metrics.energy_distance(ends, wanted)
    unguided = metrics.energy_distance(prior.sample(1500, 2), wanted)
    # A Gaussian is no posterior of a mixture, but with a covariance it comes near: of seven seeds .0003 to
    # .0102, where the likelihood of D alone is .10 to .16 away and the prior .25 to .31.
    assert far["exact"] < 0.05 * unguided
    assert far["isotropic"] < 0.05 * unguided
    assert far["none"] > 0.3 * unguided


def test_one_measurement_a_row_and_images():
    path = PATHS["vp"]
    prior = exact.Gaussian(torch.zeros(16), 1.0)

    def model(t, x):
        return prior.data(path)(t, x.flatten(1)).reshape(x.shape)

    seen = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    guided = guidance.posterior(model, path, lambda x: x[..., :2], seen, 0.05, view="data")
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    out = guided(0.6, x)
    k = path.coefficients(0.6)
    # A standard normal, element by element: D + C (y - D) / (C + s^2) where it is seen.
    D = k.beta.float() * x
    C = (k.sigma**2).float()
    seen_part = D[..., :2] + C / (C + 0.05**2) * (seen - D[..., :2])
    torch.testing.assert_close(out[..., :2], seen_part, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[..., 2:], D[..., 2:], rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.05, 0.95), st.floats(0.02, 1.0))
def test_a_slope_that_is_no_covariance_counts_by_the_size_of_its_symmetric_part(
    seed, measured, t, noise
):
    path = PATHS["linear"]
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(6, 6, generator=generator, dtype=F64)  # neither symmetric nor positive
    a = torch.randn(measured, 6, generator=generator, dtype=F64)
    x, y = torch.randn(4, 6, generator=generator, dtype=F64), torch.ones(measured, dtype=F64)
    model = guidance.posterior(
        lambda t, x: x @ slope.T, path, lambda x: x @ a.T, y, noise, view="data"
    )
    gain = (1 - t) ** 2 / t  # sigma^2 / beta
    values, vectors = torch.linalg.eigh(gain * a @ (slope + slope.T) @ a.T / 2)
    S = vectors @ torch.diag(noise**2 + values.abs()) @ vectors.T
    data = x @ slope.T
    exact = data + gain * torch.linalg.solve(S, (y - data @ a.T).T).T @ a @ slope
    # Five dimensions by Krylov's space: its basis is as good as S's condition, at most 1e7, allows.
    scale = (exact - data).norm() + data.norm()
    assert (model(torch.tensor(t, dtype=F64), x) - exact).norm() < 1e-6 * scale


def test_a_row_that_is_not_finite_spoils_no_other():
    path, y = PATHS["linear"], torch.zeros(2)
    model = guidance.posterior(lambda t, x: x**2, path, lambda x: x[..., :2], y, 0.1, view="data")
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    alone = model(torch.tensor(0.5), x[[0, 2]])
    x[1] = torch.inf
    found = model(torch.tensor(0.5), x)
    assert not found[1].isfinite().any()
    torch.testing.assert_close(found[[0, 2]], alone)


@pytest.mark.parametrize("view", VIEWS)
def test_the_exact_classifier_gives_the_exact_conditional_model(view):
    path = PATHS["vp"]
    parts = [
        exact.Gaussian([1.0, 0.5], 0.2),
        exact.Gaussian([-0.7, -0.4], [[0.3, 0.1], [0.1, 0.2]]),
    ]
    both = exact.Mixture([0.6, 0.4], [p.mean for p in parts], [p.cov for p in parts])

    def log_prob(t, x, label):
        return parts[label].log_density(path)(t, x) + math.log(0.6 if label == 0 else 0.4) - (
            both.log_density(path)(t, x)
        )  # fmt: skip

    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    x = torch.tensor([[0.2, 0.1], [-1.0, 0.4], [0.9, 0.3]], dtype=F64)
    model = getattr(both, view)(path)
    guided = guidance.classifier(model, log_prob, path, view=view)
    for label in (0, 1):
        truth = getattr(parts[label], view)(path)(t, x)
        torch.testing.assert_close(guided(t, x, label=label), truth, rtol=1e-9, atol=1e-9)
    untouched = guidance.classifier(model, log_prob, path, 0.0, view=view)
    assert torch.equal(untouched(t, x, label=0), model(t, x))


def test_told_times_and_own_views_are_kept():
    path = PATHS["ve"]
    prior = exact.Gaussian(MEAN, COV)
    plain = prior.data(path)

    def by_sigma(sigma, x):
        return plain(path.time_at_log_snr(-2 * sigma.log()), x)

    guided = guidance.posterior(by_sigma, path, operator, Y, NOISE, view="data", time="sigma")
    direct = guidance.posterior(plain, path, operator, Y, NOISE, view="data")
    x = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided(0.6, x), direct(0.6, x))
    assert (guided.view, guided.time, guided.exact_time) == ("data", "t", True)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["linear", "trigonometric", "cosine"])
def test_it_is_exact_where_beta_is_zero(name, view):
    """The data are moved by E[x1 | y] - E[x1] there, and noise and score by nothing."""
    path, prior = PATHS[name], exact.Gaussian(MEAN, COV)
    mean, cov, _ = given_y(MEAN, COV, A, Y, NOISE)
    model, truth = (getattr(law, view)(path) for law in (prior, exact.Gaussian(mean, cov)))
    # Beside times that are not: each row has its own.
    t = torch.tensor([0.0, 1e-9, 5e-4, 2e-3, 0.6], dtype=F64)
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))

    def log_prob(t, x):
        return exact.Gaussian(mean, cov).log_density(path)(t, x) - prior.log_density(path)(t, x)

    for guided in (
        guidance.posterior(model, path, operator, Y, NOISE, view=view),
        guidance.classifier(model, log_prob, path, view=view),
    ):
        out, wanted = guided(t, x), truth(t, x)
        # Held at beta / sigma = .001 below it, for numbers of order 1.
        torch.testing.assert_close(out, wanted, rtol=0, atol=3e-3)
        torch.testing.assert_close(out[3:], wanted[3:], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(guided(0.0, x), truth(0.0, x), rtol=0, atol=3e-3)
        if view in ("velocity", "data"):  # and that is no small thing
            assert (out[0] - model(t, x)[0]).abs().max() > 0.3


@pytest.mark.parametrize("method", ["dopri5", "euler", "dpm++2m"])
def test_a_run_begins_where_beta_is_zero(method):
    path, prior = PATHS["linear"], exact.Gaussian(MEAN, COV)
    mean, cov, _ = given_y(MEAN, COV, A, Y, NOISE)
    guided = guidance.posterior(prior.velocity(path), path, operator, Y, NOISE)
    x = interp.noise.normal((8, 3), seed=0, dtype=F64)
    exactly = {"rtol": 1e-9, "atol": 1e-9}
    options = {"method": method, **(exactly if method == "dopri5" else {"steps": 25})}
    ends = interp.solve(path.ode(guided), x, **options).x
    truth = interp.solve(path.ode(exact.Gaussian(mean, cov).velocity(path)), x, **options).x
    # A field held below t = .001 differs by .001 over a time of .001, or over a first step of 1 / 25.
    torch.testing.assert_close(ends, truth, rtol=0, atol=1e-5 if method == "dopri5" else 1e-3)


def test_outside_its_interval_nothing_is_asked_and_each_row_has_its_own():
    path, prior = PATHS["linear"], exact.Gaussian(MEAN, COV)
    model, calls = prior.velocity(path), []

    def log_prob(t, x):
        calls.append(t)
        return -x.square().sum(1)

    def seen(x):
        calls.append(None)
        return operator(x)

    t = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.95], dtype=F64)
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for make in (
        lambda **o: guidance.posterior(model, path, seen, Y, NOISE, **o),
        lambda **o: guidance.classifier(model, log_prob, path, **o),
    ):
        guided, always = make(interval=(0.2, 0.8)), make()
        calls.clear()
        assert torch.equal(guided(0.0, x), model(0.0, x))
        assert torch.equal(guided(0.9, x), model(0.9, x))
        assert not calls
        out = guided(t, x)
        assert calls
        torch.testing.assert_close(out[1:4], always(t, x)[1:4])
        assert torch.equal(out[[0, 4]], model(t, x)[[0, 4]])
        with pytest.raises(OptionError, match="empty"):
            make(interval=(0.8, 0.2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": 0.0}, OptionError, "noise is 0"),
        ({"noise": -1.0}, OptionError, "noise=-1.0"),
        ({"covariance": "exakt"}, UnknownName, "exact"),
        ({"iterations": 0}, OptionError, "iterations"),
        ({"measurement": [1.0]}, OptionError, "is a list"),
        ({"operator": 3}, OptionError, "operator"),
        ({"path": schedules.brownian_bridge(1.0)}, UndeterminedView, "not Gaussian"),
        ({"view": "velocitee"}, UnknownName, "velocity"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    given = {"model": lambda t, x: x, "path": PATHS["linear"], "operator": operator,
             "measurement": Y, "noise": 0.1, **options}  # fmt: skip
    with pytest.raises(error, match=message):
        guidance.posterior(**given)


def test_shapes_that_do_not_fit_are_named():
    path, x = PATHS["linear"], torch.zeros(2, 3)
    wrong = guidance.posterior(lambda t, x: 0 * x, path, operator, torch.zeros(5), 0.1)
    with pytest.raises(FieldError, match=r"measurement has shape \(5,\)"):
        wrong(0.5, x)
    scalar = guidance.classifier(lambda t, x: x, lambda t, x: x.sum(), path)
    with pytest.raises(FieldError, match="one log probability a row"):
        scalar(0.5, x)


class Exact(torch.nn.Module):
    """The exact velocity of a Gaussian as a network, told 1 - t."""

    def __init__(self, path):
        super().__init__()
        self.plain = exact.Gaussian(MEAN, COV).noise(path)
        self.anything = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, noise, x):
        return self.plain(1 - noise, x)


def test_a_family_is_guided_by_any_wrapper_of_its_model():
    table = schedules.from_betas("linear", 200)
    family = adapters.create("ddpm", (3,), network=Exact(table), steps=200)
    mean, cov, _ = given_y(MEAN, COV, A, Y, NOISE)

    def given_measurement(model):
        return guidance.posterior(model, family.path, operator, Y, NOISE)

    for options in ({"method": "dpm++2m", "steps": 40}, {"method": "heun", "steps": 60}):
        ends = family.sample(2000, seed=0, guidance=given_measurement, **options)
        # Standard errors of 2000 rows, and the table's own bias of at most .01.
        assert torch.allclose(ends.mean(0), mean, atol=0.06)
        assert torch.allclose(ends.T.cov(), cov, atol=0.06)
    free = family.sample(2000, seed=0, method="dpm++2m", steps=40)
    assert not torch.allclose(free.mean(0), mean, atol=0.3)
