"""Networks of diffusers under our solvers.

The networks here answer for N(M, S^2) exactly, in each scheduler's own words and from its own float32
numbers, so that a run of ours has to end at the closed form of the flow.
"""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import interp
from interp.errors import (
    FieldError,
    InterpError,
    OptionError,
    TimeError,
    UnknownName,
    Unsupported,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

M, S = 0.5, 0.6
F64 = torch.float64


def answers(x, beta, sigma, kind):
    """E[... | x] for data N(M, S^2) at x = beta data + sigma noise."""
    r = (x - beta * M) / (beta**2 * S**2 + sigma**2)
    data, noise = M + beta * S**2 * r, sigma * r
    return {
        "epsilon": noise, "sample": data, "flow_prediction": noise - data, "score": -r,
        "v_prediction": beta * noise - sigma * data,
    }[kind]  # fmt: skip


def column(timestep, x):
    assert timestep.shape == (len(x),)
    return timestep.double().reshape(-1, *(1,) * (x.ndim - 1))


def table_network(scheduler, kind):
    """The exact answer at an index of the scheduler's table, log-SNR linear between two."""
    abar = scheduler.alphas_cumprod.double().clamp(min=1e-12)
    lam = torch.log(abar / (1 - abar)).numpy()

    def net(x, timestep, **cond):
        k = column(timestep, x)
        between = torch.from_numpy(np.interp(k.numpy(), np.arange(len(lam)), lam))
        beta, sigma = torch.sigmoid(between).sqrt(), torch.sigmoid(-between).sqrt()
        return answers(x, beta, sigma, kind)

    return net


def ends_at_the_closed_form(path, model, start, tolerance):
    x = torch.linspace(-2, 2, 7, dtype=F64)[:, None] * path.sigma(start)
    k = path.coefficients(start)
    sol = interp.solve(path.ode(model), x, (start, 1.0), rtol=1e-7, atol=1e-7)
    exact = M + S / (k.beta**2 * S**2 + k.sigma**2).sqrt() * (x - k.beta * M)
    assert float((sol.x - exact).abs().max()) < tolerance


TABLES = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim, Stable Diffusion": (
        "DDIMScheduler",
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    ),
    "cosine": ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    "laplace": ("DDPMScheduler", {"beta_schedule": "laplace"}),
    "exp": ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    "given, of 50": (
        "PNDMScheduler",
        {"num_train_timesteps": 50, "trained_betas": np.linspace(1e-3, 0.3, 50)},
    ),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "cogvideo": ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0}),
}  # fmt: skip


def made(name, options):
    return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", TABLES)
def test_a_network_of_every_table_and_type_ends_at_the_closed_form(name, kind):
    """To 1e-3, their float32 tables, and the square of the last cell's sigma / beta.

    There the network is told index 0 and its noise held, a first-order step: .01 to .03 for the usual
    tables, .3 for laplace.
    """
    cls, options = TABLES[name]
    scheduler = made(cls, {**options, "prediction_type": kind})
    path, model = interp.from_diffusers(table_network(scheduler, kind), scheduler)
    size = len(scheduler.alphas_cumprod)
    assert (path.table, model.time) == (size, ("index", size))
    last = path.noise_scale(1 - 1 / size).item()
    ends_at_the_closed_form(path, model, 0.0, 1e-3 + 2 * last**2)


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_theirs_to_the_rounding_of_float32(name):
    """abar to 1e-4 of it: a product of a thousand float32 factors; and 1e-7, a rounding of 1."""
    scheduler = made(*TABLES[name])
    path, _ = interp.from_diffusers(lambda x, timestep: x, scheduler)
    k = torch.arange(len(scheduler.alphas_cumprod), dtype=F64)
    ours = path.beta(1 - (k + 1) / len(k)) ** 2
    theirs = scheduler.alphas_cumprod.double()
    assert bool(((ours - theirs).abs() <= 1e-4 * ours + 1e-7).all())


