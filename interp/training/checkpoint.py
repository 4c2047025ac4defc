"""Files that are whole or absent: safetensors and JSON, written aside, synced, renamed.

A checkpoint is a folder ``step-00000500`` with one safetensors file for each part of the state and
``checkpoint.json``. It gets its name when all is on disk, so a killed run leaves the one before.
Every safetensors file carries a digest of its tensors. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import CheckpointError
from ..files import sync_folder, write_bytes, write_synced

SCHEMA = 1

_PREFIX = "step-"
_JSON = "checkpoint.json"
_ABOUT = "interp"  # the key of our metadata in a safetensors file


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` steps.

    Attributes:
        family: the name of the family.
        parts: tensors by name, for each part of the state ("model", "average", "optimizer").
        extra: what else there is, JSON-able.
    """

    step: int
    family: str
    parts: Mapping[str, Mapping[str, Tensor]]
    extra: Mapping[str, Any]


# Files


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same for JSON."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in the JSON file at ``path``, of our schema.

    Raises:
        CheckpointError: not there, not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Give a folder that a run has written.") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no mapping")
    check_schema(path, content.get("schema"))
    return content


def check_schema(path: Path, schema: object) -> None:
    """Refuse what was written under another schema.

    Raises:
        CheckpointError: names both schemas.
    """
    if str(schema) != str(SCHEMA):
        raise CheckpointError(
            f"{path} has schema {schema}, and this version of interp reads schema {SCHEMA}. "
            "Use the version of interp that wrote it, or train anew."
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A safetensors file of ``tensors`` with ``about``, the schema and a digest as metadata."""
    write_bytes(path, _packed(tensors, about))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata at ``path``.

    Raises:
        CheckpointError: not there, damaged, or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Give a folder that a run has written.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    check_schema(path, about.get("schema"))
    if about.get("digest") != _digest(tensors):
        raise _damaged(path, "its tensors do not match their digest")
    return tensors, about


def _packed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    metadata = {**about, "schema": SCHEMA, "digest": _digest(plain)}
    # One key, because safetensors writes several in no fixed order: equal tensors, equal files.
    packed: bytes = to_bytes(plain, {_ABOUT: json.dumps(metadata)})
    return packed


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: {why}. Go back to an earlier checkpoint, or train anew."
    )


# Checkpoints


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``checkpoint`` into ``folder`` and remove all but the last ``keep``."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{_PREFIX}{checkpoint.step:08d}"
    aside = folder / f".{path.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        for part, tensors in checkpoint.parts.items():
            write_synced(aside / f"{part}.safetensors", _packed(tensors, {"part": part}))
        about = {"schema": SCHEMA, "family": checkpoint.family, "step": checkpoint.step}
        about |= {"parts": sorted(checkpoint.parts), "extra": checkpoint.extra}
        write_synced(aside / _JSON, (json.dumps(about, indent=2) + "\n").encode())
        sync_folder(aside)
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
        sync_folder(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.is_dir())


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``.

    Raises:
        CheckpointError: damaged or of another schema.
    """
    about = read_json(path / _JSON)
    try:
        step, family, extra = int(about["step"]), str(about["family"]), dict(about["extra"])
        names = [str(name) for name in about["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path / _JSON, f"{type(error).__name__}: {error}") from error
    parts = {name: read_tensors(path / f"{name}.safetensors")[0] for name in names}
    return Checkpoint(step, family, parts, extra)


def load_last(folder: Path) -> Checkpoint | None:
    """The last checkpoint in ``folder``, or None where there is none.

    Raises:
        CheckpointError: it is damaged or of another schema; names the last good one before it.
    """
    paths = found(folder)
    if not paths:
        return None
    try:
        return load(paths[-1])
    except CheckpointError as error:
        good = next((p for p in reversed(paths[:-1]) if _is_good(p)), None)
        if good is None:
            raise
        what = str(error).partition(". ")[0]
        raise CheckpointError(
            f"{what}. The one before it, {good.name}, is good: delete {paths[-1]} and resume to go "
            "on from there."
        ) from error


def _is_good(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return False
    return True
