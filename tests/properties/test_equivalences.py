"""Known identities between families, each from its papers' own formulas, and its twin that is refused.

The formulas are written out here, in the papers' letters: abar, B(u), D(x; sigma), T(x). Nothing on the
side of a paper comes from a path, a family or an exact law of interp.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters
import interp
from interp import schedules, testing
from interp.equivalence import compare
from interp.equivalence.families import exact_model
from interp.exact import Gaussian
from interp.exact.plans import schroedinger_plan

F64 = torch.float64
T = torch.linspace(0.02, 0.98, 25, dtype=F64)


# VP, by hand: Song et al., 2011.13456, eq. 33; u = 1 - t runs from data to noise.


def noise_rate(u):
    return 0.1 + 19.9 * u


def log_mean(u):
    """-1/2 int_0^u B."""
    return -0.5 * (0.1 * u + 9.95 * u**2)


def vp(u):
    """Mean coefficient and deviation."""
    u = torch.as_tensor(u, dtype=F64)
    return log_mean(u).exp(), (-torch.expm1(2 * log_mean(u))).sqrt()


# Data are the mixture 0.3 N(-0.8, 0.3^2) + 0.7 N(0.6, 0.2^2) on the line.
SHARES, MEANS, STDS = (torch.tensor(v, dtype=F64) for v in ([0.3, 0.7], [-0.8, 0.6], [0.3, 0.2]))


def posterior(x, mean, std):
    """The score of sum_i w_i N(b m_i, b^2 s_i^2 + sigma^2) at x, and E[x1 | x], by Bayes."""
    x = x[..., None]
    S = mean**2 * STDS**2 + std**2
    weight = torch.softmax(SHARES.log() - 0.5 * S.log() - (x - mean * MEANS) ** 2 / (2 * S), -1)
    score = (weight * (mean * MEANS - x) / S).sum(-1)
    data = (weight * (MEANS + mean * STDS**2 * (x - mean * MEANS) / S)).sum(-1)
    return score, data


# DDIM is the probability flow under an exponential integrator


def ddim(x, noise, abar_k, abar_p):
    """Song, Meng, Ermon, 2010.02502, eq. 12 with eta = 0."""
    data = (x - (1 - abar_k).sqrt() * noise) / abar_k.sqrt()
    return abar_p.sqrt() * data + (1 - abar_p).sqrt() * noise


def exponential_euler(x, noise, u, r):
    """dx/du = -B/2 x + B/2 noise / sigma (2011.13456, eq. 13), its linear part exact and noise frozen:

    x_r = Phi(r, u) x + int_u^r Phi(r, v) B(v) / (2 sigma(v)) dv noise,  Phi(r, v) = exp(-1/2 int_v^r B),
    by 60 nodes of Gauss, in w = sqrt(v): sigma ~ w is a root at 0.
    """
    nodes, weights = (torch.as_tensor(v, dtype=F64) for v in _legendre(60))
    low, high = math.sqrt(u), math.sqrt(r)
    w = low + (high - low) * (nodes + 1) / 2
    v = w**2
    phi = (log_mean(torch.tensor(r, dtype=F64)) - log_mean(v)).exp()
    part = (weights * phi * noise_rate(v) / (2 * vp(v)[1]) * 2 * w).sum() * (high - low) / 2
    whole = (log_mean(torch.tensor(r, dtype=F64)) - log_mean(torch.tensor(u, dtype=F64))).exp()
    return whole * x + part * noise


def _legendre(n):
    import numpy as np

    return np.polynomial.legendre.leggauss(n)


@settings(deadline=None, max_examples=30)
@given(u=st.floats(0.05, 0.999), share=st.floats(0.0, 0.97))
def test_ddim_is_the_probability_flow_under_an_exponential_integrator(u, share):
    """Three routes of one step, of any noise model: eq. 12, the integrator by quadrature, and `solve`."""
    r = u * share + 1e-3 * (1 - share)
    x = torch.tensor([[-1.3], [0.2], [2.0]], dtype=F64)
    model = lambda t, x: torch.tanh(1.7 * x) + t  # noqa: E731
    noise = model(torch.tensor(1 - u, dtype=F64), x)
    abar_u, abar_r = (vp(v)[0] ** 2 for v in (u, r))
    paper = ddim(x, noise, abar_u, abar_r)
    path = schedules.variance_preserving()
    ours = interp.solve(
        path.ode(model, "noise"), x, t=(1 - u, 1 - r), method="ddim", steps=1, backend="torch"
    ).x
    # 1 - abar loses 1e-16 / abar to rounding; quadrature is exact to 1e-12 on these integrands.
    torch.testing.assert_close(paper, exponential_euler(x, noise, u, r), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, paper, rtol=1e-9, atol=1e-9)


def test_euler_on_the_probability_flow_is_not_ddim():
    u, r = 0.5, 0.2
    x, noise = torch.tensor([1.0], dtype=F64), torch.tensor([0.7], dtype=F64)
    f = -0.5 * noise_rate(u) * x + 0.5 * noise_rate(u) * noise / vp(u)[1]
    paper = ddim(x, noise, *(vp(v)[0] ** 2 for v in (u, r)))
    assert float((x + (r - u) * f - paper).abs()) > 0.01
    twin = exponential_euler(x, noise, u, 1.01 * r)
    assert float((twin - paper).abs()) > 1e-4


# DDPM becomes VP as its steps grow


def betas(steps, scale=1.0):
    """2011.13456, appendix B: beta_i = B(i / N) / N."""
    i = torch.arange(1, steps + 1, dtype=F64)
    return scale * noise_rate(i / steps) / steps


def test_ddpm_becomes_vp_as_steps_grow():
    """First order: abar of the table against exp(-int B), and one ancestral step against drift and noise.

    Of Ho et al., eq. 7 and 11: mean = (x - beta_k eps / sqrt(1 - abar_k)) / sqrt(1 - beta_k); the reverse
    SDE (2011.13456, eq. 6) moves by (B x / 2 + B score) du, score = -eps / sigma, with variance B du.
    """
    gaps, drifts, variances = [], [], []
    x, eps = torch.tensor(0.8, dtype=F64), torch.tensor(-0.5, dtype=F64)
    for steps in (250, 500, 1000):
        beta = betas(steps)
        abar = (1 - beta).log().cumsum(0).exp()
        u = torch.arange(1, steps + 1, dtype=F64) / steps
        gaps.append(float((abar - vp(u)[0] ** 2).abs().max()))
        k = steps * 2 // 5 - 1  # u = 0.4
        mean = (x - beta[k] * eps / (1 - abar[k]).sqrt()) / (1 - beta[k]).sqrt()
        drift = 0.5 * noise_rate(u[k]) * x - noise_rate(u[k]) * eps / vp(u[k])[1]
        drifts.append(float(((mean - x) * steps - drift).abs()))
        small = beta[k] * (1 - abar[k - 1]) / (1 - abar[k])
        variances.append(float((small * steps - noise_rate(u[k])).abs()))
    for errors in (gaps, drifts, variances):
        orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
        assert orders == pytest.approx([1.0, 1.0], abs=0.1), errors


def test_the_families_ddpm_and_vp_sde_part_by_one_over_their_steps():
    """beta / sigma of both at t = 0 by hand, the angle of compare; a table of 1.01 B never gets there."""
    vp_sde = adapters.create("vp_sde", (1,), width=8).path
    found = []
    for steps in (250, 500, 1000):
        beta = betas(steps)
        abar = (1 - beta).log().sum().exp()
        start = math.atan(float((abar / (1 - abar)).sqrt()))
        mean, std = vp(1.0)
        expected = abs(start - math.atan(float(mean / std)))
        ddpm = adapters.create("ddpm", (1,), table=beta.tolist(), width=8).path
        report = compare(ddpm, vp_sde)
        assert not report.equivalent
        assert report.max_error == pytest.approx(expected, rel=1e-6)
        found.append(report.max_error)
    assert math.log2(found[0] / found[1]) == pytest.approx(1, abs=0.1)
    assert math.log2(found[1] / found[2]) == pytest.approx(1, abs=0.1)
    twin = adapters.create("ddpm", (1,), table=betas(1000, 1.01).tolist(), width=8).path
    # abar(0) is off by the share 0.01 x 10 of its logarithm: beta / sigma by 5 % of 6.57e-3.
    assert abs(compare(twin, vp_sde).max_error - found[2]) > 2e-4


# Flow matching with a Gaussian base is a re-timed diffusion


def test_flow_matching_is_a_retimed_diffusion():
    """With m(u), s(u) of VP: t = m / (m + s), x_FM = x_VP / (m + s). E[x1 - x0 | x] of Lipman et al.
    (2210.02747) by Bayes equals the flow of Song et al. (eq. 13) by the chain rule through both maps."""
    x = torch.linspace(-2, 2, 9, dtype=F64)
    report = compare(schedules.variance_preserving(), schedules.linear())
    for u in (0.1, 0.4, 0.8):
        mean, std = vp(u)
        t, scale = mean / (mean + std), 1 / (mean + std)
        # The velocity of flow matching at (t, scale x): data less noise.
        _, data = posterior(scale * x, t, 1 - t)
        conditional = data - (scale * x - t * data) / (1 - t)
        # dx/du = f x - G^2 score / 2, then d(scale x)/dt = (scale x)' / t'.
        score, _ = posterior(x, mean, std)
        flow = -0.5 * noise_rate(u) * x - 0.5 * noise_rate(u) * score
        dmean, dstd = -0.5 * noise_rate(u) * mean, 0.5 * noise_rate(u) * mean**2 / std
        dscale = -(dmean + dstd) * scale**2
        dt = (dmean * std - mean * dstd) * scale**2
        carried = (dscale * x + scale * flow) / dt
        torch.testing.assert_close(carried, conditional, rtol=1e-11, atol=1e-11)
        # And interp's maps are these.
        torch.testing.assert_close(report.time_map(1 - u), t, rtol=1e-10, atol=0)
        torch.testing.assert_close(report.scale_map(1 - u), scale, rtol=1e-10, atol=0)
        # The twin: sub-VP's deviation s^2 in place of s gives another velocity.
        t, scale = mean / (mean + std**2), 1 / (mean + std**2)
        _, data = posterior(scale * x, t, 1 - t)
        off = data - (scale * x - t * data) / (1 - t)
        assert float((off - conditional).abs().max()) > 1e-3


# EDM's denoiser is the data view

POINTS = torch.tensor([-1.0, -0.2, 0.9, 1.4], dtype=F64)


def denoiser(x, sigma):
    """The optimal D(x; sigma) of a finite data set: Karras et al., 2206.00364, eq. 57."""
    density = torch.softmax(-((x - POINTS) ** 2) / (2 * sigma**2), -1)
    return (density * POINTS).sum(-1, keepdim=True)


@settings(deadline=None, max_examples=20)
@given(
    path=testing.schedules(["linear", "trigonometric", "variance_preserving", "edm"]),
    t=st.floats(0.1, 0.95),
)
def test_edms_denoiser_is_the_data_view(path, t):
    """D(x / beta; sigma / beta), converted to the velocity and back; and the score is (D - x) / sigma^2."""
    k = path.coefficients(t)
    sigma = k.sigma / k.beta
    x_edm = torch.tensor([[-0.9], [0.3], [1.1]], dtype=F64)
    D = denoiser(x_edm, sigma)
    law = interp.exact.Empirical(POINTS[:, None])
    x = k.beta * x_edm
    torch.testing.assert_close(law.data(path)(t, x), D, rtol=1e-9, atol=1e-9)
    # 2206.00364, eq. 3; on a path of scale beta the score is 1 / beta of it.
    score = (D - x_edm) / sigma**2 / k.beta
    found = path.convert(law.velocity(path)(t, x), "velocity", "score", x, t)
    torch.testing.assert_close(found, score, rtol=1e-7, atol=1e-7 * float(score.abs().max() + 1))
    # The twin: the denoiser of a hundredth more noise is no data view, where points compete.
    if 0.3 < sigma < 1:
        assert float((denoiser(x_edm, 1.01 * sigma) - D).abs().max()) > 1e-4


# Reflow fixes a straight coupling


def transport(x0):
    """A monotone map, so that lines x0 -> T(x0) do not cross: the coupling is straight."""
    return 0.3 + 0.6 * x0 + 0.3 * torch.tanh(x0)


class Straight(torch.nn.Module):
    """The velocity T(x0) - x0 of the line through (t, x), x0 found by Newton's method."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t, x):
        t = torch.as_tensor(t, dtype=F64)
        t = t.reshape(-1, 1) if t.ndim else t
        x0 = x.double()
        for _ in range(30):
            value = (1 - t) * x0 + t * transport(x0) - x.double()
            x0 = x0 - value / (1 - t + t * (0.6 + 0.3 / x0.cosh() ** 2))
        return transport(x0) - x0


