"""The border between torch's tensors and the engine, with fields that behave, oddly or well.

Fields that could take a process down are in test_hostile.py, each in a process of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.errors import FieldError, SolveError
from interp.solvers import StepState

F32, F64 = torch.float32, torch.float64
Field = Callable[[Tensor, Tensor], Tensor]
# Below and above where results used to be read in place, where passes release the lock (1024) and
# where threads share them (65536).
SIZES = [6, 5000, 70_000]
BACKENDS = ["rust", "torch", "torchdiffeq"]
DECAY = math.exp(-1)


def column(size: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=dtype).reshape(-1, 2)


def check_decay(field: Field, x: Tensor, backend: str = "rust", method: str = "rk38") -> None:
    """dx/dt = -x over (0, 1), in ten steps of order four: error (1/10)^4 / 120 < 1e-6."""
    before = x.clone()
    sol = interp.solve(field, x, method=method, backend=backend, steps=10, save_at=[0.5, 1.0])
    rounding = 100 * torch.finfo(x.dtype).eps
    end, middle = sol.x.detach(), sol.xs[0].detach()
    assert float((end - before * DECAY).abs().max()) < 1e-6 + rounding
    assert float((middle - before * math.exp(-0.5)).abs().max()) < 1e-5 + rounding
    assert torch.equal(x, before)


class Plain(torch.Tensor):
    """A subclass that overrides nothing."""


class Watched(torch.Tensor):
    """A subclass that keeps whatever torch does with it."""

    seen: list[object] = []  # noqa: RUF012 - shared on purpose

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.seen.append(args)
        return super().__torch_function__(func, types, args, kwargs or {})


def buffered(way: str) -> Field:
    """-x, in the same memory at each call."""
    memory: list[Tensor] = []
    array: list[np.ndarray] = []

    def field(t: Tensor, x: Tensor) -> Tensor:
        if not memory:
            array.append(np.zeros(tuple(x.shape), dtype=str(x.dtype).removeprefix("torch.")))
            shared = way in ("numpy", "dlpack")
            memory.append(torch.from_numpy(array[0]) if shared else torch.empty_like(x))
        torch.neg(x, out=memory[0])
        return {
            "itself": lambda: memory[0],
            "view": lambda: memory[0].view(x.shape),
            "data": lambda: memory[0].data,
            "detached": lambda: memory[0].detach(),
            "numpy": lambda: torch.from_numpy(array[0]),
            "dlpack": lambda: torch.from_dlpack(array[0]),
            "slice": lambda: memory[0][:],
        }[way]()

    return field


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["itself", "view", "data", "detached", "numpy", "dlpack", "slice"])
def test_one_buffer_for_every_result(way: str, size: int, backend: str) -> None:
    for dtype in (F32, F64):
        check_decay(buffered(way), column(size, dtype), backend)


def negative_bit(t: Tensor, x: Tensor) -> Tensor:
    result = torch.complex(x, x).conj().imag
    assert result.is_neg()
    return result


def in_one_row(t: Tensor, x: Tensor) -> Tensor:
    """Not contiguous: every second element of a longer one."""
    return torch.stack([-x, x], -1)[..., 0]


def with_grad(t: Tensor, x: Tensor) -> Tensor:
    weight = torch.ones((), dtype=x.dtype, requires_grad=True)
    with torch.enable_grad():
        result = -x * weight
    assert result.requires_grad
    return result


def of_an_energy(t: Tensor, x: Tensor) -> Tensor:
    """The gradient of -|x|^2 / 2, for which the field asks of its input."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(-x.square().sum() / 2, x)[0]


