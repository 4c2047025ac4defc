"""Events: times at which a function of the state passes through zero.

After each step the function's sign is compared with that before it. Where it has changed, the step is
taken once more with its dense output at nine nodes, which determine it (a polynomial of degree 7 or
less in the run's clock), and the root is found by bisection on that, for all rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import host
from ..errors import FieldError, OptionError
from .plan import Plan, Request, cut
from .result import Occurrences

_THETAS = [(1 - math.cos(math.pi * k / 8)) / 2 for k in range(9)]
_WEIGHTS = [(-1.0) ** k * (0.5 if k in (0, 8) else 1.0) for k in range(9)]
_BISECTIONS = 54


@dataclass(frozen=True)
class Event:
    """A function of time and state whose zeros matter.

    Args:
        function: g(t, x) -> a 0-d tensor, for all rows together, or one of (rows,). t is 0-d, or
            (rows,) where rows are at times of their own.
        terminal: whether the run ends at the first zero; with ``per_row=True``, each row at its own.
        direction: 1 for zeros at which g rises, -1 for those at which it falls, 0 for both.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    terminal: bool = False
    direction: int = 0

    def __post_init__(self) -> None:
        function: object = self.function
        if not callable(function):
            kind = type(function).__name__
            raise OptionError(f"an event is a {kind}, not a function. Give function(t, x).")
        if self.direction not in (-1, 0, 1):
            raise OptionError(f"direction={self.direction!r} does not fit. Give 1, -1 or 0.")

    def value(self, t: Tensor, x: Tensor) -> Tensor:
        """g in double precision, 0-d or (rows,)."""
        g = self.function(t, x)
        if not isinstance(g, Tensor) or g.shape not in ((), x.shape[:1]):
            got = f"shape {tuple(g.shape)}" if isinstance(g, Tensor) else type(g).__name__
            raise FieldError(
                f"the event gave {got} for x of shape {tuple(x.shape)}. Return a 0-d tensor, or one "
                f"number a row."
            )
        return g.detach().to(device="cpu", dtype=torch.float64)

    def crossed(self, before: Tensor, after: Tensor) -> Tensor:
        """Where g has passed through zero on the way."""
        rises, falls = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        if self.direction == 0:
            return rises | falls
        return rises if self.direction > 0 else falls


def listed(events: object) -> list[Event]:
    """Events from one or several, bare functions among them.

    Raises:
        OptionError: something that is neither.
    """
    if events is None:
        return []
    several: Sequence[Any] = events if isinstance(events, Sequence) else [events]
    return [e if isinstance(e, Event) else Event(e) for e in several]


