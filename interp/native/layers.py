"""ATen operations with weights as steps of a program: products, convolutions, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .operations import NoRule, aten, combined, made, need, result_of, rule
from .program import Value, Writer
from .tracing import Node, Traced


def _affine(writer: Writer, value: Value, *weights: Value | None) -> list[Value]:
    """Operands: the value, then the weights that there are, packed."""
    need(weights[0] is not None or all(w is None for w in weights), "has a bias without a weight")
    need(not any(w is not None and w.varying for w in weights), "has weights that differ by row")
    found = [writer.packed(w) for w in weights if w is not None]
    return [value, *(writer.converted(w, value.double) for w in found)]


# Products


def _linear(writer: Writer, value: Value, weight: Value, bias: Value | None) -> Value:
    """x W^T + b over the last axis of x."""
    need(value.axis != len(value.shape) - 1, "goes over the rows")
    need(not weight.varying and weight.axis is None, "has a weight that differs by row")
    value, weight = writer.packed(value), writer.settled(weight)
    shape = (*value.shape[:-1], weight.shape[0])
    operands = [value, writer.converted(weight, value.double)]
    if bias is not None:
        operands.append(writer.packed(writer.converted(bias, value.double)))
    return writer.step("linear", operands, shape, value.axis)


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(
    writer: Writer, node: Node, bias: Value, value: Value, weight: Value, *, beta: float = 1,
    alpha: float = 1,
) -> Value:  # fmt: skip
    """b + x W, where a linear layer ends."""
    need(alpha == 1 and beta == 1, "has factors")
    if bias.axis is None and len(bias.shape) == 1 and not weight.varying:
        return _linear(writer, value, _turned(writer, weight), bias)
    return combined(writer, node, "add", matmul(writer, node, value, weight), bias)


def _turned(writer: Writer, value: Value) -> Value:
    """The last two axes exchanged."""
    value = writer.settled(value)
    (*lead, m, n), (*steps, a, b) = value.shape, value.strides
    need(value.axis is None or value.axis < len(lead), "exchanges the axis of the rows")
    return replace(value, shape=(*lead, n, m), strides=(*steps, b, a))


@rule(aten.mm.default, aten.bmm.default)
def matmul(writer: Writer, node: Node, a: Value, b: Value) -> Value:
    """A product of matrices, for each of the leading axes."""
    if not b.varying and b.axis is None and math.prod(b.shape[:-2]) == 1:
        b = _turned(writer, b)
        return _linear(writer, a, replace(b, shape=b.shape[-2:], strides=b.strides[-2:]), None)
    need(a.axis is None or a.axis < len(a.shape) - 2, "goes over the rows")
    need(b.axis is None or b.axis < len(b.shape) - 2, "goes over the rows")
    result = made(node)
    lead = result.shape[:-2]
    a, b = writer.settled(a), writer.settled(b)
    need(a.double == b.double, "is of two precisions")
    wide = [writer.spread(v, (*lead, *v.shape[-2:]), result.axis) for v in (a, b)]
    return writer.step("matmul", wide, result.shape, result.axis)


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
def attention(
    writer: Writer, node: Node, q: Value, k: Value, v: Value, dropout: float = 0.0,
    is_causal: bool = False, *, attn_mask: Value | None = None, scale: float | None = None,
) -> list[Value]:  # fmt: skip
    """softmax(q k^T / sqrt(c) + mask) v."""
    need(dropout == 0, "has dropout")
    mask, out = attn_mask, result_of(node, 0)
    q, k, v = writer.settled(q), writer.settled(k), writer.settled(v)
    n, m = q.shape[-2], k.shape[-2]
    lead, axis = out.shape[:-2], out.axis
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    turned = _turned(writer, k)
    wide = [writer.spread(u, (*lead, *u.shape[-2:]), axis) for u in (q, turned, v)]
    scores = writer.step("matmul", wide[:2], (*lead, n, m), axis)
    scores = writer.function("affine", scores, factor, 0.0)
    if is_causal:
        hidden = torch.full((n, m), -math.inf).triu(1)
        mask = writer.converted(writer.constant(hidden, None), scores.double)
    if mask is not None:
        scores = writer.pair("add", scores, mask, scores.shape, scores.axis)
    weights = writer.step("softmax", [scores], scores.shape, scores.axis)
    return [writer.step("matmul", [weights, wide[2]], out.shape, axis)]


@rule(aten.embedding.default)
def embedding(writer: Writer, node: Node, table: Value, index: Value, *args: Any) -> Value:
    """Rows of a table."""
    need(not table.varying, "has a table that differs by row")
    operands = [writer.packed(table), writer.packed(index)]
    return writer.step(
        "embedding", operands, made(node).shape, made(node).axis, double=table.double
    )


# Norms


@rule(aten.native_layer_norm.default)
def layer_norm(
    writer: Writer, node: Node, value: Value, over: Sequence[int], weight: Value | None,
    bias: Value | None, eps: float,
) -> list[Value]:  # fmt: skip
    """(x - mean) / sqrt(var + eps) over the last axes, times a weight plus a bias."""
    need(value.axis is None or value.axis < len(value.shape) - len(over), "goes over the rows")
    n = math.prod(over)
    value = writer.packed(value)
    flat = value.seen((value.count // n, n))
    operands = [flat, *(w.seen((n,)) for w in _affine(writer, flat, weight, bias)[1:])]
    found = writer.step("layer_norm", operands, flat.shape, numbers=[eps])
    return [replace(found.seen(value.shape), axis=value.axis)]


@rule(aten.native_group_norm.default)
def group_norm(
    writer: Writer, node: Node, value: Value, weight: Value | None, bias: Value | None, rows: int,
    channels: int, space: int, groups: int, eps: float,
) -> list[Value]:  # fmt: skip
    """The same over groups of channels and all that follows them."""
    image = _image(writer, value, 1)
    operands = _affine(writer, image.seen((channels, space)), weight, bias)
    found = writer.step("group_norm", operands, (channels, space), whole=[groups], numbers=[eps])
    return [replace(found.seen(value.shape), axis=value.axis)]


@rule(aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    writer: Writer, node: Node, value: Value, weight: Value | None, bias: Value | None,
    mean: Value | None, var: Value | None, *rest: Any,
) -> list[Value]:  # fmt: skip
    """With the running mean and variance: a weight and a bias a channel."""
    training, eps = len(rest) == 3 and rest[0], rest[-1]
    if training or mean is None or var is None:
        raise NoRule("mixes the rows; call model.eval()")
    need(len(value.shape) > 1 and value.axis == 0, "is not of rows")
    channels = mean.shape
    deviation = writer.function("sqrt", writer.function("affine", var, 1.0, eps))
    scale = writer.function("reciprocal", deviation)
    if weight is not None:
        scale = writer.pair("mul", scale, weight, channels, None)
    shift = writer.function("affine", writer.pair("mul", mean, scale, channels, None), -1.0, 0.0)
    if bias is not None:
        shift = writer.pair("add", shift, bias, channels, None)
    wide = (*channels, *(1,) * (len(value.shape) - 2))
    scaled = writer.pair("mul", value, scale.seen(wide), value.shape, 0)
    return [writer.pair("add", scaled, shift.seen(wide), value.shape, 0)]


# Images


def _image(writer: Writer, value: Value, least: int) -> Value:
    """One row's image, packed, its axis of rows left out: the engine goes through the rows itself."""
    need(
        value.axis == 0 and value.shape[0] == 1 and len(value.shape) > least,
        "is not of rows of images",
    )
    value = writer.packed(value)
    return replace(value, shape=value.shape[1:], strides=value.strides[1:], axis=None)


