"""`interp.compile`: a model whose runs need no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..arguments import whole
from ..errors import OptionError, Uncompilable
from ..terms.model import check_callable, needs_exact_time
from . import layers as _layers  # registers its rules
from .engine import Network
from .field import NativeField, NativeModel, Reads
from .lowering import lower
from .tracing import Held, Sort, trace

assert _layers

_TENSORS = (Tensor, nn.Parameter)
_ZERO = torch.zeros((), dtype=torch.float64, device="cpu")


class Compiled(NativeModel):
    """A model with a native field; see `compile`.

    Attributes:
        model: the model in torch.
        uncompiled: every node met so far that has no native form.
        exact_time: whether the model wants its time in float64.
    """

    def __init__(
        self, model: Callable[..., Any], threads: int | None, fallback: bool, timeless: bool = False
    ) -> None:
        self.model = model
        self.exact_time = needs_exact_time(model)
        self.timeless = timeless
        self.threads = threads
        self.fallback = fallback
        self.uncompiled: list[str] = []
        self._held = Held(model)
        self._structure = _Structure(self._held)
        self._programs: dict[object, _Program | None] = {}

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Any:
        """What the model says at t and x: natively, or in torch where torch is needed.

        That is: with gradients, under a transform of torch.func or torch.compile, on another device
        or in another dtype, or where a model that cannot be compiled may fall back.
        """
        if not self._native_here(x, cond, t):
            return self.model(t, x, **cond)
        program = self._program(_of_time(t, x), x, cond)
        if program is None:
            return self.model(t, x, **cond)
        out = torch.empty(x.shape, dtype=x.dtype)
        t = t if t.dtype in (torch.float32, torch.float64) else t.double()
        inputs = [_settled(t), _settled(x), *program.conditions(cond)]
        program.network.call(out, program.weights(), inputs, self.threads)
        return out

    def native(
        self, x: Tensor, time: torch.dtype, cond: Mapping[str, Any], reads: Reads | None,
        per_row: bool = False,
    ) -> NativeField | None:  # fmt: skip
        """The field for a run from x, told the time, or with ``per_row`` that of each row, in the dtype
        ``time``; None where torch runs it.
        """
        if not self._native_here(x, cond):
            return None
        program = self._program(Sort(time, (), per_row), x, cond)
        if program is None:
            return None
        conditions = [c.clone() for c in program.conditions(cond)]
        return NativeField(program.network, program.weights(), conditions, self.threads, reads)

    def modules(self) -> list[nn.Module]:
        """Those that the model is made of."""
        return list(self._held.modules())

    def program(self, x: Tensor) -> tuple[Network, list[Tensor], tuple[int, ...]]:
        """The network of a model without time, its weights, and the shape of a row of its result."""
        found = self._program(Sort(x.dtype), x, {})
        assert found is not None  # fallback is off
        return found.network, found.weights(), found.shape

    def try_out(self) -> None:
        """Compile for points of the shape that the first layers suggest, where they do.

        Raises:
            Uncompilable: a model that takes such points and cannot be compiled.
        """
        weights = [p for p in self._held.parameters() if p.is_floating_point()]
        if not weights or any(p.device.type != "cpu" for p in weights):
            return
        t = torch.zeros((), dtype=weights[0].dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for shape in _likely_shapes(self._held):
                x = torch.zeros(2, *shape, dtype=weights[0].dtype)
                try:
                    out = self.model(t, x)
                except Exception:  # not this shape, or not without conditions
                    continue
                if isinstance(out, Tensor) and out.shape == x.shape and self._native_here(x, {}, t):
                    self._program(Sort(t.dtype), x, {})
                    return

    @property
    def view(self) -> Any:
        """What the model says that it returns, if it does."""
        return getattr(self.model, "view", None)

    def _native_here(self, x: object, cond: Mapping[str, Any], t: object = _ZERO) -> bool:
        """Whether these arguments can be taken without torch."""
        if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
            return False
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        if not isinstance(t, Tensor) or not isinstance(x, Tensor) or not x.numel() or not x.ndim:
            return False
        tensors = [t, x, *(c for c in cond.values() if isinstance(c, Tensor))]
        for v in tensors:
            if type(v) not in _TENSORS or not v.is_cpu:
                return False
        if x.dtype not in (torch.float32, torch.float64) or not t.is_floating_point():
            return False
        return not (torch.is_grad_enabled() and self._followed(tensors))

    def _followed(self, tensors: list[Tensor]) -> bool:
        """Whether the result would have a gradient."""
        return any(v.requires_grad for v in [*tensors, *self._held.parameters()])

    def _program(self, t: Sort, x: Tensor, cond: Mapping[str, Any]) -> _Program | None:
        """What was compiled for arguments of this kind, or is now; None where torch runs them."""
        if not self._structure.holds():
            self._programs.clear()
            self._structure = _Structure(self._held)
        rows, *shape = x.shape
        sorts = {name: Sort.of(cond[name], rows) for name in sorted(cond)}
        of_x = Sort(x.dtype, tuple(shape), True)
        key = (t, of_x, tuple(sorts.items()), self._structure.training())
        try:
            known = key in self._programs
        except TypeError as error:
            raise OptionError(
                f"the conditions {', '.join(cond)} cannot be compiled in. Give tensors, numbers or names."
            ) from error
        if not known:
            self._programs[key] = self._made(t, of_x, sorts)
        return self._programs[key]

    def _made(self, t: Sort, x: Sort, cond: Mapping[str, Sort]) -> _Program | None:
        try:
            graph = trace(self._held, t, x, cond, self.timeless)
            lowered = lower(graph, None if self.timeless else x)
        except Uncompilable as error:
            self.uncompiled += error.obstacles
            if self.fallback:
                return None
            raise
        network = Network(lowered.values, lowered.steps, lowered.result)
        places = self._structure.places(lowered.weights)
        return _Program(network, places, dict(cond), lowered.shape)


class _Structure:
    """Which modules a model is made of, to see whether it still is."""

    def __init__(self, held: nn.Module) -> None:
        self.held = held
        self._modules = list(held.modules())
        self._links = [
            (module._modules, name, child)
            for module in self._modules
            for name, child in module._modules.items()
        ]
        self._names = [(m._parameters, set(m._parameters)) for m in self._modules]

    def holds(self) -> bool:
        """Whether no module was put in, taken out or exchanged, nor a parameter's name."""
        for modules, name, child in self._links:
            if modules.get(name) is not child:
                return False
        return all(now.keys() == names for now, names in self._names)

    def training(self) -> tuple[bool, ...]:
        """Which of the modules are in training mode."""
        return tuple([module.training for module in self._modules])

    def places(self, weights: list[str | Tensor]) -> list[_Place]:
        """Where each weight is found: in a module's own dictionary, or a tensor itself."""
        return [self._place(source) for source in weights]

    def _place(self, source: str | Tensor) -> _Place:
        if isinstance(source, Tensor):
            return {"": source}, ""
        path, _, name = source.rpartition(".")
        owner = self.held.get_submodule(path)
        return (owner._parameters if name in owner._parameters else owner._buffers), name


