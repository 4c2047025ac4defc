"""Schedules made of schedules: products, sums, means and chains, with their derivatives.

    (f g)' = f' g + f g'         (f g) (f g)' = (f f') g^2 + f^2 (g g')
    f(tau)' = f'(tau) tau'       f(tau) f(tau)' = (f f')(tau) tau'

Each rule carries the product f f' beside f', so that it stays finite where f' does not. Where a
rule says 0 times infinity the limit is taken from the inside, as `Schedule` does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .arguments import holds
from .scalar import Schedule, widened

Jet = tuple[Tensor, Tensor, Tensor]
Map = Callable[[Tensor], Tensor]

_ROUNDING = 4 * torch.finfo(torch.float64).eps


class Composite(Schedule):
    """A schedule given by a rule for f, f' and f f'; its parts may differ between elements."""

    def __init__(self, *parts: Schedule) -> None:
        super().__init__(self._value)
        self.parts = parts
        self.element = broadcast(*(part.element for part in parts)) if parts else ()

    def jet(self, t: Tensor) -> Jet:
        value, slope, product = self._rule(t)
        value = self._exact(t, value)
        if holds(slope.isfinite() & product.isfinite()):
            return value, slope, product
        mended, limit = self._mended(t, value, slope)
        slope = torch.where(slope.isnan(), mended, slope)
        return value, slope, torch.where(product.isfinite(), product, limit)

    def _value(self, t: Tensor) -> Tensor:
        return self._rule(t)[0]

    def _rule(self, t: Tensor) -> Jet:
        raise TypeError(f"{type(self).__name__} states no rule")

    def _wide(self, part: Schedule, t: Tensor, value: Tensor) -> Tensor:
        """What ``part`` gave at t, with the axes of our element."""
        missing = len(self.element) - len(part.element)
        return value.reshape(t.shape + (1,) * missing + part.element) if missing else value

    def _jets(self, t: Tensor) -> list[Jet]:
        jets = ((part, part.jet(t)) for part in self.parts)
        return [tuple(self._wide(part, t, v) for v in jet) for part, jet in jets]  # type: ignore[misc]

    def _seconds(self, t: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """f, f' and f'' of each part."""
        seconds = (self._wide(part, t, part.second_derivative(t)) for part in self.parts)
        return [(f, df, ddf) for (f, df, _), ddf in zip(self._jets(t), seconds, strict=True)]


class Product(Composite):
    """f g."""

    def __init__(self, f: Schedule, g: Schedule) -> None:
        super().__init__(f, g)

    def _value(self, t: Tensor) -> Tensor:
        f, g = (self._wide(part, t, part(t)) for part in self.parts)
        return f * g

    def _rule(self, t: Tensor) -> Jet:
        (f, df, f_df), (g, dg, g_dg) = self._jets(t)
        return f * g, df * g + f * dg, f_df * g * g + f * f * g_dg

    def second_derivative(self, t: Tensor) -> Tensor:
        (f, df, ddf), (g, dg, ddg) = self._seconds(t)
        return ddf * g + 2 * df * dg + f * ddg


class Sum(Composite):
    """sum_i w_i f_i."""

    def __init__(self, parts: Sequence[Schedule], weights: Sequence[float]) -> None:
        super().__init__(*parts)
        self.weights = tuple(weights)

    def _total(self, terms: Sequence[Tensor]) -> Tensor:
        return _sum(w * f for w, f in zip(self.weights, terms, strict=True))

    def _value(self, t: Tensor) -> Tensor:
        return self._total([self._wide(part, t, part(t)) for part in self.parts])

    def _rule(self, t: Tensor) -> Jet:
        f, df, _ = zip(*self._jets(t), strict=True)
        value, slope = self._total(f), self._total(df)
        return value, slope, value * slope

    def second_derivative(self, t: Tensor) -> Tensor:
        return self._total([ddf for _, _, ddf in self._seconds(t)])


class GeometricMean(Composite):
    """prod_i f_i^w_i of schedules that are positive inside (0, 1)."""

    def __init__(self, parts: Sequence[Schedule], weights: Sequence[float]) -> None:
        used = [(part, w) for part, w in zip(parts, weights, strict=True) if w]
        super().__init__(*(part for part, _ in used))
        self.weights = tuple(w for _, w in used)

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        return _sum(w * v.log() for w, v in zip(self.weights, values, strict=True)).exp()

    def _value(self, t: Tensor) -> Tensor:
        if self.weights == (1.0,):
            return self.parts[0](t)
        return self._mean([self._wide(part, t, part(t)) for part in self.parts])

    def _rule(self, t: Tensor) -> Jet:
        jets = self._jets(t)
        if self.weights == (1.0,):
            return jets[0]
        value = self._mean([f for f, _, _ in jets])
        rate = _sum(w * df / f for w, (f, df, _) in zip(self.weights, jets, strict=True))
        return value, value * rate, value * value * rate

    def second_derivative(self, t: Tensor) -> Tensor:
        triples = self._seconds(t)
        value = self._mean([f for f, _, _ in triples])
        terms = list(zip(self.weights, triples, strict=True))
        rate = _sum(w * df / f for w, (f, df, _) in terms)
        bend = _sum(w * (ddf / f - (df / f) ** 2) for w, (f, df, ddf) in terms)
        return value * (rate * rate + bend)


