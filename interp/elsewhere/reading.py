"""What a diffusers scheduler's configuration says of a path and of its network.

Read from the configuration and the class's name alone, so that diffusers need not be there. What is not
understood is named and refused, never guessed.

    class                              path                        network: sees, is told, returns
    DDIM, DDPM, PNDM, DPM, UniPC, ...  a table, index k            x, k, by prediction_type
    the same with use_flow_sigmas      linear, shifted             x, n sigma, by prediction_type
    FlowMatch*                         linear, shifted             x, n sigma, noise - data
    EDM*, Cosine*, Euler continuous    sigma_max to sigma_min      c_in x, c_noise, F of Karras et al.
    IPNDM (Dance Diffusion)            the circle                  x, angle, v
    ScoreSdeVe                         variance_exploding          x, sigma, score
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..arguments import positive, real
from ..errors import OptionError, UnknownName, Unsupported
from ..interpolant import Interpolant
from ..preconditioning import Preconditioned, precondition
from .tables import needed, path_of_table

Told = str | tuple[str, int]
Config = Mapping[str, Any]


def _as_told(told: Tensor) -> Tensor:
    return told


@dataclass(frozen=True)
class Reading:
    """A path, and what a network made for a scheduler sees, is told and returns there.

    Attributes:
        name: the scheduler's class.
        path: where the network's points lie, in its own scale.
        view: what it returns, or what is made of that by ``preconditioned``.
        time: what its model is told by a term.
        timestep: the network's timestep, from what the model is told.
        when: the t of a timestep.
        preconditioned: c_in, c_skip, c_out and c_noise, where there are any.
        learned_variance: whether half of the network's channels are variances.
        flipped: whether the network returns minus the view.
    """

    name: str
    path: Interpolant
    view: str
    time: Told = "t"
    timestep: Callable[[Tensor], Tensor] = field(default=_as_told)
    when: Callable[[Tensor], Tensor] = field(default=_as_told)
    preconditioned: Preconditioned | None = None
    learned_variance: bool = False
    flipped: bool = False


def read(name: str, config: Config, mu: float | None = None, tokens: int | None = None) -> Reading:
    """The reading of a configuration of the scheduler class called ``name``.

    Args:
        name: the class's name.
        config: its entries, all of them.
        mu: the shift of a scheduler with ``use_dynamic_shifting``, as its pipeline would give it.
        tokens: the length of the image's sequence, from which such a pipeline works out mu.

    Raises:
        Unsupported: a class that is not understood; says why where that is known.
        OptionError: an entry that is missing, unknown, or contradicts another; named.
        UnknownName: a value that does not exist.
    """
    if name not in _READERS:
        why = _NOT_READ.get(name, "is not one that interp understands")
        raise Unsupported(
            f"{name} {why}. Build the path with interp.schedules and give the network as a function "
            "model(t, x). Understood are the tables (DDIM, DDPM, PNDM, Euler, DPM-Solver, DEIS, UniPC and "
            "their kin), FlowMatchEuler and Heun, EDM, IPNDM and ScoreSdeVe."
        )
    _check_keys(name, config)
    shift = _shift(config, mu, tokens)
    return _READERS[name](name, config, shift)


def _check_keys(name: str, config: Config) -> None:
    """Refuse entries that may mean something we do not know; None and False are switched off."""
    for key, value in config.items():
        known = key.startswith("_") or key in _READ or key in _OF_THE_SAMPLER
        if not known and value is not None and value is not False:
            raise OptionError(
                f"the configuration of {name} has {key}={value!r}, which interp does not understand. "
                "Leave it out if it says nothing of the path or the network."
            )


#: Entries that say something of the path or the network.
_PATH_WORDS = """
    num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr
    snr_shift_scale prediction_type variance_type use_flow_sigmas flow_shift shift
    use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len time_shift_type
    invert_sigmas sigma_min sigma_max sigma_data sigma_schedule rho timestep_type use_karras_sigmas
    use_exponential_sigmas"""
_READ = frozenset(_PATH_WORDS.split())
#: Entries that choose steps, solvers and clipping, which `interp.solve` has its own words for.
_SAMPLER_WORDS = """
    algorithm_type clip_sample clip_sample_range correct_steps disable_corrector
    dynamic_thresholding_ratio euler_at_final eta final_sigmas_type interpolation_type
    lambda_min_clipped lower_order_final noise_sampler_seed original_inference_steps predict_x0
    predictor_order corrector_order s_noise sample_max_value sampling_eps set_alpha_to_one shift_terminal
    skip_prk_steps snr solver_order solver_p solver_type steps_offset stochastic_sampling tau_func
    thresholding timestep_scaling timestep_spacing use_beta_sigmas use_lu_lambdas clip_denoised
    method options noise_of"""
_OF_THE_SAMPLER = frozenset(_SAMPLER_WORDS.split())


# Tables, and the same solvers with flow sigmas


def _table(name: str, config: Config, shift: float | None) -> Reading:
    kind = config.get("prediction_type", "epsilon" if name in _ALWAYS_EPSILON else None)
    learned = str(config.get("variance_type") or "").startswith("learned")
    if config.get("use_flow_sigmas"):
        return _flow(name, config, shift, _view(name, kind, flow=True))
    view = _view(name, kind, flow=False)
    if config.get("timestep_type", "discrete") == "continuous" and kind == "v_prediction":
        return _continuous(name, config)
    path = path_of_table(config)
    size = path.table or 0
    return Reading(
        name,
        path,
        view,
        ("index", size),
        lambda told: told.clamp(min=0),  # no network was trained below
        lambda index: 1 - (index + 1) / size,
        learned_variance=learned,
    )


_VIEWS = {
    "epsilon": "noise",
    "sample": "data",
    "original_sample": "data",
    "v_prediction": "v_prediction",
    "flow_prediction": "flow_prediction",
}
_ALWAYS_EPSILON = ("RePaintScheduler",)


def _view(name: str, kind: object, flow: bool) -> str:
    if kind is None:
        raise OptionError(
            f"the configuration of {name} has no prediction_type, and no value is guessed. Give the "
            "scheduler itself, whose configuration is complete."
        )
    if kind not in _VIEWS:
        raise UnknownName.of("prediction_type", kind, _VIEWS)
    if kind == "flow_prediction" and not flow:
        raise OptionError(
            f"{name} has prediction_type='flow_prediction' without use_flow_sigmas, which names no path: "
            "a flow is noise - data on the linear one. Set use_flow_sigmas=True, or another type."
        )
    return _VIEWS[str(kind)]


def _flow(name: str, config: Config, shift: float | None, view: str) -> Reading:
    """The linear path at the scheduler's pace; its network is told n sigma."""
    n = float(needed(config, "num_train_timesteps"))
    linear = schedules.linear()
    path = linear if shift in (None, 1.0) else schedules.shifted(linear, float(shift or 1.0))

    def when(sigma: Tensor) -> Tensor:
        return path.time_at_log_snr(2 * (torch.log1p(-sigma) - sigma.log()))

    if config.get("invert_sigmas"):
        return Reading(
            name, path, "flow_prediction", "t",
            lambda t: n * path.coefficients(t).beta, lambda stamp: when(1 - stamp / n), flipped=True,
        )  # fmt: skip
    return Reading(
        name,
        path,
        view,
        "t",
        lambda t: n * path.coefficients(t).sigma,
        lambda stamp: when(stamp / n),
    )


