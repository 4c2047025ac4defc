"""The folder that a run lives in.

config.json         the family, the data, the training: what rebuilds the run
metrics.jsonl       one line a step
checkpoints/        the last few, to resume from
model.safetensors   the averaged weights at the last checkpoint: what sampling reads
samples.png, loss.png
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import families
from ..errors import CheckpointError, OptionError, RunExists, TrainingError
from ..families import Family
from ..files import write_bytes
from . import checkpoint as files
from .device import as_device
from .state import State, misfit

_FILES = ("metrics.jsonl", "model.safetensors", "samples.png", "loss.png", "config.json")
Config = dict[str, Any]


class Run:
    """A run folder, open for writing.

    Args:
        folder: where it is, made if need be.
        config: what config.json is to say.
        resume: go on from the last checkpoint, or begin where there is none, so that a run killed
            at any moment is restarted by one and the same call.
        overwrite: remove the run that is there.
        keep: how many checkpoints are kept.

    Raises:
        OptionError: both resume and overwrite.
        RunExists: a run is there and neither was asked for.
        CheckpointError: resume from another family's run, or from one with other options.
        TrainingError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, config: Config, *, resume: bool, overwrite: bool, keep: int
    ) -> None:
        if resume and overwrite:
            raise OptionError("resume and overwrite were both asked for. Choose one.")
        config = json.loads(json.dumps(config))  # as it will be read again: lists for tuples
        self.folder, self.keep = folder, max(1, keep)
        self.checkpoints = folder / "checkpoints"
        if exists(folder):
            if resume:
                _check_same(folder, config)
            elif not overwrite:
                raise RunExists(
                    f"{folder} already holds a run. Ask for --resume (resume=True) to go on with it "
                    "or --overwrite (overwrite=True) to start anew, or choose another folder."
                )
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                _remove(folder)
            files.write_json(folder / "config.json", config)
        self._metrics: io.TextIOWrapper | None = None

    def last(self) -> files.Checkpoint | None:
        """The checkpoint to resume from; None where there is none yet."""
        return files.load_last(self.checkpoints)

    def save(self, state: State) -> None:
        """Write a checkpoint, and the averaged weights as the model.

        Raises:
            TrainingError: the disk is full or cannot be written; what was there stays.
        """
        with self._writing():
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            files.save(self.checkpoints, state.checkpoint(), self.keep)
            about = {"family": state.name, "step": state.step}
            files.write_tensors(self.folder / "model.safetensors", state.average.state(), about)

    @contextlib.contextmanager
    def metrics(self, step: int) -> Iterator[None]:
        """metrics.jsonl open for `log`, with the lines after ``step`` cut off."""
        path = self.folder / "metrics.jsonl"
        with self._writing():
            kept = [row for row in read_metrics(self.folder) if row["step"] <= step]
            write_bytes(path, "".join(map(_line, kept)).encode())
            self._metrics = path.open("a", buffering=1)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a full disk was reported by the line itself
                self._metrics.close()
            self._metrics = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self._metrics is not None:
            with self._writing():
                self._metrics.write(_line(row))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the file system says into one sentence of what and one of what to do."""
        try:
            yield
        except OSError as error:
            saved = files.found(self.checkpoints)
            remedy = (
                f"The last checkpoint, {saved[-1].name}, is whole: make the folder writable, with "
                "room to spare, and go on with --resume (resume=True)."
                if saved
                else "Choose another folder."
            )
            raise TrainingError(
                f"the run in {self.folder} cannot be written: {error.strerror or error}. {remedy}"
            ) from error


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a run."""
    return any((folder / name).exists() for name in ("config.json", "model.safetensors")) or bool(
        files.found(folder / "checkpoints")
    )


def read_config(folder: Path) -> Config:
    """The config of the run in ``folder``.

    Raises:
        CheckpointError: no run there, or a config that is damaged or of another schema.
    """
    if not exists(folder):
        raise CheckpointError(f"there is no run in {folder}. Give a folder that a run has written.")
    config = files.read_json(folder / "config.json")
    if missing := {"family", "config", "data", "training"} - config.keys():
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged: it lacks {', '.join(sorted(missing))}. Restore "
            "it, or train anew."
        )
    return config


def read_metrics(folder: Path) -> Sequence[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a killed run left half is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            row["step"], row["loss"]
        except (ValueError, TypeError, KeyError):
            break
        rows.append(row)
    return rows


def load(
    folder: str | Path, device: torch.device | str = "cpu", **own: Any
) -> tuple[Family, Config]:
    """The family of the run in ``folder`` with its averaged weights, and the run's config.

    Args:
        folder: a run folder.
        device: where to put the family.
        own: what the config cannot hold, such as ``network=`` or ``path=`` of the user's own.

    Raises:
        CheckpointError: no run there, or one that is damaged or of another schema.
        UnknownName: its family is not installed.
        OptionError: the family needs something of the user's own, or no such device.
    """
    folder, where = Path(folder), as_device(device)
    config = read_config(folder)
    weights, about = files.read_tensors(folder / "model.safetensors")
    if about.get("family") != config["family"]:
        raise CheckpointError(
            f"{folder} holds the weights of {about.get('family')!r} but the config of "
            f"{config['family']!r}. Restore the file that was replaced, or train anew."
        )
    family = families.create(config["family"], **{**config["config"], **own})
    if not isinstance(family, nn.Module):
        raise OptionError(
            f"the family {config['family']!r} is no nn.Module. Repair the distribution that it "
            "comes from."
        )
    try:
        family.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        raise misfit(config["family"], error) from error
    family.eval().to(where)
    return family, config


def versions() -> dict[str, str]:
    """What a run was made with."""
    from .. import __version__

    return {"interp": __version__, "torch": torch.__version__}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _remove(folder: Path) -> None:
    """Remove what a run has written, and nothing else."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _check_same(folder: Path, config: Config) -> None:
    """Refuse to go on with a run under other options than it was begun with; steps may differ."""
    if not (folder / "config.json").exists():
        return
    old = read_config(folder)
    if old["family"] != config["family"]:
        raise CheckpointError(
            f"{folder} holds a run of the family {old['family']!r}, not {config['family']!r}. "
            f"Resume it as {old['family']!r}, or choose another folder."
        )
    for part in ("config", "data", "training"):
        for key in sorted(old[part].keys() | config[part].keys()):
            if (part, key) in (("training", "steps"), ("training", "save_every")):
                continue
            before, now = old[part].get(key), config[part].get(key)
            if before != now:
                raise CheckpointError(
                    f"the run in {folder} was begun with {key}={before!r}, not {now!r}. Resume it "
                    "with what it was begun with, or choose another folder."
                )
