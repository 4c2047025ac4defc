"""A model as a graph of torch's operations, with the axis of the rows known at every node.

`torch.export` records the model as a `torch.fx` graph of ATen operations. It is recorded twice, with
two numbers of rows: what differs between the two is the axis of the rows, and nothing else may.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Uncompilable

#: Numbers of rows that no layer has by accident as a ratio of its sizes.
ROWS = (3, 5)


@dataclass(frozen=True)
class Sort:
    """What a program is made for, of one argument: a tensor's dtype and shape, or a value.

    Attributes:
        dtype: of a tensor; None for another value.
        shape: of a tensor, without the axis of the rows.
        each: whether its first axis is that of the rows.
        value: of what is no tensor.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...] = ()
    each: bool = False
    value: Any = None

    @classmethod
    def of(cls, argument: object, rows: int) -> Sort:
        """The sort of an argument of a call with so many rows."""
        if not isinstance(argument, Tensor):
            return cls(None, value=argument)
        each = argument.ndim > 0 and len(argument) == rows
        return cls(argument.dtype, tuple(argument.shape[each:]), each)

    def example(self, rows: int) -> object:
        """An argument of this sort."""
        if self.dtype is None:
            return self.value
        return torch.zeros((rows, *self.shape) if self.each else self.shape, dtype=self.dtype)


@dataclass(frozen=True)
class Traced:
    """A value of the graph as it is for one row, and which of its axes counts the rows.

    Attributes:
        shape: with one row instead of many.
        axis: of the rows; None where it is the same for all.
        dtype: torch's.
    """

    shape: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """One operation: its arguments hold `Reference`s to other nodes, and sizes as for one row."""

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Traced | list[Traced] | None
    where: str


@dataclass(frozen=True)
class Reference:
    """Another node, by name."""

    name: str


@dataclass(frozen=True)
class Graph:
    """The nodes in order, what holds their weights, and what comes out.

    Attributes:
        arguments: the names of the placeholders of t, x and the conditions, in order.
        weights: from the names of placeholders to those of parameters and buffers in the module.
        constants: from the names of placeholders to tensors.
        placeholders: every placeholder as a value.
    """

    nodes: list[Node]
    arguments: list[str]
    weights: dict[str, str]
    constants: dict[str, Tensor]
    placeholders: dict[str, Traced]
    output: Reference


class Held(nn.Module):
    """A model as a module, with the modules that a function refers to as its own."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.call = model
        for i, module in enumerate(_modules_of(model)):
            self.add_module(f"part{i}", module)

    def forward(self, t: Tensor, x: Tensor, conditions: dict[str, Any]) -> Any:
        """The model's answer."""
        return self.call(t, x, **conditions)


def _modules_of(model: object, depth: int = 3) -> list[nn.Module]:
    """The modules that a callable refers to: itself, or in its attributes, closure and arguments."""
    if isinstance(model, nn.Module):
        return [model]
    if depth == 0:
        return []
    parts: list[object] = []
    if isinstance(model, functools.partial):
        parts += [model.func, *model.args, *model.keywords.values()]
    parts += [cell.cell_contents for cell in getattr(model, "__closure__", None) or ()]
    parts += [getattr(model, "__self__", None), *getattr(model, "__dict__", {}).values()]
    found: dict[int, nn.Module] = {}
    for part in parts:
        if callable(part):
            found.update({id(m): m for m in _modules_of(part, depth - 1)})
    return list(found.values())


def trace(held: Held, t: Sort, x: Sort, conditions: Mapping[str, Sort]) -> Graph:
    """The graph of a model for arguments of these sorts.

    Raises:
        Uncompilable: a model that torch.export cannot record, or whose rows depend on their number.
    """
    first, second = (_export(held, t, x, conditions, rows) for rows in ROWS)
    tensors = [name for name, sort in conditions.items() if sort.dtype is not None]
    return _merge(first, second, ["t", "x", *tensors])


