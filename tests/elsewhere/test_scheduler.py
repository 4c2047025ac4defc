"""Our solvers in diffusers' own loops."""

import math
import warnings

import pytest
import torch

import interp
from interp.elsewhere.programme import programme
from interp.errors import FieldError, OptionError, UnknownName, Unsupported

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

F64 = torch.float64
MIX = torch.tensor([[0.6, -0.3, 0.1], [0.2, 0.5, -0.4], [-0.1, 0.3, 0.4]])


def network(x, timestep, **cond):
    """A curved function of the point and of what it is told, standing in for a network."""
    stamp = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1, 1)
    return torch.tanh(x @ MIX.to(x.dtype) + (stamp / 700).sin())


def loop(scheduler, x, net=network, **options):
    """The loop of a pipeline."""
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


CASES = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim trailing, no signal": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
         "prediction_type": "v_prediction"},
    ),
    "stable diffusion": (
        "PNDMScheduler",
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "skip_prk_steps": True, "steps_offset": 1},
    ),
    "data": ("DDPMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "edm": ("EDMEulerScheduler", {}),
    "cosine edm": ("CosineDPMSolverMultistepScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "dance": ("IPNDMScheduler", {}),
}  # fmt: skip
METHODS = [m.name for m in interp.methods("ode") if m.name in ("euler", "heun", "dopri5")]
METHODS += ["ddim", "dpm++2m"]


def made(case):
    name, options = CASES[case]
    return getattr(diffusers, name)(**options)


def plain(scheduler):
    """The same without a shift, which moves the path's clock and not its points."""
    return type(scheduler).from_config(
        scheduler.config, **({"shift": 1.0} if "shift" in scheduler.config else {})
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_the_pictures_are_those_of_solve(case, method):
    """To 1e-5 of their size: tens of float32 operations in another order."""
    ours = interp.InterpScheduler(made(case), method=method)
    ours.set_timesteps(6)
    x = torch.linspace(-1.5, 1.5, 6).reshape(2, 3) * ours.init_noise_sigma
    found = loop(ours, x)
    path, model = interp.from_diffusers(network, plain(made(case)))
    grid = ours._grid
    wanted = interp.solve(path.ode(model), x, (grid[0], grid[-1]), method, grid=grid).x
    assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert ours.step_index == len(ours.timesteps)
    assert ours.timesteps.dtype is (
        torch.int64 if case in ("ddim", "stable diffusion", "data") and method != "dopri5"
        else ours.timesteps.dtype
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_the_scheduler_that_it_replaces(case):
    """Its own sigmas or indices, to the rounding of its float32; told as it tells them, to 1e-3.

    (Euler tells index 799.2 at a sigma that is linear in the index between two, ours at one that is
    monotone in log-SNR.)
    """
    theirs = plain(made(case))
    ours = interp.InterpScheduler(theirs, method="euler")
    theirs.set_timesteps(7)
    ours.set_timesteps(7)
    stamps = torch.unique_consecutive(theirs.timesteps.double())
    if case == "stable diffusion":
        stamps = torch.unique(stamps).flip(0)
    assert len(ours.timesteps) == len(stamps)
    if case in ("euler", "edm", "flow", "dpm karras", "unipc"):
        kept = theirs.sigmas[: len(stamps)]
        assert float((ours.sigmas[:-1] / kept - 1).abs().max()) < 1e-3
        assert len(ours.sigmas) == len(ours.timesteps) + 1
    if case != "dpm karras":  # there the index is rounded and the sigma is not
        span = float(stamps.abs().max())
        assert float((ours.timesteps.double() - stamps).abs().max()) < 1e-3 * span


def test_ancestral_steps_end_at_the_published_spread():
    """DDPM's own bias: from N(0, 1) to N(0, .5^2) in 1000 ancestral steps ends at std .49611.

    A linear network and independent normals, so that the variance follows from the numbers of the
    programme: no sampling error.
    """
    path = interp.schedules.from_betas("linear")
    grid = [1 - (k + 1) / 1000 for k in range(999, -1, -1)] + [1.0]
    made = programme(path, "noise", "euler_maruyama", grid, {})
    assert made.order == 1
    variance = 1.0
    for stage in made.stages:
        k = path.coefficients(stage.t)
        share = (k.sigma / (k.beta**2 * 0.25 + k.sigma**2)).item()  # E[noise | x] = share x
        ((_, weight),) = stage.outputs
        variance = (stage.kept + weight * share) ** 2 * variance
        variance += sum(scale**2 for _, scale in stage.normals)
    assert math.sqrt(variance) == pytest.approx(0.49611, abs=5e-6)


@pytest.mark.parametrize("method", ["seeds2", "dpm++3s_sde", "dpm++3m_sde"])
def test_noise_inside_steps_ends_at_the_spread_of_solve(method):
    """Exactly, by linearity, where the first and the last step ask once and the others oftener."""
    path, n = interp.schedules.linear(), 12
    made = programme(path, "data", method, [i / n for i in range(n + 1)], {})
    x = torch.zeros(len(made.stages) * 4, dtype=torch.float64)  # of the start and of the normals
    x[0] = 1.0
    outputs = []
    for stage in made.stages:
        k = path.coefficients(stage.t)
        outputs.append(k.beta * 0.25 / (k.beta**2 * 0.25 + k.sigma**2) * x)
        x = stage.kept * x + sum(c * outputs[i] for i, c in stage.outputs)
        for number, c in stage.normals:
            x[1 + number] += c
    rows = interp.methods("path", bias=True, steps=(n,), mean=0.0, variance=0.25).rows
    wanted = next(row.stds[0] for row in rows if row.name == method)
    assert float(x.norm()) == pytest.approx(wanted, rel=1e-6)  # numbers by least squares


# Pipelines


def pictures(pipe, **options):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipe(batch_size=3, generator=generator, output_type="np", **options).images
    )


def test_a_pipeline_before_and_after_one_replaced_line(unet_pipeline):
    """DDIM's pictures, to 2e-3 in [0, 1]: theirs go through a float32 table (sigma off by 1.5e-4)."""
    pipe = diffusers.DDIMPipeline.from_pretrained(unet_pipeline)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    before = pictures(pipe, num_inference_steps=20)
    pipe.scheduler = interp.InterpScheduler(pipe.scheduler, method="euler")
    after = pictures(pipe, num_inference_steps=20)
    assert float((after - before).abs().max()) < 2e-3
    pipe.scheduler = interp.InterpScheduler(pipe.scheduler, method="heun")
    heun = pictures(pipe, num_inference_steps=10)
    assert pipe.scheduler.order == 2
    assert float((heun - before).abs().max()) > 1e-3  # another method, other pictures
    torch.testing.assert_close(heun, pictures(pipe, num_inference_steps=10), rtol=0, atol=0)


def test_a_pipeline_is_saved_and_loaded_with_our_scheduler(unet_pipeline, tmp_path):
    """And the noise of an SDE comes from the pipeline's generator; the estimate stays in [-1, 1]."""
    pipe = diffusers.DDPMPipeline.from_pretrained(unet_pipeline)
    pipe.scheduler = interp.InterpScheduler(pipe.scheduler, method="euler_maruyama")
    pipe.set_progress_bar_config(disable=True)
    before = pictures(pipe, num_inference_steps=8)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, interp.InterpScheduler)
    assert again.scheduler.config["method"] == "euler_maruyama"
    torch.testing.assert_close(pictures(again, num_inference_steps=8), before, rtol=0, atol=0)
    path, model = interp.from_diffusers(tmp_path)
    assert path.table == 1000
    assert model.view == "noise"


def test_a_flow_of_a_dit_before_and_after(dit_folder):
    """FlowMatchEuler and euler in its loop: 1e-5, one step's arithmetic in another order."""
    net = diffusers.DiTTransformer2DModel.from_pretrained(dit_folder / "transformer").eval()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(dit_folder / "scheduler")
    ours = interp.InterpScheduler.from_pretrained(dit_folder / "scheduler", method="euler")
    labels = torch.arange(4)

    def model(x, t):
        with torch.no_grad():
            return net(x, timestep=t.expand(len(x)), class_labels=labels).sample

    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(12)
    before = x
    for t in theirs.timesteps:
        before = theirs.step(model(before, t), t, before).prev_sample
    assert float((loop(ours, x, model) - before).abs().max()) < 1e-5


# The protocol


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_run_begins_part_way(method):
    """As image-to-image pipelines do, by set_begin_index or by the first timestep: as solve from there."""
    ours = interp.InterpScheduler(made("ddim"), method=method)
    path, model = interp.from_diffusers(network, made("ddim"))
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    for told in (True, False):
        ours.set_timesteps(8)
        first = 3 * ours.order
        if told:
            ours.set_begin_index(first)
        found = x
        for t in ours.timesteps[first:]:
            found = ours.step(network(found, t), t, found, return_dict=False)[0]
        grid = ours._grid[3:]
        wanted = interp.solve(path.ode(model), x, (grid[0], 1.0), method, grid=grid).x
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    if method == "heun":
        ours.set_timesteps(8)
        ours.set_begin_index(3)
        with pytest.raises(OptionError, match="inside a step of 2 stages"):
            ours.step(x, ours.timesteps[3], x)


def test_a_clipped_estimate_is_used_whole():
    """As DDPM does: x0 in [-1, 1] and the noise that goes with it."""
    scheduler = diffusers.DDPMScheduler(clip_sample_range=0.5)
    ours = interp.InterpScheduler(scheduler, method="euler")
    ours.set_timesteps(10)
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    t = ours.timesteps[0]
    out = ours.step(network(x, t), t, x)
    assert float(out.pred_original_sample.abs().max()) <= 0.5
    k, r = (ours.path.coefficients(ours._grid[i]) for i in (0, 1))
    noise = (x - k.beta * out.pred_original_sample) / k.sigma
    torch.testing.assert_close(
        out.prev_sample, (r.beta * out.pred_original_sample + r.sigma * noise).float()
    )


@pytest.mark.parametrize("case", ["ddim", "edm", "flow", "dance"])
def test_noising_is_theirs(case):
    """To 1e-4: their float32 tables and sigmas."""
    theirs, ours = plain(made(case)), interp.InterpScheduler(plain(made(case)), method="euler")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(9)
    x, noise = torch.linspace(-1, 1, 6).reshape(2, 3), torch.linspace(1, -2, 6).reshape(2, 3)
    at = ours.timesteps[[2, 5]]
    if case == "flow":
        wanted = theirs.scale_noise(x, theirs.timesteps[[2, 5]], noise)
        found = ours.scale_noise(x, at, noise)
    elif case == "dance":
        angle = at[:, None] * math.pi / 2
        wanted, found = angle.cos() * x + angle.sin() * noise, ours.add_noise(x, noise, at)
    else:
        wanted = theirs.add_noise(x, noise, theirs.timesteps[[2, 5]])
        found = ours.add_noise(x, noise, at)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    if case == "ddim":
        index = torch.tensor([3, 700])
        torch.testing.assert_close(
            ours.get_velocity(x, noise, index), theirs.get_velocity(x, noise, index),
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip


def test_a_configuration_says_all(tmp_path):
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    ours = interp.InterpScheduler.from_config(
        theirs.config, method="heun", timestep_spacing="trailing"
    )
    assert ours.config["timestep_spacing"] == "trailing"
    ours.save_pretrained(tmp_path)
    again = interp.InterpScheduler.from_pretrained(tmp_path)
    for scheduler in (ours, again, interp.InterpScheduler(ours, method="heun")):
        scheduler.set_timesteps(5)
        assert scheduler.timesteps.tolist() == ours.timesteps.tolist()
        assert len(scheduler) == 1000
        assert scheduler.order == 2
    back = diffusers.DDIMScheduler.from_config(ours.config)
    assert back.config["beta_schedule"] == "scaled_linear"
    assert back.config["steps_offset"] == 1
    assert (
        interp.InterpScheduler.from_config(ours.config, method="euler").config["method"] == "euler"
    )


def test_a_half_precision_sample_stays_one():
    ours = interp.InterpScheduler(made("ddim"), method="euler")
    ours.set_timesteps(4)
    x = torch.linspace(-1, 1, 6).reshape(2, 3).to(torch.bfloat16)
    out = ours.step(x, ours.timesteps[0], x)
    assert out.prev_sample.dtype is torch.bfloat16


# Bad input


def test_what_it_cannot_do_is_named():
    with pytest.raises(UnknownName, match="euler"):
        interp.InterpScheduler(made("ddim"), method="eulr")
    with pytest.raises(Unsupported, match="LCMScheduler is for a network that jumps"):
        interp.InterpScheduler(diffusers.LCMScheduler())
    with pytest.raises(Unsupported, match="step_pred"):
        interp.InterpScheduler(diffusers.ScoreSdeVeScheduler())
    with pytest.raises(OptionError, match="is no scheduler's"):
        interp.InterpScheduler.from_config({"beta_start": 0.1})
    flow = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(OptionError, match="may be that of"):
        interp.InterpScheduler.from_config(flow.config)
    interp.InterpScheduler(flow)
    with pytest.raises(Unsupported, match="kvaerno3 solves for its stages"):
        interp.InterpScheduler(made("ddim"), method="kvaerno3").set_timesteps(4)
    backwards = interp.InterpScheduler(diffusers.DDIMInverseScheduler())
    with pytest.raises(OptionError, match="do not go from noise to data"):
        backwards.set_timesteps(5)
    ours = interp.InterpScheduler(made("ddim"), method="euler")
    x = torch.zeros(2, 3)
    with pytest.raises(OptionError, match="Call set_timesteps first"):
        ours.step(x, 3, x)
    with pytest.raises(OptionError, match="takes no such steps"):
        ours.set_timesteps(5, sigmas=[1.0, 0.5])
    with pytest.raises(UnknownName, match="option of euler"):
        interp.InterpScheduler(made("ddim"), method="euler", etta=1.0).set_timesteps(4)
    ours.set_timesteps(2)
    with pytest.raises(OptionError, match="timestep 3 is not one"):
        ours.step(x, 3, x)
    with pytest.raises(FieldError, match=r"returned \(2, 2\)"):
        ours.step(x[:, :2], ours.timesteps[0], x)
    with pytest.raises(OptionError, match=r"eta=0.5 is an option of the method"):
        ours.step(x, ours.timesteps[0], x, eta=0.5)
    loop(ours, x)
    with pytest.raises(OptionError, match="has ended"):
        ours.step(x, ours.timesteps[0], x)


def test_variances_beside_the_prediction_are_dropped():
    ours = interp.InterpScheduler(
        diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False), method="euler"
    )
    ours.set_timesteps(4)
    x, t = torch.ones(2, 3), ours.timesteps[0]
    alone = interp.InterpScheduler(diffusers.DDPMScheduler(clip_sample=False), method="euler")
    alone.set_timesteps(4)
    out = ours.step(torch.cat([x, 9 * x], 1), t, x).prev_sample
    torch.testing.assert_close(out, alone.step(x, t, x).prev_sample)
