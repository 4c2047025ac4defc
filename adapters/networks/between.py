"""Networks from points of one shape to points of another: encoders, decoders, critics, couplings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from interp.arguments import whole
from interp.errors import OptionError, UnknownName

from .conditioning import zero

Shape = Sequence[int]
KINDS = ("mlp", "conv")
_OWN = "own:"
_LEAST = 4  # images are halved while their sides are even and above this


def several(
    network: Sequence[nn.Module] | str | None,
    shape: Shape,
    makers: Mapping[str, Callable[[str], nn.Module]],
    width: int | None = None,
) -> tuple[list[nn.Module], str]:
    """The networks that a family was given or is to make, and what a config calls them.

    Args:
        network: the user's own, one for each maker in order; "conv", "mlp", or None to choose: "conv"
            for images.
        shape: of one data point.
        makers: what makes each network of a kind, by its part in the family.
        width: of those that are made, which the user's own have already.

    Raises:
        UnknownName: a kind that does not exist.
        OptionError: another number of networks, a width beside the user's own, or the config of a family
            whose networks were.
    """
    if isinstance(network, str) and network.startswith(_OWN):
        raise OptionError(
            f"this family was made with networks of the user's own, {network.removeprefix(_OWN)}. "
            "Make the family in Python with network=(...), and load its weights into that."
        )
    if network is None or isinstance(network, str):
        kind = chosen(network, shape)
        if kind not in KINDS:
            raise UnknownName.of("network", kind, KINDS)
        return [make(kind) for make in makers.values()], kind
    own_width(width)
    own: list[nn.Module] = list(network)
    if len(own) != len(makers) or not all(isinstance(part, nn.Module) for part in own):
        raise OptionError(
            f"network holds {', '.join(type(part).__name__ for part in own) or 'nothing'}. Give one "
            f"nn.Module each for {', '.join(makers)}, in this order, or the name of a kind."
        )
    return own, _OWN + " ".join(type(part).__qualname__ for part in own)


def own_width(width: int | None) -> None:
    """Refuse a width for networks that are not made here.

    Raises:
        OptionError: there is one.
    """
    if width is not None:
        raise OptionError(
            f"width={width} has no effect: it is of networks made here, and these are your own. Leave it "
            'out, or name a kind of network, such as "mlp".'
        )


def chosen(network: Sequence[nn.Module] | str | None, shape: Shape) -> str:
    """The kind of network that is made, or "own"."""
    if network is not None:
        return network if isinstance(network, str) else "own"
    return "conv" if len(shape) == 3 and min(shape[1:]) >= _LEAST else "mlp"


def between(
    kind: str, source: Shape, target: Shape, width: int | None = None, batch_norm: bool = False,
    activation: type[nn.Module] = nn.SiLU,
) -> nn.Module:  # fmt: skip
    """A network of a ``kind`` from points of shape ``source`` to ``target``; see `Dense`, `Down`, `Up`.

    ``activation`` is of "mlp".

    Raises:
        OptionError: "conv" where neither is an image, or images that cannot be halved into the other
            shape; a width below one.
    """
    if width is not None:
        whole("width", width, 1)
    if kind == "mlp":
        return Dense(source, target, width or 256, batch_norm=batch_norm, activation=activation)
    ends = [shape for shape in (source, target) if len(shape) == 3]
    if not ends:
        raise _no_image(source, target)
    down = len(source) == 3 and (len(target) != 3 or source[1] >= target[1])
    make: type[Down] | type[Up] = Down if down else Up
    return make(source, target, width or 32, batch_norm)


class Dense(nn.Module):
    """``depth`` hidden layers on the flattened point.

    Args:
        source, target: shapes of one point, without the batch.
        width: of the hidden layers.
        depth: how many there are.
        still: whether the last layer starts at zero.
        batch_norm: after each hidden layer but the first.
        activation: after each hidden layer.
    """

    def __init__(
        self, source: Shape, target: Shape, width: int = 256, depth: int = 3, still: bool = False,
        batch_norm: bool = False, activation: type[nn.Module] = nn.SiLU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape = tuple(target)
        sizes = [math.prod(source), *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            norm = [nn.BatchNorm1d(b)] if batch_norm and layers else []
            layers += [nn.Linear(a, b), *norm, activation()]
        last = nn.Linear(sizes[-1], math.prod(target))
        self.layers = nn.Sequential(*layers, zero(last) if still else last)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, *source) -> (rows, *target)."""
        out: Tensor = self.layers(x.flatten(1))
        return out.reshape(len(x), *self.shape)


