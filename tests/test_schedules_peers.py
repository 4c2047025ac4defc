"""Schedules and tables of other libraries as independent routes, each where it is installed.

What they do differently from the papers:

- diffusers keeps tables in float32: 1 - alphas_cumprod of the linear table is 1.7e-4 off at index 0.
  Some of its zero-terminal-SNR schedulers replace the last alphas_cumprod, 0, by 2^-24.
- azula's VP schedule has no linear term (log alpha = u^2 log alpha_min, where Song et al. 2021 have
  beta_min > 0), and its sigma^2 is 1 - alpha^2 + sigma_min^2, which keeps no variance. Its cosine
  schedule is the great circle, not that of Nichol and Dhariwal 2021.
- flow_matching's CosineScheduler is the great circle too. Its VPScheduler is that of Song et al.,
  with sigma as sqrt(1 - exp(-T)), which loses half of the digits near the data.
- torchcfm's VariancePreserving matcher is the great circle, not the VP diffusion.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules

F64 = torch.float64
T = torch.linspace(0, 1, 101, dtype=F64)
ROUNDING = {"rtol": 1e-13, "atol": 1e-14}  # a dozen roundings in float64, where nothing cancels


def peer(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library warns of at import is its own affair
        module: ModuleType = pytest.importorskip(name)
    return module


def nodes(n: int) -> Tensor:
    return torch.tensor([1 - (k + 1) / n for k in range(n)], dtype=F64)


# diffusers

SCHEDULERS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_tables(name: str) -> None:
    """Theirs in float32, 6e-8; the betas of the cosine are a difference of up to 1e-4 of that."""
    theirs = peer("diffusers").DDPMScheduler(**SCHEDULERS[name])
    betas = schedules.named_betas(name, 1000)
    torch.testing.assert_close(theirs.betas.double(), betas, rtol=3e-7, atol=0)
    ours = schedules.from_betas(name, 1000).beta(nodes(1000)) ** 2
    # A float32 product of 1000 roundings.
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours, rtol=1000 * 6e-8, atol=0)
    # Their betas, multiplied in float64, are ours at every node.
    same = schedules.from_betas(theirs.betas).coefficients(nodes(1000))
    exact = torch.cumprod(1 - theirs.betas.double(), 0)
    torch.testing.assert_close(same.beta**2, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(same.sigma**2, 1 - exact, rtol=1e-11, atol=0)  # 1e-16 over 1e-5
    again = schedules.from_alphas_cumprod(theirs.alphas_cumprod).beta(nodes(1000)) ** 2
    torch.testing.assert_close(again, theirs.alphas_cumprod.double(), rtol=1e-14, atol=0)


def test_diffusers_zero_terminal_snr() -> None:
    options = SCHEDULERS["scaled_linear"]
    theirs = peer("diffusers").DDIMScheduler(**options, rescale_betas_zero_snr=True)
    ours = schedules.from_betas("scaled_linear", 1000, zero_terminal_snr=True)
    found = ours.beta(nodes(1000)) ** 2
    assert found[-1] == 0
    # Their float32 betas, multiplied again.
    torch.testing.assert_close(theirs.alphas_cumprod.double(), found, rtol=1e-4, atol=2**-24)


# azula


def test_azula_schedules() -> None:
    noise = peer("azula.noise")
    pairs = [
        (noise.VESchedule(0.01, 50.0), schedules.variance_exploding(0.01, 50.0)),
        (noise.RectifiedSchedule(0.0, 0.0), schedules.linear()),
        (noise.CosineSchedule(0.0, 0.0), schedules.trigonometric()),
    ]
    for theirs, ours in pairs:
        alpha, sigma = theirs(1 - T)
        torch.testing.assert_close(ours.beta(T), alpha, **ROUNDING)
        torch.testing.assert_close(ours.alpha(T), sigma, rtol=1e-13, atol=1e-7)  # sqrt(1e-16)


def test_azula_vp_has_no_linear_term() -> None:
    """-(B1 - B0) / 4 u^2 - B0 / 2 u against -(B1 + B0) / 4 u^2: they differ by B0 / 2 u (1 - u)."""
    theirs = peer("azula.noise").VPSchedule(math.exp(-5.025), 0.0).alpha(1 - T)
    gap = theirs.log() - schedules.variance_preserving().beta(T).log()
    torch.testing.assert_close(gap, 0.05 * T * (1 - T), rtol=0, atol=1e-14)


# flow_matching


def test_flow_matching_schedules() -> None:
    """alpha, sigma and both slopes; inside, since their sigma' of VP is 0 / 0 at t = 1."""
    scheduler = peer("flow_matching.path.scheduler")
    root = interp.Interpolant(lambda t: torch.sqrt((1 - t) * (1 + t)), lambda t: t)
    pairs = [
        (scheduler.CondOTScheduler(), schedules.linear()),
        (scheduler.PolynomialConvexScheduler(3.0), schedules.polynomial(3.0)),
        (scheduler.CosineScheduler(), schedules.trigonometric()),
        (scheduler.VPScheduler(), schedules.variance_preserving()),
        (scheduler.VPScheduler(0.5, 9.0), schedules.variance_preserving(0.5, 9.0)),
        (scheduler.LinearVPScheduler(), root),
    ]
    t = T[1:-1]
    for theirs, ours in pairs:
        out, k = theirs(t), ours.coefficients(t)
        # 1 - exp(-T) at t = .99 has lost three of its digits.
        loss = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(k.beta, out.alpha_t, **loss)
        torch.testing.assert_close(k.sigma, out.sigma_t, **loss)
        torch.testing.assert_close(k.dbeta, out.d_alpha_t, **loss)
        torch.testing.assert_close(k.dsigma, out.d_sigma_t, **loss)
        inverse = theirs.snr_inverse(out.alpha_t / out.sigma_t)
        torch.testing.assert_close(ours.time_at_log_snr(ours.log_snr(t)), inverse, **loss)


# torchcfm


def test_torchcfm_paths() -> None:
    matching = peer("torchcfm.conditional_flow_matching")
    x0, x1 = torch.randn(2, 101, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = torch.randn(101, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = T.clamp(0.01, 0.99)
    bridge = schedules.brownian_bridge(0.7)
    theirs = matching.SchrodingerBridgeConditionalFlowMatcher(sigma=0.7)
    point = theirs.sample_xt(x0, x1, t, z)
    torch.testing.assert_close(bridge.at(t, x0, x1, z), point, **ROUNDING)
    rate = theirs.compute_conditional_flow(x0, x1, t, point)
    torch.testing.assert_close(bridge.rate(t, x0, x1, z), rate, rtol=1e-6, atol=1e-6)  # their 1e-8
    circle = matching.VariancePreservingConditionalFlowMatcher(sigma=0.0)
    point = circle.sample_xt(x0, x1, t, z)
    torch.testing.assert_close(schedules.trigonometric().at(t, x0, x1), point, **ROUNDING)
    rate = circle.compute_conditional_flow(x0, x1, t, point)
    torch.testing.assert_close(schedules.trigonometric().rate(t, x0, x1), rate, **ROUNDING)
