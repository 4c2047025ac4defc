"""Counter-based noise: the same normals for every batch, step, device and backend.

A normal is a pure function of (seed, stream, row, element, node): Philox 4x32-10 (Salmon, Moraes,
Dror, Shaw, SC 2011) gives words, and the method of Box and Muller turns two words into two normals
by additions, multiplications and square roots alone, in single precision and in a fixed order. On
the CPU the Rust engine makes them (rust_solvers/src/philox.rs, brownian.rs); elsewhere the same
recipe in torch does, bit for bit.
"""

from __future__ import annotations

import math
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

import rust_solvers

from .arguments import transforming, untransformed, whole
from .errors import OptionError, UnknownName

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

Key = tuple[int, int]

#: Streams of one seed that never share a word.
STREAMS = {"path": 1, "base": 2, "training": 3, "target": 4, "probe": 5, "churn": 6, "chain": 7}

# -2 log(1 + f) / f for 1 + f within a factor sqrt(2) of one, and cos(pi x / 2) and sin(pi x / 2) / x in
# x^2 on [0, 1/4]: of the least relative error, about the rounding of single precision.
_LOG = (
    -1.9999999,
    1.0000073,
    -0.6667012,
    0.49939817,
    -0.39800346,
    0.3450169,
    -0.3244506,
    0.20213572,
)
_COS = (1.0, -1.2336967, 0.25359495, -0.02039858)
_SIN = (math.pi / 2, -0.64596346, 0.07968003, -0.00460166)
_ROOT_HALF, _MANTISSA = 0x3F3504F3, 0x007FFFFF


def fresh_seed() -> int:
    """A seed from the operating system's entropy, for a run that was given none."""
    return secrets.randbits(63)


def check_seed(seed: object) -> int:
    """A seed as an int in [0, 2^64).

    Raises:
        OptionError: anything else.
    """
    return whole("seed", seed, 0, 2**64 - 1)


def check_first_row(first_row: object, rows: int) -> int:
    """The number of the first row, such that all ``rows`` have numbers below 2^32.

    Raises:
        OptionError: anything else.
    """
    return whole("first_row", first_row, 0, 2**32 - max(rows, 1))


def philox(counter: tuple[Tensor | int, ...], key: Key) -> list[Tensor]:
    """Philox 4x32-10: four words (int64 tensors holding 32 bits) from a counter of four words."""
    c = [torch.as_tensor(word, dtype=torch.int64) for word in counter]
    k0, k1 = key
    for _ in range(10):
        # The products wrap around as signed 64-bit numbers; their 32-bit halves are right all the same.
        p0, p1 = _MULTIPLIERS[0] * c[0], _MULTIPLIERS[1] * c[2]
        c = [
            (p1 >> 32 & _WORD) ^ c[1] ^ k0,
            p1 & _WORD,
            (p0 >> 32 & _WORD) ^ c[3] ^ k1,
            p0 & _WORD,
        ]
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c


def stream_key(seed: int, stream: int) -> Key:
    """The Philox key of one stream of a seed."""
    a, b, _, _ = rust_solvers.philox([stream, 0, 0, 0], [seed & _WORD, seed >> 32])
    return a, b


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _halves(c: tuple[float, ...], f: Tensor) -> Tensor:
    """A polynomial of eight coefficients in the order of Estrin."""
    square = f * f
    low = (f * c[1] + c[0]) + (f * c[3] + c[2]) * square
    high = (f * c[5] + c[4]) + (f * c[7] + c[6]) * square
    return low + high * (square * square)


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root; torch's own on the CPU is off by a unit here and there."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _signed(w: Tensor) -> Tensor:
    """32 bits as a signed number."""
    return w - (w >> 31 << 32)


