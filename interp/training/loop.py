"""The training loop: one for every family, which tells it what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..background import ahead_of, spare_core
from ..errors import OptionError
from ..families import Batch, Family
from ..noise import check_seed
from ..seeds import derive, generator, seed_global
from . import pictures
from .batches import Data, batches, check_tensors
from .checkpoint import SCHEMA
from .progress import Bar
from .run import Run, versions
from .state import State


@dataclass(frozen=True)
class Trained:
    """What `train` gives back.

    Attributes:
        family: with the averaged weights in it, in evaluation mode.
        step: how many steps it has had.
        losses: the total loss of each step of this call.
        out: the run folder, or None.
    """

    family: Family
    step: int
    losses: list[float]
    out: Path | None


def train(
    family: Family,
    data: Data,
    steps: int,
    out: str | Path | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    save_every: int = 500,
    keep: int = 3,
    ema: float = 0.999,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Trained:
    """Train ``family`` on ``data`` for ``steps`` steps; with ``out``, so that it can be resumed.

    All randomness of a step comes from (seed, step) and the order of the data from (seed, epoch),
    so that a run that was killed and resumed gives, on one machine's CPU with as many threads, the
    same numbers bit for bit as one that was not. Torch's global generator is left as it was found.

    Args:
        family: what to train; afterwards it holds the averaged weights.
        data: a tensor of points, a mapping of tensors with "x" and perhaps "label", a Dataset or a
            DataLoader of such (or of (x,) or (x, label)); images are float in [-1, 1].
        steps: how many steps the run has, counted from its beginning. Learning rates are
            functions of step / steps.
        out: the run folder; None keeps nothing on disk.
        batch_size: rows in a batch; not used with a DataLoader.
        seed: of everything that is drawn.
        save_every: steps between checkpoints.
        keep: how many checkpoints stay.
        ema: decay of the averaged weights; 0 for none.
        resume: go on from the last checkpoint in ``out``; begin where there is none.
        overwrite: remove the run in ``out`` first.
        device: where to train; None is where the family is.
        progress: show a bar with the loss and the rows a second.
        about: what to record of the data in config.json, JSON-able.

    Raises:
        OptionError: a number out of range, or resume or overwrite without ``out``.
        DataError: data that cannot be trained on.
        RunExists: ``out`` holds a run and neither resume nor overwrite was asked for.
        CheckpointError: the checkpoint to resume from is damaged, of another schema, of another
            family, or of a run with other options.
        TrainingError: a loss or gradient that is not finite, or a folder that cannot be written;
            the last checkpoint is left as it was.
    """
    _check(steps=steps, save_every=save_every, keep=keep, batch_size=batch_size)
    check_seed(seed)
    if out is None and (resume or overwrite):
        raise OptionError("resume and overwrite need the folder of a run. Give out=.")
    if isinstance(data, Tensor | Mapping):
        check_tensors(data)
    state = State(family, steps, ema, device)
    about = {**describe(data), **(about or {})}
    run = None
    if out is not None:
        options = {"steps": steps, "batch_size": batch_size, "seed": seed, "ema": ema}
        config = {
            "schema": SCHEMA, "family": state.name, "config": dict(family.config), "data": about,
            "training": {**options, "save_every": save_every}, "versions": versions(),
        }  # fmt: skip
        run = Run(Path(out), config, resume=resume, overwrite=overwrite, keep=keep)
        if (last := run.last()) is not None:
            state.load(last)
    devices = [state.device] if state.device.type == "cuda" else []
    with torch.random.fork_rng(devices), Bar(steps, state.step, progress) as bar:
        losses = _loop(
            state, run, batches(data, batch_size, seed, state.step), seed, save_every, bar
        )
    state.finish()
    if run is not None:
        pictures.draw(family, run.folder, seed, about)
    return Trained(family, state.step, losses, None if run is None else run.folder)


def _loop(
    state: State, run: Run | None, stream: Iterator[Batch], seed: int, save_every: int, bar: Bar
) -> list[float]:
    """Step until the end, saving on the way; the total loss of each step."""
    history: list[float] = []
    if run is None:
        for row in _steps(state, stream, seed):
            history.append(row["loss"])
            bar.show(row)
        return history
    if state.step == 0:
        run.save(state)  # so that a killed run always has weights to begin from
    with run.metrics(state.step):
        for row in _steps(state, stream, seed):
            history.append(row["loss"])
            run.log(row)
            bar.show(row)
            if state.step % save_every == 0 or state.step == state.total:
                run.save(state)
    return history


def _steps(state: State, stream: Iterator[Batch], seed: int) -> Iterator[dict[str, Any]]:
    """One line of metrics for each step that is left."""
    dtype = next(state.module.parameters()).dtype
    with contextlib.closing(_prepared(state, stream, seed)) as prepared:
        while state.step < state.total:
            begun, step = time.perf_counter(), state.step
            batch = _to(next(prepared), state.device, dtype)
            seed_global(derive(seed, "global", step))
            stage = state.family.stage(step, state.total)
            state.module.train()
            losses = state.advance(batch, generator(state.device, seed, "step", step))
            rows = len(batch if isinstance(batch, Tensor) else batch["x"])
            row: dict[str, Any] = {"step": state.step, "stage": stage, "loss": sum(losses.values())}
            if losses.keys() != {"loss"}:
                row["losses"] = losses
            yield row | {"samples_per_s": round(rows / (time.perf_counter() - begun), 1)}


def _prepared(state: State, stream: Iterator[Batch], seed: int) -> Generator[Batch]:
    """The batches of the steps that are left, prepared ahead where the family asks for it.

    A batch is a function of (seed, step), however far ahead it was drawn: all that its data draw is
    drawn in this thread, after the seed of its step, and `Family.prepare` has a generator. Where
    there is no core for a thread ahead it is prepared here, to the same numbers.
    """

    def drawn() -> Iterator[tuple[int, Batch]]:
        for step in range(state.step, state.total):
            seed_global(derive(seed, "data", step))
            yield step, next(stream)

    def prepare(numbered: tuple[int, Batch]) -> Batch:
        step, batch = numbered
        x = batch["x"] if isinstance(batch, Mapping) else batch
        return state.family.prepare(batch, generator(x.device, seed, "prepare", step))

    if depth := getattr(state.family, "prepares", 0):
        yield from ahead_of(prepare, drawn(), depth if spare_core(state.device) else 0)
    else:
        yield from (batch for _, batch in drawn())


def _to(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the family's device, its floating tensors in the family's dtype."""
    if isinstance(batch, Mapping):
        return {name: _to(value, device, dtype) for name, value in batch.items()}
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    return batch


def describe(data: Data) -> dict[str, Any]:
    """What config.json keeps of the data: how often each label occurs, where that is known."""
    label = data.get("label") if isinstance(data, Mapping) else None
    if not isinstance(label, Tensor) or label.is_floating_point() or label.ndim != 1:
        return {}
    counts = torch.bincount(label.long().cpu())
    return {"label_frequencies": (counts.double() / counts.sum()).tolist()}


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} is {value!r}. Give a whole number, 1 or more.")