def in_inference(t: Tensor, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return -x


RESULTS: dict[str, Field] = {
    "fresh": lambda t, x: -x,
    "transposed": lambda t, x: (-x).T.contiguous().T,
    "every other": in_one_row,
    "negative bit": negative_bit,
    "requires grad": with_grad,
    "parameter": lambda t, x: torch.nn.Parameter(-x),
    "subclass": lambda t, x: (-x).as_subclass(Plain),
    "watched": lambda t, x: (-x).as_subclass(Watched),
    "numpy": lambda t, x: torch.from_numpy(-x.numpy()),
    "dlpack": lambda t, x: torch.from_dlpack(-x.numpy()),
    "inference": in_inference,
    "gradient": of_an_energy,
    "offset": lambda t, x: torch.cat([x.new_zeros(1), -x.flatten()])[1:].reshape(x.shape),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", RESULTS)
def test_any_kind_of_result(kind: str, size: int, backend: str) -> None:
    for dtype in (F32, F64):
        check_decay(RESULTS[kind], column(size, dtype), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_input_as_the_result(size: int, backend: str) -> None:
    """dx/dt = x, by the input itself, views of it and an alias in another dimension."""
    x = column(size)
    for field in (
        lambda t, x: x, lambda t, x: x[:], lambda t, x: x.detach(), lambda t, x: x.T.T,
        lambda t, x: torch.from_numpy(x.numpy()), lambda t, x: x.data,
    ):  # fmt: skip
        # Errors e h / 2 = 0.17 and e h^4 / 120 = 6e-6; the tolerance 1e-5, a few times.
        for method, steps, bound in (("euler", 8, 0.2), ("rk38", 8, 1e-4), ("dopri5", None, 1e-4)):
            sol = interp.solve(field, x, method=method, backend=backend, steps=steps)
            assert float((sol.x - x * math.e).abs().max()) < bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_expanded_results(size: int, backend: str) -> None:
    x = torch.ones(size // 2, 2, dtype=F64)
    check_decay(lambda t, x: -x[:1].expand_as(x), x, backend)
    check_decay(lambda t, x: -x[:, :1].expand_as(x), x, backend)
    check_decay(lambda t, x: (-x[0, 0]).expand_as(x), x, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_kept_tensors_stay_what_they_were(size: int, backend: str) -> None:
    """Inputs, times, results and the callback's states, kept and looked at afterwards."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(*tensors: Tensor) -> None:
        kept.extend((tensor, tensor.clone()) for tensor in tensors)

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        keep(t, t[None], x, x[:1], result)
        return result

    x = column(size)
    for method, steps in (("rk38", 6), ("dopri5", None)):
        sol = interp.solve(
            field, x, method=method, backend=backend, steps=steps, callback=lambda s: keep(s.x)
        )
        assert float((sol.x - x * DECAY).abs().max()) < 1e-4
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("size", SIZES)
def test_kept_tensors_of_an_sde(size: int, backend: str) -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(t: Tensor, x: Tensor) -> Tensor:
        kept.extend([(t, t.clone()), (x, x.clone())])
        return -x

    x = column(size)
    sol = interp.solve(
        interp.SDE(keep, keep), x, method="euler_maruyama", backend=backend, steps=6, seed=0
    )
    assert sol.x.isfinite().all()
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@pytest.mark.parametrize("size", SIZES)
def test_buffers_are_reused(size: int) -> None:
    """Nobody keeps them, so a run needs two states and one time."""
    states, times = set(), set()

    def field(t: Tensor, x: Tensor) -> Tensor:
        states.add(x.data_ptr())
        times.add(t.data_ptr())
        return -x

    interp.solve(field, column(size), method="rk4", backend="rust", steps=20)
    assert len(states) <= 2
    assert len(times) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_field_that_changes_its_time(backend: str) -> None:
    """The time is told anew at each call."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -2 * t * x  # x = x0 exp(-t^2)
        t.add_(17.0)
        return result

    x = column(6)
    sol = interp.solve(field, x, method="rk38", backend=backend, steps=20)
    assert float((sol.x - x * DECAY).abs().max()) < 1e-5


# Writing where one should not


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_writing_into_the_state_is_found_out(size: int, backend: str) -> None:
    def zeroed(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        x.zero_()
        return result

    x = column(size)
    before = x.clone()
    if backend == "torchdiffeq":  # it is given a copy there, and may
        check_decay(zeroed, x, backend)
        return
    with pytest.raises(FieldError, match=r"field wrote into the state.*x\.clone\(\)"):
        interp.solve(zeroed, x, method="heun", backend=backend, steps=3)
    with pytest.raises(FieldError, match=r"callback wrote into the state.*x\.clone\(\)"):
        interp.solve(
            lambda t, x: -x, x, method="heun", backend=backend, steps=3,
            callback=lambda s: s.x.zero_(),
        )  # fmt: skip
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_re_typing_the_state_is_found_out(size: int) -> None:
    def resized(x: Tensor) -> None:
        x.resize_(1)

    def transposed(x: Tensor) -> None:
        x.t_()

    def elsewhere(x: Tensor) -> None:
        x.set_(torch.zeros_like(x))

    def other_data(x: Tensor) -> None:
        x.data = torch.zeros_like(x)

    for change in (resized, transposed, elsewhere, other_data):

        def field(t: Tensor, x: Tensor, change: Callable[[Tensor], None] = change) -> Tensor:
            result = -x
            change(x)
            return result

        x = column(size)
        before = x.clone()
        with pytest.raises(FieldError, match=r"changed the memory of the state.*x\.clone\(\)"):
            interp.solve(field, x, method="heun", backend="rust", steps=3)
        assert torch.equal(x, before)


# Results that are none


def compressed(x: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch warns that it is beta
        warnings.simplefilter("ignore")
        return x.to_sparse_csr()


WRONG: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "None": (lambda x: None, "NoneType, not a tensor"),
    "float": (lambda x: 1.0, "float, not a tensor"),
    "array": (lambda x: x.numpy(), "ndarray, not a tensor"),
    "tuple": (lambda x: (x, x), "tuple, not a tensor"),
    "shape": (lambda x: -x[:1], r"shape.*1, 2.*3, 2"),
    "flat": (lambda x: -x.flatten(), r"shape.*6.*3, 2"),
    "0-d": (lambda x: x.sum(), r"shape.*3, 2"),
    "dtype": (lambda x: -x.float(), r"dtype torch\.float32.*torch\.float64"),
    "integers": (lambda x: x.long(), r"dtype torch\.int64.*torch\.float64"),
    "complex": (lambda x: x.to(torch.complex128), r"dtype torch\.complex128.*torch\.float64"),
    "device": (lambda x: x.to("meta"), r"device meta.*cpu"),
    "sparse": (lambda x: x.to_sparse(), r"layout torch\.sparse_coo.*torch\.strided"),
    "csr": (compressed, r"layout torch\.sparse_csr.*torch\.strided"),
}


@pytest.mark.parametrize("where", ["ode", "sde", "diffusion", "velocity", "score", "data", "base"])
@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_result_that_is_none(kind: str, backend: str, where: str) -> None:
    wrong, words = WRONG[kind]
    path = interp.schedules.linear()

    def field(t: Tensor, x: Tensor) -> Tensor:
        return wrong(x)  # type: ignore[return-value]

    terms = {
        "ode": lambda: interp.ODE(field),
        "sde": lambda: interp.SDE(field, 1.0),
        "diffusion": lambda: interp.SDE(lambda t, x: -x, field),
        "velocity": lambda: path.ode(field, time="noise"),
        "score": lambda: path.ode(field, view="score"),
        "data": lambda: path.ode(field, view="data"),
        "base": lambda: path.ode(field, view="base"),
    }
    if where == "diffusion":
        if kind in ("float", "shape", "0-d", "array", "dtype", "integers"):
            pytest.skip("a diffusion may be any of these: it is expanded and cast")
        words = "diffusion"
    method = "euler_maruyama" if where in ("sde", "diffusion") else "euler"
    x = torch.ones(3, 2, dtype=F64)
    with pytest.raises(FieldError, match=words) as caught:
        interp.solve(terms[where](), x, (0.1, 1.0), method, backend, steps=2)  # type: ignore[arg-type]
    assert "Return" in str(caught.value)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_the_last_step_of_a_data_model_is_checked_as_well(backend: str) -> None:
    path = interp.schedules.linear()
    for wrong in (None, 1.0, torch.ones(2), torch.ones(3, 2)):
        term = path.ode(lambda t, x, wrong=wrong: wrong, view="data")
        with pytest.raises(FieldError, match="Return"):
            interp.solve(
                term, torch.ones(3, 2, dtype=F64), method="euler", backend=backend, steps=1
            )


# Exceptions, recursion, threads


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
    check_decay(lambda t, x: -x, x, backend)


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
    assert entered == ["runge_kutta"] * 3 + ["euler_maruyama"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_field_that_solves(size: int, backend: str) -> None:
    """-x as the difference of an inner flow: exp(-s) x with s small."""

    def inner(t: Tensor, x: Tensor) -> Tensor:
        return -x

    def field(t: Tensor, x: Tensor) -> Tensor:
        moved = interp.solve(inner, x, (0.0, 1e-3), "rk38", backend, steps=2).x
        return (moved - x) / -math.expm1(-1e-3)

    check_decay(field, column(size), backend)


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
        for size in (6, 5000, 70_000):
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


@pytest.mark.parametrize("size", [4, 200_000])
def test_ctrl_c_is_answered_at_once(size: int) -> None:
    """From another thread of control, in a run of a million steps, within 0.2 s."""
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    x = torch.ones(size)
    for term, method in (
        (interp.ODE(lambda t, x: x), "rk4"),
        (interp.SDE(lambda t, x: x, 0.0), "euler_maruyama"),
    ):
        sent.clear()
        timer = threading.Timer(0.2, interrupt)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            interp.solve(term, x, (0.0, 1e-3), method, "rust", steps=1_000_000)
        assert time.perf_counter() - sent[0] < 0.2
        timer.join()


def test_the_lock_is_released_in_passes_over_large_states() -> None:
    """One step of an SDE: a pass of a second's noise between two calls of Python."""
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
    longest = max(b - a for a, b in itertools.pairwise(inside))
    # With the lock held through the pass the silence would be nearly all of the run.
    assert longest < 0.5 * (ended - began)


# Numbers that are none


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "dopri5"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_from_step_50_on(bad: float, method: str, backend: str) -> None:
    x, rows = column(12), [1, 4]

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        if t >= 0.5:
            result[rows, 1] = bad
        return result

    options = {"method": method, "backend": backend}
    with pytest.raises(SolveError, match=r"NaN or infinite at t = .*rows 1, 4.*\.last") as caught:
        interp.solve(field, x, steps=100, **options)  # type: ignore[arg-type]
    error = caught.value
    # heun, rk4 and dopri5 have a stage at the end of a step: it is the 50th that fails there.
    steps = 50 if method == "euler" else 49
    assert (error.step, error.rows, error.reason) == (steps, rows, "non_finite")
    assert error.time == pytest.approx(steps / 100, abs=1e-15)
    good = interp.solve(lambda t, x: -x, x, (0.0, error.time), steps=steps, **options)  # type: ignore[arg-type]
    assert float((error.last - good.x).abs().max()) < 1e-14  # the same steps, to rounding of t
    partial = interp.solve(
        field, x, steps=100, on_failure="partial", save_at=[0.1, 0.3, 0.7, 1.0], **options
    )  # type: ignore[arg-type]
    assert partial.stats.status == "non_finite"
    assert torch.equal(partial.x, error.last)
    assert partial.ts.tolist() == [0.1, 0.3]
    assert partial.xs.shape == (2, 6, 2)
    assert partial.xs.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_an_adaptive_run(backend: str) -> None:
    x = column(6)

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        if t > 0.3:
            result[2] = math.nan
        return result

    with pytest.raises(SolveError) as caught:
        interp.solve(field, x, backend=backend)
    assert caught.value.last.isfinite().all()
    if backend != "torchdiffeq":  # which does not say where
        assert caught.value.reason == "non_finite"
        assert caught.value.rows == [2]
        # It halves its way towards 0.3 and stops where steps no longer move t.
        assert 0.29 < caught.value.time <= 0.3
        truth = x * math.exp(-caught.value.time)
        assert float((caught.value.last - truth).abs().max()) < 1e-4


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_nan_in_an_sde(backend: str) -> None:
    x = column(12)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.where((t > 0.55) & (torch.arange(len(x)) == 3)[:, None], math.nan, -x)

    for term in (interp.SDE(drift, 0.1), interp.SDE(lambda t, x: -x, drift)):
        with pytest.raises(SolveError, match=r"at t = 0\.6, after 6 steps, in row 3\.") as caught:
            interp.solve(term, x, method="euler_maruyama", backend=backend, steps=10, seed=0)
        assert (caught.value.step, caught.value.rows) == (6, [3])
        assert caught.value.last.isfinite().all()


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_partial_runs_backwards_from_the_first_step(backend: str) -> None:
    x = column(6)
    for ends in ((1.0, 0.0), (0.0, 1.0)):
        saves = [ends[0], 0.5, ends[1]]
        sol = interp.solve(
            lambda t, x: x * math.nan, x, ends, "euler", backend, steps=4, save_at=saves,
            on_failure="partial",
        )  # fmt: skip
        assert sol.stats.status == "non_finite"
        assert sol.ts.tolist() == [ends[0]]
        assert torch.equal(sol.xs, x[None])
        assert torch.equal(sol.x, x)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_other_ways_to_fail(backend: str) -> None:
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(SolveError, match=r"all the steps it may.*Raise max_steps") as caught:
        interp.solve(lambda t, x: -100 * x, x, backend=backend, max_steps=3)
    assert caught.value.reason == "too_many_steps"

    def jump(t: Tensor, x: Tensor) -> Tensor:  # dx/dt = x^2 from 1: infinite at t = 1
        return x * x

    with pytest.raises(SolveError) as caught:
        interp.solve(jump, x, (0.0, 2.0), backend=backend)
    assert caught.value.reason in ("step_underflow", "too_many_steps", "non_finite")
    assert caught.value.time == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_that_stay_zero_without_an_absolute_tolerance(backend: str) -> None:
    """Padding: its error of 0 is measured against 0."""
    if backend == "torchdiffeq":
        pytest.skip("its error norm is its own")
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64)
    sol = interp.solve(lambda t, x: -x, x, backend=backend, rtol=1e-8, atol=0.0)
    assert float((sol.x - x * DECAY).abs().max()) < 1e-7
