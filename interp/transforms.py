"""Paths made from a path: another clock, another scale, the other direction."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .algebra import REVERSED, Chain, Product, Warp, constant
from .arguments import transforming
from .curve import rises
from .errors import OptionError, ScheduleError, Unsupported
from .interpolant import Interpolant, Transform
from .scalar import GRID, Scalar, Schedule, checked

Change = Callable[[Schedule], Schedule]
_ROUNDING = 4 * torch.finfo(torch.float64).eps


def warp(
    path: Interpolant,
    tau: Scalar | Schedule,
    inverse: Callable[[Tensor], Tensor] | None = None,
) -> Interpolant:
    """The path I_tau(t): see `Interpolant.warp`."""
    clock = as_warp(tau, inverse)
    if clock.element and any(f.element for f in _functions(path)):
        raise Unsupported(
            f"both the path and tau differ between elements (tau's element is {clock.element}). "
            "Warp each element's schedule by itself, or use one tau for all."
        )
    back = None
    if clock.inverse is not None and path._time_at_log_snr is not None:
        back = After(clock.inverse, path._time_at_log_snr)
    config = None
    if path.config is not None and clock.config is not None:
        config = {"name": "warp", "path": path.config, "tau": clock.config}
    return _changed(path, lambda f: Chain(f, clock), config, back)


def rescale(path: Interpolant, c: float | Scalar | Schedule) -> Interpolant:
    """The path c(t) I_t: see `Interpolant.rescale`."""
    if isinstance(c, (int, float)) and not isinstance(c, bool):
        factor, config = constant(float(c)), {"name": "rescale", "path": path.config, "c": float(c)}
    else:
        factor, config = checked("c", c), None  # type: ignore[arg-type]
    values = factor(GRID)
    bad = (~((values > 0) & values.isfinite())).nonzero()
    if len(bad):
        raise ScheduleError(
            f"c({GRID[bad[0, 0]].item():.9g}) is {values[tuple(bad[0])].item():g}, and a scale must "
            "be positive on [0, 1]. Give one that is."
        )
    if path.config is None:
        config = None
    made = _changed(path, lambda f: Product(factor, f), config, path._time_at_log_snr)
    made.table = path.table
    return made


def reverse(path: Interpolant) -> Interpolant:
    """The path I_(1 - t): see `Interpolant.reverse`."""
    config = None if path.config is None else {"name": "reverse", "path": path.config}
    return _changed(path, lambda f: Chain(f, REVERSED), config, None)


def in_basis(path: Interpolant, forward: Transform, inverse: Transform) -> Interpolant:
    """The path with its coefficients in another basis: see `Interpolant.in_basis`."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((2, *path.element), dtype=torch.float64, generator=generator)
    there = forward(probe)
    back, lengths = inverse(there), (there.square().sum(), probe.square().sum())
    if there.dtype != probe.dtype or back.shape != probe.shape:
        raise OptionError(
            f"the transforms of a basis took {probe.dtype} of shape {tuple(probe.shape)} to "
            f"{there.dtype} and back to shape {tuple(back.shape)}. Keep dtype and shape."
        )
    if not torch.allclose(back, probe, rtol=0, atol=1e-9):
        raise OptionError(
            f"inverse(forward(x)) misses x by {(back - probe).abs().max().item():g}. Give a transform "
            "and its inverse."
        )
    if not torch.isclose(*lengths, rtol=1e-9):
        raise OptionError(
            f"forward changes |x|^2 from {lengths[1].item():g} to {lengths[0].item():g}, so that "
            'noise would not stay N(0, 1). Give an orthonormal transform, e.g. norm="ortho".'
        )
    made = copy.copy(path)
    made.config, made.basis = None, (forward, inverse)
    return made


def as_warp(tau: Scalar | Schedule, inverse: Callable[[Tensor], Tensor] | None = None) -> Warp:
    """``tau`` as a `Warp`, refused where it leaves [0, 1] or falls.

    Raises:
        ScheduleError: with t and the value.
    """
    if isinstance(tau, Warp):
        return tau
    schedule = checked("tau", tau)
    with torch.no_grad():
        values = schedule(GRID)
    outside = (~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))).nonzero()
    if len(outside):
        raise ScheduleError(
            f"tau({GRID[outside[0, 0]].item():.9g}) is {values[tuple(outside[0])].item():.9g}, "
            "outside [0, 1]. A time change maps [0, 1] into itself."
        )
    falls = (values.diff(dim=0) < -_ROUNDING).nonzero()
    if len(falls):
        i, *element = falls[0].tolist()
        here, there = (values[(k, *element)].item() for k in (i, i + 1))
        raise ScheduleError(
            f"tau falls from {here:.9g} at t = {GRID[i].item():.9g} to {there:.9g} at "
            f"t = {GRID[i + 1].item():.9g}. Give a time change that rises; to run a path the other "
            "way, use path.reverse()."
        )
    return Warp(schedule, inverse)


@dataclass(frozen=True)
class After:
    """outer(inner(v)); an object, so that a copy of a path copies what it is made of."""

    outer: Callable[[Tensor], Tensor]
    inner: Callable[[Tensor], Tensor]

    def __call__(self, v: Tensor) -> Tensor:
        return self.outer(self.inner(v))


def _functions(path: Interpolant) -> list[Schedule]:
    return [f for f in (path.alpha, path.beta, path.gamma) if f is not None]


def _changed(
    path: Interpolant,
    change: Change,
    config: Mapping[str, object] | None,
    time_at_log_snr: Callable[[Tensor], Tensor] | None,
) -> Interpolant:
    """The path whose three functions are those of ``path``, changed."""
    return composed(
        [path],
        alpha=change(path.alpha),
        beta=change(path.beta),
        gamma=None if path.gamma is None else change(path.gamma),
        config=config,
        time_at_log_snr=time_at_log_snr,
    )


def composed(
    paths: Sequence[Interpolant],
    alpha: Schedule,
    beta: Schedule,
    gamma: Schedule | None,
    config: Mapping[str, object] | None,
    time_at_log_snr: Callable[[Tensor], Tensor] | None = None,
    modules: Sequence[nn.Module] = (),
) -> Interpolant:
    """A path made of ``paths``, all of one kind and basis, with the weights of what is learned."""
    learned = [m for path in paths if isinstance(path, Trainable) for m in path.learned]
    kind = Trainable.of([*learned, *modules]) if learned or modules else Interpolant
    made = kind(
        alpha, beta, gamma, paths[0].gaussian_base, config=config, time_at_log_snr=time_at_log_snr
    )
    made.basis = paths[0].basis
    return made


class Trainable(Interpolant, nn.Module):
    """A path with weights: an ``nn.Module``, which a family that holds it trains and saves."""

    constant = False

    def __init__(self, modules: Sequence[nn.Module], *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        self.learned = nn.ModuleList(modules)
        self._weights: list[tuple[int, int]] = []
        Interpolant.__init__(self, *args, **kwargs)

    @property
    def monotone(self) -> bool:
        """As its weights are now: clocks of their own for sigma's parts may turn log-SNR back."""
        if not transforming():
            weights = [(id(w), 0 if w.is_inference() else w._version) for w in self.parameters()]
            if weights != self._weights:
                with torch.no_grad():
                    self._monotone = rises(self.log_snr(GRID))
                self._weights = weights
        return self._monotone

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> Callable[..., Interpolant]:
        """What builds a path with the weights of ``modules``."""
        return functools.partial(cls, modules)
