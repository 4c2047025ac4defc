"""Fields that try to take the process down; run as a script with the name of one or "all".

Each prints a line, NAME right or NAME error CLASS MESSAGE; a process that dies prints none.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import interp

torch.set_num_threads(1)
sys.setswitchinterval(1e-4)  # more turns for the threads beside
F64 = torch.float64
Field = Callable[[Tensor, Tensor], Tensor]
SIZES = (6, 70_000)
CASES: dict[str, Callable[[Tensor], None]] = {}


def case(function: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    CASES[function.__name__] = function
    return function


def check(field: Field, x: Tensor, steps: int = 10, **options: Any) -> None:
    """Integrate dx/dt = -x by the field and compare."""
    sol = interp.solve(field, x, method="rk38", backend="rust", steps=steps, **options)
    if float((sol.x - x * math.exp(-1)).abs().max()) > 1e-6:
        raise ArithmeticError(f"wrong numbers: {sol.x.flatten()[:3].tolist()}")


def after(deed: Callable[[Tensor, Tensor], object]) -> Field:
    """-x, after having done something to the input and the result."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        deed(x, result)
        return result

    return field


@case
def frees_its_input(x: Tensor) -> None:
    check(after(lambda x, r: x.untyped_storage().resize_(0)), x)


@case
def grows_its_input(x: Tensor) -> None:
    check(after(lambda x, r: x.untyped_storage().resize_(100 * x.nbytes)), x)


@case
def frees_its_input_and_allocates_it_again(x: Tensor) -> None:
    def deed(x: Tensor, r: Tensor) -> None:
        x.untyped_storage().resize_(0)
        x.untyped_storage().resize_(x.nbytes)

    check(after(deed), x)


@case
def resizes_its_input(x: Tensor) -> None:
    check(after(lambda x, r: x.resize_(0)), x)


@case
def sets_its_input_to_other_memory(x: Tensor) -> None:
    check(after(lambda x, r: x.set_(torch.zeros(3, dtype=F64).untyped_storage(), 0, (3,), (1,))), x)


@case
def frees_its_result(x: Tensor) -> None:
    check(after(lambda x, r: r.untyped_storage().resize_(0)), x)


@case
def shrinks_its_result(x: Tensor) -> None:
    check(after(lambda x, r: r.untyped_storage().resize_(8)), x)


@case
def resizes_its_time(x: Tensor) -> None:
    def field(t: Tensor, x: Tensor) -> Tensor:
        t.resize_(50)
        return -x

    check(field, x)


@case
def frees_what_weak_references_lead_to(x: Tensor) -> None:
    refs: list[weakref.ref[Tensor]] = []

    def deed(x: Tensor, r: Tensor) -> None:
        for ref in refs:
            other = ref()
            if other is not None and other is not x:
                other.untyped_storage().resize_(0)
        refs.extend([weakref.ref(x), weakref.ref(r)])

    check(after(deed), x)


@case
def frees_what_the_collector_knows(x: Tensor) -> None:
    mine = x

    def deed(x: Tensor, r: Tensor) -> None:
        for other in gc.get_objects():
            if type(other) is Tensor and other.shape == x.shape and other is not mine:
                other.untyped_storage().resize_(0)

    check(after(deed), x)


@case
def collects_and_deletes(x: Tensor) -> None:
    class Cycle:
        def __init__(self, value: Tensor) -> None:
            self.me, self.value = self, value

    def field(t: Tensor, x: Tensor) -> Tensor:
        Cycle(x), Cycle(t), Cycle(-x)
        result = -x
        del x, t
        gc.collect(0)
        return result

    check(field, x)


@case
def reaches_into_the_frames(x: Tensor) -> None:
    def deed(x: Tensor, r: Tensor) -> None:
        problem = sys._getframe(2).f_locals["made"].problem
        problem.xs.untyped_storage().resize_(0)
        problem.saves.clear()
        problem.row = 10**9
        problem.field = None

    check(after(deed), x, save_at=[0.25, 0.5, 1.0])


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Another thread that does something all the time."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@case
def returns_what_another_thread_frees(x: Tensor) -> None:
    shared = -x

    def work() -> None:
        size = shared.nbytes
        shared.untyped_storage().resize_(0)
        shared.untyped_storage().resize_(size)

    with beside(work):
        for _ in range(20):
            with contextlib.suppress(interp.errors.InterpError):
                interp.solve(lambda t, x: shared, x, method="euler", steps=20)
    raise interp.errors.FieldError("not one crash")


