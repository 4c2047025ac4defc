"""A scalar function of time and its derivative: what schedules and paths are made of."""

from __future__ import annotations

import copy
import functools
import math
import numbers
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .arguments import Time, holds, host, transforming
from .errors import ScheduleError

Scalar = Callable[[Tensor], Tensor | float]
"""An elementwise function of t; a constant may be returned as a Python number."""

_EDGE = [1e-6, 1e-5, 1e-4, 1e-3]
EDGES = len(_EDGE)
_UNIFORM = [k / 128 for k in range(1, 128)]
#: Where a schedule is looked at when a path is built: both ends, close to them, and between.
GRID = torch.tensor(
    [0.0, *_EDGE, *_UNIFORM, *(1 - e for e in reversed(_EDGE)), 1.0], dtype=torch.float64
)
_INSIDE = slice(1, -1)


class Schedule:
    """A scalar function f of time that knows f', f'' and the product f f'.

    The product is asked for apart from f' because it stays finite where f' does not: a square
    root at an end, such as sigma of a variance-preserving path at t = 1.

    f may differ between the elements of a state: it then returns t.shape + E, where the element
    shape E broadcasts with the trailing axes of x (a channel, a frequency, an element each its
    own). E is found when a path is built, and is `element` from then on.

    Args:
        function: t of any shape, float64 -> a tensor of that shape, float64; or a number.
        derivative: the same for f'. Without it, ``function`` is differentiated by autograd
            and must be elementwise.
        times_derivative: the same for f f'. Without it, f times f'; where f is 0 and f' infinite,
            the one-sided difference of f^2 / 2, right to about 1e-9 where f^2 is smooth.
        second_derivative: the same for f''. Without it, f' is differentiated by autograd.

    Raises:
        ScheduleError: when called, where what comes back is not of t's shape or not float64.
    """

    element: tuple[int, ...] = ()

    def __init__(
        self,
        function: Scalar,
        derivative: Scalar | None = None,
        times_derivative: Scalar | None = None,
        second_derivative: Scalar | None = None,
    ) -> None:
        self._function = function
        self._derivative = derivative
        self._times_derivative = times_derivative
        self._second_derivative = second_derivative
        self._zeros: tuple[tuple[float, Tensor], ...] = ()

    @property
    def described(self) -> str:
        """The name of the function, or where it was written."""
        if type(self) is not Schedule:
            return type(self).__name__
        function = self._function
        name = str(getattr(function, "__name__", type(function).__name__))
        code = getattr(function, "__code__", None)
        if name != "<lambda>" or code is None:
            return name
        return f"at {Path(code.co_filename).name}:{code.co_firstlineno}"

    def __call__(self, t: Time) -> Tensor:
        """f(t), float64, of shape t.shape + element; t a number or float64."""
        t = host(t)
        return self._exact(t, self._value(t))

    def derivative(self, t: Time) -> Tensor:
        """f'(t), float64; infinite where f has a vertical tangent."""
        t = host(t)
        if self._derivative is not None:
            return self._read(self._derivative, t)
        return self.jet(t)[1]

    def times_derivative(self, t: Time) -> Tensor:
        """f(t) f'(t), float64."""
        t = host(t)
        if self._times_derivative is not None:
            return self._read(self._times_derivative, t)
        return self.jet(t)[2]

    def second_derivative(self, t: Tensor) -> Tensor:
        """f''(t), float64; infinite or NaN where f has a vertical tangent."""
        if self._second_derivative is not None:
            return self._read(self._second_derivative, t)
        return _differentiate(self.derivative, t)[1]

    def jet(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f, f' and f f' at t, from as few evaluations as there can be."""
        if self._derivative is None:
            value, slope = _differentiate(functools.partial(self._read, self._function), t)
            value = self._exact(t, value)
        else:
            value, slope = self(t), self._read(self._derivative, t)
        if self._times_derivative is not None:
            product = self._read(self._times_derivative, t)
            known = holds(~slope.isnan())
            return value, slope if known else self._mended(t, value, slope)[0], product
        if not holds(slope.isfinite()):
            return value, *self._mended(t, value, slope)
        return value, slope, value * slope

    def value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        """f and f' inside (0, 1); f' is a number where it was given as one, the same for all t."""
        if self._derivative is None:
            return self.jet(t)[:2]
        slope: object = self._derivative(t)
        constant = isinstance(slope, numbers.Real)
        return self(t), float(slope) if constant else self.derivative(t)  # type: ignore[arg-type]

    def _value(self, t: Tensor) -> Tensor:
        return self._read(self._function, t)

    def _read(self, function: Scalar, t: Tensor) -> Tensor:
        return evaluate(function, t, self.element)

    def _exact(self, t: Tensor, value: Tensor) -> Tensor:
        """``value``, exactly zero at the ends where rounding alone keeps it from zero."""
        for end, which in self._zeros:
            value = torch.where((widened(t, value) == end) & which.to(t.device), 0.0, value)
        return value

    def _mended(self, t: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """f' and f f' where f' came out infinite, or NaN for being 0 times infinity.

        Where f is 0 there, f^2 is smooth: its second-order difference towards the inside gives
        f f'. h = 1e-5 balances the truncation, h^2, against the rounding, 2e-16 / h. How f^2 grows
        tells a vertical tangent from a straight root written badly, sqrt(1 - sin^2): growth is
        2 f(h)^2 for a square root and 0 for a straight line, whose slope the difference of f gives.
        A root steeper than a square root, whose f^2 less than doubles with h, has f f' infinite too.
        """
        h = torch.where(t < 0.5, 1e-5, -1e-5)
        f1, f2 = self(t + h), self(t + 2 * h)
        h = widened(h, value)
        growth = 4 * f1 * f1 - f2 * f2
        product = torch.where(f2 * f2 < 1.99 * f1 * f1, h / 0.0, growth / (4 * h))
        root = value == 0
        vertical = torch.where(root, growth.abs() > 0.01 * f1 * f1, slope.isinf())
        infinite = torch.copysign(value.detach() + math.inf, product.detach())  # no NaN of its own
        steep = torch.where(slope.isinf(), slope, infinite)
        secant = (4 * f1 - f2 - 3 * value) / (2 * h)
        mended = torch.where(vertical, steep, secant)
        slope = torch.where(slope.isfinite(), slope, mended)
        return slope, torch.where(slope.isinf() & root, product, value * slope)


def widened(t: Tensor, value: Tensor) -> Tensor:
    """``t``, of the leading axes of ``value``, with an axis of one for each further one."""
    return t.reshape(t.shape + (1,) * (value.ndim - t.ndim)) if value.ndim > t.ndim else t


def evaluate(function: Scalar, t: Tensor, element: tuple[int, ...] = ()) -> Tensor:
    """Call ``function`` and see that what it returns is of shape t.shape + element, in float64."""
    value: object = function(t)
    if isinstance(value, numbers.Real):
        return torch.full(t.shape + element, float(value), dtype=t.dtype, device=t.device)
    if not isinstance(value, Tensor):
        raise ScheduleError(
            f"a schedule returned a {type(value).__name__}. Return a tensor of t's shape."
        )
    if value.dtype is not torch.float64:
        raise ScheduleError(
            f"a schedule returned {value.dtype} for float64 times. "
            "Keep t's dtype throughout; a constant may be a Python number."
        )
    if value.shape == t.shape + element:
        return value
    if value.ndim == 0 or value.shape == t.shape:
        return widened(value, t.new_empty(t.shape + element)).expand(t.shape + element)
    raise ScheduleError(
        f"a schedule returned shape {tuple(value.shape)} for times of shape {tuple(t.shape)}. "
        "Write it elementwise in t; one schedule an element returns t.shape + E, "
        "e.g. t[..., None] * rates."
    )


def _differentiate(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """f and f' of an elementwise f: the pull-back of ones, or their push-forward.

    Plain autograd costs a third of torch.func. It serves where nothing else is followed through f:
    no weights of a learned schedule, no transform.
    """
    value = function(t)
    plain = not (value.requires_grad or torch.is_inference_mode_enabled() or transforming())
    if plain and value.shape == t.shape:
        with torch.enable_grad():
            leaf = t.detach().requires_grad_()
            again = function(leaf)
            slope = (
                torch.autograd.grad(again, leaf, torch.ones_like(again), allow_unused=True)[0]
                if again.requires_grad
                else None
            )
        return value, torch.zeros_like(t) if slope is None else slope
    value, pull = torch.func.vjp(function, t)[:2]
    if value.shape == t.shape:
        return value, pull(torch.ones_like(t))[0]
    # The pull-back is linear, and its own pull-back is the push-forward. (torch's forward mode is
    # several times slower here: it composes its rule for a product with a number out of parts.)
    push = torch.func.vjp(lambda weights: pull(weights)[0], torch.zeros_like(value))[1]
    return value, push(torch.ones_like(t))[0]


@torch.no_grad()
def checked(name: str, function: Scalar | Schedule) -> Schedule:
    """``function`` as a `Schedule`, looked at once on a grid that includes both ends.

    A value at an end that is zero but for rounding (cos(pi t / 2) at t = 1 is 6e-17 in float64)
    is made exactly zero, since what may be divided by hangs on it.

    Raises:
        ScheduleError: naming the function, t and the value, where it is not elementwise, not
            float64, not finite on [0, 1], not continuous inside, or its derivative is not finite on
            (0, 1) or, where given, not its own.
    """
    if not callable(function):
        raise ScheduleError(
            f"{name} is a {type(function).__name__}, not a function of t. "
            f"Give a callable, for a constant `lambda t: {function!r}`."
        )
    schedule = function if isinstance(function, Schedule) else Schedule(function)
    middle = len(GRID) // 3  # a time apart from the symmetric one
    try:
        schedule = _with_element(schedule)
        values, slopes, _ = schedule.jet(GRID.clone())
        alone = schedule(GRID[middle].clone())
    except ScheduleError as error:
        raise ScheduleError(f"{name}(t): {error}") from error
    except Exception as error:  # whatever a user's function may raise
        raise ScheduleError(
            f"{name}(t) failed for a batch of float64 times ({error}). "
            "Write it elementwise in torch operations, without branches on t (use torch.where)."
        ) from error
    same = torch.isclose(alone, values[middle], rtol=1e-9, atol=1e-12, equal_nan=True)
    if not same.all():
        raise ScheduleError(
            f"{name}({GRID[middle].item():g}) is {alone[~same][0].item():g} alone but "
            f"{values[middle][~same][0].item():g} in a batch. Write it elementwise in t."
        )
    _check_finite(name, values, "", GRID)
    _check_finite(name, slopes[_INSIDE], "'", GRID[_INSIDE])
    if not slopes[_INSIDE].any() and values[_INSIDE].std(0).max() > 1e-9 * values.abs().max():
        raise ScheduleError(
            f"{name}(t) varies but its derivative is 0 at every t. Compute it from t by torch "
            "operations that can be differentiated (no detach, no numpy), or give a "
            "Schedule(function, derivative)."
        )
    _check_continuous(name, schedule, values)
    _check_derivative(name, schedule, values)
    return _exact_zeros(schedule, values)


def _with_element(schedule: Schedule) -> Schedule:
    """The same schedule, knowing the element shape that its function shows on the grid."""
    if type(schedule) is not Schedule or schedule.element:
        return schedule
    value = schedule._function(GRID.clone())
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(GRID):
        schedule = copy.copy(schedule)
        schedule.element = tuple(value.shape[1:])
    return schedule


def _check_finite(name: str, values: Tensor, prime: str, at: Tensor) -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        t, value = at[bad[0, 0]].item(), values[tuple(bad[0])].item()
        where = "inside (0, 1)" if prime else "on [0, 1]"
        raise ScheduleError(
            f"{name}{prime}({t:.9g}) is {value}. A schedule must be finite {where}; rewrite it so "
            "that nothing is divided by zero there (sinc, expm1, log1p), or give its derivative "
            "by Schedule(function, derivative)."
        )


def _check_continuous(name: str, schedule: Schedule, values: Tensor) -> None:
    """Refuse a jump inside (0, 1), of which a derivative knows nothing.

    Every cell of the grid shrinks 32^5-fold towards where the function moves most: what is
    continuous then moves by its slope times 2e-10.
    """
    t = GRID[_INSIDE]
    low, high = t[:-1], t[1:]
    rows, share = torch.arange(len(low)), torch.linspace(0, 1, 33, dtype=t.dtype)
    for _ in range(5):
        points = low[:, None] + (high - low)[:, None] * share
        moved = schedule(points).diff(dim=1).abs().reshape(len(low), 32, -1).amax(2)
        most = moved.argmax(1)
        low, high = points[rows, most], points[rows, most + 1]
    largest, where = moved.amax(1).max(0)
    if largest > 1e-6 * values.abs().max():
        before, after = (schedule(at[where]).flatten() for at in (low, high))
        k = (after - before).abs().argmax()
        raise ScheduleError(
            f"{name}(t) jumps at t = {low[where].item():.6g}, from {before[k].item():.6g} to "
            f"{after[k].item():.6g}, and no derivative knows of it. Join pieces that meet."
        )


def _check_derivative(name: str, schedule: Schedule, values: Tensor) -> None:
    """Refuse a given derivative that is not that of its function, at times where no knot is likely."""
    if schedule._derivative is None:
        return
    t, h = (torch.arange(128, dtype=torch.float64) + 0.37) / 128, 1e-6
    slope, moved = schedule.derivative(t), (schedule(t + h) - schedule(t - h)) / (2 * h)
    # Rounding is 1e-10 of the values; a cell's slope may still bend by a thousandth within 2 h.
    wrong = (slope - moved).abs() > 1e-3 * (slope.abs() + values.abs().max())
    if wrong.any():
        at = tuple(wrong.nonzero()[0])
        raise ScheduleError(
            f"{name}'({t[at[0]].item():.6g}) was given as {slope[at].item():.6g}, but {name} moves by "
            f"{moved[at].item():.6g} a unit of time there. Give the derivative of the function itself, "
            "or leave it out to have it differentiated."
        )


def _exact_zeros(schedule: Schedule, values: Tensor) -> Schedule:
    """The same schedule, exactly zero at an end where rounding alone keeps it from zero."""
    rounding = 4 * torch.finfo(torch.float64).eps * values.abs().amax(0)
    ends = ((0.0, values[0].abs()), (1.0, values[-1].abs()))
    zeros = tuple((t, (size > 0) & (size <= rounding)) for t, size in ends)
    if any(bool(which.any()) for _, which in zeros):
        schedule = copy.copy(schedule)
        schedule._zeros = tuple((t, which) for t, which in zeros if which.any())
    return schedule