@pytest.mark.parametrize("cls", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_a_table_rescaled_to_no_signal_begins_at_noise_itself(cls, kind):
    """Theirs has 2^-24 in place of 0 in four classes, above the entry before it; ours has 0."""
    scheduler = made(cls, {"rescale_betas_zero_snr": True, "prediction_type": kind})
    path, model = interp.from_diffusers(table_network(scheduler, kind), scheduler)
    assert path.coefficients(0.0).beta == 0
    if cls == "EulerDiscreteScheduler":
        assert scheduler.alphas_cumprod[-1] > scheduler.alphas_cumprod[-2]
    ends_at_the_closed_form(path, model, 0.0, 2e-3)


def test_a_network_of_the_noise_is_refused_where_there_is_nothing_but_noise():
    scheduler = made("DDIMScheduler", {"rescale_betas_zero_snr": True})
    path, model = interp.from_diffusers(table_network(scheduler, "epsilon"), scheduler)
    with pytest.raises(TimeError, match="first usable t"):
        interp.solve(path.ode(model), torch.zeros(2, 1, dtype=F64))


# Flows


FLOWS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}, "flow_prediction", {}, 1.0),
    "shift 3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow_prediction", {}, 3.0),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, "flow_prediction", {}, 2.0),
    "dynamic mu": (
        "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "flow_prediction",
        {"mu": 0.7}, math.exp(0.7),
    ),
    "dynamic tokens": (  # a quarter of the way from 256 to 4096 tokens
        "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "flow_prediction",
        {"tokens": 1216}, math.exp(0.5 + 0.25 * 0.65),
    ),
    "dynamic linear": (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "time_shift_type": "linear"}, "flow_prediction",
        {"mu": 1.5}, 1.5,
    ),
    "unipc": (
        "UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 5.0}, "flow_prediction",
        {}, 5.0,
    ),
    "dpm, v": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "v_prediction", {}, 1.0),
    "dpm, data": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "sample", {}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_a_network_of_every_flow_ends_at_the_closed_form_at_the_pace_of_its_shift(name):
    """To 1e-5: the network is exact, and the tolerance 1e-7."""
    cls, options, kind, given, shift = FLOWS[name]
    typed = {"prediction_type": kind} if "use_flow_sigmas" in options else {}
    scheduler = made(cls, {**options, **typed})

    def net(x, timestep):
        sigma = column(timestep, x) / 1000
        return answers(x, 1 - sigma, sigma, kind)

    path, model = interp.from_diffusers(net, scheduler, **given)
    t = torch.linspace(0, 1, 11, dtype=F64)
    u = 1 - t
    torch.testing.assert_close(path.sigma(t), shift * u / (1 + (shift - 1) * u), rtol=1e-12, atol=0)
    torch.testing.assert_close(path.beta(t) + path.sigma(t), torch.ones_like(t))
    ends_at_the_closed_form(path, model, 0.0, 1e-5)


