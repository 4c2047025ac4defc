"""Who has the word when: exceptions, calls within calls, threads, signals, the interpreter lock."""

from __future__ import annotations

import gc
import itertools
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import torch
from torch import Tensor

import interp
from interp.solvers import StepState

F64 = torch.float64
SIZES = [6, 5000, 70_000]  # passes release the lock from 1024 elements on
BACKENDS = ["rust", "torch", "torchdiffeq"]
DECAY = math.exp(-1)


def column(size: int) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=F64).reshape(-1, 2)


def test_traceback_of_an_exception_at_step_50() -> None:
    class Burnt(Exception):
        pass

    calls = itertools.count(1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        if next(calls) == 50:
            raise Burnt("at step 50")
        return -x

    for term in (field, interp.ODE(field), interp.schedules.linear().ode(field)):
        calls = itertools.count(1)
        with pytest.raises(Burnt) as caught:
            interp.solve(term, torch.ones(3, 2), method="euler", backend="rust", steps=100)
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        # What lies between solve and the field is native.
        assert frames == ["test_traceback_of_an_exception_at_step_50", "solve", "field"]
    calls = itertools.count(1)
    with pytest.raises(Burnt) as caught:
        interp.solve(
            interp.SDE(field, 0.1), torch.ones(3, 2), method="euler_maruyama", steps=100, seed=0
        )
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames == ["test_traceback_of_an_exception_at_step_50", "solve", "field"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_leaves_nothing_behind(backend: str) -> None:
    x = column(5000)

    def field(t: Tensor, x: Tensor) -> Tensor:
        if t > 0.5:
            raise KeyError("in the middle")
        return -x

    for _ in range(3):
        with pytest.raises(KeyError, match="in the middle"):
            interp.solve(field, x, method="rk38", backend=backend, steps=10)
    sol = interp.solve(lambda t, x: -x, x, method="rk38", backend=backend, steps=10)
    assert float((sol.x - x * DECAY).abs().max()) < 1e-6  # (1/10)^4 / 120


@pytest.fixture(autouse=True)
def nobody_watches_the_collector() -> Iterator[None]:
    """Hypothesis times the garbage collector by a callback, in which what a signal raises is lost."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(callbacks)


MODULES = ("rust_solvers", "rust_solvers.rust_solvers")


def test_a_solve_enters_the_engine_once() -> None:
    entered: list[str] = []

    def profile(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__module__", None) in MODULES:
            entered.append(function.__name__)  # type: ignore[attr-defined]

    x, path = torch.ones(3, 1), interp.schedules.linear()
    law = interp.exact.Gaussian(0.5, 0.3)
    sys.setprofile(profile)
    try:
        interp.solve(lambda t, x: -x, x, method="rk4", steps=100, save_at=[0.5, 1.0])
        interp.solve(lambda t, x: -x, x)
        interp.solve(path.ode(law.data(path), view="data"), x)
        interp.solve(interp.SDE(lambda t, x: -x, 1.0), x, method="euler_maruyama", steps=100)
    finally:
        sys.setprofile(None)
    runs = [name for name in entered if name != "finite"]  # the look at x before
    assert runs == ["runge_kutta"] * 3 + ["recurrence"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_field_that_solves(size: int, backend: str) -> None:
    """-x as the difference of an inner flow: exp(-s) x with s small."""

    def inner(t: Tensor, x: Tensor) -> Tensor:
        return -x

    def field(t: Tensor, x: Tensor) -> Tensor:
        moved = interp.solve(inner, x, (0.0, 1e-3), "rk38", backend, steps=2).x
        return (moved - x) / -math.expm1(-1e-3)

    x = column(size)
    sol = interp.solve(field, x, method="rk38", backend=backend, steps=10)
    assert float((sol.x - x * DECAY).abs().max()) < 1e-6  # (1/10)^4 / 120


def test_a_callback_that_solves_and_one_that_raises() -> None:
    x, ends = column(5000), []

    def solves(state: StepState) -> None:
        rest = interp.solve(lambda t, x: -x, state.x, (state.t, 2.0), "rk38", steps=20)
        ends.append(rest.x)

    interp.solve(lambda t, x: -x, x, method="rk38", steps=4, callback=solves)
    assert all(float((end - x * math.exp(-2)).abs().max()) < 1e-4 for end in ends)

    def raises(state: StepState) -> None:
        raise KeyError(state.step)

    for backend in ("rust", "torch"):
        with pytest.raises(KeyError, match="1"):
            interp.solve(
                lambda t, x: -x, x, method="rk38", backend=backend, steps=4, callback=raises
            )


def test_several_threads_at_once() -> None:
    failures: list[str] = []

    def work(k: int) -> None:
        for size in (6, 5000, 2**20 + 2):  # from 2^20 elements on the passes are shared out
            x = column(size) + k
            sol = interp.solve(lambda t, x: -x, x, method="rk38", steps=10)
            if float((sol.x - x * DECAY).abs().max()) > 1e-5:
                failures.append(f"thread {k}, size {size}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_inside_inference_mode() -> None:
    x = column(5000)
    for backend in ("rust", "torch"):
        with torch.inference_mode():
            made = x.clone()
            for start in (x, made):
                sol = interp.solve(
                    lambda t, x: -x, start, method="rk38", backend=backend, steps=10,
                    callback=lambda s: None, save_at=[0.5, 1.0],
                )  # fmt: skip
                assert float((sol.x - x * DECAY).abs().max()) < 1e-6
    # The result of the rust backend is a normal tensor, whatever mode it was made in.
    with torch.inference_mode():
        sol = interp.solve(lambda t, x: -x, x, steps=2, backend="rust")
    assert not sol.x.is_inference()
    assert not sol.xs.is_inference()


def seconds_until_interrupted(term: interp.ODE | interp.SDE, x: Tensor, method: str) -> float:
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interp.solve(term, x, (0.0, 1e-3), method, "rust", steps=300_000)
        answered = time.perf_counter()
    finally:
        timer.cancel()
        timer.join()
    return answered - sent[0]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("size", [4, 200_000])
def test_ctrl_c_is_answered_at_once(size: int) -> None:
    """In a run whose field is native, so that only the engine can look for signals."""
    x = torch.ones(size)
    for term, method in (
        (interp.ODE(torch.mul), "rk4"),
        (interp.SDE(torch.mul, 0.0), "euler_maruyama"),
    ):
        # The best of three, since a loaded machine may not even run us for as long.
        waits = (seconds_until_interrupted(term, x, method) for _ in range(3))
        assert any(wait < 0.2 for wait in waits)


def test_no_signal_is_lost_while_a_run_starts() -> None:
    """A handler's exception comes out wherever the signal lands, also in the engine's own setting up."""

    class Rang(Exception):
        pass

    def heard(t: Tensor, x: Tensor) -> Tensor:
        raise Rang

    rung = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        rung = True
        raise Rang

    def run(drift: Callable[..., Tensor], steps: int = 100_000) -> None:
        term = interp.SDE(drift, 0.0)
        interp.solve(term, torch.ones(4), method="euler_maruyama", steps=steps, seed=0)

    def run_until_rung(ring_in: float) -> None:
        nonlocal rung
        rung = False
        signal.setitimer(signal.ITIMER_REAL, ring_in)
        while not rung:  # on a machine that was busier before, a run can be over sooner
            run(torch.mul)

    run(torch.mul, 1)  # imports what it needs
    waits = []
    for _ in range(3):  # the shortest, since a loaded machine may not run us for a while
        began = time.perf_counter()
        with pytest.raises(Rang):
            run(heard)
        waits.append(time.perf_counter() - began)
    ready = min(waits)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for k in range(1, 25):  # the engine takes over in the last part of it
            with pytest.raises(Rang):
                run_until_rung((0.5 + 0.025 * k) * ready)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def longest_silence_of_another_thread() -> float:
    """While an SDE takes two steps, passes of noise alone: the share of the run."""
    stop, ticks = threading.Event(), [time.perf_counter()]

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    x = torch.zeros(300, 5000)
    still = torch.zeros_like(x)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        began = time.perf_counter()
        interp.solve(
            interp.SDE(lambda t, x: still, 1.0), x, method="euler_maruyama", grid=[0, 0.3, 1.0],
            seed=0,
        )  # fmt: skip
        ended = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    inside = [began, *(t for t in ticks if began < t < ended), ended]
    return max(b - a for a, b in itertools.pairwise(inside)) / (ended - began)


def test_the_lock_is_released_in_passes_over_large_states() -> None:
    # With the lock held through a pass the silence would be half of the run or more. The best of
    # three, since a loaded machine may let neither thread run.
    assert any(longest_silence_of_another_thread() < 0.5 for _ in range(3))
