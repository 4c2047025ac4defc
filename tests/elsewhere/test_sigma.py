"""Models in k-diffusion's convention, against closed forms for N(M, S^2)."""

import math

import numpy as np
import pytest
import torch

import interp
from interp.errors import FieldError, OptionError, UnknownName

M, S = 0.5, 0.6
F64 = torch.float64


def answers(x, sigma):
    r = (x - M) / (S**2 + sigma**2)
    data, noise = M + S**2 * r, sigma * r
    v = (noise - sigma * data) / (1 + sigma**2).sqrt()
    return {"data": data, "noise": noise, "score": -r, "v_prediction": v}


def model_of(view):
    def model(x, sigma):
        assert sigma.shape == (len(x),)
        return answers(x, sigma.double()[:, None])[view]

    return model


@pytest.mark.parametrize("view", ["data", "noise", "score", "v_prediction"])
@pytest.mark.parametrize("method", ["dopri5", "heun"])
def test_a_model_of_sigma_ends_at_the_closed_form(view, method):
    """To 1e-5 with a tolerance of 1e-7; 200 even steps of heun to 1e-3, their own error."""
    path, model = interp.from_k_diffusion(model_of(view), 80.0, view=view)
    x = 80 * torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    fixed = {"steps": 200} if method == "heun" else {"rtol": 1e-7, "atol": 1e-7}
    sol = interp.solve(path.ode(model), x, method=method, **fixed)
    exact = M + S / math.sqrt(S**2 + 80**2) * (x - M)
    assert float((sol.x - exact).abs().max()) < (1e-3 if method == "heun" else 1e-5)


class Discrete(torch.nn.Module):
    """The form of k-diffusion's DiscreteEpsDDPMDenoiser: a table, and a network told an index of it."""

    def __init__(self, net, alphas_cumprod):
        super().__init__()
        self.net = net
        self.register_buffer("sigmas", ((1 - alphas_cumprod) / alphas_cumprod).sqrt())

    def forward(self, x, sigma):
        logs = self.sigmas.log().numpy()
        index = torch.from_numpy(np.interp(sigma.log().numpy(), logs, range(len(logs))))
        s = sigma[:, None]
        return x - s * self.net(x / (1 + s**2).sqrt(), index)


def test_a_denoiser_that_carries_a_table_goes_through_it():
    """The table's nodes to 1e-12; the flow from its last sigma to 1e-3, log sigma linear between."""
    abar = torch.linspace(0.9999, 0.01, 200, dtype=F64)
    sigmas = ((1 - abar) / abar).sqrt()

    def noise(x, index):
        k = index.numpy()
        s = torch.from_numpy(np.interp(k, range(200), sigmas.log().numpy())).exp()
        s = s[:, None]
        return answers(x * (1 + s**2).sqrt(), s)["noise"]

    path, model = interp.from_k_diffusion(Discrete(noise, abar))
    nodes = 1 - (torch.arange(200, dtype=F64) + 1) / 200
    torch.testing.assert_close(path.noise_scale(nodes), sigmas, rtol=1e-12, atol=0)
    assert path.table == 200
    top = float(sigmas[-1])
    x = top * torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    sol = interp.solve(path.ode(model), x, rtol=1e-6, atol=1e-6)
    exact = M + S / math.sqrt(S**2 + top**2) * (x - M)
    assert float((sol.x - exact).abs().max()) < 1e-3


def test_the_paper_s_steps_are_even_ones():
    """Karras et al., eq. 5: sigma^(1/7) straight from 80 to .002, then a step to clean data."""
    path, model = interp.from_k_diffusion(model_of("data"), 80.0, 0.002)
    seen = []
    interp.solve(
        path.ode(lambda t, x: seen.append(float(path.sigma(t))) or model(path.sigma(t), x), "data"),
        torch.zeros(2, 1, dtype=F64),
        method="euler",
        steps=9,
    )
    i = torch.arange(10, dtype=F64) / 9
    karras = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(torch.tensor(seen, dtype=F64), karras, rtol=1e-9, atol=0)


def test_levels_in_single_precision_may_miss_the_ends_by_rounding():
    """As k-diffusion makes them: Karras's, with a 0 at the end."""
    path, model = interp.from_k_diffusion(model_of("data"), 80.0, 0.02)
    ramp = torch.linspace(0, 1, 15)
    sigmas = (80.0 ** (1 / 7) + ramp * (0.02 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    assert float(sigmas[-1]) != 0.02
    x = 80.0 * torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    sol = interp.solve(path.ode(model), x, method="ddim", grid=("sigmas", [*sigmas.tolist(), 0.0]))
    assert sol.stats.nfe == 15
    assert sol.x.isfinite().all()


def test_a_model_of_sigma_that_makes_no_sense_is_named():
    with pytest.raises(OptionError, match="neither sigma_max nor sigmas"):
        interp.from_k_diffusion(model_of("data"))
    with pytest.raises(OptionError, match="both sigma_max and sigmas"):
        interp.from_k_diffusion(model_of("data"), 80.0, sigmas=[0.1, 1.0])
    with pytest.raises(UnknownName, match="noise"):
        interp.from_k_diffusion(model_of("data"), 80.0, view="nois")
    with pytest.raises(OptionError, match="the model is a float"):
        interp.from_k_diffusion(2.0, 80.0)
    path, model = interp.from_k_diffusion(lambda x, sigma: x[:1], 80.0)
    with pytest.raises(FieldError, match=r"returned \(1, 3\)"):
        interp.solve(path.ode(model), torch.zeros(2, 3), steps=2, method="euler")