def test_inverted_sigmas_are_a_flow_towards_the_data():
    """Mochi's scheduler: the network is told 1000 (1 - sigma) and moves x by d(1 - sigma) times it."""
    scheduler = made("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True})
    scheduler.set_timesteps(200)

    def net(x, timestep):
        beta = column(torch.as_tensor(timestep).expand(len(x)), x) / 1000
        return -answers(x, beta, 1 - beta, "flow_prediction")

    x = torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    theirs = x
    for t in scheduler.timesteps:
        theirs = scheduler.step(net(theirs, t), t, theirs).prev_sample
    path, model = interp.from_diffusers(net, scheduler)
    ends_at_the_closed_form(path, model, 0.0, 1e-5)
    exact = M + S * x
    assert float((theirs - exact).abs().max()) < 0.02  # 200 steps of order 1


# Networks in the clothes of Karras et al., and others


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential", "sigma_max": 20.0}),
        ("CosineDPMSolverMultistepScheduler", {}),
    ],
)
def test_a_preconditioned_network_ends_at_the_closed_form(cls, options):
    """By the scheduler's own scalings, c_in to c_noise; to 1e-5."""
    scheduler = made(cls, options)
    cosine = cls.startswith("Cosine")

    def net(x, timestep):
        u = column(timestep, x)
        sigma = torch.tan(u * math.pi / 2) if cosine else torch.exp(4 * u)
        sd = scheduler.config.sigma_data
        point = x * (sigma**2 + sd**2).sqrt()  # what c_in made of x
        data = answers(point, 1.0, sigma, "sample")
        nothing = scheduler.precondition_outputs(point, torch.zeros_like(x), sigma)
        unit = scheduler.precondition_outputs(point, torch.ones_like(x), sigma) - nothing
        return (data - nothing) / unit

    path, model = interp.from_diffusers(net, scheduler)
    assert path.noise_scale(0.0).item() == pytest.approx(scheduler.config.sigma_max, rel=1e-12)
    assert path.noise_scale(1.0).item() == pytest.approx(scheduler.config.sigma_min, rel=1e-12)
    x = torch.linspace(-2, 2, 7, dtype=F64)[:, None] * path.sigma(0.0)
    sol = interp.solve(path.ode(model), x, rtol=1e-7, atol=1e-7)
    low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
    last = M + math.sqrt(S**2 + low**2) / math.sqrt(S**2 + high**2) * (x - M)
    assert float((sol.x - answers(last, 1.0, low, "sample")).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "grid", [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
)
def test_stable_video_diffusion_is_told_a_quarter_of_log_sigma(grid):
    """v of unit data, from its own scalings in EulerDiscreteScheduler.step; to 1e-4, by float32."""
    ends = {"sigma_min": 0.01, "sigma_max": 100.0} if grid else {}
    scheduler = made(
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", "prediction_type": "v_prediction", **ends, **grid},
    )

    def net(x, timestep):
        sigma = torch.exp(4 * column(timestep, x))
        beta = (1 + sigma**2) ** -0.5
        return answers(x, beta, sigma * beta, "v_prediction")

    path, model = interp.from_diffusers(net, scheduler)
    low, high = path.noise_scale(0.0), path.noise_scale(1.0)
    if ends:
        assert (low.item(), high.item()) == pytest.approx((100.0, 0.01), rel=1e-12)
    ends_at_the_closed_form(path, model, 0.0, 2e-4)


def test_dance_diffusion_and_the_score_sde_of_ve():
    scheduler = made("IPNDMScheduler", {})

    def v(x, timestep):
        angle = column(timestep, x) * math.pi / 2
        return answers(x, angle.cos(), angle.sin(), "v_prediction")

    path, model = interp.from_diffusers(v, scheduler)
    ends_at_the_closed_form(path, model, 0.0, 1e-5)

    scheduler = made("ScoreSdeVeScheduler", {"sigma_max": 50.0})

    def score(x, timestep):
        return answers(x, 1.0, column(timestep, x), "score")

    path, model = interp.from_diffusers(score, scheduler)
    assert path.sigma(0.0).item() == pytest.approx(50.0)
    ends_at_the_closed_form(path, model, 0.0, 1e-3)  # sigma_min = .01 is left, less one step


# Times and calls


def test_at_the_nodes_of_a_table_the_network_is_told_whole_numbers():
    scheduler = made("DDPMScheduler", {"num_train_timesteps": 20})
    seen = []

    def net(x, timestep, **cond):
        seen.append((timestep, cond))
        return x

    path, model = interp.from_diffusers(net, scheduler)
    grid = [1 - (k + 1) / 20 for k in (19, 13, 7, 3, 0)] + [1.0]
    label = torch.tensor([4, 5])
    interp.solve(
        path.ode(model), torch.ones(2, 3), (0.0, 1.0), "euler", grid=grid, cond={"label": label}
    )
    assert [t.tolist() for t, _ in seen] == [[k, k] for k in (19, 13, 7, 3, 0)]
    assert all(t.dtype is torch.int64 for t, _ in seen)
    assert all(cond["label"] is label for _, cond in seen)
    seen.clear()
    interp.solve(path.ode(model), torch.ones(2, 3), (0.0, 1.0), "midpoint", grid=grid)
    between = [t for t, _ in seen if t.is_floating_point()]
    assert between  # the middles of steps, in float32
    assert all(t.dtype is torch.float32 and 0 <= float(t[0]) <= 19 for t in between)


def test_a_network_that_embeds_whole_numbers_says_so_between_them():
    from tests.elsewhere.conftest import tiny_unet

    scheduler = made("DDPMScheduler", {})
    net = tiny_unet(time_embedding_type="learned", num_train_timesteps=1000).eval()
    _, model = interp.from_diffusers(net, scheduler)
    x = torch.zeros(1, 1, 8, 8)
    model(torch.tensor(3.0, dtype=F64), x)
    with pytest.raises(TimeError, match="whole timesteps alone"):
        model(torch.tensor(3.5, dtype=F64), x)


def test_variances_beside_the_prediction_are_dropped():
    scheduler = made("DDPMScheduler", {"variance_type": "learned_range"})
    x = torch.randn(2, 3, 4, 4)
    _, model = interp.from_diffusers(lambda x, t: torch.cat([x, 0 * x + 9], 1), scheduler)
    assert bool((model(torch.tensor(5.0), x) == x).all())
    _, model = interp.from_diffusers(lambda x, t: x, scheduler)
    with pytest.raises(FieldError, match="twice the channels"):
        model(torch.tensor(5.0), x)


def test_the_model_is_a_module_whose_parameters_are_the_network_s():
    from tests.elsewhere.conftest import tiny_unet

    net = tiny_unet()
    path, model = interp.from_diffusers(net, made("DDPMScheduler", {}))
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    x = torch.randn(2, 1, 8, 8)
    sol = interp.solve(path.ode(model), x, (0.5, 0.6), "euler", steps=2, backend="torch")
    assert not sol.x.requires_grad or sol.x.grad_fn is not None


# Bad input


def refused(error, match, scheduler, net=lambda x, t: x, **options):
    with pytest.raises(error, match=match):
        interp.from_diffusers(net, scheduler, **options)


@pytest.mark.parametrize(
    "cls", ["LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "SCMScheduler"]
)
def test_a_network_that_jumps_is_not_integrated(cls):
    refused(Unsupported, f"{cls} is for a network that jumps", made(cls, {}))


def test_what_a_configuration_says_is_understood_or_named():
    table = dict(made("DDIMScheduler", {}).config)
    name = {"_class_name": "DDIMScheduler"}
    interp.from_diffusers(lambda x, t: x, {**table, **name})
    refused(OptionError, "no _class_name", table)
    refused(OptionError, "warm_up=3", {**table, **name, "warm_up": 3})
    interp.from_diffusers(lambda x, t: x, {**table, **name, "warm_up": False})
    refused(UnknownName, "epsilon", {**table, **name, "prediction_type": "epsilonn"})
    refused(OptionError, "no prediction_type", {**table, **name, "prediction_type": None})
    refused(UnknownName, "scaled_linear", {**table, **name, "beta_schedule": "scaled_lin"})
    del table["beta_end"]
    refused(OptionError, "'beta_end', and no value is guessed", {**table, **name})
    refused(Unsupported, "MadeUpScheduler is not one", {"_class_name": "MadeUpScheduler"})
    refused(
        OptionError, "names no path", made("DDPMScheduler", {"prediction_type": "flow_prediction"})
    )
    refused(OptionError, r"betas\[1\] is 1.5", made("DDPMScheduler", {"trained_betas": [0.1, 1.5]}))
    cosine = made("CosineDPMSolverMultistepScheduler", {"sigma_data": 0.5})
    refused(OptionError, "sigma_data=1", cosine)


def test_a_dynamic_shift_is_asked_for_and_a_static_one_is_not():
    dynamic = made("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
    refused(OptionError, "mu=, or tokens=", dynamic)
    refused(OptionError, "mu=, or tokens=", dynamic, mu=1.0, tokens=256)
    refused(OptionError, "Leave them out", made("FlowMatchEulerDiscreteScheduler", {}), mu=1.0)


def test_a_table_or_a_shift_that_was_changed_afterwards_is_noticed():
    scheduler = made("DDPMScheduler", {})
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    refused(OptionError, "not the one that its configuration describes", scheduler)
    flow = made("FlowMatchEulerDiscreteScheduler", {})
    flow.set_shift(4.0)
    path, _ = interp.from_diffusers(lambda x, t: x, flow)
    assert path.sigma(0.5).item() == pytest.approx(4 * 0.5 / (1 + 3 * 0.5))


def test_what_is_no_network_or_scheduler_is_named(tmp_path):
    ddpm = made("DDPMScheduler", {})
    refused(OptionError, "the model is a float", ddpm, net=3.0)
    refused(OptionError, "without a configuration", object())
    refused(OptionError, "no config.json", ddpm, net=str(tmp_path))
    with pytest.raises(OptionError, match=r"no pipeline \(model_index.json\)"):
        interp.from_diffusers("google/ddpm-cifar10-32")
    with pytest.raises(OptionError, match="no network and scheduler of its own"):
        interp.from_diffusers(lambda x, t: x)
    flux = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, in_channels=4, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    refused(OptionError, "FluxTransformer2DModel is told", ddpm, net=flux)


def test_an_answer_that_does_not_fit_is_named():
    _, model = interp.from_diffusers(lambda x, t: x[:, :1], made("DDPMScheduler", {}))
    with pytest.raises(FieldError, match=r"returned \(2, 1, 4, 4\) for points of shape"):
        model(torch.tensor(5.0), torch.zeros(2, 3, 4, 4))
    _, model = interp.from_diffusers(lambda x, t: "picture", made("DDPMScheduler", {}))
    with pytest.raises(FieldError, match="returned a str"):
        model(torch.tensor(5.0), torch.zeros(2, 3, 4, 4))


def test_every_scheduler_of_diffusers_is_read_or_refused_by_name():
    """None crashes: each class that can be built from its defaults gives a path or one of our errors."""
    read = 0
    for name in dir(diffusers):
        if not name.endswith("Scheduler"):
            continue
        try:
            scheduler = getattr(diffusers, name)()
        except (TypeError, ImportError, ValueError):
            continue
        try:
            path, _ = interp.from_diffusers(lambda x, t: x, scheduler)
            assert path.gaussian_base
            read += 1
        except InterpError as error:
            assert name in str(error)  # noqa: PT017
    assert read >= 25


def test_importing_interp_does_not_import_diffusers():
    code = (
        "import sys, interp\n"
        "interp.from_diffusers, interp.from_k_diffusion\n"
        "c = dict(_class_name='FlowMatchEulerDiscreteScheduler', num_train_timesteps=1000, shift=3.0)\n"
        "interp.from_diffusers(lambda x, t: x, c)\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Real networks, saved and loaded


def test_a_trained_unet_is_one_model_by_both_routes(unet_pipeline):
    """DDIM by diffusers' own loop, Euler in (x / beta, sigma / beta) by ours: the same pictures.

    To 2e-3: their table is a float32 one, whose first sigma is off by 1.5e-4 of itself.
    """
    path, model = interp.from_diffusers(unet_pipeline)
    pipe = diffusers.DDPMPipeline.from_pretrained(unet_pipeline)
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(20)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(pipe.unet(theirs, t).sample, t, theirs).prev_sample
    grid = [1 - (int(k) + 1) / 1000 for k in scheduler.timesteps] + [1.0]
    ours = interp.solve(path.ode(model), x, (grid[0], 1.0), "euler", grid=grid).x
    assert float((ours - theirs).abs().max()) < 2e-3
    again, net = interp.from_diffusers(pipe)
    same = interp.solve(again.ode(net), x, (grid[0], 1.0), "euler", grid=grid).x
    torch.testing.assert_close(same, ours, rtol=0, atol=0)


def test_a_trained_dit_is_one_model_by_both_routes(dit_folder):
    """Euler in sigma by diffusers' loop and in the line's coordinates by ours, at any pace: 1e-5."""
    path, model = interp.from_diffusers(dit_folder / "transformer", dit_folder / "scheduler")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(dit_folder / "scheduler")
    net = diffusers.DiTTransformer2DModel.from_pretrained(dit_folder / "transformer").eval()
    scheduler.set_timesteps(12)
    labels = torch.arange(4)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(theirs, timestep=t.expand(4), class_labels=labels).sample
            theirs = scheduler.step(out, t, theirs).prev_sample
    share = scheduler.sigmas.double()
    grid = path.time_at_log_snr(2 * (torch.log1p(-share) - share.log()))
    grid[0], grid[-1] = 0.0, 1.0
    ours = interp.solve(
        path.ode(model.eval()), x, method="euler", grid=grid, cond={"class_labels": labels}
    ).x
    assert float((ours - theirs).abs().max()) < 1e-5
