"""Preconditioned networks, and what models made elsewhere are told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import interp
from interp import schedules
from interp.errors import FieldError, OptionError, TimeError, UndeterminedView, UnknownName
from interp.losses import Regression
from interp.preconditioning import KINDS, NOISES

F64 = torch.float64
SD = 0.5
LAW = interp.exact.Gaussian([0.2, -0.4], [[0.3, 0.1], [0.1, 0.2]])
POINTS = torch.tensor([[0.0, 0.3], [-1.0, 1.0], [2.0, -0.5]], dtype=F64)
LINEAR, TRIG, VP = schedules.linear(), schedules.trigonometric(), schedules.variance_preserving()
PATHS = {"linear": LINEAR, "trigonometric": TRIG, "variance_preserving": VP}


class Net(nn.Module):
    """Some function of the noise level and the point, of order 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, noise, x):
        return self.layers(torch.cat([noise.expand(len(x))[:, None], x], 1))


NET = Net()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_every_schedule_it_is_one_function_of_scaled_point_and_noise_level(kind, noise):
    """D_B(t_B, x_B) = D_A(t_A, x_A) at x / beta and s alike: to 1e-12, rounding."""
    first = interp.precondition(NET, LINEAR, kind, noise=noise)
    for path in (TRIG, VP):
        second = interp.precondition(NET, path, kind, noise=noise)
        for s in (0.02, 1.0, 50.0):
            times = [
                p.time_at_log_snr(torch.tensor(-2 * math.log(s), dtype=F64)) for p in (LINEAR, path)
            ]
            scales = [p.beta(t) for p, t in zip((LINEAR, path), times, strict=True)]
            x = POINTS * math.hypot(s, SD)
            a, b = first(times[0], scales[0] * x), second(times[1], scales[1] * x)
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_preconditioned_for_another_path_it_is_the_adapted_model(kind):
    """`precondition(net, b)` and ``b.adapt(precondition(net, a))``, where both are: 1e-10, inversions."""
    first = interp.precondition(NET, LINEAR, kind)
    for path in (TRIG, VP):
        second = interp.precondition(NET, path, kind)
        adapted = path.adapt(first, trained_on=LINEAR, view="data")
        for t in (0.05, 0.4, 0.95):
            a, b = adapted(t, POINTS), second(t, POINTS)
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [1e-4, 0.3, 0.9, 1 - 1e-4])
def test_input_and_target_of_the_network_have_unit_variance(kind, name, t):
    """For data of standard deviation sigma_data, from the shares of x1 and noise: 1e-9."""
    path, sd = PATHS[name], 0.7
    model = interp.precondition(NET, path, kind, sigma_data=sd)
    c, k = model.scalings(t), path.coefficients(t)
    assert (c.c_in**2 * ((k.beta * sd) ** 2 + k.sigma**2)).item() == pytest.approx(1, abs=1e-12)
    # target = (x1 - c_skip x) / c_out with x = beta x1 + sigma n, read off by its two unit inputs
    x1, n = torch.eye(2, dtype=F64)
    target = model.output(sd * x1, t, k.beta * sd * x1 + k.sigma * n)
    # near clean data 1 - c_skip beta is s^2 / sd^2, a difference of ones: 1e-16 over s
    assert target.square().sum().item() == pytest.approx(1, abs=1e-8)
    back = model.denoised(target, t, k.beta * sd * x1 + k.sigma * n)
    torch.testing.assert_close(back, sd * x1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_loss_is_edm_s(name):
    """The "edm" weight on the data estimate is 1 on the network's own output: to 1e-9, rounding.

    And both are the published numbers in s = sigma / beta and x / beta.
    """
    path = PATHS[name]
    model = interp.precondition(NET, path, sigma_data=SD)
    loss = Regression(path, "data", {"name": "edm", "sigma_data": SD})
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 40, 2, dtype=F64, generator=g)
    t = torch.linspace(0.05, 0.95, 40, dtype=F64)
    point, s = path.at(t, x0, x1), path.noise_scale(t)[:, None]
    y = point / path.beta(t)[:, None]  # EDM's own variable
    r = torch.sqrt(s**2 + SD**2)
    F = NET((s.log() / 4)[:, 0], y / r)
    D = SD**2 / r**2 * y + s * SD / r * F
    torch.testing.assert_close(model(t, point), D, rtol=1e-12, atol=1e-12)
    published = ((s**2 + SD**2) / (s * SD) ** 2 * (D - x1) ** 2).mean(1)
    torch.testing.assert_close(loss.rows(model, t, x0, x1), published, rtol=1e-9, atol=0)
    own = (F - model.output(x1, t, point)).square().mean(1)
    torch.testing.assert_close(own, published, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["edm", "trigflow", "variance"])