class Watch:
    """Looks at each step of a run for events, and says when to stop."""

    def __init__(
        self, events: list[Event], term: Any, request: Request, x: Tensor,
        solve: Callable[..., Any],
    ) -> None:  # fmt: skip
        self.events, self.term, self.request, self.solve = events, term, request, solve
        self.made: Plan | None = None
        self.rows = x.shape[0] if x.ndim else 1
        self.t = self._times(request.ends[0])
        self.x = x.detach()
        self.values = [event.value(self.t, self.x) for event in events]
        self.found: list[list[tuple[float, int | None, Tensor]]] = [[] for _ in events]
        #: Where the run ended by an event: the whole of it under None, or rows of it.
        self.ends: dict[int | None, tuple[float, Tensor]] = {}
        #: (steps, evaluations) until then, of rows that share a grid.
        self.spent: dict[int, tuple[int, int]] = {}
        self.steps = 0
        #: The rows that go on, on a grid that all rows share.
        self.going: list[int] = list(range(self.rows))

    @property
    def _shared(self) -> bool:
        """Whether rows that end one by one take the same steps until then."""
        return self.request.per_row and self.request.grid is not None

    def _times(self, t: float | Tensor) -> Tensor:
        times = host(t)
        return times.expand(self.rows) if self.request.per_row else times

    def watch(self, made: Plan) -> None:
        """See to a plan: on a grid that all rows share, those that have ended are not asked about."""
        self.made = made
        if not self._shared or not any(event.terminal for event in self.events):
            return
        whole, field = made.problem.field, self.term.slope

        def going(t: Tensor, y: Tensor) -> Tensor:
            if len(self.going) == self.rows:
                return whole(t, y)
            here = torch.tensor(self.going, device=y.device)
            slope = field(cut(self.request.cond, self.going, self.rows))
            return torch.zeros_like(y).index_copy(0, here, slope(t.expand(len(here)), y[here]))

        made.problem.field, made.problem.native = going, None

    def observe(self, t: float | Tensor, x: Tensor, nfe: int) -> object:
        """Look at the step that ended at (t, x); a true answer, or rows, are to stop there."""
        now, x, self.steps = self._times(t), x.detach(), self.steps + 1
        values = [event.value(now, x) for event in self.events]
        crossings = [
            event.crossed(before, after)
            for event, before, after in zip(self.events, self.values, values, strict=True)
        ]
        stop: object = None
        if any(bool(crossing.any()) for crossing in crossings):
            stop = (
                self._each_row(now, x, crossings)
                if self.request.per_row
                else self._all(now, x, crossings)
            )
        if self._shared and isinstance(stop, list):
            self.spent |= dict.fromkeys(stop, (self.steps, nfe))
            self.going = [row for row in self.going if row not in self.ends]
            stop = not self.going
        self.t, self.x, self.values = now, x, values
        return stop

    def _all(self, t: Tensor, x: Tensor, crossings: list[Tensor]) -> bool:
        states = self._between(float(self.t), float(t), self.x, x, self.request.cond)
        hits = [
            (theta, k, row)
            for k, crossing in enumerate(crossings)
            for theta, row in self._roots(k, crossing, states)
        ]
        last = min((theta for theta, k, _ in hits if self.events[k].terminal), default=2.0)
        for theta, k, row in sorted(hits, key=lambda hit: hit[0]):
            if theta <= last:
                when, where = states(host(theta))
                self.found[k].append((float(when), row, where if row is None else where[row]))
        if last <= 1:
            when, where = states(host(last))
            self.ends[None] = (float(when), where)
        return last <= 1

    def _each_row(self, t: Tensor, x: Tensor, crossings: list[Tensor]) -> list[int]:
        stopped = []
        whole = len(x)
        for row in self.going:
            if not any(bool(c if c.ndim == 0 else c[row]) for c in crossings):
                continue
            cond = cut(self.request.cond, [row], whole)
            here = slice(row, row + 1)
            states = self._between(float(self.t[row]), float(t[row]), self.x[here], x[here], cond)
            hits = [
                (theta, k)
                for k, crossing in enumerate(crossings)
                for theta, _ in self._roots(k, crossing.reshape(-1)[here], states)
            ]
            last = min((theta for theta, k in hits if self.events[k].terminal), default=2.0)
            for theta, k in sorted(hits):
                if theta <= last:
                    when, where = states(host([theta]))
                    self.found[k].append((float(when), row, where[0]))
            if last <= 1:
                when, where = states(host([last]))
                self.ends[row] = (float(when), where[0])
                stopped.append(row)
        return stopped

    def _roots(
        self, k: int, crossing: Tensor, states: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> list[tuple[float, int | None]]:
        """The event's zeros as parts of the step, each with its row."""
        event = self.events[k]
        low = torch.zeros(crossing.shape, dtype=torch.float64)
        high = torch.ones_like(low)
        if not bool(crossing.any()):
            return []
        sign = event.value(*states(low)).sign()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            same = event.value(*states(middle)).sign() == sign
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        if crossing.ndim == 0:
            return [(float(high), None)]
        return [(float(high[r]), int(r)) for r in crossing.nonzero().flatten()]

    def _between(
        self, t0: float, t1: float, x0: Tensor, x1: Tensor, cond: Any
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Time and state at parts of the step, one for all rows or one for each."""
        at = self.made.coordinates if self.made is not None else None
        if at is None:
            tau0, tau1 = t0, t1
        else:
            tau0, tau1 = at.tau(host([t0, t1])).tolist()
        clock = host([tau0 + theta * (tau1 - tau0) for theta in _THETAS])
        times = clock if at is None else at.time(clock)
        again = self.solve(
            self.term, x0, (t0, t1), self.request.method.name, self.request.backend, grid=[t0, t1],
            save_at=times[1:-1].tolist(), cond=cond, per_row=self.request.per_row,
            **({} if at is None else {"denoise": False}),
        )  # fmt: skip
        nodes = torch.stack([x0, *again.xs.detach(), x1]).double()
        if at is not None:
            nodes = nodes / at.scale(times).to(nodes.device).reshape(-1, *(1,) * x0.ndim)

        def states(theta: Tensor) -> tuple[Tensor, Tensor]:
            gaps = theta[..., None] - host(_THETAS)
            exact = gaps == 0
            parts = host(_WEIGHTS) / torch.where(exact, 1.0, gaps)
            parts = torch.where(exact.any(-1, keepdim=True), exact.double(), parts)
            parts = (parts / parts.sum(-1, keepdim=True)).to(nodes.device)
            y = torch.einsum("k,k...->..." if theta.ndim == 0 else "rk,kr...->r...", parts, nodes)
            tau = tau0 + theta * (tau1 - tau0)
            t = tau if at is None else at.time(tau)
            scale = 1.0 if at is None else at.scale(t).reshape(-1, *(1,) * (x0.ndim - 1))
            return t, (scale * y).to(x0.dtype).reshape(x0.shape)

        return states

    def occurrences(self) -> tuple[Occurrences, ...]:
        """What was found, event by event, in order of time for each row."""
        result = []
        for found in self.found:
            rows = None
            if found and found[0][1] is not None:
                rows = torch.tensor([row for _, row, _ in found], dtype=torch.int64)
            x = torch.stack([x for _, _, x in found]) if found else self.x[:0]
            result.append(Occurrences(host([t for t, _, _ in found]), rows, x))
        return tuple(result)
