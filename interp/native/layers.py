"""ATen operations with weights as steps of a program: products, convolutions, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .operations import aten, combined, made, need, rule
from .program import Value, Writer
from .tracing import Node


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


@rule(aten.linear.default)
def linear(
    writer: Writer, node: Node, value: Value, weight: Value, bias: Value | None = None
) -> Value:
    """x W^T + b."""
    return _linear(writer, value, weight, bias)


@rule(aten.addmm.default)
def addmm(writer: Writer, node: Node, bias: Value, value: Value, weight: Value) -> Value:
    """b + x W."""
    if bias.axis is None and len(bias.shape) == 1 and not weight.varying:
        return _linear(writer, value, _turned(writer, weight), bias)
    return combined(writer, node, "add", matmul(writer, node, value, weight), bias)


def _turned(writer: Writer, value: Value) -> Value:
    """The last two axes exchanged."""
    value = writer.settled(value)
    (*lead, m, n), (*steps, a, b) = value.shape, value.strides
    need(value.axis is None or value.axis < len(lead), "exchanges the axis of the rows")
    return replace(value, shape=(*lead, n, m), strides=(*steps, b, a))


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(writer: Writer, node: Node, a: Value, b: Value) -> Value:
    """A product of matrices, for each of the leading axes."""
    need(min(len(a.shape), len(b.shape)) >= 2, "is of vectors")
    if not b.varying and b.axis is None and len(b.shape) == 2:
        return _linear(writer, a, _turned(writer, b), None)
    need(a.axis is None or a.axis < len(a.shape) - 2, "goes over the rows")
    need(b.axis is None or b.axis < len(b.shape) - 2, "goes over the rows")
    result = made(node)
    lead = result.shape[:-2]
    a, b = writer.settled(a), writer.settled(b)
    need(a.double == b.double, "is of two precisions")
    wide = [writer.spread(v, (*lead, *v.shape[-2:]), result.axis) for v in (a, b)]
    return writer.step("matmul", wide, result.shape, result.axis)


@rule(aten.scaled_dot_product_attention.default)
def attention(
    writer: Writer, node: Node, q: Value, k: Value, v: Value, mask: Value | None = None,
    dropout: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """softmax(q k^T / sqrt(c) + mask) v."""
    need(dropout == 0 and not enable_gqa, "has dropout or grouped queries")
    need(
        mask is None or mask.constant is None or mask.constant.dtype.is_floating_point,
        "has a boolean mask",
    )
    q, k, v = writer.settled(q), writer.settled(k), writer.settled(v)
    n, m = q.shape[-2], k.shape[-2]
    lead = made(node).shape[:-2]
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    turned = _turned(writer, k)
    wide = [writer.spread(u, (*lead, *u.shape[-2:]), made(node).axis) for u in (q, turned, v)]
    axis = made(node).axis
    scores = writer.step("matmul", wide[:2], (*lead, n, m), axis)
    scores = writer.function("affine", scores, factor, 0.0)
    if is_causal:
        hidden = torch.full((n, m), -math.inf).triu(1)
        mask = writer.converted(writer.constant(hidden, None), scores.double)
    if mask is not None:
        scores = writer.pair("add", scores, mask, scores.shape, scores.axis)
    weights = writer.step("softmax", [scores], scores.shape, scores.axis)
    return writer.step("matmul", [weights, wide[2]], made(node).shape, made(node).axis)


@rule(aten.embedding.default)
def embedding(writer: Writer, node: Node, table: Value, index: Value, *args: Any) -> Value:
    """Rows of a table."""
    need(not table.varying, "has a table that differs by row")
    operands = [writer.packed(table), writer.packed(index)]
    return writer.step(
        "embedding", operands, made(node).shape, made(node).axis, double=table.double
    )


# Norms


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(
    writer: Writer, node: Node, value: Value, over: Sequence[int], weight: Value | None = None,
    bias: Any = None, eps: float | None = 1e-5, *args: Any,
) -> Value:  # fmt: skip
    """(x - mean) / sqrt(var + eps) over the last axes, times a weight plus a bias; or x / rms."""
    name = "layer_norm"
    if node.target is aten.rms_norm.default:
        name, eps, bias = "rms_norm", bias, None
        dtype = torch.float64 if value.double else torch.float32
        eps = torch.finfo(dtype).eps if eps is None else eps
    need(value.axis is None or value.axis < len(value.shape) - len(over), "goes over the rows")
    n = math.prod(over)
    value = writer.packed(value)
    flat = value.seen((value.count // n, n))
    operands = _affine(writer, flat, weight, bias)
    operands = [flat, *(w.seen((n,)) for w in operands[1:])]
    found = writer.step(name, operands, flat.shape, numbers=[float(eps or 0.0)])
    return replace(found.seen(value.shape), axis=value.axis)


@rule(aten.group_norm.default)
def group_norm(
    writer: Writer, node: Node, value: Value, groups: int, weight: Value | None = None,
    bias: Value | None = None, eps: float = 1e-5, *args: Any,
) -> Value:  # fmt: skip
    """The same over groups of channels and all that follows them."""
    image = _image(writer, value, 1)
    operands = _affine(
        writer, image.seen((image.shape[0], math.prod(image.shape[1:]))), weight, bias
    )
    found = writer.step("group_norm", operands, operands[0].shape, whole=[groups], numbers=[eps])
    return replace(found.seen(value.shape), axis=value.axis)


@rule(aten.batch_norm.default)
def batch_norm(
    writer: Writer, node: Node, value: Value, weight: Value | None, bias: Value | None,
    mean: Value | None, var: Value | None, training: bool, momentum: float, eps: float, *args: Any,
) -> Value:  # fmt: skip
    """With the running mean and variance: a weight and a bias a channel."""
    need(not training and mean is not None and var is not None, "mixes the rows; call model.eval()")
    assert mean is not None
    assert var is not None
    c = mean.shape[0]
    deviation = writer.function("sqrt", writer.function("affine", var, 1.0, eps))
    scale = writer.function("reciprocal", deviation)
    if weight is not None:
        scale = writer.pair("mul", scale, weight, (c,), None)
    shift = writer.function("affine", writer.pair("mul", mean, scale, (c,), None), -1.0, 0.0)
    if bias is not None:
        shift = writer.pair("add", shift, bias, (c,), None)
    wide = (c, *(1,) * (len(value.shape) - 2))
    scaled = combined(writer, node, "mul", value, scale.seen(wide))
    return combined(writer, node, "add", scaled, shift.seen(wide))


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
    writer: Writer,
    node: Node,
    name: str,
    image: Value,
    weights: Sequence[Value],
    whole: Sequence[int],
) -> Value:
    result = made(node)
    shape = result.shape[1:] if len(result.shape) == 4 else (result.shape[1], 1, result.shape[2])
    found = writer.step(name, [image, *weights], shape, whole=whole)
    return replace(found.seen(result.shape), axis=0)


@rule(aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default, aten.conv1d.padding)
def convolution(
    writer: Writer, node: Node, value: Value, weight: Value, bias: Value | None = None,
    stride: Any = (1,), padding: Any = (0,), dilation: Any = (1,), groups: int = 1,
) -> Value:  # fmt: skip
    """A convolution of images, or of lines as images of height 1."""
    line = len(value.shape) == 3
    image = _image(writer, value, 2)
    kernel = list(weight.shape[2:])
    dilation = _two(dilation, 1)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation[-len(kernel) :], kernel, strict=True)]
        need(padding == "valid" or all(r % 2 == 0 for r in reach), "pads unevenly")
        padding = [0 if padding == "valid" else r // 2 for r in reach]
    stride, padding = _two(stride, 1), _two(padding, 0)
    weight = writer.packed(weight)
    if line:
        image = image.seen((image.shape[0], 1, image.shape[1]))
        weight = weight.seen((*weight.shape[:2], 1, weight.shape[2]))
        kernel, stride, dilation = [1, *kernel], [1, stride[1]], [1, dilation[1]]
        padding = [0, padding[1]]
    operands = _affine(writer, image, weight, bias)
    whole = [*kernel, *stride, *padding, *dilation, groups]
    return _windowed(writer, node, "conv", image, operands[1:], whole)


@rule(aten.conv_transpose2d.input)
def transposed_convolution(
    writer: Writer, node: Node, value: Value, weight: Value, bias: Value | None = None,
    stride: Any = (1,), padding: Any = (0,), output_padding: Any = (0,), groups: int = 1,
    dilation: Any = (1,),
) -> Value:  # fmt: skip
    """The transpose of a convolution."""
    image = _image(writer, value, 3)
    operands = _affine(writer, image, weight, bias)
    whole = [*weight.shape[2:], *_two(stride, 1), *_two(padding, 0), *_two(dilation, 1), groups]
    return _windowed(writer, node, "conv_transpose", image, operands[1:], whole)


@rule(aten.max_pool2d.default)
def max_pool(
    writer: Writer, node: Node, value: Value, kernel: Any, stride: Any = (), padding: Any = (0,),
    dilation: Any = (1,), ceil_mode: bool = False,
) -> Value:  # fmt: skip
    """The largest of each window."""
    need(not ceil_mode, "rounds sizes up")
    size = _two(kernel, 1)
    steps = _two(stride, 1) if stride else size
    whole = [*size, *steps, *_two(padding, 0), *_two(dilation, 1)]
    return _windowed(writer, node, "max_pool", _image(writer, value, 3), [], whole)


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
    return _windowed(writer, node, name, _image(writer, value, 3), [], whole)


@rule(aten.adaptive_avg_pool2d.default)
def adaptive_mean_pool(writer: Writer, node: Node, value: Value, size: Any) -> Value:
    """The mean of windows that share the image evenly."""
    sizes = zip(value.shape[2:], made(node).shape[2:], strict=True)
    need(all(n % m == 0 for n, m in sizes), "shares the image unevenly")
    steps = [n // m for n, m in zip(value.shape[2:], made(node).shape[2:], strict=True)]
    return _windowed(
        writer, node, "mean_pool", _image(writer, value, 3), [], [*steps, *steps, 0, 0, 1, 1]
    )


@rule(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
def enlarge(writer: Writer, node: Node, value: Value, *args: Any) -> Value:
    """Each pixel repeated."""
    sizes = list(zip(value.shape[2:], made(node).shape[2:], strict=True))
    need(all(m % n == 0 for n, m in sizes), "enlarges by a fraction")
    image = _image(writer, value, 3)
    found = writer.step("enlarge", [image], made(node).shape[1:], whole=[m // n for n, m in sizes])
    return replace(found.seen(made(node).shape), axis=0)