def _two(numbers: Any, default: int) -> list[int]:
    """A number for height and one for width."""
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    if len(numbers) == 1:
        return [numbers[0], numbers[0]]
    return [int(n) for n in numbers] if numbers else [default, default]


def _windowed(
    writer: Writer, result: Traced, name: str, operands: Sequence[Value], whole: Sequence[int]
) -> Value:
    line = len(result.shape) == 3
    shape = (result.shape[1], 1, result.shape[2]) if line else result.shape[1:]
    found = writer.step(name, operands, shape, whole=whole)
    return replace(found.seen(result.shape), axis=0)


@rule(aten.convolution.default)
def convolution(
    writer: Writer, node: Node, value: Value, weight: Value, bias: Value | None, stride: Any,
    padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    """A convolution of images, or of lines as images of height 1; or its transpose."""
    image = _image(writer, value, 2)
    need(len(value.shape) <= 4, "is of volumes")
    operands = _affine(writer, image, weight, bias)
    kernel = list(weight.shape[2:])
    stride, padding, dilation = _two(stride, 1), _two(padding, 0), _two(dilation, 1)
    if len(value.shape) == 3:
        operands[0] = image.seen((image.shape[0], 1, image.shape[1]))
        operands[1] = operands[1].seen((*weight.shape[:2], 1, *kernel))
        kernel, stride, padding, dilation = (
            [1, *kernel],
            [1, stride[1]],
            [0, padding[1]],
            [1, dilation[1]],
        )
    whole = [*kernel, *stride, *padding, *dilation, groups]
    return _windowed(
        writer, made(node), "conv_transpose" if transposed else "conv", operands, whole
    )


@rule(aten.max_pool2d_with_indices.default)
def max_pool(
    writer: Writer, node: Node, value: Value, kernel: Any, stride: Any = (), padding: Any = (0,),
    dilation: Any = (1,), ceil_mode: bool = False,
) -> list[Value]:  # fmt: skip
    """The largest of each window."""
    need(not ceil_mode and value.axis == 0, "rounds sizes up or is of one image")
    size = _two(kernel, 1)
    steps = _two(stride, 1) if stride else size
    whole = [*size, *steps, *_two(padding, 0), *_two(dilation, 1)]
    return [_windowed(writer, result_of(node, 0), "max_pool", [_image(writer, value, 3)], whole)]


@rule(aten.avg_pool2d.default)
def mean_pool(
    writer: Writer, node: Node, value: Value, kernel: Any, stride: Any = (), padding: Any = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor: int | None = None,
) -> Value:  # fmt: skip
    """The mean of each window."""
    need(not ceil_mode and divisor is None, "rounds sizes up or has a divisor of its own")
    size = _two(kernel, 1)
    steps = _two(stride, 1) if stride else size
    name = "mean_pool" if count_include_pad else "mean_pool_inside"
    whole = [*size, *steps, *_two(padding, 0), 1, 1]
    return _windowed(writer, made(node), name, [_image(writer, value, 3)], whole)


@rule(aten._adaptive_avg_pool2d.default)
def adaptive_mean_pool(writer: Writer, node: Node, value: Value, size: Any) -> Value:
    """The mean of windows that share the image evenly."""
    sizes = list(zip(value.shape[2:], made(node).shape[2:], strict=True))
    need(all(n % m == 0 for n, m in sizes), "shares the image unevenly")
    steps = [n // m for n, m in sizes]
    whole = [*steps, *steps, 0, 0, 1, 1]
    return _windowed(writer, made(node), "mean_pool", [_image(writer, value, 3)], whole)


@rule(aten.upsample_nearest2d.default)
def enlarge(writer: Writer, node: Node, value: Value, *args: Any) -> Value:
    """Each pixel repeated."""
    sizes = list(zip(value.shape[2:], made(node).shape[2:], strict=True))
    need(all(m % n == 0 for n, m in sizes), "enlarges by a fraction")
    times = [m // n for n, m in sizes]
    return _windowed(writer, made(node), "enlarge", [_image(writer, value, 3)], times)