class Hypot(Composite):
    """sqrt(f^2 + g^2), where f and g do not vanish together."""

    def __init__(self, f: Schedule, g: Schedule) -> None:
        super().__init__(f, g)

    def _rule(self, t: Tensor) -> Jet:
        (f, _, f_df), (g, _, g_dg) = self._jets(t)
        value, product = torch.hypot(f, g), f_df + g_dg
        return value, product / value, product


class Reciprocal(Composite):
    """1 / f, where f does not vanish."""

    def __init__(self, f: Schedule) -> None:
        super().__init__(f)

    def _rule(self, t: Tensor) -> Jet:
        ((f, df, _),) = self._jets(t)
        slope = -df / f**2
        return 1 / f, slope, slope / f


class Piecewise(Composite):
    """f_i between ``knots[i - 1]`` and ``knots[i]``; at a knot, the later one."""

    def __init__(self, parts: Sequence[Schedule], knots: Sequence[float]) -> None:
        super().__init__(*parts)
        self.knots = tuple(knots)

    def _chosen(self, t: Tensor, values: Sequence[Tensor]) -> Tensor:
        chosen = values[0]
        for knot, value in zip(self.knots, values[1:], strict=True):
            chosen = torch.where(widened(t, value) < knot, chosen, value)
        return chosen

    def _value(self, t: Tensor) -> Tensor:
        return self._chosen(t, [self._wide(part, t, part(t)) for part in self.parts])

    def _rule(self, t: Tensor) -> Jet:
        f, df, f_df = zip(*self._jets(t), strict=True)
        return self._chosen(t, f), self._chosen(t, df), self._chosen(t, f_df)

    def second_derivative(self, t: Tensor) -> Tensor:
        return self._chosen(t, [ddf for _, _, ddf in self._seconds(t)])


class Expanded(Composite):
    """f, the same for every element of a shape."""

    def __init__(self, f: Schedule, element: tuple[int, ...]) -> None:
        super().__init__(f)
        self.element = element

    def _all(self, t: Tensor, value: Tensor) -> Tensor:
        return self._wide(self.parts[0], t, value).expand(t.shape + self.element)

    def _value(self, t: Tensor) -> Tensor:
        return self._all(t, self.parts[0](t))

    def _rule(self, t: Tensor) -> Jet:
        value, slope, product = (self._all(t, v) for v in self.parts[0].jet(t))
        return value, slope, product

    def second_derivative(self, t: Tensor) -> Tensor:
        return self._all(t, self.parts[0].second_derivative(t))


def expanded(f: Schedule, element: tuple[int, ...]) -> Schedule:
    """``f`` with values of shape t.shape + ``element``."""
    return f if f.element == element else Expanded(f, element)


class Warp(Composite):
    """A time change tau from [0, 1] into itself: exact at the ends, and never outside by rounding.

    Args:
        tau: what it is, checked to stay in [0, 1] but for rounding.
        inverse: tau^-1, where there is a closed form.
        config: what rebuilds it, JSON-able; None for one of the user's own.
    """

    def __init__(
        self,
        tau: Schedule,
        inverse: Map | None = None,
        config: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(tau)
        self.inverse = inverse
        self.config = config
        end = tau(torch.ones((), dtype=torch.float64)).detach()
        self._ends_at_one = (end != 1) & ((end - 1).abs() <= _ROUNDING)
        self._mends = bool(self._ends_at_one.any())

    def _inside(self, t: Tensor, value: Tensor) -> Tensor:
        if self._mends:
            last = (widened(t, value) == 1) & self._ends_at_one.to(t.device)
            value = torch.where(last, 1.0, value)
        return value.clamp(0.0, 1.0)

    def _value(self, t: Tensor) -> Tensor:
        return self._inside(t, self.parts[0](t))

    def _rule(self, t: Tensor) -> Jet:
        value, slope, product = self.parts[0].jet(t)
        return self._inside(t, value), slope, product

    def second_derivative(self, t: Tensor) -> Tensor:
        return self.parts[0].second_derivative(t)


class Chain(Composite):
    """f(tau(t)); where tau differs between elements, f is one function of time."""

    def __init__(self, f: Schedule, tau: Schedule) -> None:
        super().__init__(f, tau)

    def _value(self, t: Tensor) -> Tensor:
        f, tau = self.parts
        return f(tau(t))

    def _rule(self, t: Tensor) -> Jet:
        f, tau = self.parts
        at, speed, _ = tau.jet(t)
        value, slope, product = f.jet(at)
        speed = widened(speed, value)
        return value, slope * speed, product * speed

    def second_derivative(self, t: Tensor) -> Tensor:
        f, tau = self.parts
        at, speed, _ = tau.jet(t)
        slope, bend = f.derivative(at), f.second_derivative(at)
        speed, change = (widened(v, slope) for v in (speed, tau.second_derivative(t)))
        return bend * speed**2 + slope * change


REVERSED = Schedule(lambda t: 1.0 - t, lambda t: -1.0, lambda t: t - 1.0, lambda t: 0.0)
"""The time change 1 - t."""


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that they broadcast to."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


def constant(value: float) -> Schedule:
    """The schedule that is ``value`` at every t."""
    return Schedule(lambda t: value, lambda t: 0.0, lambda t: 0.0, lambda t: 0.0)