class Affine(Straight):
    """The velocity of N(0.5, 0.25) from independent pairs: its lines cross."""

    def forward(self, t, x):
        t = torch.as_tensor(t, dtype=F64)
        t = t.reshape(-1, 1) if t.ndim else t
        S = (1 - t) ** 2 + 0.25 * t**2
        return 0.5 + (0.25 * t - (1 - t)) * (x.double() - 0.5 * t) / S


@pytest.mark.parametrize(("network", "fixed"), [(Straight, True), (Affine, False)])
def test_reflow_fixes_a_straight_coupling(network, fixed):
    """Liu, Gong, Liu, 2209.03003, theorem 3.6: where v is straight, its pairs are (x0, T(x0)) again and v
    has no loss on them; the flow of crossing pairs makes other pairs, and its v has a loss there."""
    family = adapters.create("rectified_flow", (1,), network=network(), pairs=64, reflows=2)
    assert family.exact().pairs == "independent"
    family.after_stage(0, 3)  # the first phase ends
    assert family.exact().pairs == "reflow 1 of independent pairs"
    _, x0, x1, _ = family._flown()
    loss = float(family.loss(torch.zeros(512, 1, dtype=F64), torch.Generator().manual_seed(0)))
    straight = family.straightness(64)
    if fixed:
        # Newton's method to rounding, and Heun is exact along lines.
        torch.testing.assert_close(x1, transport(x0), rtol=0, atol=1e-10)
        assert loss < 1e-18
        assert straight < 1e-18
    else:
        # N(0, 1) -> N(1/2, 1/4) by an affine flow, to 16 steps of Heun: monotone, and its v is not straight.
        torch.testing.assert_close(x1, 0.5 + 0.5 * x0, rtol=0, atol=3e-3)
        assert loss > 1e-3
        assert straight > 1e-3


