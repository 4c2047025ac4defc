"""What every benchmark shares: interleaved timing, and a result file that says how it was made."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

RESULTS = Path(__file__).parent / "results"


def without_init(package: str, *modules: str) -> list[ModuleType]:
    """Modules of a package whose own __init__ is not run.

    That of k-diffusion imports what it trains with (kornia, scikit-image, wandb, ...), which its samplers
    and losses do not need.

    Raises:
        ImportError: a package that is not there, or a module whose own imports are not.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {package!r}")
    sys.modules.setdefault(package, importlib.util.module_from_spec(spec))
    return [importlib.import_module(f"{package}.{module}") for module in modules]


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1
) -> dict[str, list[object]]:
    """Call every run once in turn, ``repeats`` times over, and collect what each returns.

    In turn, so that a machine whose speed drifts is slow for all of them alike.
    """
    for _ in range(warmups):
        for run in runs.values():
            run()
    collected: dict[str, list[object]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            collected[name].append(run())
    return collected


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of one call, of all threads: what counts where others share the machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def processor() -> str:
    """The processor's own name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write(name: str, packages: Sequence[str], seed: int, **content: object) -> Path:
    """Write ``results/name.json``: the content, and command, versions, machine, seed and date."""
    RESULTS.mkdir(exist_ok=True)
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    about = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": "cpu",
        },
        "versions": versions,
        "seed": seed,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about, **content}, indent=2) + "\n")
    return path
