"""Our samplers and diffusers' schedulers on the same grid, step for step.

One row a pair of methods. Every scheduler keeps its table in float32, so each row is run twice: with
its tables set to the float64 ones of its own formulas, where only the float32 arithmetic of its loop is
left, and as it comes. Stochastic methods draw the same normals from the same generator.

Where they leave their paper (diffusers 0.42; the numbers are from running them):

    DDIM          steps to index t - n // N and not to its own next timestep: with "linspace" and N = 7 from
                  999 to 857, and then asks the network at 832. ``set_alpha_to_one=False`` stops at
                  index 0 (sigma / beta = .01, .029 for Stable Diffusion). A clipped data estimate is
                  paired with the noise of the unclipped one: .54 where that of the clipped gives 3.02.
    DPM++ 3M      the second difference lacks a factor 2: order 2 (here published=True).
    Euler, DPM,   ``rescale_betas_zero_snr`` puts 2^-24 in place of the last 0, for the linear table above
    UniPC         the entry before it (4e-9), so that the first sigmas are 4096, 15406, 7668.
    DPM, UniPC    tell flow networks truncated integers: 857 at sigma = .85729.
    DPM, UniPC    Karras sigmas are told by a rounded index, 47 at 47.49; the sigma is not rounded.
    FlowMatch     a static shift of 3 is applied twice at the low end: .0089 where 1/1000 shifts to .0030.
    EDM           starts from sqrt(sigma_max^2 + 1) = 80.006 and not from sigma_max = 80.
"""

import functools
import warnings

import numpy as np
import pytest
import torch

import interp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

F64 = torch.float64
MIX = torch.tensor([[0.6, -0.3, 0.1], [0.2, 0.5, -0.4], [-0.1, 0.3, 0.4]])
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KNOWN = {m.name for m in interp.methods()}


@pytest.fixture(autouse=True)
def _their_warnings_are_theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def network(x, timestep, timeless=False):
    """A curved function of the point and of where it is told to be, by which states stay of size 1."""
    stamp = torch.as_tensor(0.0 if timeless else timestep).to(x.dtype).reshape(-1, 1)
    return 0.9 * x + 0.3 * torch.tanh(x @ MIX.to(x.dtype) + (stamp / 300).sin())


def in_double(scheduler):
    """The scheduler with the tables that its own formulas give in float64."""
    config = scheduler.config
    if "beta_start" not in config:
        return scheduler
    n, low, high = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["beta_schedule"] == "linear":
        betas = torch.linspace(low, high, n, dtype=F64)
    else:
        betas = torch.linspace(low**0.5, high**0.5, n, dtype=F64) ** 2
    abar = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr"):  # Lin et al., algorithm 1
        r = abar.sqrt()
        abar = ((r - r[-1]) * r[0] / (r[0] - r[-1])) ** 2
    scheduler.alphas_cumprod = abar
    if hasattr(scheduler, "final_alpha_cumprod") and config["set_alpha_to_one"] is False:
        scheduler.final_alpha_cumprod = abar[0]
    return scheduler


