"""From a graph to a program."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import Uncompilable
from .operations import RULES, NoRule, aten
from .program import Step, Value, View, Writer
from .tracing import Graph, Node, Reference, Sort, Traced

# The same number for every row, whatever their number.
_UNIFORM = (
    aten.full.default, aten.zeros.default, aten.ones.default, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default, aten.scalar_tensor.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
)  # fmt: skip


@dataclass(frozen=True)
class Lowered:
    """A program, and where its weights are found.

    Attributes:
        values, steps, result: what the engine puts a network together from.
        weights: for each weight its name in the module, or a tensor.
        shape: of a row of the result.
    """

    values: list[tuple[str, bool, list[int]]]
    steps: list[Step]
    result: View
    weights: list[str | Tensor]
    shape: tuple[int, ...]


def lower(graph: Graph, x: Sort | None) -> Lowered:
    """The program of a graph, whose result is like x where x is given.

    Raises:
        Uncompilable: names every node that is in the way.
    """
    lowering = _Lowering(graph)
    for node in graph.nodes:
        lowering.node(node)
    result = None if lowering.obstacles else lowering.result(graph.output, x)
    if result is None:
        raise _refusal(lowering.obstacles)
    writer = lowering.writer
    steps = [*writer.once, *writer.steps]
    return Lowered(writer.values, steps, result.view, writer.weights, result.shape[1:])


class _Lowering:
    """The values of the nodes so far."""

    def __init__(self, graph: Graph) -> None:
        self.writer = Writer()
        self.values: dict[str, Any] = {}
        self.obstacles: list[str] = []
        self.graph = graph
        for name, traced in graph.arguments:
            double = traced.dtype != torch.float32
            value = self.writer.input(traced.shape, traced.axis, double)
            self.values[name] = replace(value, floating=traced.dtype.is_floating_point)

    def _held(self, name: str) -> Value:
        """A weight or a constant of the model."""
        if name in self.graph.constants:
            tensor = self.graph.constants[name]
            known = tensor.dtype in (torch.float32, torch.float64, torch.int64, torch.bool)
            if tensor.device.type != "cpu" or not known:
                raise NoRule(f"is a tensor of {tensor.dtype} on {tensor.device}")
            return self.writer.constant(tensor.detach(), None)
        traced = self.graph.weights[name]
        if traced.dtype not in (torch.float32, torch.float64):
            raise NoRule(f"is of {traced.dtype}, and the engine works in float32 and float64")
        return self.writer.weight(name, traced.shape, traced.dtype == torch.float64)

    def node(self, node: Node) -> None:
        """Add what a node does; an obstacle where that is not known."""
        try:
            self.values[node.name] = self._value(node)
        except (NoRule, KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, _Missing):
                return  # it follows from an obstacle that is named already
            known = node.target is None or node.target in RULES
            why = str(error) if isinstance(error, NoRule) or known else "has no native form"
            where = f", {node.where}" if node.where else ""
            target = node.target or node.args[0]
            self.obstacles.append(f"{node.name} ({target}{where}) {why}")

    def _value(self, node: Node) -> Any:
        if node.target is None:
            return self._held(node.args[0])
        args, kwargs = self._known(node.args), self._known(node.kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]]
        given = [*_values(args), *_values(kwargs)]
        if all(v.constant is not None for v in given) and isinstance(node.result, Traced):
            return self._folded(node, args, kwargs, given)
        return RULES[node.target](self.writer, node, *args, **kwargs)

    def _known(self, argument: Any) -> Any:
        """An argument with values for references."""
        if isinstance(argument, Reference):
            if argument.name not in self.values:
                raise _Missing
            return self.values[argument.name]
        if isinstance(argument, list):
            return [self._known(a) for a in argument]
        if isinstance(argument, Mapping):
            return {key: self._known(a) for key, a in argument.items()}
        return argument

    def _folded(self, node: Node, args: Any, kwargs: Any, given: list[Value]) -> Value:
        """What is known now, worked out now."""
        result = node.result
        if not isinstance(result, Traced):
            raise NoRule("does not give one tensor")
        by_rows = result.axis is not None and not any(v.axis is not None for v in given)
        if by_rows and node.target not in (*_UNIFORM, aten.expand.default):
            raise NoRule("counts the rows")
        with torch.no_grad():
            tensor = node.target(*_tensors(args), **_tensors(kwargs))
        return self.writer.constant(tensor, result.axis)

    def result(self, output: Reference, x: Sort | None) -> Value | None:
        """The value of the output, checked to be like x."""
        value: Value = self.writer.settled(self.values[output.name])
        if x is None:
            dtype = torch.float64 if value.double else torch.float32
            x = Sort(dtype, value.shape[1:], each=True)
        shape = (1, *x.shape) if x.each else x.shape
        if value.shape != shape or (value.axis != 0 and value.varying):
            self.obstacles.append(
                f"{output.name}: the model returns {value.shape} where x is {shape}"
            )
        elif value.double != (x.dtype == torch.float64):
            self.obstacles.append(f"{output.name}: the model returns another precision than x has")
        else:
            if not value.varying:
                rows = self.writer.value("rows", shape, 0, value.double, True)
                return self.writer.step("copy", [value], shape, into=rows)
            value = self.writer.packed(value)
            whole = value.offset == 0 and self._size(value.number) == value.count
            return (
                value
                if whole
                else self.writer.step("affine", [value], shape, 0, numbers=[1.0, 0.0])
            )
        return None

    def _size(self, number: int) -> int:
        size = 1
        for n in self.writer.values[number][2]:
            size *= n
        return size


class _Missing(NoRule):
    """A node that needs one that has no rule."""


def _values(argument: Any) -> list[Value]:
    if isinstance(argument, Value):
        return [argument]
    parts = argument.values() if isinstance(argument, Mapping) else argument
    if isinstance(argument, (list, tuple, Mapping)):
        return [v for part in parts for v in _values(part)]
    return []


def _tensors(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.constant
    if isinstance(argument, (list, tuple)):
        return [_tensors(a) for a in argument]
    if isinstance(argument, Mapping):
        return {key: _tensors(a) for key, a in argument.items()}
    return argument


def _refusal(obstacles: list[str]) -> Uncompilable:
    shown = "; ".join(obstacles[:4]) + ("; ..." if len(obstacles) > 4 else "")
    return Uncompilable(
        f"the model has no native field: {shown}. Write it in operations that have one, or leave it to "
        "torch: interp.compile(model, fallback=True).",
        node=obstacles[0].split(" ", 1)[0].rstrip(":"),
        obstacles=obstacles,
    )
