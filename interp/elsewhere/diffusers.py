"""Networks of diffusers under our solvers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError, Unsupported
from ..interpolant import Interpolant
from ..preconditioning import Preconditioned
from .network import Network
from .reading import Reading, read, same_table


def from_diffusers(
    model: Any, scheduler: Any = None, *, mu: float | None = None, tokens: int | None = None
) -> tuple[Interpolant, Network | Preconditioned]:
    """The path and the model of a network and a scheduler of diffusers.

        path, model = interp.from_diffusers(unet, scheduler)
        x = path.base.sample((16, 3, 32, 32), seed=0)
        sol = interp.solve(path.ode(model), x, method="heun", steps=20)

    The path is where the network's points lie, in its own scale: the scheduler's table in float64,
    whose index k is at t = 1 - (k + 1) / n, interpolated in log-SNR between (`interp.schedules`); or
    the linear path at the pace of the scheduler's shift; or sigma_max to sigma_min of an EDM one. The
    model says itself what it returns (``model.view``) and is told (``model.time``).

    What a scheduler says of steps and samplers (spacing, order, Karras sigmas, clipping of the data
    estimate) is for `interp.solve` to say, and not read. A run ends at clean data, on the last cell of a
    table with the network told index 0.

    Args:
        model: a network, or a function net(x, timestep, **cond) that calls one; or the folder of one; or
            a pipeline or the folder of one, where ``scheduler`` is left out.
        scheduler: a scheduler, or its folder, or its configuration (a mapping with ``_class_name``).
        mu: the shift of a scheduler with use_dynamic_shifting, as its pipeline would give it.
        tokens: the length of the image's sequence, from which that pipeline works out mu.

    Raises:
        Unsupported: a scheduler class that is not understood.
        OptionError: an entry of its configuration that is not understood, a table that is not the one
            that the configuration describes, a folder or network that is none.
    """
    net, scheduler = _pair(model, scheduler)
    reading = reading_of(scheduler, mu, tokens)
    return reading.path, model_of(net, reading)


def model_of(net: Callable[..., Any], reading: Reading) -> Network | Preconditioned:
    """The network as a model of ours."""
    made = Network(net, reading)
    scalings = reading.preconditioned
    if scalings is None:
        return made
    return Preconditioned(made, reading.path, scalings.kind, scalings.sigma_data, scalings.noise)


def reading_of(scheduler: Any, mu: float | None = None, tokens: int | None = None) -> Reading:
    """What a scheduler, or a configuration of one, says.

    Raises:
        Unsupported, OptionError, UnknownName: as `from_diffusers`.
    """
    if isinstance(scheduler, Mapping):
        name = scheduler.get("noise_of") or scheduler.get("_class_name")
        if not isinstance(name, str):
            raise OptionError(
                "the configuration has no _class_name, and the same words mean different things in "
                "different schedulers. Give the scheduler itself."
            )
        return read(name, scheduler, mu, tokens)
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise OptionError(
            f"the scheduler is a {type(scheduler).__name__} without a configuration. Give one of "
            "diffusers' schedulers, its folder, or its configuration."
        )
    config = dict(config)
    name = str(config.get("noise_of") or type(scheduler).__name__)
    shift = getattr(scheduler, "shift", None)
    if isinstance(shift, (int, float)) and "shift" in config:
        config["shift"] = shift  # set_shift leaves the configuration behind
    reading = read(name, config, mu, tokens)
    table = getattr(scheduler, "alphas_cumprod", None)
    size = reading.path.table
    if (
        table is not None
        and size is not None
        and not (len(table) == size and same_table(table, reading.path))
    ):
        raise OptionError(
            f"the table of this {name} is not the one that its configuration describes. Build the path "
            "from it, interp.schedules.from_alphas_cumprod(scheduler.alphas_cumprod), and give the "
            "network as a function of (index, x)."
        )
    return reading


# Objects and folders


def _pair(model: Any, scheduler: Any) -> tuple[Callable[..., Any], Any]:
    if scheduler is None:
        parts = _pipeline_folder(model) if isinstance(model, (str, os.PathLike)) else model
        scheduler = _part(parts, "scheduler")
        for name in ("unet", "transformer"):
            net = _part(parts, name)
            if net is not None and scheduler is not None:
                return net, scheduler
        raise OptionError(
            f"a {type(model).__name__} has no network and scheduler of its own. Give both, or a pipeline "
            "with a unet or a transformer, or its folder."
        )
    if isinstance(model, (str, os.PathLike)):
        model = _load(Path(model), "config.json")
    if isinstance(scheduler, (str, os.PathLike)):
        scheduler = _load(Path(scheduler), "scheduler_config.json")
    return model, scheduler


def _part(parts: Any, name: str) -> Any:
    return parts.get(name) if isinstance(parts, Mapping) else getattr(parts, name, None)


def _pipeline_folder(folder: str | os.PathLike[str]) -> dict[str, Any]:
    where = Path(folder)
    if not (where / "model_index.json").is_file():
        raise OptionError(
            f"{str(folder)!r} holds no pipeline (model_index.json). Give the folder of a pipeline that was "
            "saved with save_pretrained, or the network's and the scheduler's."
        )
    files = {
        "scheduler": "scheduler_config.json",
        "unet": "config.json",
        "transformer": "config.json",
    }
    there = {name: file for name, file in files.items() if (where / name).is_dir()}
    return {name: _load(where / name, file) for name, file in there.items()}


def _load(folder: Path, file: str) -> Any:
    """What was saved in a folder, by the class that its configuration names; nothing is downloaded."""
    if not (folder / file).is_file():
        raise OptionError(
            f"{str(folder)!r} holds no {file}. Give a folder that was saved with save_pretrained; names "
            "of a hub are not looked up."
        )
    try:
        import diffusers
    except ImportError as error:
        raise Unsupported(
            "a folder of diffusers needs diffusers to load. Install interp[peers]."
        ) from error
    name = json.loads((folder / file).read_text(encoding="utf-8")).get("_class_name")
    if name == "InterpScheduler":
        from .scheduler import InterpScheduler

        return InterpScheduler.from_pretrained(folder)
    kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise Unsupported(
            f"{folder / file} names the class {name!r}, which this diffusers {diffusers.__version__} does "
            "not have. Load it yourself and give the object."
        )
    options = {"use_safetensors": True} if file == "config.json" else {}
    return kind.from_pretrained(folder, local_files_only=True, **options)