@pytest.mark.parametrize("name", PATHS)
def test_from_end_to_end_it_samples_as_the_exact_model(kind, name):
    """A network that has learned the exact data estimate, on every path from t = 0 to 1."""
    path = PATHS[name]

    def learned(angle: Tensor, x: Tensor) -> Tensor:
        """The exact output, found on the path where sigma / beta is what the angle says."""
        s = SD * torch.tan(angle.double())
        t = LINEAR.time_at_log_snr(-2 * s.log()) if angle < math.pi / 2 else torch.tensor(0.0)
        k = LINEAR.coefficients(t)
        here = x.double() * torch.hypot(k.sigma, SD * k.beta)
        data = LAW.data(LINEAR)(t, here)
        noise = LAW.noise(LINEAR)(t, here)
        if kind == "variance":
            return data / SD
        sign = 1 if kind == "edm" else -1
        return (
            sign * (k.sigma * data / SD - SD * k.beta * noise) / torch.hypot(k.sigma, SD * k.beta)
        )

    model = interp.precondition(learned, path, kind, sigma_data=SD, noise="angle")
    sol = interp.solve(path.ode(model, view="data"), POINTS, rtol=1e-6, atol=1e-6)
    truth = LAW.flow(path)(0.0, 1.0, POINTS)
    assert (sol.x - truth).abs().max() < 1e-4  # dozens of steps of such errors
    with pytest.raises(OptionError, match='view="data"'):
        path.ode(model, view="velocity")
    assert path.ode(model).view == "data"
    with pytest.raises(OptionError, match='view="data"'):
        Regression(path, "velocity")(model, POINTS)


def test_float32_points_are_seen_at_float64_times():
    """In float32 1 - t has lost 1 % of itself at 1 - 5e-6; s reaches the network to 1e-6."""
    seen = []

    def net(noise, x):
        seen.append(noise)
        return x

    model = interp.precondition(net, LINEAR)
    guided = interp.guide(model, {}, 2.0)
    for wrapped in (model, guided):
        term = LINEAR.ode(wrapped, view="data")
        grid = [1 - 5e-6, 1 - 4e-6, 1 - 1e-6]
        interp.solve(term, POINTS.float(), (grid[0], grid[-1]), "euler", grid=grid)
        told = torch.stack(seen[:1]).double()
        assert told.dtype == F64
        wanted = math.log(5e-6 / (1 - 5e-6)) / 4
        assert told[0].item() == pytest.approx(wanted, rel=1e-6)
        seen.clear()


def test_where_the_noise_level_is_infinite_the_error_says_what_is_finite():
    for noise in ("edm", "log_snr"):
        model = interp.precondition(NET, LINEAR, noise=noise)
        with pytest.raises(TimeError, match='t = 0.*noise="angle"'):
            model(0.0, POINTS)
    with pytest.raises(TimeError, match="kind="):
        interp.precondition(NET, LINEAR, "noise", noise="angle")(0.0, POINTS)
    model = interp.precondition(NET, LINEAR, noise="angle")
    assert model(0.0, POINTS).isfinite().all()
    torch.testing.assert_close(model(1.0, POINTS), POINTS, rtol=0, atol=1e-15)
    with pytest.raises(UndeterminedView, match="clean data"):
        model.output(POINTS, 1.0, POINTS)