def _flow_matching(name: str, config: Config, shift: float | None) -> Reading:
    return _flow(name, config, shift, "flow_prediction")


def _shift(config: Config, mu: float | None, tokens: int | None) -> float | None:
    """The factor of sigma / beta: the configuration's, or that of mu or the tokens where it is dynamic."""
    if not config.get("use_dynamic_shifting"):
        if mu is not None or tokens is not None:
            raise OptionError(
                "mu and tokens are for a scheduler with use_dynamic_shifting, and this one has a shift of "
                "its own. Leave them out."
            )
        shift = (
            config.get("flow_shift", 1.0) if config.get("use_flow_sigmas") else config.get("shift")
        )
        return None if shift is None else positive("shift", shift)
    if (mu is None) == (tokens is None):
        raise OptionError(
            "the scheduler has use_dynamic_shifting, so its shift depends on the size of the image. Give "
            "mu=, or tokens=, the length of the image's sequence."
        )
    if tokens is not None:
        low, high = (float(needed(config, f"{w}_image_seq_len")) for w in ("base", "max"))
        start, stop = (float(needed(config, f"{w}_shift")) for w in ("base", "max"))
        mu = start + (stop - start) * (tokens - low) / (high - low)
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise UnknownName.of("time_shift_type", kind, ("exponential", "linear"))
    mu = real("mu", mu, -math.inf)
    return math.exp(mu) if kind == "exponential" else positive("mu", mu)


# Networks in the clothes of Karras et al.


def _edm(name: str, config: Config, shift: float | None) -> Reading:
    sd = real("sigma_data", needed(config, "sigma_data"))
    path = _exploding(config, str(needed(config, "sigma_schedule")))
    kind = _sign(name, needed(config, "prediction_type"))
    return _preconditioned(name, path, kind, sd, "edm")


def _cosine(name: str, config: Config, shift: float | None) -> Reading:
    """Stable Audio: told 2 / pi atan(sigma)."""
    sd = real("sigma_data", needed(config, "sigma_data"))
    if sd != 1.0:
        raise OptionError(
            f"{name} has sigma_data={sd!r}, and tells its network atan(sigma) whatever it is. Give a "
            "configuration with sigma_data=1."
        )
    path = _exploding(config, str(needed(config, "sigma_schedule")))
    kind = _sign(name, needed(config, "prediction_type"))
    turn = 2 / math.pi
    return _preconditioned(
        name, path, kind, sd, "angle", lambda angle: angle * turn, lambda u: torch.tan(u / turn)
    )


