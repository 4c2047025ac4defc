"""A program being written: values, views of them, and steps, as the engine takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

View = tuple[int, int, list[int], list[int]]
Step = tuple[str, View, list[View], list[int], list[float]]


@dataclass(frozen=True)
class Value:
    """A tensor of the program, seen through a view: numbers of one row, or the same for all rows.

    Attributes:
        number: of the memory it lies in.
        offset, shape, strides: of the view, with one row instead of many.
        axis: of the rows in ``shape``; None where it has none.
        varying: whether it differs from row to row; a value may have the axis and not vary.
        double: whether in double precision; so are whole numbers.
        constant: the tensor itself, where it is known now.
        floating: whether torch has it as floating-point numbers.
    """

    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axis: int | None
    varying: bool
    double: bool
    constant: Tensor | None = None
    floating: bool = True

    @property
    def count(self) -> int:
        """The elements of one row."""
        return math.prod(self.shape)

    @property
    def packed(self) -> bool:
        """Whether the elements lie one after the other, in order."""
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != expected:
                return False
            expected *= n
        return True

    @property
    def view(self) -> View:
        """As the engine takes it."""
        return self.number, self.offset, list(self.shape), list(self.strides)

    def seen(self, shape: Sequence[int]) -> Value:
        """The same packed elements in another shape, the axis of the rows forgotten."""
        return replace(self, shape=tuple(shape), strides=strides_of(shape), axis=None)

    def meta(self) -> Tensor:
        """A tensor without memory, to ask torch what a view of it looks like."""
        room = (
            self.offset
            + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
            + 1
        )
        base = torch.empty(room, device="meta")
        return base.as_strided(self.shape, self.strides, self.offset)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of elements one after the other."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Writer:
    """Collects the values and steps of a program."""

    def __init__(self) -> None:
        self.values: list[tuple[str, bool, list[int]]] = []
        self.steps: list[Step] = []
        self.once: list[Step] = []
        self.weights: list[str | Tensor] = []

    def value(
        self, place: str, shape: Sequence[int], axis: int | None, double: bool, varying: bool
    ) -> Value:
        """A new memory, and the view of all of it."""
        self.values.append((place, double, list(shape)))
        number = len(self.values) - 1
        return Value(number, 0, tuple(shape), strides_of(shape), axis, varying, double)

    def input(self, shape: Sequence[int], axis: int | None, double: bool) -> Value:
        """What is given at each call: t, x or a condition."""
        if axis is None:
            return self.value("input", shape, None, double, False)
        # The engine's shape of an input has no axis for the rows.
        found = self.value("input of each", shape, axis, double, True)
        self.values[found.number] = ("input of each", double, list(shape[1:]))
        return found

    def weight(self, source: str | Tensor, shape: Sequence[int], double: bool) -> Value:
        """A parameter or buffer by name, or a tensor."""
        self.weights.append(source)
        return self.value("weight", shape, None, double, False)

    def constant(self, tensor: Tensor, axis: int | None) -> Value:
        """A tensor known now. It becomes a weight when a step first needs it."""
        double = tensor.dtype != torch.float32
        shape = tuple(tensor.shape)
        floating = tensor.is_floating_point()
        return Value(-1, 0, shape, strides_of(shape), axis, False, double, tensor, floating)

    def settled(self, value: Value) -> Value:
        """The value with a memory of its own, if it was a constant."""
        if value.constant is None:
            return value
        tensor = value.constant.to(torch.float64 if value.double else torch.float32).contiguous()
        found = self.weight(tensor, value.shape, value.double)
        return replace(found, axis=value.axis)

    def step(
        self,
        name: str,
        operands: Sequence[Value],
        shape: Sequence[int],
        axis: int | None = None,
        whole: Sequence[int] = (),
        numbers: Sequence[float] = (),
        double: bool | None = None,
        into: Value | None = None,
    ) -> Value:
        """Add a step, and give its result: done for each row where an operand differs between rows."""
        operands = [self.settled(v) for v in operands]
        varying = any(v.varying for v in operands)
        if into is None:
            double = operands[0].double if double is None else double
            into = self.value("rows" if varying else "once", shape, axis, double, varying)
        steps = self.steps if into.varying else self.once
        whole, numbers = [int(n) for n in whole], [float(n) for n in numbers]
        steps.append((name, into.view, [v.view for v in operands], whole, numbers))
        return into

    def packed(self, value: Value) -> Value:
        """The value with its elements one after the other: itself, or a copy."""
        value = self.settled(value)
        if value.packed:
            return value
        return self.step("copy", [value], value.shape, value.axis)

    def spread(self, value: Value, shape: Sequence[int], axis: int | None) -> Value:
        """The value as it is broadcast to a shape."""
        value = self.settled(value)
        meta = value.meta().expand(tuple(shape))
        return replace(value, shape=tuple(meta.shape), strides=tuple(meta.stride()), axis=axis)

    def converted(self, value: Value, double: bool) -> Value:
        """The value in double precision, or in single."""
        if value.double == double:
            return value
        if value.constant is not None:
            dtype = torch.float64 if double else torch.float32
            return replace(value, double=double, constant=value.constant.to(dtype))
        value = self.packed(value)
        return self.step("convert", [value], value.shape, value.axis, double=double)

    def function(self, name: str, value: Value, *numbers: float) -> Value:
        """A function of every element."""
        value = self.packed(value)
        return self.step(name, [value], value.shape, value.axis, numbers=numbers)

    def pair(self, name: str, a: Value, b: Value, shape: Sequence[int], axis: int | None) -> Value:
        """A sum, product, ... of two values that broadcast to the shape."""
        a, b = (self.spread(v, shape, axis) for v in (a, b))
        return self.step(name, [a, b], shape, axis)