def test_what_cannot_be_preconditioned():
    each = interp.Interpolant(lambda t: (1 - t[..., None]).expand(*t.shape, 3), lambda t: t)
    with pytest.raises(OptionError, match=r"of shape \(3,\).*one noise level"):
        interp.precondition(NET, each)
    two_sided = interp.Interpolant(lambda t: 1 - t, lambda t: t, gaussian_base=False)
    for call, error in (
        (lambda: interp.precondition(NET, LINEAR, "edmm"), UnknownName),
        (lambda: interp.precondition(NET, LINEAR, noise="logsnr"), UnknownName),
        (lambda: interp.precondition(3, LINEAR), OptionError),
        (lambda: interp.precondition(NET, two_sided), OptionError),
        (lambda: interp.precondition(NET, LINEAR, sigma_data=0), OptionError),
        (lambda: interp.precondition(lambda n, x: x[:1], LINEAR)(0.5, POINTS), FieldError),
        (lambda: interp.precondition(NET, LINEAR)(torch.rand(2), POINTS), TimeError),
    ):
        with pytest.raises(error):
            call()
    assert [p.shape for p in interp.precondition(NET, LINEAR).parameters()]


def test_the_scalings_are_diffusers_s():
    """EDM in another library, which counts in float32: 1e-6."""
    k = LINEAR.coefficients(torch.tensor([0.1, 0.5, 0.99], dtype=F64))
    s, sd = k.sigma / k.beta, 0.5
    c = interp.precondition(NET, LINEAR, sigma_data=sd).scalings(k.t)
    ours = c.c_in * k.beta, c.c_skip * k.beta, c.c_out
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=sd)
    x, output = torch.ones(3, dtype=F64), torch.ones(3, dtype=F64)
    torch.testing.assert_close(scheduler.precondition_inputs(x, s), ours[0], rtol=1e-6, atol=0)
    found = scheduler.precondition_outputs(x, output, s)
    torch.testing.assert_close(found, ours[1] + ours[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(scheduler.precondition_noise(s), c.c_noise, rtol=1e-6, atol=0)


# What models made elsewhere are told


def told_backwards(convention, told: Tensor) -> Tensor:
    """The number that the convention's opposite would have been."""
    if convention in ("t", "noise"):
        return 1 - told
    if convention == "sigma":
        return 1 / told
    if convention == "log_snr":
        return -told
    return convention[1] - 2 - told  # n (1 - t) - 1 with t and 1 - t exchanged


def time_of(path, convention, told: Tensor) -> Tensor:
    """The t that a model of the convention takes from what it is told."""
    if convention == "t":
        return told
    if convention == "noise":
        return 1 - told
    if convention == "sigma":
        return path.time_at_log_snr((-2 * told.log()).clamp(path.log_snr(0.0), path.log_snr(1.0)))
    if convention == "log_snr":
        return path.time_at_log_snr(told.clamp(path.log_snr(0.0), path.log_snr(1.0)))
    return 1 - (told + 1) / convention[1]


@pytest.mark.parametrize("convention", ["t", "noise", "sigma", "log_snr", ("index", 1000)], ids=str)
@pytest.mark.parametrize("view", ["noise", "data", "velocity"])
@pytest.mark.parametrize("name", PATHS)
def test_told_the_wrong_way_round_a_model_gives_a_visibly_wrong_sample(name, view, convention):
    """Right: the exact flow to the solver's error. Wrong: points off by a fifth of the spread or more."""
    path = PATHS[name]
    law = interp.exact.Gaussian(0.5, 0.3**2)
    exact = {"noise": law.noise, "data": law.data, "velocity": law.velocity}[view](path)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    start, stop = 0.02, 0.9  # not symmetric, or what is wrong early would be made good late
    truth = law.flow(path)(start, stop, x)
    errors = []
    for flipped in (False, True):

        def model(told, x, flipped=flipped):
            told = told.double()
            told = told_backwards(convention, told) if flipped else told
            return exact(time_of(path, convention, told).clamp(1e-6, 1 - 1e-6), x)

        term = path.ode(model, view=view, time=convention)
        sol = interp.solve(term, x, (start, stop), "heun", steps=60)
        errors.append(((sol.x - truth).abs().max() / truth.std()).item())
    right, wrong = errors
    assert right < 0.02  # Heun in 60 steps of uneven clocks
    assert wrong > 0.2
