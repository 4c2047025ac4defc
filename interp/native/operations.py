"""ATen operations as steps of a program.

Each rule takes the writer, the node and its arguments, the tensors among them as `Value`s. A rule
that meets a case it does not know raises `NoRule` with what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from .program import Value, Writer
from .tracing import Node, Traced

aten = torch.ops.aten

Rule = Callable[..., Any]


class NoRule(Exception):
    """An operation that has no rule, or a case of one that it does not cover."""


RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def need(condition: bool, why: str) -> None:
    """Raise `NoRule` unless it holds."""
    if not condition:
        raise NoRule(why)


def made(node: Node) -> Traced:
    """The node's result, where it is one tensor."""
    if not isinstance(node.result, Traced):
        raise NoRule("does not give one tensor")
    return node.result


def result_of(node: Node, i: int) -> Traced:
    """One of the node's results."""
    found = node.result[i] if isinstance(node.result, list) else None
    if found is None:
        raise NoRule("does not give several tensors")
    return found


# Views: torch itself says what they look like.

VIEWS = (
    aten.permute.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
    aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int,
)  # fmt: skip

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)


def _like_meta(value: Value, meta: Any, result: Any) -> Any:
    """The view that torch made of the value's meta tensor."""
    if isinstance(meta, (tuple, list)):
        return [_like_meta(value, m, r) for m, r in zip(meta, result, strict=True)]
    need(
        tuple(meta.shape) == result.shape, f"gives {tuple(meta.shape)} of a row, not {result.shape}"
    )
    need(not value.varying or result.axis is not None, "takes some of the rows")
    offset = int(meta.storage_offset())
    return replace(
        value, offset=offset, shape=result.shape, strides=tuple(meta.stride()), axis=result.axis
    )


@rule(*VIEWS)
def view(writer: Writer, node: Node, value: Value, *args: Any, **kwargs: Any) -> Any:
    """A view: nothing is moved."""
    value = writer.settled(value)
    args = tuple(a.meta() if isinstance(a, Value) else a for a in args)
    return _like_meta(value, node.target(value.meta(), *args, **kwargs), node.result)