def _normal_pair(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Box and Muller: radius sqrt(-2 log u), u = (w0 + 1/2) / 2^32, and angle from w1, float32."""
    bits = (w0.float() + 0.5).view(torch.int32).long() - _ROOT_HALF
    exponent = ((bits >> 23) - 32).float()
    f = ((bits & _MANTISSA) + _ROOT_HALF).int().view(torch.float32) - 1.0
    radius = _sqrt(exponent * (-2 * math.log(2.0)) + f * _halves(_LOG, f))
    x = _signed(w1 << 2 & _WORD).float() * 2.0**-32
    square = x * x
    cos, sin = _polynomial(_COS, square) * radius, x * _polynomial(_SIN, square) * radius
    quarter, half = w1 & 0x40000000 != 0, w1 & 0x80000000 != 0
    a, b = torch.where(quarter, sin, cos), torch.where(quarter, cos, sin)
    return torch.where(quarter ^ half, -a, a), torch.where(half, -b, b)


def torch_normals(
    shape: tuple[int, int], first_row: int, key: Key, nodes: Sequence[int], device: torch.device,
    second: bool = False,
) -> Tensor:  # fmt: skip
    """Normals (nodes, *shape), float32, by torch alone; the ``second`` of two that a node has.

    Counter: (element / 4, row, node low, node high), its top bit being ``second``.
    """
    rows, row_len = shape
    group = torch.arange((row_len + 3) // 4, device=device) | second << 31
    row = torch.arange(first_row, first_row + rows, device=device)[:, None]
    halves = [torch.tensor([n >> at & _WORD for n in nodes], device=device) for at in (0, 32)]
    low, high = (half[:, None, None] for half in halves)
    shape3 = (len(nodes), rows, len(group))
    words = philox(tuple(word.expand(shape3) for word in (group, row, low, high)), key)
    pairs = (*_normal_pair(words[0], words[1]), *_normal_pair(words[2], words[3]))
    return torch.stack(pairs, dim=-1).flatten(2)[..., :row_len]


@untransformed()
def _node_normals(
    shape: tuple[int, int], first_row: int, key: Key, nodes: Sequence[int], device: torch.device
) -> Tensor:
    """The same by the Rust engine where that can be."""
    if device.type != "cpu":
        return torch_normals(shape, first_row, key, nodes, device)
    out = torch.empty((len(nodes), *shape), dtype=torch.float32, device=device)
    for part, node in zip(out, nodes, strict=True):
        rust_solvers.normals(part, shape[1], first_row, list(key), node)
    return out


def node_normals(
    rows: int, row_len: int, first_row: int, key: Key, node: int, device: torch.device
) -> Tensor:
    """Normals (rows, row_len), float64, of one node."""
    return _node_normals((rows, row_len), first_row, key, [node], device)[0].double()


@untransformed()
def node_uniforms(rows: int, first_row: int, key: Key, node: int, device: torch.device) -> Tensor:
    """One number of each row, uniform on (0, 1), float64, of one node: (w + 1/2) / 2^32."""
    row = torch.arange(first_row, first_row + rows, device=device)
    words = philox((torch.zeros_like(row), row, node & _WORD, node >> 32), key)
    return (words[0].double() + 0.5) * 2.0**-32


def normal(
    shape: tuple[int, ...] | torch.Size,
    *,
    seed: int | None = None,
    first_row: int = 0,
    stream: str = "base",
    node: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Normals of ``shape``; row i is a function of (seed, stream, node, first_row + i) alone.

    Args:
        shape: (rows, ...).
        seed: keys the noise; drawn afresh where it is None.
        first_row: the number of the first row, so that chunks make up the whole run.
        stream: one of ``STREAMS``; streams of one seed are independent.
        node: a further index, 64 bits, for several draws of one stream.
        dtype: what the float32 normals are turned into.
        device: where to compute them; the numbers are the same everywhere.

    Raises:
        OptionError: a seed, stream or first row that does not exist.
    """
    if stream not in STREAMS:
        raise UnknownName.of("noise stream", stream, STREAMS)
    seed = fresh_seed() if seed is None else check_seed(seed)
    rows, row_len = whole("the number of rows", shape[0], 0), math.prod(shape[1:])
    check_first_row(first_row, rows)
    key = stream_key(seed, STREAMS[stream])
    where = torch.device("cpu") if device is None else torch.device(device)
    if where.type == "meta" or rows * row_len == 0:
        return torch.empty(shape, dtype=dtype, device=where)
    values = _node_normals((rows, row_len), first_row, key, [node], where)
    return values.reshape(shape).to(dtype)


def normal_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Normals like x for a training step: the generator gives the seed, and counters the rest.

    So they are as reproducible as the generator (torch's global one where it is None), and made on
    all cores. Where the seed cannot be read (under a transform of torch.func, by torch.compile) or
    the device has a generator of its own, torch draws them.
    """
    if x.device.type != "cpu" or x.ndim == 0 or transforming():
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    return normal(x.shape, seed=seed, stream="training", dtype=x.dtype)


class _Over(NamedTuple):
    """What lies over a node of that number: W at its ends, H, and the integral at its left end."""

    number: int
    left: Tensor
    right: Tensor
    h: Tensor
    integral: Tensor


def _middle(over: _Over, width: float, y: Tensor, n: Tensor) -> tuple[Tensor, Tensor, _Over, _Over]:
    """W and its integral at the middle of a node, and what lies over its two halves."""
    kick, tilt = math.sqrt(width / 16.0) * y, math.sqrt(width / 48.0) * n
    w = 0.5 * (over.left + over.right) + (1.5 * over.h + kick)
    turn = 0.25 * over.h - 0.5 * kick
    first, second = turn + tilt, turn - tilt
    integral = over.integral + 0.5 * width * (0.5 * (over.left + w) + first)
    left = _Over(2 * over.number, over.left, w, first, over.integral)
    right = _Over(2 * over.number + 1, w, over.right, second, integral)
    return w, integral, left, right


def _inside(over: _Over, width: float, x: float, y: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """W and its integral at the fraction x of a leaf."""
    rest = 1.0 - x
    s = 1.0 - 3.0 * x * rest
    arch, p = 6.0 * x * rest, math.sqrt(width * x * rest * s)
    q = -width * x * x * x * rest / (2.0 * p)
    r = math.sqrt(width * x * rest * rest * rest / (12.0 * s))
    w = over.left + (x * (over.right - over.left) + (arch * over.h + p * y))
    h = (x * x * over.h + q * y) + r * n
    return w, over.integral + x * width * (0.5 * (over.left + w) + h)


@dataclass
class BrownianPath:
    """One Brownian path on ``span`` for every step size: W and its space-time Levy area H.

    Over [s, u] of length w, H = (1 / w) int_s^u (W(r) - W(s)) dr - (W(u) - W(s)) / 2, independent of
    W(u) - W(s) and N(0, w / 12). The nodes of a dyadic tree give both together; a time inside a leaf
    takes two normals keyed by the time. Recipe and sources: rust_solvers/src/brownian.rs.

    On the CPU nothing of the path is kept; elsewhere the branch of the last time is. Consecutive times
    share the upper nodes of their branches: over 128 even steps an increment takes 1.5 normals an
    element, over 100 of them, whose ends lie inside leaves of the tree of depth 10, it takes 9.3.

    Args:
        rows, row_len: the batch and the number of elements in a row.
        seed, first_row: what keys the noise.
        span: the root interval (a, b), a < b.
        depth: levels of the tree.
        device: where the values are made.
        native: whether the Rust engine makes them, on the CPU.
    """

    rows: int
    row_len: int
    seed: int
    first_row: int = 0
    span: tuple[float, float] = (0.0, 1.0)
    depth: int = 10
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    native: bool = True
    stream: int = STREAMS["path"]

    def __post_init__(self) -> None:
        self._key = stream_key(self.seed, self.stream)
        self._branch: list[_Over] = []

    def at(self, t: float) -> Tensor:
        """W(t), float64, (rows, row_len)."""
        return self.values([t], area=False)[0][0]

    @untransformed()
    def values(self, times: Sequence[float], area: bool = True) -> tuple[Tensor, Tensor]:
        """W and int_a W dr at each of the ``times``, float64, (times, rows, row_len).

        The integral is empty where no ``area`` is wanted.
        """
        shape = (len(times), self.rows, self.row_len)
        if self.native and self.device.type == "cpu":
            w = torch.empty(shape, dtype=torch.float64, device=self.device)
            integral = torch.empty(shape if area else (0,), dtype=torch.float64, device=self.device)
            rust_solvers.brownian(w, integral, list(times), self.row_len, self)
            return w, integral
        pairs = [self._value(t) for t in times]
        w = torch.stack([w for w, _ in pairs])
        return w, torch.stack([i for _, i in pairs]) if area else w.new_empty(0)

    def increments(
        self, steps: Sequence[tuple[float, float]], area: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """W(r) - W(s) and, where the ``area`` is wanted, H over each of the steps (s, r) in order."""
        size = max(self.rows * self.row_len, 1)
        ahead = min(max(2**19 // size, 8), 64) if self.device.type == "cpu" else 1
        last: tuple[float, Tensor, Tensor] | None = None
        for first in range(0, len(steps), ahead):
            some = steps[first : first + ahead]
            times = list(dict.fromkeys(t for step in some for t in step))
            new = [t for t in times if last is None or t != last[0]]
            w, integral = self.values(new, area)
            at = {t: (w[i], integral[i] if area else integral) for i, t in enumerate(new)}
            if last is not None:
                at[last[0]] = last[1:]
            for s, r in some:
                (w_s, i_s), (w_r, i_r) = at[s], at[r]
                h = (i_r - i_s) / (r - s) - 0.5 * (w_s + w_r) if area else None
                yield w_r - w_s, h
            last = (some[-1][1], *at[some[-1][1]])

    def _draw(self, nodes: Sequence[int]) -> list[Tensor]:
        """The normals Y and N of the nodes."""
        shape = (self.rows, self.row_len)
        if not nodes:
            return [torch.empty((0, *shape), dtype=torch.float64, device=self.device)] * 2
        args = (shape, self.first_row, self._key, nodes, self.device)
        return [torch_normals(*args, second).double() for second in (False, True)]

    def _root(self) -> _Over:
        width = self.span[1] - self.span[0]
        w, h = (values[0] for values in self._draw([0]))
        zero = torch.zeros_like(w)
        return _Over(1, zero, math.sqrt(width) * w, math.sqrt(width / 12.0) * h, zero)

    def _value(self, t: float) -> tuple[Tensor, Tensor]:
        """W and its integral at t, by torch, from the branch of the last time."""
        (a, b), depth = self.span, self.depth
        leaves = float(2**depth)
        position = (t - a) / (b - a) * leaves
        if not self._branch:
            self._branch = [self._root()]
        root = self._branch[0]
        if position == 0.0:
            return root.left, root.integral
        if position == leaves:
            return root.right, (b - a) * (0.5 * root.right + root.h)
        leaf = min(math.floor(position), 2**depth - 1)
        way = [(1 << level) + (leaf >> (depth - level)) for level in range(depth + 1)]
        while self._branch[-1].number != way[len(self._branch) - 1]:
            self._branch.pop()
        known = len(self._branch) - 1
        # The level of the node whose middle the time is; none where it is inside a leaf.
        inner = position == leaf
        last = depth - 1 - ((leaf & -leaf).bit_length() - 1) if inner else depth
        # The bits of a time are moved to where no node of the tree is: no finite time has all
        # exponent bits set.
        (bits,) = struct.unpack("<Q", struct.pack("<d", t + 0.0))
        nodes = [*way[known:last], way[last] if inner else bits ^ 0x7FF8000000000000]
        first = min(known, last)
        nodes = nodes if known <= last else nodes[-1:]
        ys, ns = self._draw(nodes)
        for level, (y, n) in zip(range(first, last), zip(ys, ns, strict=True), strict=False):
            _, _, left, right = _middle(self._branch[level], (b - a) / float(1 << level), y, n)
            self._branch.append(right if way[level + 1] & 1 else left)
        node = self._branch[last]
        if inner:
            return _middle(node, (b - a) / float(1 << last), ys[-1], ns[-1])[:2]
        return _inside(node, (b - a) / leaves, position - float(leaf), ys[-1], ns[-1])


def depth_for(times: list[float], span: tuple[float, float], depth: int = 10) -> int:
    """The depth, ``depth`` or more, at which no leaf of the tree holds two of the ``times``.

    Raises:
        OptionError: times so close that 48 levels do not part them.
    """
    a, b = span
    relative = (np.asarray(times) - a) / (b - a)
    for levels in range(depth, 49):
        positions = relative * 2.0**levels
        leaves = np.floor(positions)
        inside = leaves[positions != leaves]
        if len(np.unique(inside)) == len(inside):
            return levels
    raise OptionError(
        f"the grid has times closer than {(b - a) * 2.0**-48:.1e}, too close for a Brownian path on "
        f"[{a:g}, {b:g}]. Give a grid with fewer or more even steps."
    )
