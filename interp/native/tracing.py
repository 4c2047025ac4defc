"""A model as a graph of torch's operations, with the axis of the rows known at every node.

The model is called on a few rows, and each ATen operation that it comes to is recorded as a node of
a `torch.fx.Graph`; to look at the numbers in a tensor is refused, since another call would have
others. It is recorded twice, with two numbers of rows: what differs between the two is the axis of
the rows, and nothing else may. (torch.export would do it too, a hundred times slower.)
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import Uncompilable

#: Two numbers of rows: their ratio is that of no two sizes that differ for another reason.
ROWS = (3, 5)


class Sort(NamedTuple):
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
        arguments: t, x and the conditions that are tensors, in order.
        weights: for the names of parameters and buffers in the module, what they are like.
        constants: for the names of other tensors that the model refers to, the tensors.
        output: the node that is returned.
    """

    nodes: list[Node]
    arguments: list[tuple[str, Traced]]
    weights: dict[str, Traced]
    constants: dict[str, Tensor]
    output: Reference


class Held(nn.Module):
    """A model as a module, with the modules that a function refers to as its own."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.call = model
        for i, module in enumerate(_modules_of(model)):
            self.add_module(f"part{i}", module)


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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation between `begin` and the end of the block."""

    def __init__(self, held: Held) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.sources: dict[str, Tensor] = {}
        self._names = {id(v): name for name, v in [*held.named_parameters(), *held.named_buffers()]}
        self._modules = {id(m): name for name, m in held.named_modules()}
        self._nodes: dict[int, fx.Node] = {}
        self._spent: set[int] = set()
        self._alive: list[Tensor] = []

    def argument(self, name: str, tensor: Tensor) -> None:
        """What the model is called with."""
        self._keep(tensor, self.graph.placeholder(name))

    def node(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor: what made it, or a parameter, buffer or constant of the model."""
        if id(tensor) in self._spent:
            raise _obstacle("a tensor", "is used after another view of it was written to in place")
        if id(tensor) not in self._nodes:
            name = self._names.get(id(tensor), f"constant {len(self._nodes)}")
            self.sources[name] = tensor
            node = self.graph.create_node("get_attr", name)
            node.meta["val"] = tensor
            self._keep(tensor, node)
        return self._nodes[id(tensor)]

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["val"] = tensor
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)  # so that no other tensor gets its id

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record an operation, and do it."""
        kwargs = kwargs or {}
        where = self._where()
        if func in _READS:
            raise _obstacle(
                f"{func}{', ' + where if where else ''}", "depends on the numbers in a tensor"
            )
        if func._schema.is_mutable:
            self._check_in_place(func, args, where)
        known = tree_map(lambda v: self.node(v) if isinstance(v, Tensor) else v, (args, kwargs))
        result = func(*args, **kwargs)
        if not any(isinstance(v, Tensor) for v in tree_leaves(result)):
            return result  # a question about a tensor, its device for one
        node = self.graph.call_function(func, *known)
        node.meta.update(val=result, where=where)
        if isinstance(result, Tensor):
            self._made(func, args, result, node)
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    item.meta["where"] = where
                    self._keep(part, item)
        return result

    def _made(self, func: Any, args: tuple[Any, ...], result: Tensor, node: fx.Node) -> None:
        if func._schema.is_mutable:
            # What shares its memory no longer is what its node says.
            memory = result.untyped_storage()._cdata
            shared = [v for v in self._alive if v.untyped_storage()._cdata == memory]
            self._spent |= {id(v) for v in shared if v is not result}
        self._keep(result, node)

    def _check_in_place(self, func: Any, args: tuple[Any, ...], where: str) -> None:
        """Only what an operation made may be written to, whole: not an argument, weight or view."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        node = None if target is None else self._nodes.get(id(target))
        if node is None or node.op != "call_function" or target is None or target._is_view():
            raise _obstacle(f"{func}{', ' + where if where else ''}", "writes in place")

    def _where(self) -> str:
        """The module and the line of the model that called torch."""
        frame = sys._getframe(2)
        code = ""
        while frame is not None and frame.f_back is not None:
            file = frame.f_code.co_filename
            if not code and f"{_TORCH}" not in file and file != __file__:
                code = f"{file.rpartition('/')[2]}:{frame.f_lineno}"
            name = self._modules.get(id(frame.f_locals.get("self")))
            if name:
                module = name.partition(".")[2]
                return ", ".join(part for part in (f"in {module}" if module else "", code) if part)
            frame = frame.f_back
        return code


#: Operations whose result's shape or value is no tensor's, but depends on one.
_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
)


class _Unseen(TorchFunctionMode):
    """Refuses to show the numbers of a tensor."""

    SHOWN = (
        Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__,
        Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.data_ptr,
    )  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Any function but those."""
        if func in self.SHOWN:
            raise _obstacle(
                f"Tensor.{func.__name__}", "makes the model depend on the numbers in a tensor"
            )
        return func(*args, **(kwargs or {}))


_TORCH = torch.__file__.rpartition("/")[0]


def _obstacle(what: str, why: str) -> Uncompilable:
    return Uncompilable(
        f"the model has no native field: {what} {why}. Write it without, or leave it to torch: "
        "interp.compile(model, fallback=True).",
        node=what.partition(",")[0],
    )


def trace(
    held: Held, t: Sort, x: Sort, conditions: Mapping[str, Sort], timeless: bool = False
) -> Graph:
    """The graph of a model for arguments of these sorts; of model(x) where it takes no time.

    Raises:
        Uncompilable: a model that needs numbers to know what to do, or whose rows see one another.
    """
    return _merge(*(_record(held, t, x, conditions, rows, timeless) for rows in ROWS))


def _record(
    held: Held, t: Sort, x: Sort, conditions: Mapping[str, Sort], rows: int, timeless: bool
) -> Recorder:
    recorder = Recorder(held)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation of its own for a whole layer
    try:
        with torch.no_grad():
            given = {name: sort.example(rows) for name, sort in conditions.items()}
            arguments = {"t": t.example(rows), "x": x.example(rows), **given}
            for name, value in arguments.items():
                if isinstance(value, Tensor):
                    recorder.argument(name, value)
            with recorder, _Unseen():
                told = () if timeless else (arguments["t"],)
                out = held.call(*told, arguments["x"], **given)
    except Uncompilable:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(". :")
        raise Uncompilable(
            f"the model cannot be recorded ({what}). Keep out of it what depends on the numbers in a "
            "tensor, or leave it to torch: interp.compile(model, fallback=True).",
            node=_last(recorder),
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if not isinstance(out, Tensor):
        raise _obstacle("output", f"is a {type(out).__name__} where one tensor is the field")
    recorder.graph.output(recorder.node(out))
    recorder.graph.eliminate_dead_code()
    return recorder


def _last(recorder: Recorder) -> str:
    """The operation before the one that failed."""
    calls = [node.name for node in recorder.graph.nodes if node.op == "call_function"]
    return f"after {calls[-1]}" if calls else "the first operation"


def _merge(first: Recorder, second: Recorder) -> Graph:
    """One graph out of two with different numbers of rows."""
    pairs = list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    counts = {len(recorder.graph.nodes) for recorder in (first, second)}
    if len(counts) > 1 or any(a.op != b.op or a.target != b.target for a, b in pairs):
        raise _obstacle("the graph", "is another for another number of rows")
    nodes, arguments, weights, constants = [], [], {}, {}
    output: Any = None
    for a, b in pairs:
        where = a.meta.get("where", "")
        if a.op == "output":
            output = Reference(a.args[0].name)
            continue
        result = _results(a, a.meta.get("val"), b.meta.get("val"), where)
        if a.op == "placeholder":
            arguments.append((a.name, result))
        elif a.op == "get_attr":
            if a.target in first.sources and not a.target.startswith("constant "):
                weights[a.target] = result
            else:
                constants[a.target] = first.sources[a.target]
            nodes.append(Node(a.name, None, (a.target,), {}, result, where))
        else:
            parts = ((a.args, b.args), (a.kwargs, b.kwargs))
            args, kwargs = (_sizes(u, v, a, where) for u, v in parts)
            nodes.append(Node(a.name, a.target, args, kwargs, result, where))
    return Graph(nodes, arguments, weights, constants, output)


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
