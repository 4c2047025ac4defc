"""Calls of the engine whose arguments were mangled at random: `python mangled_calls.py COUNT SEED`.

Genuine calls are recorded, then made again with one to three of their numbers, names, lists and tensors
replaced. Whatever comes of that is fine but a crash or a panic of the engine. Prints how many calls went
through, how many ended with an error, and of which kinds.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import interp
import interp.native.engine
import interp.solvers.rust_backend
import rust_solvers
from interp.noise import BrownianPath

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    63,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan, 5e-324)
NAMES = (
    "",
    "h",
    "W",
    "drift",
    "diffusion",
    "rows",
    "once",
    "weight",
    "input",
    "linear",
    "conv",
    "nothing",
    "\0",
)
SECONDS = 2.0

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class Slow(Exception):
    """A call that was stopped, as a run of 2^63 steps may have to be."""


def alarmed(signum: int, frame: object) -> None:
    raise Slow


def mangled_tensor(x: Tensor, draw: random.Random) -> object:
    """Another shape, dtype, layout, size of memory, or class."""
    if without_memory(x):
        return x  # torch's own to_sparse writes where it should not, given such a tensor
    ways: list[Callable[[], object]] = [
        lambda: x.double() if x.dtype != torch.float64 else x.float(),
        lambda: x.half(),
        lambda: x.reshape(-1)[:-1],
        lambda: x[None],
        lambda: x.reshape(-1),
        lambda: torch.empty(0),
        lambda: x.expand(3, *x.shape),
        lambda: torch.stack((x, x), dim=-1)[..., 0],
        lambda: x.to_sparse() if x.ndim else x,
        lambda: x.to("meta"),
        lambda: torch.full_like(x, draw.choice((math.nan, math.inf, 1e38))) if x.is_floating_point() else x,
        lambda: nn.Parameter(x.clone()) if x.is_floating_point() else x,
        lambda: None,
        lambda: x.tolist(),
        lambda: shrunk(x),
    ]  # fmt: skip
    try:
        return draw.choice(ways)()
    except RuntimeError:  # torch's own refusal, of a tensor that was mangled before
        return x


def shrunk(x: Tensor) -> Tensor:
    """A tensor whose memory does not hold it."""
    x = x.clone()
    x.untyped_storage().resize_(max(x.untyped_storage().nbytes() // 2, 0))
    return x


def without_memory(x: Tensor) -> bool:
    if x.layout is not torch.strided or x.is_meta or x.numel() == 0:
        return False
    last = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.itemsize > x.untyped_storage().nbytes()


def mangled(value: Any, draw: random.Random) -> Any:
    """Something in place of ``value``, or ``value`` with something in it replaced."""
    if isinstance(value, Tensor):
        return mangled_tensor(value, draw)
    if isinstance(value, bool) or value is None:
        return draw.choice((True, False, None, 0, "x"))
    if isinstance(value, int):
        return draw.choice((*INTEGERS, value + 1, max(value - 1, 0)))
    if isinstance(value, float):
        return draw.choice((*FLOATS, value * (1 + 1e-15), -value))
    if isinstance(value, str):
        return draw.choice(NAMES)
    if isinstance(value, list | tuple):
        items = list(value)
        way = draw.randrange(8)
        if items and way > 2:
            at = draw.randrange(len(items))
            items[at] = mangled(items[at], draw)
        elif way == 0:
            items = items[: draw.randrange(len(items) + 1)]
        elif way == 1:
            items = items * draw.choice((2, 50))
        else:
            items = []
        return type(value)(items) if type(value) in (list, tuple) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replaced(value, draw)
    return draw.choice((value, None, 3, "x"))


def replaced(value: Any, draw: random.Random) -> Any:
    """A copy of an object with an attribute mangled."""
    value = copy.copy(value)
    name = draw.choice([f.name for f in dataclasses.fields(value)])
    object.__setattr__(value, name, mangled(getattr(value, name), draw))
    return value


def again(value: Any) -> Any:
    """A copy that the call may use up."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(again, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = copy.copy(value)
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if isinstance(content, Tensor):
                object.__setattr__(value, field.name, content.clone())
    return value


def networks() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 6))
    yield nn.Sequential(
        nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(),
        nn.Upsample(scale_factor=2), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1), nn.Flatten(),
    )  # fmt: skip


