"""What callers give: times and points, checked in one place."""

from __future__ import annotations

import math
import numbers
import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import FieldError, InterpError, OptionError, TimeError

Time = float | Tensor
"""A float, a 0-d tensor, or a tensor of x's leading axes."""


def host(value: float | list[float] | Tensor) -> Tensor:
    """Times that we made ourselves: float64, on the host whatever torch's default device."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def as_time(t: object) -> Tensor:
    """A `Time` as float64, refused with a `TimeError` where it is not a number in [0, 1]."""
    if isinstance(t, Tensor):
        if t.dtype.is_complex or t.dtype is torch.bool:
            raise TimeError(f"t has dtype {t.dtype}. Give real times in [0, 1].")
        time = t.to(torch.float64)
    elif isinstance(t, numbers.Real):
        time = host(float(t))
    else:
        raise TimeError(f"t is a {type(t).__name__}. Give a float or a tensor of times in [0, 1].")
    _check_range(time)
    return time


def _check_range(time: Tensor) -> None:
    """Refuse what is not in [0, 1]; written so that NaN is refused as well."""
    if torch.compiler.is_compiling():
        inside = ((time >= 0) & (time <= 1)).all()
        torch._assert_async(inside, "t is outside [0, 1]. A path runs from t = 0 to t = 1.")
        return
    time = _plain(time)
    if time.numel() == 0:
        return
    ends = (time,) if time.ndim == 0 else torch.aminmax(time)
    low, high = ends[0].item(), ends[-1].item()
    if not (low >= 0.0 and high <= 1.0):
        bad = time[~((time >= 0) & (time <= 1))][0].item() if time.ndim else time.item()
        raise TimeError(f"t = {bad!r} is outside [0, 1]. A path runs from t = 0 to t = 1.")


def _plain(tensor: Tensor) -> Tensor:
    """The numbers under the wrappers of torch.func, a batch of them under vmap."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.detach()


def holds(mask: Tensor) -> bool:
    """Whether ``mask`` is true everywhere, also inside the transforms of torch.func."""
    if not torch.compiler.is_compiling():
        mask = _plain(mask)
    return bool(mask.all())


def transforming() -> bool:
    """Whether this is called under a transform of torch.func or by torch.compile."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def untransformed() -> Iterator[None]:
    """A part in which torch.func's transforms see nothing: for numbers that do not depend on its tensors."""
    if torch.compiler.is_compiling() or not transforming():
        yield
        return
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield


def mapping() -> bool:
    """Whether this is called under torch.func.vmap, which cannot ask a tensor for its value."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or functorch.peek_interpreter_stack() is None:
        return False
    levels = functorch.get_interpreter_stack()
    return any(level.key() == functorch.TransformType.Vmap for level in levels)


def now() -> float:
    """Seconds on a clock that never goes back; 0 where torch.compile traces, which cannot read it."""
    return 0.0 if torch.compiler.is_compiling() else time.perf_counter()


def check_rows(time: Tensor, x: Tensor) -> None:
    """Refuse with a `TimeError` a ``time`` that is neither 0-d nor of the leading axes of ``x``."""
    if time.ndim and time.shape != x.shape[: time.ndim]:
        raise TimeError(
            f"t has shape {tuple(time.shape)}, which is not the leading axes of x of shape "
            f"{tuple(x.shape)}. Give a float, a 0-d tensor, or one time per row, "
            f"of shape {tuple(x.shape[:1])}."
        )


def spread(coefficient: Tensor, x: Tensor, element: tuple[int, ...] = ()) -> Tensor:
    """A float64 ``coefficient`` of leading axes, ready to multiply ``x``: cast here, and last.

    ``element`` is the shape that its last axes have where it differs between x's elements.
    """
    if coefficient.ndim == 0 and x.ndim and coefficient.device.type == "cpu":
        return coefficient  # torch takes it as a scalar: any device, and x keeps its dtype
    lead = coefficient.shape[: coefficient.ndim - len(element)]
    shape = lead + (1,) * (x.ndim - coefficient.ndim) + element
    return coefficient.to(device=x.device, dtype=x.dtype).reshape(shape)


def check_element(time: Tensor, x: Tensor, element: tuple[int, ...]) -> None:
    """Refuse an ``x`` whose axes after those of ``time`` do not end in ``element``."""
    rest = x.shape[time.ndim :]
    pairs = zip(reversed(element), reversed(rest), strict=False)
    if len(element) > len(rest) or any(n not in (1, m) for n, m in pairs):
        raise OptionError(
            f"this path has one schedule for each element of shape {element}, and x of shape "
            f"{tuple(x.shape)} at times of shape {tuple(time.shape)} has no such elements. Give x "
            f"whose last axes are {element}."
        )


def require_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise OptionError(
                f"{name} is a {type(tensor).__name__}. Give a tensor, e.g. torch.as_tensor({name})."
            )
        if not tensor.is_floating_point():
            raise OptionError(
                f"{name} has dtype {tensor.dtype}. Give floating-point points, e.g. {name}.float()."
            )


def require_finite(name: str, x: Tensor, error: type[InterpError] = OptionError) -> None:
    """Refuse points (rows, ...) that are not finite, by an ``error`` that names the first row."""
    if transforming() or bool(x.isfinite().all()):
        return
    bad = (~x.isfinite()).reshape(len(x), -1).any(1).nonzero().flatten()
    raise error(
        f"{name} is not finite in {len(bad)} of {len(x)} rows, first in row {int(bad[0])}. "
        "Remove them."
    )


def require_same(**tensors: Tensor) -> None:
    """All floating, and of the shape, dtype and device of the first."""
    require_floating(**tensors)
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        for what in ("shape", "dtype", "device"):
            mine, wanted = getattr(tensor, what), getattr(reference, what)
            if mine != wanted:
                if what == "shape":
                    mine, wanted = tuple(mine), tuple(wanted)
                raise OptionError(f"{name} has {what} {mine} but {first} has {wanted}. Match them.")


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """An integer of any integer type in [low, high].

    Raises:
        OptionError: anything else.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        limits = (
            f"an integer, {low} or more" if high is None else f"an integer from {low} to {high}"
        )
        raise OptionError(f"{name}={value!r} does not fit. Give {limits}.")
    return number


def real(name: str, value: object, low: float = 0.0) -> float:
    """A finite number of any real type, ``low`` or more.

    Raises:
        OptionError: anything else.
    """
    number = _finite(value)
    if not number >= low:
        limit = "" if low == -math.inf else f", {low:g} or more"
        raise OptionError(f"{name}={value!r} does not fit. Give a finite number{limit}.")
    return number


def positive(name: str, value: object) -> float:
    """A finite number of any real type, above zero.

    Raises:
        OptionError: anything else.
    """
    number = _finite(value)
    if not number > 0.0:
        raise OptionError(f"{name}={value!r} does not fit. Give a positive number.")
    return number


def share(name: str, value: object) -> float:
    """A number in (0, 1].

    Raises:
        OptionError: anything else.
    """
    number = _finite(value)
    if not 0.0 < number <= 1.0:
        raise OptionError(f"{name}={value!r} does not fit. Give a share in (0, 1].")
    return number


def _finite(value: object) -> float:
    """A finite number of any real type; NaN for anything else."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return math.nan
        value = float(value)
    return value if math.isfinite(value) else math.nan


def like(result: object, x: Tensor, who: str) -> Tensor:
    """What a model or field returned, refused where it is no tensor like ``x``.

    Raises:
        FieldError: names what came and what was wanted.
    """
    remedy = "Return a new tensor of the state's shape, dtype and device."
    if not isinstance(result, Tensor):
        raise FieldError(f"{who} returned a {type(result).__name__}, not a tensor. {remedy}")
    if result.is_nested:
        raise FieldError(f"{who} returned a nested tensor. {remedy}")
    for what in ("layout", "shape", "dtype", "device"):
        found, wanted = getattr(result, what), getattr(x, what)
        if found != wanted:
            shown = f"{what} {found} where the state is {wanted}"
            raise FieldError(f"{who} returned a tensor of {shown}. {remedy}")
    return result