@rule(*RESHAPES)
def reshape(writer: Writer, node: Node, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Another shape: a view where the elements lie well, else of a copy."""
    value, result = writer.settled(value), made(node)
    if value.axis is not None and result.axis is not None:
        before = math.prod(value.shape[: value.axis]), math.prod(result.shape[: result.axis])
        need(before[0] == before[1], "mixes the rows with other axes")
    try:
        meta = value.meta().view(result.shape)
    except RuntimeError:
        value = writer.packed(value)
        meta = value.meta().view(result.shape)
    found: Value = _like_meta(value, meta, result)
    return found


@rule(aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
def same(writer: Writer, node: Node, value: Value, **kwargs: Any) -> Value:
    """The value itself: nobody writes to it."""
    return value


@rule(aten._to_copy.default)
def to(writer: Writer, node: Node, value: Value, **kwargs: Any) -> Value:
    """In the other precision, where that changes."""
    dtype = made(node).dtype
    need(dtype.is_floating_point or not value.floating, "rounds to whole numbers")
    return replace(writer.converted(value, _double(dtype)), floating=dtype.is_floating_point)


def _double(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype are kept in double precision."""
    known = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
    need(dtype in known, f"works in {dtype}, and the engine in float32 and float64")
    return dtype is not torch.float32


# Functions of one number

FUNCTIONS = {
    aten.silu.default: "silu", aten.relu.default: "relu", aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid", aten.exp.default: "exp", aten.log.default: "log",
    aten.log1p.default: "log1p", aten.sin.default: "sin", aten.cos.default: "cos",
    aten.sqrt.default: "sqrt", aten.abs.default: "abs", aten.erf.default: "erf",
    aten.reciprocal.default: "reciprocal", aten.silu_.default: "silu", aten.relu_.default: "relu",
}  # fmt: skip


@rule(*FUNCTIONS)
def function(writer: Writer, node: Node, value: Value) -> Value:
    """A function of every element."""
    need(made(node).dtype.is_floating_point, "is of whole numbers")
    return writer.function(
        FUNCTIONS[node.target], writer.converted(value, _double(made(node).dtype))
    )


@rule(aten.gelu.default)
def gelu(writer: Writer, node: Node, value: Value, approximate: str = "none") -> Value:
    """x times the normal distribution function, or its approximation by tanh."""
    return writer.function("gelu" if approximate == "none" else "gelu_tanh", value)


@rule(aten.leaky_relu.default, aten.leaky_relu_.default)
def leaky_relu(writer: Writer, node: Node, value: Value, slope: float = 0.01) -> Value:
    """A slope where x is negative."""
    return writer.function("leaky_relu", value, slope)


@rule(aten.elu.default)
def elu(writer: Writer, node: Node, value: Value, alpha: float = 1.0, *rest: float) -> Value:
    """An exponential where x is negative."""
    need(all(r == 1 for r in rest), "has other scales")
    return writer.function("elu", value, alpha)


@rule(aten.softplus.default)
def softplus(
    writer: Writer, node: Node, value: Value, beta: float = 1.0, threshold: float = 20.0
) -> Value:
    """log(1 + e^x)."""
    need(beta == 1 and threshold == 20, "has another scale")
    return writer.function("softplus", value)


@rule(aten.mish.default)
def mish(writer: Writer, node: Node, value: Value) -> Value:
    """x tanh(softplus(x))."""
    value = writer.packed(value)
    gate = writer.function("tanh", writer.function("softplus", value))
    return writer.pair("mul", value, gate, value.shape, value.axis)


@rule(aten.neg.default)
def neg(writer: Writer, node: Node, value: Value) -> Value:
    """Minus x."""
    return writer.function("affine", value, -1.0, 0.0)


@rule(aten.rsqrt.default)
def rsqrt(writer: Writer, node: Node, value: Value) -> Value:
    """1 / sqrt(x)."""
    return writer.function("reciprocal", writer.function("sqrt", value))


@rule(aten.pow.Tensor_Scalar)
def power(writer: Writer, node: Node, value: Value, exponent: float) -> Value:
    """x^p."""
    return writer.function("power", value, exponent)


@rule(aten.clamp.default, aten.clamp_min.default)
def clamp(
    writer: Writer, node: Node, value: Value, min: float | None = None, max: float | None = None
) -> Value:
    """Not below, not above."""
    low = -math.inf if min is None else min
    high = math.inf if max is None else max
    return writer.function("clamp", value, low, high)


# Pairs


def combined(writer: Writer, node: Node, name: str, a: Any, b: Any) -> Value:
    """a op b, either of which may be a number."""
    result = made(node)
    double = _double(result.dtype)
    for v in (a, b):
        if isinstance(v, Value) and v.axis is not None:
            aligned = result.axis is not None and (
                len(v.shape) - v.axis == len(result.shape) - result.axis
            )
            need(aligned, "sets the rows of one against another axis of the other")
    if isinstance(a, Value) and isinstance(b, Value):
        a, b = writer.converted(a, double), writer.converted(b, double)
        return writer.pair(name, a, b, result.shape, result.axis)
    value, number = (a, b) if isinstance(a, Value) else (b, a)
    value, number = writer.converted(value, double), float(number)
    if name == "div" and isinstance(b, Value):
        value, name = writer.function("reciprocal", value), "mul"
    numbers = {
        "add": (1.0, number),
        "mul": (number, 0.0),
        "div": (1.0 / number if number else math.inf, 0.0),
        "sub": (1.0, -number) if isinstance(a, Value) else (-1.0, number),
    }
    need(name in numbers, f"is {name} of a tensor and a number")
    found = writer.function("affine", value, *numbers[name])
    return replace(found, axis=result.axis)


@rule(aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar)
def add(writer: Writer, node: Node, a: Any, b: Any, alpha: float = 1) -> Value:
    """a + alpha b."""
    if alpha != 1:
        b = writer.function("affine", b, alpha, 0.0) if isinstance(b, Value) else alpha * b
    return combined(writer, node, "add", a, b)


@rule(aten.sub.Tensor, aten.sub.Scalar, aten.sub_.Tensor, aten.sub_.Scalar)
def sub(writer: Writer, node: Node, a: Any, b: Any, alpha: float = 1) -> Value:
    """a - alpha b."""
    if alpha != 1:
        b = writer.function("affine", b, alpha, 0.0) if isinstance(b, Value) else alpha * b
    return combined(writer, node, "sub", a, b)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(writer: Writer, node: Node, a: Any, b: Any, alpha: float = 1) -> Value:
    """b - a."""
    need(alpha == 1, "has a factor")
    return combined(writer, node, "sub", b, a)


@rule(aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor, aten.mul_.Scalar)
def mul(writer: Writer, node: Node, a: Any, b: Any) -> Value:
    """a b."""
    return combined(writer, node, "mul", a, b)


@rule(aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.div_.Scalar)
def div(writer: Writer, node: Node, a: Any, b: Any) -> Value:
    """a / b."""
    need(made(node).dtype.is_floating_point, "divides whole numbers")
    return combined(writer, node, "div", a, b)


@rule(aten.maximum.default)
def maximum(writer: Writer, node: Node, a: Any, b: Any) -> Value:
    """The larger."""
    return combined(writer, node, "maximum", a, b)


@rule(aten.minimum.default)
def minimum(writer: Writer, node: Node, a: Any, b: Any) -> Value:
    """The smaller."""
    return combined(writer, node, "minimum", a, b)


@rule(aten.addcmul.default)
def addcmul(writer: Writer, node: Node, a: Value, b: Value, c: Value, value: float = 1) -> Value:
    """a + value b c."""
    product = combined(writer, node, "mul", b, c)
    if value != 1:
        product = writer.function("affine", product, value, 0.0)
    return combined(writer, node, "add", a, product)


@rule(aten.lerp.Scalar)
def lerp(writer: Writer, node: Node, a: Value, b: Value, weight: float) -> Value:
    """a + weight (b - a)."""
    difference = combined(writer, node, "sub", b, a)
    return combined(writer, node, "add", a, writer.function("affine", difference, weight, 0.0))


# Joining


@rule(aten.cat.default)
def cat(writer: Writer, node: Node, values: Sequence[Value], dim: int = 0) -> Value:
    """Joined along an axis, each copied to its place."""
    result = made(node)
    dim %= len(result.shape)
    need(dim != result.axis, "joins rows to rows")
    values = [v for v in values if v.shape != (0,)]
    double, varying = _double(result.dtype), any(v.varying for v in values)
    place = "rows" if varying else "once"
    out = writer.value(place, result.shape, result.axis, double, varying)
    at = 0
    for value in values:
        offset = at * out.strides[dim]
        part = replace(out, offset=offset, shape=value.shape)
        writer.step("copy", [writer.converted(value, double)], value.shape, into=part)
        at += value.shape[dim]
    return out


@rule(aten.stack.default)
def stack(writer: Writer, node: Node, values: Sequence[Value], dim: int = 0) -> Value:
    """Joined along a new axis."""
    result = made(node)
    dim %= len(result.shape)
    longer = []
    for value in values:
        value = writer.settled(value)
        meta = value.meta().unsqueeze(dim)
        axis = None if value.axis is None else value.axis + (dim <= value.axis)
        shape, strides = tuple(meta.shape), tuple(meta.stride())
        longer.append(replace(value, shape=shape, strides=strides, axis=axis))
    found: Value = cat(writer, node, longer, dim)
    return found


# Reductions


def last(writer: Writer, value: Value, dims: Sequence[int]) -> tuple[Value, list[int], list[int]]:
    """The value packed, with the axes ``dims`` at the end and as one; what is left, what went."""
    d = len(value.shape)
    gone = sorted(dim % d for dim in dims)
    need(value.axis not in gone, "goes over the rows")
    kept = [i for i in range(d) if i not in gone]
    order = [*kept, *gone]
    value = writer.settled(value)
    turned = writer.packed(
        replace(
            value,
            shape=tuple(value.shape[i] for i in order),
            strides=tuple(value.strides[i] for i in order),
            axis=None,
        )
    )
    sizes = [value.shape[i] for i in kept]
    return turned.seen([*sizes, math.prod(value.shape[i] for i in gone)]), kept, gone


def reduced(
    writer: Writer, node: Node, name: str, value: Value, dims: Sequence[int] | None
) -> Value:
    """A sum, mean, ... over some axes."""
    result = made(node)
    need(result.dtype.is_floating_point, "is of whole numbers")
    value = writer.converted(value, _double(result.dtype))
    turned, _, _ = last(writer, value, dims or range(len(value.shape)))
    found = writer.step(name, [turned], turned.shape[:-1])
    return replace(found.seen(result.shape), axis=result.axis)


@rule(aten.mean.dim)
def mean(
    writer: Writer, node: Node, value: Value, dim: Any, keepdim: bool = False, **kwargs: Any
) -> Value:
    """The mean over some axes."""
    return reduced(writer, node, "mean", value, dim)


@rule(aten.sum.dim_IntList)
def total(
    writer: Writer, node: Node, value: Value, dim: Any, keepdim: bool = False, **kwargs: Any
) -> Value:
    """The sum over some axes."""
    return reduced(writer, node, "sum", value, dim)


@rule(aten.amax.default)
def amax(writer: Writer, node: Node, value: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The largest over some axes."""
    return reduced(writer, node, "amax", value, dim)


@rule(aten.amin.default)
def amin(writer: Writer, node: Node, value: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The smallest over some axes."""
    return reduced(writer, node, "amin", value, dim)


@rule(aten._softmax.default, aten._safe_softmax.default)
def softmax(writer: Writer, node: Node, value: Value, dim: int, *args: Any) -> Value:
    """Powers of e over their sum, along an axis."""
    result = made(node)
    value = writer.converted(value, _double(result.dtype))
    turned, kept, gone = last(writer, value, [dim])
    found = writer.step("softmax", [turned], turned.shape)
    order = [*kept, *gone]
    back = [order.index(i) for i in range(len(order))]
    return replace(
        found,
        shape=result.shape,
        strides=tuple(found.strides[i] for i in back),
        axis=result.axis,
    )