class Field(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return t.reshape(-1, 1) * self.net(x)


def recorded() -> list[Call]:
    """Genuine calls of every function."""
    calls: list[Call] = []
    home = interp.solvers.rust_backend
    genuine = {name: getattr(home, name) for name in home.__all__}

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, tuple(map(again, args)), {k: again(v) for k, v in kwargs.items()}))
            return genuine[name](*args, **kwargs)

        return record

    for name in genuine:
        setattr(home, name, recorder(name))
    x = torch.linspace(-1, 1, 18).reshape(3, 6)
    run = {"save_at": [0.5, 1.0]}

    def decay(t: Tensor, x: Tensor) -> Tensor:
        return -x

    for net in networks():
        native = interp.compile(Field(net).requires_grad_(False))
        interp.solve(native, x, method="euler", steps=4, **run)
        interp.solve(native, x, method="dopri5", per_row=True)
    interp.solve(decay, x, method="dopri5", **run)
    interp.solve(decay, x, method="rk4", steps=3, callback=lambda s: None)
    interp.solve(decay, x, method="dopri5", per_row=True, **run)
    sde = interp.SDE(decay, 0.3)
    several = interp.SDE(decay, lambda t, x: torch.ones_like(x) * x)
    general = interp.SDE(decay, lambda t: torch.ones(3, 6, 2))
    interp.solve(sde, x, method="euler_maruyama", steps=4, seed=1, **run)
    for term, method in ((several, "milstein"), (several, "srk"), (general, "euler_maruyama")):
        interp.solve(term, x, method=method, steps=3, seed=1)
    interp.solve(several, x, method="srk", rtol=0.1, atol=0.1, seed=1)
    interp.solve(sde, x, method="reversible_heun", steps=4, seed=1, **run)
    interp.solve(general, x, method="reversible_heun", steps=3, seed=1)
    energy = interp.Energy(lambda x: x.square().sum(1))
    for method in ("langevin", "underdamped", "mala", "hmc"):
        interp.solve(energy, x, method=method, steps=3, step_size=0.1, save_every=2, seed=1)
    for name, function in genuine.items():
        setattr(home, name, function)
    path = BrownianPath(3, 6, 1)
    w = torch.zeros(2, 3, 6, dtype=torch.float64)
    calls += [
        ("philox", ([1, 2, 3, 4], [5, 6]), {}),
        ("normals", (torch.zeros(3, 6), 6, 0, [1, 2], 3), {}),
        ("brownian", (w, w.clone(), [0.25, 0.3], 6, path), {}),
        ("brownian", (w, torch.zeros(0, dtype=torch.float64), [0.25, 0.3], 6, path), {}),
        ("ddpm_step", (x, x + 1, 0.5, 0.6, x + 2, 1.0), {}),
        ("flow_matching_step", (x, x + 1, 0.1), {}),
    ]
    return calls


def programs() -> list[tuple[Any, ...]]:
    """What genuine networks are made of."""
    made: list[tuple[Any, ...]] = []
    engine = interp.native.engine
    homes = [m for m in list(sys.modules.values()) if getattr(m, "Network", None) is engine.Network]

    class Recorder:
        def __new__(cls, *args: Any) -> Any:
            made.append(args)
            return rust_solvers.Network(*args)

    for home in homes:
        if home is not rust_solvers:
            home.Network = Recorder  # type: ignore[attr-defined]
    for net in networks():
        x = torch.zeros(3, 6)
        interp.compile(Field(net).requires_grad_(False))(torch.tensor(0.5), x)
    for home in homes:
        home.Network = rust_solvers.Network  # type: ignore[attr-defined]
    return made


def attempt(call: Callable[[], Any], outcomes: Counter[str]) -> None:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
        outcomes["went through"] += 1
    except Exception as error:  # a panic of the engine is none, and ends the process
        outcomes[type(error).__name__] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def mangled_network(args: tuple[Any, ...], draw: random.Random) -> None:
    """Make a mangled network; where it is accepted, call it with what it says it wants."""
    values, steps, result = args
    if draw.random() < 0.5:
        values = mangled(values, draw)
    else:
        steps = mangled(steps, draw)
    network = rust_solvers.Network(values, steps, result)
    tensors: dict[str, list[Tensor]] = {"weight": [], "input": []}
    rows = draw.randrange(4)
    for place, double, shape in values:
        kind = place.split()[0]
        if kind in tensors and math.prod(shape) < 1e6:
            shape = (rows, *shape) if place.endswith("each") else tuple(shape)
            dtype = torch.float64 if double else torch.float32
            tensors[kind].append(torch.full(shape, draw.choice(FLOATS), dtype=dtype))
    out = torch.zeros(rows, *result[2])
    network.call(out, tensors["weight"], tensors["input"], draw.choice((None, 1, 2, 0)))


def main(count: int, seed: int) -> None:
    signal.signal(signal.SIGALRM, alarmed)
    torch.set_num_threads(2)
    draw, outcomes = random.Random(seed), Counter[str]()
    calls, made = recorded(), programs()
    for _ in range(count):
        if draw.random() < 0.3:
            args = draw.choice(made)
            attempt(lambda args=args: mangled_network(args, draw), outcomes)  # type: ignore[misc]
            continue
        name, given, keywords = draw.choice(calls)
        items: list[Any] = list(map(again, given))
        named = {k: again(v) for k, v in keywords.items()}
        for _ in range(draw.randrange(1, 4)):
            if named and draw.random() < 0.3:
                key = draw.choice(list(named))
                named[key] = mangled(named[key], draw)
            else:
                at = draw.randrange(len(items))
                items[at] = mangled(items[at], draw)
        function = getattr(rust_solvers, name)
        attempt(lambda f=function, i=items, n=named: f(*i, **n), outcomes)  # type: ignore[misc]
    print(f"{len(calls)} calls and {len(made)} networks, {count} times mangled:", dict(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