def _export(
    held: Held, t: Sort, x: Sort, conditions: Mapping[str, Sort], rows: int
) -> torch.export.ExportedProgram:
    given = {name: sort.example(rows) for name, sort in conditions.items()}
    try:
        with torch.no_grad(), _quiet():
            arguments = (t.example(rows), x.example(rows), given)
            return torch.export.export(held, arguments, strict=False)
    except Exception as error:
        raise Uncompilable(
            f"torch.export cannot record the model: {_first_line(error)}. Keep out of it what depends "
            "on the numbers in a tensor, or call it in torch (fallback=True).",
            node="torch.export",
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(". ")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _merge(
    first: torch.export.ExportedProgram, second: torch.export.ExportedProgram, names: list[str]
) -> Graph:
    """One graph out of two with different numbers of rows."""
    nodes, placeholders = [], {}
    signature = first.graph_signature
    pairs = list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    same = len(list(first.graph.nodes)) == len(list(second.graph.nodes))
    if not same or any(a.target != b.target for a, b in pairs if a.op == "call_function"):
        raise Uncompilable(
            "the model does something else for another number of rows. Write it so that every row is "
            "treated alike.",
            node="the graph",
        )
    output: Any = None
    if signature.buffers_to_mutate:
        raise Uncompilable(
            f"the model changes its buffers {sorted(signature.buffers_to_mutate.values())} when it is "
            "called. Put it into evaluation mode: model.eval().",
            node=next(iter(signature.buffers_to_mutate)),
        )
    for a, b in pairs:
        where = _where(a)
        if a.op == "placeholder":
            if isinstance(a.meta.get("val"), Tensor):
                placeholders[a.name] = _traced(a, a.meta["val"], b.meta["val"], where)
        elif a.op == "call_function":
            args, kwargs = (
                _sizes(u, v, a, where) for u, v in ((a.args, b.args), (a.kwargs, b.kwargs))
            )
            result = _results(a, a.meta.get("val"), b.meta.get("val"), where)
            nodes.append(Node(a.name, a.target, args, kwargs, result, where))
        elif a.op == "output":
            output = _sizes(a.args, b.args, a, where)
    while isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Reference):
        raise Uncompilable("the model does not return one tensor. Return the field.", node="output")
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    constants = {name: first.constants[key] for name, key in lifted.items()}
    own = [n for n in placeholders if n not in weights and n not in constants]
    if len(own) != len(names):
        raise Uncompilable(f"the model takes {own} for {names}.", node="placeholders")
    return Graph(nodes, own, weights, constants, placeholders, output)


def _where(node: torch.fx.Node) -> str:
    """The module and the line of the model that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [part for part, _ in stack.values() if part]
    module = path[-1].removeprefix("part0.") if path else ""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    code = lines[-1].strip() if lines else ""
    return ", ".join(
        part for part in (f"in {module}" if module not in ("", "part0") else "", code) if part
    )


def _size(a: int, b: int, node: torch.fx.Node, where: str) -> int:
    """A size as for one row."""
    if a == b:
        return a
    if a * ROWS[1] == b * ROWS[0]:
        return a // ROWS[0]
    raise Uncompilable(
        f"the node {node.name} ({node.target}{', ' + where if where else ''}) has the size {a} for "
        f"{ROWS[0]} rows and {b} for {ROWS[1]}: it cuts or mixes the rows.",
        node=node.name,
    )


def _sizes(a: Any, b: Any, node: torch.fx.Node, where: str) -> Any:
    """Arguments with references for nodes and sizes as for one row."""
    if isinstance(a, torch.fx.Node):
        return Reference(a.name)
    if isinstance(a, (tuple, list)):
        return [_sizes(u, v, node, where) for u, v in zip(a, b, strict=True)]
    if isinstance(a, Mapping):
        return {key: _sizes(a[key], b[key], node, where) for key in a}
    if isinstance(a, int) and not isinstance(a, bool):
        return _size(a, b, node, where)
    return a


def _results(node: torch.fx.Node, a: Any, b: Any, where: str) -> Any:
    if isinstance(a, Tensor):
        return _traced(node, a, b, where)
    if isinstance(a, (tuple, list)):
        return [_results(node, u, v, where) for u, v in zip(a, b, strict=True)]
    return None


def _traced(node: torch.fx.Node, a: Tensor, b: Tensor, where: str) -> Traced:
    if a.ndim != b.ndim:
        raise Uncompilable(f"the node {node.name} has another shape for more rows.", node=node.name)
    shape = tuple(_size(m, n, node, where) for m, n in zip(a.shape, b.shape, strict=True))
    axes = [i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
    if len(axes) > 1:
        raise Uncompilable(
            f"the node {node.name} ({node.target}, {where}) has the rows on two axes: it mixes them.",
            node=node.name,
        )
    return Traced(shape, axes[0] if axes else None, a.dtype)