def _continuous(name: str, config: Config) -> Reading:
    """Stable Video Diffusion: v of unit data at (x / sqrt(1 + sigma^2), log(sigma) / 4)."""
    table = path_of_table(config)
    ends = {
        "sigma_min": table.noise_scale(1.0 - 1.0 / (table.table or 1)).item(),
        "sigma_max": table.noise_scale(0.0).item(),
    }
    given = {key: config[key] for key in ends if config.get(key) is not None}
    if config.get("use_karras_sigmas"):
        path = _exploding({**ends, **given, "rho": 7.0}, "karras")
    elif config.get("use_exponential_sigmas"):
        path = _exploding({**ends, **given}, "exponential")
    else:
        path = table
    return _preconditioned(name, path, "trigflow", 1.0, "edm")


def _exploding(config: Config, kind: str) -> Interpolant:
    low, high = float(needed(config, "sigma_min")), float(needed(config, "sigma_max"))
    if kind == "karras":
        return schedules.edm(low, high, float(needed(config, "rho")))
    if kind == "exponential":
        return schedules.variance_exploding(low, high)
    raise UnknownName.of("sigma_schedule", kind, ("karras", "exponential"))


def _sign(name: str, kind: object) -> str:
    kinds = {"epsilon": "edm", "v_prediction": "trigflow"}
    if kind not in kinds:
        raise UnknownName.of(f"prediction_type of {name}", kind, kinds)
    return kinds[str(kind)]


def _preconditioned(
    name: str, path: Interpolant, kind: str, sd: float, noise: str,
    timestep: Callable[[Tensor], Tensor] = _as_told,
    level: Callable[[Tensor], Tensor] = lambda c_noise: torch.exp(4 * c_noise),
) -> Reading:  # fmt: skip
    scalings = precondition(_no_network, path, kind, sigma_data=sd, noise=noise)
    return Reading(
        name, path, "data", "t", timestep,
        lambda stamp: path.time_at_log_snr(-2 * level(stamp).log()), scalings,
    )  # fmt: skip


def _no_network(noise: Tensor, x: Tensor) -> Tensor:
    raise NotImplementedError("these are the scalings alone")


# Others


def _ipndm(name: str, config: Config, shift: float | None) -> Reading:
    """Dance Diffusion: v on the circle, told the angle in units of a right one, which is 1 - t."""
    return Reading(
        name, schedules.trigonometric(), "v_prediction", "noise", when=lambda angle: 1 - angle
    )


def _score_sde_ve(name: str, config: Config, shift: float | None) -> Reading:
    low, high = float(needed(config, "sigma_min")), float(needed(config, "sigma_max"))
    path = schedules.variance_exploding(low, high)
    return Reading(
        name, path, "score", "sigma", when=lambda sigma: path.time_at_log_snr(-2 * sigma.log())
    )


_Reader = Callable[[str, Config, float | None], Reading]
_TABLES = (
    "DDIM DDIMInverse DDIMParallel DDPM DDPMParallel PNDM LMSDiscrete EulerDiscrete "
    "EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep "
    "DPMSolverMultistepInverse DPMSolverSinglestep DPMSolverSDE DEISMultistep UniPCMultistep SASolver "
    "UnCLIP RePaint CogVideoXDDIM CogVideoXDPM"
)
_READERS: Mapping[str, _Reader] = {
    **{f"{name}Scheduler": _table for name in _TABLES.split()},
    "FlowMatchEulerDiscreteScheduler": _flow_matching,
    "FlowMatchHeunDiscreteScheduler": _flow_matching,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
    "CosineDPMSolverMultistepScheduler": _cosine,
    "IPNDMScheduler": _ipndm,
    "ScoreSdeVeScheduler": _score_sde_ve,
}


def meaning(name: str) -> object:
    """What tells apart classes whose configurations have the same entries; equal where nothing does."""
    return _READERS.get(name, name)


_DISTILLED = (
    "is for a network that jumps to the data in a few steps and has no velocity to integrate"
)
_TOKENS = "is for tokens, which have no Gaussian path"
_NOT_READ = {
    **dict.fromkeys(
        ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "SCMScheduler",
         "FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler"), _DISTILLED,
    ),
    **dict.fromkeys(
        ("AmusedScheduler", "VQDiffusionScheduler", "BlockRefinementScheduler",
         "DiscreteDDIMScheduler", "EntropyBoundScheduler"), _TOKENS,
    ),
}  # fmt: skip


def same_table(theirs: Tensor, path: Interpolant) -> bool:
    """Whether a scheduler's own table is that of ``path``, up to a thousand roundings of float32."""
    n = len(theirs)
    ours = path.beta(1 - (torch.arange(n, dtype=torch.float64) + 1) / n) ** 2
    return bool(((theirs.double().cpu() - ours).abs() <= 1e-3 * ours + 1e-7).all())