_Place = tuple[Mapping[str, Tensor | None], str]


@dataclass
class _Program:
    """A network with the places of its weights, the sorts of its conditions, and its row's shape."""

    network: Network
    places: list[_Place]
    cond: dict[str, Sort]
    shape: tuple[int, ...]

    def weights(self) -> list[Tensor]:
        """The tensors that hold the weights now, shared with torch; a copy where not contiguous."""
        found = [tensors[name] for tensors, name in self.places]
        return [w if w is None or w.is_contiguous() else w.contiguous() for w in found]  # type: ignore[misc]

    def conditions(self, cond: Mapping[str, Any]) -> list[Tensor]:
        """The conditions that are tensors, whole numbers in double precision."""
        given = [cond[name] for name, sort in self.cond.items() if sort.dtype is not None]
        return [_settled(c if c.dtype == torch.float32 else c.double()) for c in given]


def _likely_shapes(held: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a point that one of the first layers could take, perhaps beside the time."""
    shapes: list[tuple[int, ...]] = []
    for module in held.modules():
        if isinstance(module, nn.Linear):
            shapes += [(n,) for n in range(module.in_features, max(module.in_features - 3, 0), -1)]
        if isinstance(module, nn.Conv2d):
            shapes += [(module.in_channels, side, side) for side in (8, 16, 28, 32)]
    return list(dict.fromkeys(shapes))[:12]


def _of_time(t: Tensor, x: Tensor) -> Sort:
    """The sort of a time for x: one number, or one for each row."""
    return Sort.of(t, len(x) if t.ndim else -1)


def _settled(tensor: Tensor) -> Tensor:
    """Its numbers one after the other, as they are."""
    return tensor.detach().resolve_neg().contiguous()


def compile(
    model: Callable[..., Any], *, threads: int | None = None, fallback: bool = False
) -> Compiled:
    """The model with a native field: the same calls, and solves that never enter Python.

    The first call with arguments of a kind (dtypes, shapes but for the number of rows, which
    conditions) records the model by torch.export and makes a program of it, in seconds; `solve` with
    the rust backend then runs from its first step to its last in Rust. Weights are shared with
    torch, looked up at the beginning of every run: changed, loaded or exchanged ones are seen. So are
    modules put in another mode, or exchanged.

    Rows must not see one another, and what the model does must not depend on how many there are.

    Args:
        model: model(t, x, **cond) -> tensor like x; a module, or a function of modules.
        threads: at most so many, of torch's own pool; None is `torch.get_num_threads()`.
        fallback: whether a model that cannot be compiled is left to torch, with the nodes in the way
            in ``.uncompiled``.

    Raises:
        OptionError: what is no function, or a number of threads that is none.
        Uncompilable: at the first call, or here where x's shape can be told from the first layers;
            names the nodes.
    """
    check_callable("model", model)
    limit = None if threads is None else whole("threads", threads, 1)
    compiled = Compiled(model, limit, fallback)
    if not any(
        module.training and list(module.buffers(recurse=False)) for module in compiled.modules()
    ):
        compiled.try_out()
    return compiled