def sigmas_in_double(scheduler):
    """After set_timesteps: its float32 sigmas from the float64 table, where they are of its nodes."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or "beta_start" not in scheduler.config:
        return
    if scheduler.config.get("use_flow_sigmas"):  # as they are, and what is made of them in float64
        scheduler.sigmas = sigmas.double()
        return
    abar = scheduler.alphas_cumprod.double().numpy()
    table = ((1 - abar) / abar) ** 0.5
    index = np.interp(np.log(np.maximum(sigmas.numpy(), 1e-9)), np.log(table), range(len(table)))
    own = np.interp(index.round(), range(len(table)), table)
    near = np.abs(own - sigmas.numpy()) < 1e-3 * own
    scheduler.sigmas = torch.from_numpy(np.where(near, own, sigmas.numpy()))


def theirs(scheduler, steps, x, seed=None, **options):
    """Their loop from the normals x, in their own scale: x, or x / beta, which end alike."""
    scheduler.set_timesteps(steps)
    if getattr(scheduler, "alphas_cumprod", MIX).dtype is F64:
        sigmas_in_double(scheduler)
    if seed is not None:
        options["generator"] = torch.Generator().manual_seed(seed)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(seen, t, bool(scheduler.config.get("use_flow_sigmas")))
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


def row(method, options, cls, config, **noise):
    name = f"{method} {options or ''}- {cls[:-9]} {config}".replace("'", "")
    return pytest.param(method, options, cls, config, noise, id=name)


NO_CLIP = {"clip_sample": False}
# Below 15 steps they take the last two by lower orders, whatever the end.
FULL = {"lower_order_final": False}
ROWS = [
    # DDIM is Euler's method in the coordinates of every view but the velocity.
    row("euler", {}, "DDIMScheduler", NO_CLIP),
    row("euler", {}, "EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    row("euler", {}, "EDMEulerScheduler", {}),
    row("euler", {}, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    row("euler", {}, "DPMSolverMultistepScheduler", {"solver_order": 1, "timestep_spacing": "trailing"}),
    row("ddim", {}, "DDIMScheduler", NO_CLIP),
    row("ddim", {}, "DDIMScheduler", {**NO_CLIP, **SD, "set_alpha_to_one": False, "steps_offset": 1}),
    row("ddim", {}, "DDIMScheduler", {**NO_CLIP, "prediction_type": "v_prediction"}),
    row("ddim", {}, "DDIMScheduler", {**NO_CLIP, "prediction_type": "sample"}),
    row("ddim", {}, "DDIMScheduler", {**NO_CLIP, **ZERO, "prediction_type": "v_prediction"}),
    row("ddim", {}, "EulerDiscreteScheduler", {"timestep_spacing": "trailing", **SD}),
    row("ddim", {}, "EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    row("ddim", {}, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    # Ancestral steps: the reverse SDE's exact step for a data estimate that does not change.
    row("euler_maruyama", {}, "DDPMScheduler", NO_CLIP, seed=1),
    row("euler_maruyama", {}, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, seed=1),
    row("euler_maruyama", {}, "DDIMScheduler", NO_CLIP, seed=1, eta=1.0),
    row("ddim", {"eta": 0.5}, "DDIMScheduler", NO_CLIP, seed=1, eta=0.5),
    row("ddpm", {}, "DDPMScheduler", NO_CLIP, seed=1),
    row("ddpm", {}, "DDPMScheduler", {"clip_sample_range": 0.5}, seed=1),
    row("ddpm", {"variance": "large"}, "DDPMScheduler", {**NO_CLIP, "variance_type": "fixed_large"}, seed=1),
    row("ddpm", {}, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, seed=1),
    # Exponential multistep methods.
    row("dpm++2m", {}, "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    row("dpm++2m", {}, "DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", **SD}),
    row("dpm++2m", {}, "EDMDPMSolverMultistepScheduler", {}),
    row("dpm++2m", {}, "DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    row("dpm++2m_sde", {}, "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, seed=1),
    row("dpm++2m_sde", {}, "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "prediction_type": "v_prediction", **SD}, seed=1),
    row("dpm++2m", {"variant": "heun"}, "DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    row("dpm++3m", {"published": True}, "DPMSolverMultistepScheduler", {"solver_order": 3, **FULL}),
    row("dpm++3m", {"published": True}, "DPMSolverMultistepScheduler",
        {"solver_order": 3, **FULL, "timestep_spacing": "trailing", **SD}),
    row("deis", {"order": 2}, "DEISMultistepScheduler", {"solver_order": 2, **FULL}),
    row("deis", {"order": 3}, "DEISMultistepScheduler", {"solver_order": 3, **FULL}),
    row("edm_heun", {}, "HeunDiscreteScheduler", {**SD, "timestep_spacing": "trailing"}),
    row("unipc", {}, "UniPCMultistepScheduler", {}),
    row("unipc", {"order": 3}, "UniPCMultistepScheduler", {"solver_order": 3}),
]  # fmt: skip
ROWS = [r for r in ROWS if r.values[0] in KNOWN]


@pytest.mark.parametrize(("method", "options", "cls", "config", "noise"), ROWS)
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_the_samples_are_theirs(method, options, cls, config, noise, steps, double):
    """1e-5 where their tables are float64, of states of size 1: the float32 rounding of both loops.

    5e-4 as they come: beta_0 = 1e-4 in float32 has sigma_0 wrong by 1.5e-4 of itself, and log-SNR by
    3e-4 at the steps near it.
    """
    kind = getattr(diffusers, cls)
    base = torch.linspace(-1.5, 1.5, 6).reshape(2, 3)
    timeless = "use_flow_sigmas" in config  # theirs are told truncated integers
    scheduler = in_double(kind(**config)) if double else kind(**config)
    wanted = theirs(scheduler, steps, base, **noise)
    bound = (1e-5 if double else 5e-4) * max(1.0, float(wanted.abs().max()))

    ours = interp.InterpScheduler(kind(**config), method=method, **options)
    ours.set_timesteps(steps)
    x = start = base * ours.init_noise_sigma
    generator = torch.Generator().manual_seed(noise["seed"]) if noise else None
    for t in ours.timesteps:
        out = network(ours.scale_model_input(x, t), t, timeless)
        x = ours.step(out, t, x, generator=generator).prev_sample
    assert float((x - wanted).abs().max()) < bound
    if not noise:
        still = {k: 1.0 for k in ("shift", "flow_shift") if k in config}
        net = functools.partial(network, timeless=timeless)
        path, model = interp.from_diffusers(net, kind(**{**config, **still}))
        grid = ours._grid
        run = interp.solve(
            path.ode(model), start, (grid[0], grid[-1]), method, grid=grid, **options
        )
        assert float((run.x - wanted).abs().max()) < bound


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    "config", [{}, {"set_alpha_to_one": True}, {**SD, "steps_offset": 1}], ids=str
)
def test_the_start_of_pndm_is_theirs(config, steps):
    """Three steps of Runge and Kutta's and Adams and Bashforth's from there, on their even indices."""
    scheduler = in_double(diffusers.PNDMScheduler(**config))
    base = torch.linspace(-1.5, 1.5, 6).reshape(2, 3)
    wanted = theirs(scheduler, steps, base)
    path, model = interp.from_diffusers(network, diffusers.PNDMScheduler(**config))
    indices = sorted(set(scheduler._timesteps.tolist()), reverse=True)
    indices += [] if config.get("set_alpha_to_one") or indices[-1] == 0 else [0]
    times = [1 - (k + 1) / 1000 for k in indices] + [1.0] * ("set_alpha_to_one" in config)
    # Theirs stops at index 0, and asks there once more for nothing.
    for backend in ("rust", "torch"):
        ends = (times[0], times[-1])
        run = interp.solve(path.ode(model), base, ends, "pndm", grid=times, backend=backend)
        assert float((run.x - wanted).abs().max()) < 1e-5
        assert run.stats.nfe == len(times) - 1 + 9


@pytest.mark.parametrize("steps", [5, 10, 14])
@pytest.mark.parametrize(
    ("method", "options", "cls"),
    [
        ("dpm++3m", {"published": True}, "DPMSolverMultistepScheduler"),
        ("deis", {"order": 3}, "DEISMultistepScheduler"),
    ],
)
def test_below_fifteen_steps_theirs_end_by_lower_orders(method, options, cls, steps):
    """Their default there, and ``lower_order_final=True`` here; without it the ends are a hundredth apart."""
    kind, config = getattr(diffusers, cls), {"solver_order": 3}
    base = torch.linspace(-1.5, 1.5, 6).reshape(2, 3)
    wanted = theirs(in_double(kind(**config)), steps, base)
    gaps = []
    for falling in (True, False):
        scheduler = kind(**config)
        ours = interp.InterpScheduler(
            scheduler, method=method, lower_order_final=falling, **options
        )
        ours.set_timesteps(steps)
        x = base * ours.init_noise_sigma
        for t in ours.timesteps:
            x = ours.step(network(ours.scale_model_input(x, t), t), t, x).prev_sample
        gaps.append(float((x - wanted).abs().max()))
    assert gaps[0] < 1e-5
    assert gaps[1] > 1e-3


def test_two_stages_are_theirs_where_their_grid_has_the_middle():
    """Their second-order steps go over every other node, the one between being the stage: on steps even
    in log-SNR that is our midpoint. They take the last two by the first order. 1e-5 as above.
    """
    config = {"solver_order": 2, "use_exponential_sigmas": True}
    scheduler = in_double(diffusers.DPMSolverSinglestepScheduler(**config))
    scheduler.set_timesteps(10)
    levels = scheduler.sigmas[:-1].double()
    x = base = torch.linspace(-1.5, 1.5, 6).reshape(2, 3)
    for t in scheduler.timesteps:  # told rounded indices, where ours are told none
        x = scheduler.step(network(x, t, timeless=True), t, x).prev_sample
    net = functools.partial(network, timeless=True)
    path, model = interp.from_diffusers(net, diffusers.DPMSolverSinglestepScheduler(**config))
    times = [0.0, *path.time_at_log_snr(-2 * levels[1:].log()).tolist()]
    even, term = times[::2], path.ode(model)
    ours = interp.solve(term, base, (even[0], even[-1]), "dpm++2s", grid=even).x
    ours = interp.solve(term, ours, (even[-1], 1.0), "ddim", grid=[even[-1], times[-1], 1.0]).x
    assert float((ours - x).abs().max()) < 1e-5


HOOKED = [
    ("ddim", "DDIMScheduler", {"clip_sample_range": 0.5}, interp.hooks.clip(-0.5, 0.5)),
    (
        "ddim", "DDIMScheduler",
        {**NO_CLIP, "thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1e6},
        interp.hooks.threshold(0.7),
    ),
    (
        "dpm++2m", "DPMSolverMultistepScheduler",
        {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1e6},
        interp.hooks.threshold(0.7),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "cls", "config", "hook"), HOOKED)
def test_hooks_are_theirs(method, cls, config, hook):
    """The clipped estimate and the noise that belongs to it, at each step; float32 loops, as above."""
    kind = getattr(diffusers, cls)
    whole = {"use_clipped_model_output": True} if method == "ddim" else {}
    base = torch.linspace(-1.5, 1.5, 6).reshape(2, 1, 3)  # their thresholding takes no (rows, n)
    wanted = theirs(in_double(kind(**config)), 20, base, **whole)
    scheduler = kind(**config)
    ours = interp.InterpScheduler(scheduler, method=method)
    ours.set_timesteps(20)
    path, model = interp.from_diffusers(network, scheduler)
    grid = ours._grid
    term, ends = path.ode(model), (grid[0], grid[-1])
    run = interp.solve(term, base, ends, method, grid=grid, data_hook=hook)
    assert float((run.x - wanted).abs().max()) < 1e-5
    free = interp.solve(term, base, ends, method, grid=grid)
    assert float((free.x - wanted).abs().max()) > 0.1