class Down(nn.Module):
    """An image halved by strided convolutions, then to a vector or to the channels of a smaller image.

    Leaky rectifiers and 4 x 4 kernels as in Radford, Metz, Chintala, 1511.06434, twice as many
    channels at each half; a vector is made where the sides are odd or 4.

    Args:
        source, target: shapes of one point.
        width: channels at full resolution.
        batch_norm: after each convolution but the first.

    Raises:
        OptionError: a smaller image that halving does not give.
    """

    def __init__(
        self, source: Shape, target: Shape, width: int = 32, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.shape = tuple(target)
        times = halvings(source, target)
        layers: list[nn.Module] = [nn.Conv2d(source[0], width, 3, padding=1), nn.LeakyReLU(0.2)]
        for k in range(times):
            a, b = width << k, width << (k + 1)
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=not batch_norm), *_norm(batch_norm, b)]
            layers += [nn.LeakyReLU(0.2)]
        channels = width << times
        if len(target) == 3:
            layers += [nn.Conv2d(channels, target[0], 3, padding=1)]
        else:
            area = math.prod(side >> times for side in source[1:])
            layers += [nn.Flatten(), nn.Linear(channels * area, math.prod(target))]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, *source) -> (rows, *target)."""
        out: Tensor = self.layers(x)
        return out.reshape(len(x), *self.shape)


class Up(nn.Module):
    """`Down` the other way: a vector, or a small image, doubled by transposed convolutions.

    Args:
        source, target: shapes of one point.
        width: channels at full resolution.
        batch_norm: after each layer but the last.

    Raises:
        OptionError: a small image that doubling does not carry to the large one.
    """

    def __init__(
        self, source: Shape, target: Shape, width: int = 32, batch_norm: bool = False
    ) -> None:
        super().__init__()
        times = halvings(target, source)
        channels = width << times
        small = (channels, *(side >> times for side in target[1:]))
        layers: list[nn.Module]
        if len(source) == 3:
            layers = [nn.Conv2d(source[0], channels, 3, padding=1, bias=not batch_norm)]
        else:
            size = math.prod(small)
            layers = [nn.Flatten(), nn.Linear(math.prod(source), size), nn.Unflatten(1, small)]
        layers += [*_norm(batch_norm, channels), nn.ReLU()]
        for k in reversed(range(times)):
            a, b = width << (k + 1), width << k
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=not batch_norm)]
            layers += [*_norm(batch_norm, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, target[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """(rows, *source) -> (rows, *target)."""
        out: Tensor = self.layers(z)
        return out


class Level(nn.Module):
    """Residual 3 x 3 convolutions at one resolution; the last layer starts at zero.

    Args:
        source, target: (channels, height, width) of what comes in and what goes out.
        width: of the hidden layers.
        depth: residual blocks.

    Raises:
        OptionError: shapes that are not an image's.
    """

    def __init__(self, source: Shape, target: Shape, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        if len(source) != 3:
            raise _no_image(source, target)
        self.first = nn.Conv2d(source[0], width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
                zero(nn.Conv2d(width, width, 3, padding=1)),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.last = zero(nn.Conv2d(width, target[0], 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, *source) -> (rows, *target)."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.last(nn.functional.silu(h))
        return out


def halvings(image: Shape, other: Shape) -> int:
    """How often the sides of ``image`` are halved on the way to ``other``, a vector or an image.

    Raises:
        OptionError: an image that halving does not give.
    """
    times = 0
    if len(other) != 3:
        while all(side % 2 == 0 and side > _LEAST for side in (s >> times for s in image[1:])):
            times += 1
        return times
    while all(s >> times > o for s, o in zip(image[1:], other[1:], strict=True)):
        times += 1
    if any(o << times != s for s, o in zip(image[1:], other[1:], strict=True)):
        raise OptionError(
            f"images of {image[1]} x {image[2]} halved {times} times are not {other[1]} x {other[2]}. "
            f"Give sides such as {' or '.join(_halves(image))}, or a vector."
        )
    return times


def _halves(image: Shape) -> list[str]:
    """The sizes that ``image`` can be halved to, as text."""
    height, width = image[1:]
    sizes = []
    while True:
        sizes.append(f"{height} x {width}")
        if height % 2 or width % 2:
            return sizes
        height, width = height // 2, width // 2


def _no_image(source: Shape, target: Shape) -> OptionError:
    return OptionError(
        f"a convolutional network was asked for from {tuple(source)} to {tuple(target)}. Give images, "
        '(channels, height, width), or take network="mlp".'
    )


def _norm(wanted: bool, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if wanted else []
