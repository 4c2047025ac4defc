"""Our solvers in a pipeline of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import host
from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant
from ..solvers.catalogue import find
from ..terms import told
from .diffusers import reading_of
from .network import held, predicted
from .nodes import IN_SIGMA, nodes, takes
from .programme import Programme, programme
from .reading import meaning

try:
    import diffusers
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise Unsupported(
        "InterpScheduler speaks diffusers' protocol and needs diffusers. Install interp[peers]."
    ) from error

_OURS = ("method", "options", "noise_of")


@dataclass
class InterpSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """What a step returns.

    Attributes:
        prev_sample: the point at which the network is asked next.
        pred_original_sample: the data estimate of this step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class InterpScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any fixed-step method of `interp.solve` as a scheduler of diffusers.

        pipe.scheduler = interp.InterpScheduler(pipe.scheduler, method="heun")

    It takes over what the pipeline's scheduler says of the network (table, prediction type, scalings)
    and of the steps (spacing, offset, Karras sigmas, shift, where to end, clipping), and replaces the
    method alone. What the method does with each output is read off `interp.solve` itself (`programme`),
    so that the pictures are those of `interp.solve` on the same grid. A method with several stages asks
    the network several times a step, and `timesteps` has one entry for each; between two nodes of a table
    these are not whole numbers.

    The loop holds x in the network's own scale, so `scale_model_input` changes nothing but for
    EDM's networks. Noise is drawn from the pipeline's generator.

    Args:
        scheduler: a scheduler of diffusers, or its configuration.
        method: a name of `interp.methods()`.
        **options: those of the method, and ``diffusion`` of an SDE's, "reverse" where it is left out.

    Raises:
        Unsupported: a scheduler class that is not understood, or whose pipeline has no `step`.
        OptionError, UnknownName: as `interp.from_diffusers` and `interp.solve`; a configuration that may
            be of several classes that mean different things by it.
    """

    config_name = "scheduler_config.json"
    _compatibles: list[str] = []  # noqa: RUF012 - diffusers' own name and form

    def __init__(self, scheduler: Any, method: str = "dpm++2m", **options: Any) -> None:
        find(method)
        config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", {})
        flat = {k: v for k, v in dict(config).items() if not k.startswith("_") and k not in _OURS}
        name = _class_of(scheduler)
        # The grid is given time by time, so that the path's own pace is of no account.
        still = {"use_dynamic_shifting": False, "shift": 1.0, "flow_shift": 1.0}
        unhurried = {k: still.get(k, v) for k, v in flat.items()}
        self._reading = reading_of({**unhurried, "_class_name": name})
        if name == "ScoreSdeVeScheduler":
            raise Unsupported(
                "the pipeline of ScoreSdeVeScheduler calls step_pred and step_correct in place of step. "
                "Take interp.from_diffusers(model, scheduler) and interp.solve."
            )
        kind = getattr(diffusers, name)
        single = {"skip_prk_steps": True} if takes(kind, "skip_prk_steps") else {}
        self._theirs = kind.from_config(
            {k: v for k, v in {**flat, **single}.items() if takes(kind, k)}
        )
        self._method, self._options = method, dict(options)
        self._clips = bool(flat.get("clip_sample")) and takes(kind, "clip_sample")
        self._thresholds = bool(flat.get("thresholding")) and takes(kind, "thresholding")
        self.register_to_config(**flat, method=method, options=self._options, noise_of=name)
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor = self._theirs.timesteps
        self.sigmas: Tensor | None = getattr(self._theirs, "sigmas", None)
        self.order = 1
        self._grid: list[float] = []
        self._programme: Programme | None = None
        self._times: list[float] = []
        self._step_index: int | None = None
        self._begin_index: int | None = None

    # Configuration

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler of ours from the configuration of one of diffusers', or of ours.

        Args:
            config: the configuration, with all entries of its class.
            return_unused_kwargs: whether to return what is left of kwargs beside it: nothing.
            **kwargs: ``method``, entries of the configuration in place of its own, and options of the
                method.
        """
        config = dict(config or {})
        method = kwargs.pop("method", config.get("method", "dpm++2m"))
        options = dict(config.get("options") or {}) if method == config.get("method") else {}
        for key, value in kwargs.items():
            (config if key in config else options)[key] = value
        made = cls(config, method, **options)
        return (made, {}) if return_unused_kwargs else made

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    @property
    def path(self) -> Interpolant:
        """Where the points of the loop lie."""
        return self._reading.path

    @property
    def init_noise_sigma(self) -> float:
        """What the pipeline multiplies its first normal by: the replaced scheduler's, in our scale."""
        size = float(getattr(self._theirs, "init_noise_sigma", 1.0))  # flows have none
        if self._reading.name in IN_SIGMA:
            size /= (1 + float(max(self._theirs.sigmas)) ** 2) ** 0.5
        return size

    @property
    def step_index(self) -> int | None:
        """The number of the next stage; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The stage that the pipeline begins with; None is told by the first timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with this stage, the first of a step."""
        self._begin_index = begin_index

    # Steps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Lay out the run: the steps of the replaced scheduler, each with the stages of the method.

        Raises:
            OptionError: what the replaced scheduler does not take, or steps that do not fall.
            Unsupported: a method without fixed steps.
        """
        given = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
        options = {key: value for key, value in given.items() if value is not None}
        if num_inference_steps is not None:
            options["num_inference_steps"] = num_inference_steps
        try:
            self._theirs.set_timesteps(**options)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{self._reading.name} takes no such steps: {error} Give what it takes."
            ) from error
        self._grid = nodes(self._theirs, self._reading)
        self.num_inference_steps = num_inference_steps or len(self._grid) - 1
        self._lay_out(0)
        if self._programme is None:
            raise OptionError("no steps. Give num_inference_steps, 1 or more.")
        self.order = self._programme.order
        self.timesteps = self._stamps(self._times).to(device)
        self.sigmas = self._levels([*self._times, self._grid[-1]])
        self._step_index = self._begin_index = None

    def _lay_out(self, first: int) -> None:
        """The programme of the grid from step ``first`` on."""
        path, view = self._reading.path, self._reading.view
        self._programme = programme(path, view, self._method, self._grid[first:], self._options)
        times = [stage.t for stage in self._programme.stages]
        self._times = self._times[: first * self.order] + times
        self._first = first * self.order
        self._outputs: dict[int, Tensor] = {}
        self._normals: dict[int, Tensor] = {}

    def _levels(self, times: list[float]) -> Tensor:
        """The noise at these times: sigma of a flow, sigma / beta of the others."""
        path, reading = self._reading.path, self._reading
        k = path.coefficients(host(times))
        flow = path.table is None and reading.preconditioned is None
        return (k.sigma if flow else k.sigma / k.beta).float()

    def _stamps(self, times: list[float]) -> Tensor:
        """What the network is told at these times: int64 where all are indices of a table."""
        reading, t = self._reading, host(times)
        if reading.preconditioned is not None:
            stamps = reading.timestep(reading.preconditioned.scalings(t).c_noise)
        else:
            stamps = reading.timestep(told(reading.path, reading.time, t))
        whole = isinstance(reading.time, tuple) and bool((stamps == stamps.round()).all())
        return stamps.long() if whole else stamps.float()

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The first stage at this timestep, where there are several that of a step's beginning.

        Raises:
            OptionError: there is none.
        """
        stamps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        here = (stamps == torch.as_tensor(timestep).to(stamps.device)).nonzero()
        if not len(here):
            raise OptionError(
                f"timestep {float(timestep):g} is not one of this run. Give scheduler.timesteps in order."
            )
        first: list[int] = here.flatten().tolist()
        return next((i for i in first if i % self.order == 0), first[0])

    def _begin(self, timestep: Any) -> tuple[Programme, int]:
        """The programme, and the number in it of the stage to run: at first that of any step."""
        if self._programme is None or self.num_inference_steps is None:
            raise OptionError("the scheduler has no steps yet. Call set_timesteps first.")
        if self._step_index is None:
            begin = self._begin_index
            index = self.index_for_timestep(timestep) if begin is None else begin
            if index % self.order:
                raise OptionError(
                    f"stage {index} is inside a step of {self.order} stages. Begin with a multiple, as "
                    "pipelines do that know scheduler.order."
                )
            if index != self._first:
                self._lay_out(index // self.order)
            self._step_index = index
        j = self._step_index - self._first
        if j >= len(self._programme.stages):
            raise OptionError("this run has ended. Call set_timesteps for another.")
        return self._programme, j

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network sees of a point: itself, or c_in times it for EDM's networks."""
        scalings = self._reading.preconditioned
        if scalings is None:
            return sample
        made, j = self._begin(timestep)
        return sample * scalings.scalings(made.stages[j].t).c_in.item()

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> InterpSchedulerOutput | tuple[Tensor, Tensor | None]:
        """The next point at which the network is to be asked; after the last stage, the sample.

        Args:
            model_output: what the network returned.
            timestep: where it was asked, an entry of `timesteps`.
            sample: the point at which it was.
            eta: must be what the method was made with, or 0.
            use_clipped_model_output: ignored: a clipped data estimate is always used whole.
            generator: where noise is drawn from.
            return_dict: a tuple where it is False.

        Raises:
            FieldError: an output that is not of the sample's shape, nor of twice its channels.
            OptionError: an eta that this scheduler was not made with, or a run that has ended.
        """
        if eta and eta != self._options.get("eta"):
            raise OptionError(
                f"eta={eta!r} is an option of the method, and this scheduler was made with "
                f"{self._options.get('eta', 0.0)!r}. Give it to from_config."
            )
        made, j = self._begin(timestep)
        stage = made.stages[j]
        wide = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(wide)
        output = predicted(model_output, sample, self._reading.learned_variance).to(wide)
        value, data = self._value(-output if self._reading.flipped else output, stage.t, x)
        self._outputs[j] = value
        total = stage.kept * x
        for i, weight in stage.outputs:
            total = total.add_(self._outputs[i], alpha=weight)
        for k, scale in stage.normals:
            if k not in self._normals:
                self._normals[k] = randn_tensor(
                    x.shape, generator=generator, device=x.device, dtype=wide
                )
            total = total.add_(self._normals[k], alpha=scale)
        self._forget(made, j)
        self._step_index = self._first + j + 1
        following = total.to(sample.dtype)
        if not return_dict:
            return following, data
        return InterpSchedulerOutput(prev_sample=following, pred_original_sample=data)

    def _forget(self, made: Programme, j: int) -> None:
        for kept, last in ((self._outputs, made.last_use), (self._normals, made.last_normal)):
            for i in [i for i in kept if last.get(i, -1) <= j]:
                del kept[i]

    def _value(self, output: Tensor, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The view that the programme takes, and the data estimate where it is known or clipped."""
        reading = self._reading
        if reading.preconditioned is not None:
            output = reading.preconditioned.denoised(output, host(t), x)
        elif reading.path.table is not None and t > 1 - 1 / reading.path.table:
            output = held(reading, output, told(reading.path, reading.time, host(t)), x)
        if not (self._clips or self._thresholds):
            return output, output if reading.view == "data" else None
        path, view = reading.path, reading.view
        if path.coefficients(t).sigma.item() == 0:
            return output, x
        data = path.convert(output, view, "data", x, t)
        if self._thresholds:
            data = self._theirs._threshold_sample(data)
        else:
            size = float(self.config.get("clip_sample_range") or 1.0)
            data = data.clamp(-size, size)
        return path.convert(data, "data", view, x, t), data

    # Noising

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """beta x + sigma noise at each row's timestep."""
        t = self._reading.when(torch.as_tensor(timesteps).double().reshape(-1)).clamp(0, 1)
        t = t.expand(len(original_samples)) if len(t) == 1 else t
        return self.path.at(t, noise, original_samples)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """beta noise - sigma x at each row's timestep."""
        t = self._reading.when(torch.as_tensor(timesteps).double().reshape(-1)).clamp(0, 1)
        k = self.path.coefficients(t)
        return self.path.combine((k.beta, -k.sigma), (noise, sample))


def _class_of(scheduler: Any) -> str:
    """The class whose configuration this is: its own word for it, or the one with just these entries.

    diffusers writes _class_name into a configuration only when it is saved.

    Raises:
        OptionError: no class, or several that mean different things.
    """
    if not isinstance(scheduler, Mapping):
        config = getattr(scheduler, "config", None)
        own = config.get("noise_of") if isinstance(config, Mapping) else None
        return str(own or type(scheduler).__name__)
    said = scheduler.get("noise_of") or scheduler.get("_class_name")
    if said:
        return str(said)
    keys = {key for key in scheduler if not key.startswith("_") and key not in _OURS}
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    fitting = [name for name in names if _entries(getattr(diffusers, name)) == keys]
    if len({meaning(name) for name in fitting}) != 1:
        among = (
            f"may be that of {' or '.join(fitting)}"
            if fitting
            else "is no scheduler's of diffusers"
        )
        raise OptionError(
            f"the configuration {among}, and its class says what it means. Give the scheduler itself, "
            "InterpScheduler(pipe.scheduler, ...)."
        )
    return fitting[0]


def _entries(kind: Any) -> set[str]:
    found = set(inspect.signature(kind.__init__).parameters)
    return found - {"self", "args", "kwargs"}
