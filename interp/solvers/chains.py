"""Chains on an energy: Langevin and Hamiltonian dynamics, with and without acceptance.

With step size h, temperature T and z standard normals:

    langevin      x - h dU + sqrt(2 h T) z                         unadjusted (Roberts, Tweedie 1996)
    annealed      the same through a list of levels, h_i = h (level_i / level_last)^2
                  (Song, Ermon, 1907.05600, algorithm 1)
    mala          the same, accepted by Metropolis and Hastings
    underdamped   BAOAB with unit mass and friction (Leimkuhler, Matthews, 1203.5428)
    hmc           leapfrog steps of unit mass, accepted (Duane et al. 1987; Neal, 1206.1901)

The normals of a step are keyed by (seed, row, element, step), so that a chain does not depend on its
neighbours, and ``first_row`` makes chunks of the whole. A chain is run by the Rust engine, or in torch
(`interp.solvers.torch_backend.chains`); here is what both are told, and what their answers mean.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..arguments import host, positive, real, transforming, whole
from ..errors import OptionError, SolveError, Unsupported
from ..noise import STREAMS, check_first_row, check_seed, fresh_seed, stream_key
from ..terms import Cond, Energy
from . import rust_backend, torch_backend
from .problem import Chain, ChainReport
from .result import Solution, Stats, StepState

CHAINS = ("langevin", "annealed", "mala", "underdamped", "hmc")
_ACCEPTED = ("mala", "hmc")
#: What dual averaging aims at: Roberts and Rosenthal (1998); Stan's, which is cautious beside the 0.651 that
#: Beskos et al. (1001.4460) found to be best for many independent elements.
_TARGETS = {"mala": 0.574, "hmc": 0.8}
#: Numbers of a state that count for the effective sample size.
_COUNTED = 2**16


def run(
    energy: Energy, x: Tensor, name: str, *, backend: str, steps: int | None, seed: int | None,
    first_row: int, cond: Cond, callback: Callable[[StepState], object] | None,
    options: Mapping[str, Any],
) -> Solution:  # fmt: skip
    """Run a chain; see `interp.solve`."""
    began = time.perf_counter()
    _check(energy, x, name)
    backend = _backend(backend, x)
    given = _options(name, options)
    count = whole("steps", 0 if steps is None else steps, 1)
    seed = fresh_seed() if seed is None else check_seed(seed)
    first_row = check_first_row(first_row, len(x))
    levels = _levels(name, given)
    every = given["save_every"]
    saves = len(levels) * (count // every) if every else 0
    chain = Chain(
        energies=[
            functools.partial(energy.value_and_gradient, extra=extra, cond=cond)
            for extra, _ in levels
        ],
        y=x.detach().contiguous(),
        row=math.prod(x.shape[1:]),
        xs=x.new_empty((saves, *x.shape)),
        saves=saves,
        dynamics="langevin" if name == "annealed" else name,
        step_sizes=[h for _, h in levels],
        steps=count,
        temperature=float(energy.temperature),
        friction=given["friction"],
        leapfrog=given["leapfrog"],
        adapt=given["adapt"],
        target=_TARGETS.get(name, 0.0),
        save_every=every,
        key=stream_key(seed, STREAMS["chain"]),
        first_row=first_row,
        columns=max(_COUNTED // max(len(x), 1), 1),
        observer=None if callback is None else _observer(callback),
    )
    engine = rust_backend.chain if backend == "rust" else torch_backend.chain
    report = engine(chain)
    status, rate = report["status"], report["acceptance"]
    if status == "bad_start" or (
        status in ("non_finite", "nothing_accepted") and options.get("on_failure") != "partial"
    ):
        raise _failure(report)
    if name in _ACCEPTED and rate is not None and rate < 0.05 and status == "done":
        _complain(report, rate, count)
    end = report["y"].clone() if backend == "rust" else report["y"]  # out of the engine's memory
    stats = Stats(
        nfe=report["nfe"], steps=report["step"], accepted=report["step"], rejected=0,
        wall_s=time.perf_counter() - began, field_s=report["field_s"], method=name, backend=backend,
        status=status, seed=seed, acceptance=rate, ess=report["ess"], step_size=report["step_size"],
    )  # fmt: skip
    saved = report["saved"]
    if not saved:
        return Solution(end, host([float(report["step"])]), end[None], stats)
    return Solution(end, host([float(k) for k in saved]), chain.xs[: len(saved)], stats)


def _observer(
    callback: Callable[[StepState], object],
) -> Callable[[int, Tensor, int], object]:
    def observe(step: int, x: Tensor, nfe: int) -> object:
        return callback(StepState(float(step), x, nfe, step, lambda t, x: None))

    return observe


def _backend(backend: str, x: Tensor) -> str:
    native = rust_backend.takes(x)
    if backend == "auto":
        return "rust" if native and not transforming() else "torch"
    if backend == "rust" and not native:
        raise Unsupported(
            f"the rust backend runs float32 and float64 on the cpu, and x is {x.dtype} on {x.device}. "
            'Use backend="torch" or "auto".'
        )
    return backend


def _levels(name: str, given: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], float]]:
    """What the potential is told beside x, and the step size, in turn."""
    h = given["step_size"]
    if name != "annealed":
        return [((), h)]
    levels = given["levels"]
    return [((level,), h * (level / levels[-1]) ** 2) for level in levels]


def _options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    adapt = whole("adapt", options.get("adapt", 0), 0)
    if "step_size" not in options and not adapt:
        instead = ", or adapt=N to look for one in N steps" if name in _ACCEPTED else ""
        raise OptionError(
            f"{name} needs a step size. Give step_size=h, in units of x^2 / U{instead}."
        )
    # Where the search begins matters little: dual averaging moves the logarithm, in long strides at first.
    step_size = positive("step_size", options.get("step_size", 1.0))
    friction = real("friction", options.get("friction", 1.0))
    levels: Sequence[float] = options.get("levels", ())
    if name == "annealed":
        levels = [real("levels", level) for level in levels]
        if not levels or 0 in levels:
            raise OptionError("annealed needs noise levels. Give levels=[largest, ..., smallest].")
    return {
        "step_size": step_size, "friction": friction, "adapt": adapt, "levels": levels,
        "leapfrog": whole("leapfrog", options.get("leapfrog", 10), 1),
        "save_every": whole("save_every", options.get("save_every", 0), 0),
    }  # fmt: skip


def _check(energy: Energy, x: Tensor, name: str) -> None:
    if x.ndim == 0:
        raise OptionError("x has no rows. Give a tensor of shape (rows, ...).")
    if name in _ACCEPTED and energy.potential is None:
        raise Unsupported(
            f"{name} accepts by the energy, and this Energy has only a gradient. Give its potential, or "
            "use langevin or underdamped."
        )


def _failure(report: ChainReport) -> SolveError:
    rows, step, rate = report["rows"], report["step"], report["acceptance"]
    where = f", in rows {rows[:8]}" if rows else ""
    if report["status"] == "bad_start":
        what = f"the energy or its gradient is NaN or infinite at the start{where}"
        remedy = "Start where the energy is finite."
    elif report["status"] == "nothing_accepted":
        what = f"no step of the {step} that looked for a step size was accepted"
        remedy = "Give a smaller step_size to begin with, and look at whether the energy is finite."
    else:
        said = "" if rate is None else f"; its steps would be accepted at the rate {rate:.3g}"
        size = report["step_size"]
        what = f"the chain left every bound after {step} steps of size {size:g}{where}{said}"
        remedy = "Give a smaller step_size, or find one by mala or hmc with adapt=N."
    return SolveError(
        f"{what}. {remedy}", time=float(step), step=step, rows=rows, last=report["y"],
        reason="non_finite" if report["status"] == "bad_start" else report["status"],
    )  # fmt: skip


def _complain(report: ChainReport, rate: float, steps: int) -> None:
    said = f"the acceptance rate is {rate:.2g} over {steps} steps of size {report['step_size']:g}"
    if rate < 1e-6:
        raise SolveError(
            f"{said}: the chain does not move. Give a smaller step_size, or adapt=N to find one.",
            time=float(report["step"]), step=report["step"], rows=[], last=report["y"],
            reason="stuck",
        )  # fmt: skip
    warnings.warn(
        f"{said}: the step is too long. Give a smaller step_size, or adapt=N to find one.",
        stacklevel=4,
    )
