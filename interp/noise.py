"""Counter-based noise: the same normals for every batch, step, device and backend.

A normal is a pure function of (seed, stream, row, element, node): Philox 4x32-10 (Salmon, Moraes,
Dror, Shaw, SC 2011) gives words, and the method of Box and Muller turns two words into two normals
by additions, multiplications and square roots alone, in float64 and in a fixed order. The Rust
engine repeats the recipe bit for bit (rust_solvers/src/philox.rs, brownian.rs).
"""

from __future__ import annotations

import math
import secrets
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .arguments import whole
from .errors import OptionError

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

#: Streams of one seed that never share a word.
STREAMS = {"path": 1, "base": 2, "training": 3, "target": 4, "probe": 5}

# Coefficients in x = 2m - 3 of log m on [1, 2): the Chebyshev interpolant of degree 15, error 1e-13.
_LOG = (
    0.4054651081082313, 0.3333333333333123, -0.055555555564110855, 0.012345679015036914,
    -0.0030864195741349444, 0.0008230452111984052, -0.00022862510605604547, 6.532149983425055e-05,
    -1.9046463913066667e-05, 5.643296291244219e-06, -1.7050171776850605e-06, 5.168036613310601e-07,
    -1.4370114690285575e-07, 4.4127693461875765e-08, -2.240164484348351e-08, 6.992921375422756e-09,
)  # fmt: skip
# Taylor coefficients of cos(pi x / 2) and of sin(pi x / 2) / x in x^2: (pi/2)^k / k! with signs.
_COS = (
    1.0, -1.2337005501361697, 0.25366950790104803, -0.02086348076335296, 0.0009192602748394266,
    -2.5202042373060607e-05, 4.710874778818172e-07, -6.386603083791852e-09,
)  # fmt: skip
_SIN = (
    1.5707963267948966, -0.6459640975062463, 0.07969262624616705, -0.004681754135318688,
    0.00016044118478735983, -3.598843235212085e-06, 5.692172921967927e-08, -6.688035109811468e-10,
)  # fmt: skip


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


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> list[Tensor]:
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


def stream_key(seed: int, stream: int) -> tuple[int, int]:
    """The Philox key of one stream of a seed."""
    words = philox((stream, 0, 0, 0), (seed & _WORD, seed >> 32))
    return int(words[0]), int(words[1])


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root; torch's own on the CPU is off by a unit here and there."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _normal_pair(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Box and Muller: radius sqrt(-2 log((w0 + 1/2) / 2^32)), angle from w1."""
    bits = (w0.double() + 0.5).view(torch.int64)
    exponent = (bits >> 52) - 1023
    m = (bits & 0x000FFFFFFFFFFFFF | 0x3FF0000000000000).view(torch.float64)
    log = _polynomial(_LOG, 2.0 * m - 3.0)
    radius = _sqrt(2.0 * ((32 - exponent).double() * math.log(2.0) - log))
    x = ((w1 & 0x3FFFFFFF).double() + 0.5) * 2.0**-30 - 0.5
    square = x * x
    cos, sin = _polynomial(_COS, square), x * _polynomial(_SIN, square)
    swap = w1 & 0x40000000 != 0
    a, b = torch.where(swap, -sin, cos), torch.where(swap, cos, sin)
    sign = torch.where(w1 & 0x80000000 != 0, -radius, radius)
    return a * sign, b * sign


def node_normals(
    rows: int, row_len: int, first_row: int, key: tuple[int, int], node: int, device: torch.device
) -> Tensor:
    """Normals (rows, row_len), float64, of one node: counter (element / 4, row, node low, high)."""
    blocks = torch.arange((row_len + 3) // 4, device=device)
    row = torch.arange(first_row, first_row + rows, device=device)[:, None]
    words = philox((blocks + 0 * row, row + 0 * blocks, node & _WORD, node >> 32), key)
    pairs = (*_normal_pair(words[0], words[1]), *_normal_pair(words[2], words[3]))
    return torch.stack(pairs, dim=-1).flatten(1)[:, :row_len]


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
        dtype: what the float64 normals are rounded to.
        device: where to compute them; the numbers are the same everywhere.

    Raises:
        OptionError: a seed, stream or first row that does not exist.
    """
    if stream not in STREAMS:
        from .errors import UnknownName

        raise UnknownName.of("noise stream", stream, STREAMS)
    seed = fresh_seed() if seed is None else check_seed(seed)
    rows, row_len = shape[0], math.prod(shape[1:])
    check_first_row(first_row, rows)
    key = stream_key(seed, STREAMS[stream])
    where = torch.device("cpu") if device is None else torch.device(device)
    if where.type == "meta" or rows * row_len == 0:
        return torch.empty(shape, dtype=dtype, device=where)
    values = node_normals(rows, row_len, first_row, key, node, where)
    return values.reshape(shape).to(dtype)


@dataclass
class BrownianPath:
    """One Brownian path W on ``span`` for every step size; keeps the branch of the last time.

    W(a) = 0, W(b) = sqrt(b - a) Z at the root; a node [l, r] of width w splits at its middle,
    W(m) = (W(l) + W(r)) / 2 + sqrt(w / 4) Z, down to ``depth`` levels; a time inside a leaf takes
    one bridge normal keyed by the time.

    Args:
        rows, row_len: the batch and the number of elements in a row.
        seed, first_row: what keys the noise.
        span: the root interval (a, b), a < b.
        depth: levels of the tree.
    """

    rows: int
    row_len: int
    seed: int
    first_row: int = 0
    span: tuple[float, float] = (0.0, 1.0)
    depth: int = 10
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self._key = stream_key(self.seed, STREAMS["path"])
        self._end: Tensor | None = None
        self._middles: dict[int, tuple[int, Tensor]] = {}

    def _draw(self, node: int) -> Tensor:
        args = (self.rows, self.row_len, self.first_row, self._key, node, self.device)
        return node_normals(*args)

    def at(self, t: float) -> Tensor:
        """W(t), float64, (rows, row_len)."""
        (a, b), leaves = self.span, float(2**self.depth)
        position = (t - a) / (b - a) * leaves
        left = torch.zeros(self.rows, self.row_len, dtype=torch.float64, device=self.device)
        if position == 0.0:
            return left
        if self._end is None:
            self._end = math.sqrt(b - a) * self._draw(0)
        right = self._end
        if position == leaves:
            return right
        leaf = min(math.floor(position), 2**self.depth - 1)
        for level in range(self.depth):
            shift = self.depth - level
            node = (1 << level) + (leaf >> shift)
            width = (b - a) / float(1 << level)
            known, middle = self._middles.get(level, (None, left))
            if known != node:
                middle = 0.5 * (left + right) + math.sqrt(width / 4.0) * self._draw(node)
                self._middles[level] = (node, middle)
            if position == float((leaf >> shift << shift) + (1 << (shift - 1))):
                return middle
            left, right = (left, middle) if not leaf >> (shift - 1) & 1 else (middle, right)
        width, fraction = (b - a) / leaves, position - float(leaf)
        scale = math.sqrt(fraction * (1.0 - fraction) * width)
        # Moved to where no node of the tree is: no finite time has all exponent bits set.
        (bits,) = struct.unpack("<Q", struct.pack("<d", t + 0.0))
        bridge = self._draw(bits ^ 0x7FF8000000000000)
        return left + fraction * (right - left) + scale * bridge


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
