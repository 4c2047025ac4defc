"""Programmes: what a method does on a fixed grid, as numbers that are known before the run.

A method writes a list of moves. A move may ask the field at the current state and keep its answer,
and then makes the next state, a linear combination of

    start       the state at the end of the last step,
    here        the current one, that of the move before,
    slopes      the answers of this step and of earlier ones, by their number in the run,
    noise       normals: increments of the run's Brownian path, or fresh ones.

So Euler-Maruyama, DDIM, Adams-Bashforth, and the multistep and singlestep exponential integrators
are lists of numbers, and one loop runs them all (`rust_solvers`, `torch_backend.recurrence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OptionError
from ..interpolant import Basis
from ..noise import STREAMS

Coefficient = float | Tensor
"""What a state is multiplied by: a number, or one for each element, float64, of shape E."""

Noise = tuple[Coefficient, float, float | None, float]
"""(size, s, r, area): size (W(r) - W(s)) + area H, H being the space-time Levy area over the same
interval (see `interp.noise.BrownianPath`); (size, number, None, 0): size times a fresh normal."""


def rows(values: NDArray[np.float64]) -> list[Coefficient]:
    """The coefficients of each move out of a column of numbers, (n,), or of elements, (n, *E)."""
    if values.ndim == 1:
        numbers: list[Coefficient] = values.tolist()
        return numbers
    return list(torch.from_numpy(np.ascontiguousarray(values)))


def vanishes(c: Coefficient) -> bool:
    """Whether a coefficient is 0, for all elements."""
    return c == 0.0 if type(c) is float else not torch.as_tensor(c).any()


@dataclass(slots=True)
class Move:
    """One move of a method.

    Attributes:
        at: the time t at which the field is asked, or None: it is not.
        kind: what the answer is to be, "data" or "noise"; None takes what the field returns.
        start, here: coefficients of the two states.
        slopes: coefficients of the answers, by number; the first of a run has the number 0.
        noise: what is added; each is multiplied by the problem's diffusion where it has one.
        end: the t at which the new state ends a step, or None.
    """

    at: float | None = None
    kind: str | None = None
    start: Coefficient = 0.0
    here: Coefficient = 0.0
    slopes: Mapping[int, Coefficient] = field(default_factory=dict)
    noise: Sequence[Noise] = ()
    end: float | None = None


@dataclass(slots=True)
class Stage:
    """A move as a backend runs it: answers lie in slots, which are used again.

    Attributes:
        evaluation: (what the field is told, p, q, slot): the slot takes p here + q answer.
        start, here: coefficients of the two states.
        slopes: (slot, coefficient), the newest answer last.
        noise: as in a move, without what is zero.
        end: the t at which the new state ends a step, or None.
        saves: how many output times it is for.
    """

    evaluation: tuple[float, Coefficient, Coefficient, int] | None
    start: Coefficient
    here: Coefficient
    slopes: list[tuple[int, Coefficient]]
    noise: list[Noise]
    end: float | None
    saves: int = 0


@dataclass(slots=True)
class Programme:
    """The stages of a run.

    Attributes:
        start: the t of the first state.
        saves: how many output times the first state is for.
        slots: how many answers are kept at a time.
        stages: what is done.
        fresh: the stream of fresh normals.
        basis: between which transforms coefficients that differ between elements multiply states.
    """

    start: float
    saves: int
    slots: int
    stages: list[Stage]
    fresh: int = STREAMS["churn"]
    basis: Basis | None = None

    @property
    def noisy(self) -> bool:
        """Whether any normal is drawn."""
        return any(stage.noise for stage in self.stages)

    @property
    def noise_times(self) -> set[float]:
        """The times between which increments of the Brownian path are drawn."""
        ends = ((s, r) for stage in self.stages for _, s, r, _ in stage.noise if r is not None)
        return {t for pair in ends for t in pair}


Weights = Callable[[list[float], list[str | None]], list[tuple[Coefficient, Coefficient]]]
"""(times, kinds) -> (p, q) with answer = p x + q field, for each evaluation."""


def compiled(
    moves: Sequence[Move],
    start: float,
    saves: Sequence[float],
    told: Callable[[list[float]], list[float]] | None = None,
    weights: Weights | None = None,
) -> Programme:
    """The programme of a list of moves.

    An answer that no later move uses is not converted: its p and q go into the combination.

    Args:
        moves: what is done, the last with an end.
        start: the t of the first state.
        saves: output times, in order, each the start or the end of a move.
        told: from times to what the field is told; None where they are one.
        weights: what turns the field's answers into those asked for; None takes them as they are.
    """
    asking = [move for move in moves if move.at is not None]
    times = [move.at for move in asking if move.at is not None]
    stamps = times if told is None else told(times)
    views = None if weights is None else weights(times, [move.kind for move in asking])
    last_use = {number: i for i, move in enumerate(moves) for number in move.slopes}
    stages: list[Stage] = []
    slot_of: dict[int, int] = {}
    due: dict[int, list[int]] = {}  # answers by the move after which they are not needed
    free: list[int] = []
    slots = number = 0
    for i, move in enumerate(moves):
        evaluation, here = None, move.here
        slopes = [(k, c) for k, c in move.slopes.items() if not vanishes(c)]
        slopes.sort()
        if move.at is not None:
            p, q = _AS_IT_IS if views is None else views[number]
            last = last_use.get(number, i)
            if last == i and slopes and slopes[-1][0] == number:
                c = slopes[-1][1]
                here, slopes[-1] = here + c * p, (number, c * q)
                p, q = _AS_IT_IS
            if not free:
                free.append(slots)
                slots += 1
            slot = slot_of[number] = free.pop()
            due.setdefault(last, []).append(slot)
            evaluation = (stamps[number], p, q, slot)
            number += 1
        noise = [d for d in move.noise if not vanishes(d[0]) or d[3] != 0.0] if move.noise else []
        used = [(slot_of[k], c) for k, c in slopes]
        stages.append(Stage(evaluation, move.start, here, used, noise, move.end))
        free += due.pop(i, ())
    return saving(Programme(start, 0, slots, stages), saves)


_AS_IT_IS: tuple[Coefficient, Coefficient] = (0.0, 1.0)


def saving(programme: Programme, saves: Sequence[float]) -> Programme:
    """The programme with each output time at the last state that it is the time of."""
    place = {stage.end: i for i, stage in enumerate(programme.stages) if stage.end is not None}
    for t in saves:
        if t in place:
            programme.stages[place[t]].saves += 1
        elif t == programme.start:
            programme.saves += 1
        else:
            raise between_steps(t)
    return programme


def between_steps(t: float) -> OptionError:
    """The refusal of an output time."""
    return OptionError(
        f"save_at holds t = {t!r}, between two steps, where this run has no state: it draws noise, or "
        "nothing orders its times. Give times of the grid, or a grid= that holds them."
    )