# The Schroedinger bridge becomes optimal transport as sigma -> 0


def bridge_velocity(t, x, m0, s0, m1, s1, sigma, c=None):
    """Of the bridge between two normal laws on the line: Bunne et al., 2202.05722, theorem 3, as the
    regression of dI/dt on I_t: mu' + (Sigma_dot / Sigma) (x - mu) with Sigma's own covariances."""
    if c is None:
        c = 0.5 * (math.sqrt(4 * s0**2 * s1**2 + sigma**4) - sigma**2)
    mu = (1 - t) * m0 + t * m1
    S = (1 - t) ** 2 * s0**2 + t**2 * s1**2 + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
    rate = -(1 - t) * s0**2 + t * s1**2 + (1 - 2 * t) * c + 0.5 * sigma**2 * (1 - 2 * t)
    return m1 - m0 + rate / S * (x - mu)


def test_the_bridge_becomes_optimal_transport():
    """The plan by sigma^2 / 2, as (sqrt(4 a^2 + sigma^4) - sigma^2) / 2 = a - sigma^2 / 2 + sigma^4 / 8a; the
    velocity by sigma^4, since the bridge's own sigma^2 t (1 - t) makes that up, to that of the line
    x0 -> m1 + (s1 / s0)(x0 - m0). The independent plan, which is no bridge, stays away."""
    m0, s0, m1, s1 = -0.3, 0.9, 0.8, 0.4
    base, target = Gaussian([m0], s0**2), Gaussian([m1], s1**2)
    x = torch.linspace(-1.5, 1.5, 7, dtype=F64)[:, None]
    for t in (0.3, 0.6):
        straight = m1 - m0 + (s1 - s0) / ((1 - t) * s0 + t * s1) * (x - (1 - t) * m0 - t * m1)
        gaps = []
        for sigma in (0.2, 0.1, 0.05):
            paper = bridge_velocity(t, x, m0, s0, m1, s1, sigma)
            ours = target.velocity(
                schedules.brownian_bridge(sigma),
                base=base,
                coupling={"name": "schroedinger_bridge", "sigma": sigma},
            )(t, x)
            torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)
            gaps.append(float((paper - straight).abs().max()))
        orders = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
        assert orders == pytest.approx([4, 4], abs=0.1), gaps
        apart = bridge_velocity(t, x, m0, s0, m1, s1, 0.05, c=0.0) - straight
        assert float(apart.abs().max()) > 0.1
    C0, C1 = torch.tensor([[s0**2]]), torch.tensor([[s1**2]])
    plans = [s0 * s1 - float(schroedinger_plan(C0, C1, s)) for s in (0.2, 0.1, 0.05)]
    series = [s**2 / 2 - s**4 / (8 * s0 * s1) for s in (0.2, 0.1, 0.05)]  # to sigma^8 / (128 a^3)
    assert plans == pytest.approx(series, rel=1e-3)
    # The bridges themselves are different models, however small sigma is.
    near, nearer = schedules.brownian_bridge(0.05), schedules.brownian_bridge(0.04)
    assert not compare(near, nearer).equivalent


# All families: each is one with itself, and not with its twin


@pytest.mark.families
def test_each_family_is_one_with_itself_and_not_with_its_twin(family):
    """Whatever is installed: by the paths alone where there is one, for speed."""
    twin = testing.perturbed(family)
    model = exact_model(family)
    a, b = (family, twin) if isinstance(model, str) else (model.path, twin.exact().path)
    assert compare(a, a).equivalent
    report = compare(a, b)
    assert not report.equivalent, report
    assert report.reason
