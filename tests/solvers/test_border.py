"""The border between torch's tensors and the engine, with fields that behave, oddly or well.

Fields that could take a process down are in test_hostile.py, each in a process of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
import rust_solvers
from interp.errors import FieldError
from interp.solvers import StepState

F32, F64 = torch.float32, torch.float64
Field = Callable[[Tensor, Tensor], Tensor]
# Below and above where passes release the lock (1024); the last one in more than one chunk of memory.
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
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


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
            "dlpack": lambda: torch.utils.dlpack.from_dlpack(array[0]),
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
    "dlpack": lambda t, x: torch.utils.dlpack.from_dlpack(-x.numpy()),
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

    def zero(state: StepState) -> None:
        state.x.zero_()

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
            callback=zero,
        )  # fmt: skip
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_re_typing_the_state_is_found_out(size: int) -> None:
    def resized(x: Tensor) -> None:
        x.resize_(1)

    def transposed(x: Tensor) -> None:
        x.t_()

    def elsewhere(x: Tensor) -> None:
        x.set_(torch.zeros(3, dtype=x.dtype).untyped_storage(), 0, (3,), (1,))

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
        interp.solve(terms[where](), x, (0.1, 1.0), method, backend, steps=2)  # type: ignore[arg-type, no-untyped-call]
    assert "Return" in str(caught.value)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_the_last_step_of_a_data_model_is_checked_as_well(backend: str) -> None:
    path = interp.schedules.linear()
    wrong: list[Any] = [None, 1.0, torch.ones(2), torch.ones(3, 2)]
    for result in wrong:
        term = path.ode(lambda t, x, result=result: result, view="data")
        with pytest.raises(FieldError, match="Return"):
            interp.solve(
                term, torch.ones(3, 2, dtype=F64), method="euler", backend=backend, steps=1
            )


# Looking at a state


def test_whether_a_state_is_finite() -> None:
    """Yes or no for what lies dense on the cpu in the engine's types, and no word of anything else."""
    for size in SIZES:
        for dtype in (F32, F64):
            x = column(size, dtype)
            assert rust_solvers.finite(x) is True
            for bad in (math.nan, math.inf, -math.inf):
                for at in (0, size // 4, -1):
                    y = x.clone()
                    y[at, 1] = bad
                    assert rust_solvers.finite(y) is False
    strange = [column(6).T, column(6).half(), column(6).to("meta"), column(6).to_sparse()]  # type: ignore[no-untyped-call]
    assert [rust_solvers.finite(x) for x in strange] == [None] * 4
    assert rust_solvers.finite(column(6)[:0]) is True