@case
def returns_what_another_thread_writes(x: Tensor) -> None:
    shared = torch.zeros_like(x)
    with beside(lambda: shared.fill_(-1.0)):
        for _ in range(20):
            sol = interp.solve(lambda t, x: shared, x, method="euler", steps=20)
            if not bool(sol.x.isfinite().all()):
                raise ArithmeticError("not finite")


@case
def another_thread_follows_weak_references(x: Tensor) -> None:
    refs: list[weakref.ref[Tensor]] = []

    def work() -> None:
        for ref in refs[-8:]:
            other = ref()
            if other is not None:
                with contextlib.suppress(RuntimeError):
                    other.untyped_storage().resize_(0)

    def field(t: Tensor, x: Tensor) -> Tensor:
        result = -x
        refs.extend([weakref.ref(x), weakref.ref(result)])
        return result

    with beside(work):
        for _ in range(5):
            with contextlib.suppress(interp.errors.FieldError):
                check(field, x, steps=40)


@case
def a_wrapper_without_memory(x: Tensor) -> None:
    class Wrapper(torch.Tensor):
        value: Tensor

        @staticmethod
        def __new__(cls, value: Tensor) -> Wrapper:
            made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype)
            made.value = value
            return made

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
            plain = [a.value if isinstance(a, Wrapper) else a for a in args]
            return func(*plain, **(kwargs or {}))

    check(lambda t, x: Wrapper(-x), x)


@case
def a_fake_tensor(x: Tensor) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def field(t: Tensor, x: Tensor) -> Tensor:
        with FakeTensorMode():
            return torch.empty(x.shape, dtype=x.dtype)

    check(field, x)


@case
def a_tensor_of_zeros_without_memory(x: Tensor) -> None:
    check(lambda t, x: torch._efficientzerotensor(x.shape, dtype=x.dtype), x)


@case
def a_nested_tensor(x: Tensor) -> None:
    check(lambda t, x: torch.nested.nested_tensor([-x, -x]), x)


@case
def an_impostor(x: Tensor) -> None:
    class Impostor:
        __class__ = Tensor  # type: ignore[assignment]
        dtype, shape, is_cpu, layout = x.dtype, x.shape, True, torch.strided

        def data_ptr(self) -> int:
            return 64

    check(lambda t, x: Impostor(), x)  # type: ignore[arg-type, return-value]


@case
def inside_vmap(x: Tensor) -> None:
    run = torch.func.vmap(lambda v: interp.solve(lambda t, y: -y, v, method="rk38", steps=10).x)
    if float((run(x) - x * math.exp(-1)).abs().max()) > 1e-6:
        raise ArithmeticError("wrong numbers")


@case
def inside_vmap_with_a_plain_state(x: Tensor) -> None:
    def run(c: Tensor) -> Tensor:
        return interp.solve(lambda t, y: -y * c, x, method="rk38", steps=10, backend="rust").x

    torch.func.vmap(run)(torch.ones(3, dtype=F64))


@case
def inside_grad_with_a_plain_state(x: Tensor) -> None:
    def run(c: Tensor) -> Tensor:
        sol = interp.solve(lambda t, y: -y * c, x, method="rk38", steps=10, backend="rust")
        return sol.x.sum()

    torch.func.grad(run)(torch.ones((), dtype=F64))


@case
def endless_recursion(x: Tensor) -> None:
    def field(t: Tensor, x: Tensor) -> Tensor:
        return interp.solve(field, x, method="euler", steps=1).x

    interp.solve(field, x, method="euler", steps=1)


@case
def a_forked_child(x: Tensor) -> None:
    """Noise is shared out between torch's threads, which do not survive a fork."""
    if len(x) > 3:
        return
    torch.set_num_threads(2)
    term, y = interp.SDE(lambda t, x: -x, 1.0), torch.ones(128, 64)

    def work() -> None:  # so small that torch itself shares nothing out
        check(lambda t, x: -x, torch.ones(6, dtype=F64))
        interp.solve(term, y, method="euler_maruyama", steps=4, seed=0)

    work()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise ArithmeticError(f"the child ended with {status}")
            return
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise TimeoutError("the child hangs")


def run(name: str) -> None:
    outcome = "right"
    for size in SIZES:
        x = torch.linspace(-1, 1, size, dtype=F64).reshape(-1, 2)
        try:
            CASES[name](x)
        except Exception as error:
            outcome = f"error {type(error).__name__} {error}".replace("\n", " ")
    print(name, outcome, flush=True)


if __name__ == "__main__":
    chosen = list(CASES) if sys.argv[1] == "all" else sys.argv[1:]
    for chosen_name in chosen:
        run(chosen_name)
