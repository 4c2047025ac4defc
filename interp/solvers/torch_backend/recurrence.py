"""Programmes in torch: see `interp.solvers.programme`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...noise import BrownianPath, node_normals, stream_key
from ..problem import NoiseKey, Problem, Report
from ..programme import Coefficient, Noise, Programme, Stage, vanishes
from .run import Run, bad_rows, finite


class Normals:
    """The normals of a programme for a state like ``y``, in their order."""

    def __init__(self, programme: Programme, noise: NoiseKey, y: Tensor) -> None:
        self.noise, self.stream = noise, programme.fresh
        self.shape, self.dtype, self.device = y.shape, y.dtype, y.device
        self.rows = len(y) if y.ndim else 1
        self.row_len = y.numel() // self.rows if self.rows else 0
        draws = [draw for stage in programme.stages for draw in stage.noise]
        steps = [(s, r) for _, s, r, _ in draws if r is not None]
        area = any(r is not None and h != 0.0 for _, _, r, h in draws)
        path = BrownianPath(
            self.rows, self.row_len, noise.seed, noise.first_row, noise.span, noise.depth, y.device
        )
        self._increments = path.increments(steps, area)

    def draw(self, draw: Noise) -> Tensor:
        """The next draw, like y."""
        size, s, r, area = draw
        if r is None:
            values = size * self._fresh(int(s))
        else:
            w, h = next(self._increments)
            values = size * w if area == 0.0 or h is None else size * w + area * h
        return values.reshape(self.shape).to(self.dtype)

    def _fresh(self, number: int) -> Tensor:
        key, first = stream_key(self.noise.seed, self.stream), self.noise.first_row
        return node_normals(self.rows, self.row_len, first, key, number, self.device)


def _same(x: Tensor) -> Tensor:
    return x


def times(c: Coefficient, v: Tensor) -> Tensor:
    """c v, with a number for each of the last axes' elements or one for all."""
    return c.to(v) * v if isinstance(c, Tensor) else c * v


def plus(total: Tensor, c: Coefficient, v: Tensor) -> Tensor:
    """total + c v."""
    if isinstance(c, Tensor):
        return torch.addcmul(total, c.to(v), v)
    return torch.add(total, v, alpha=c)


class Stepper:
    """A programme in progress, one stage at a time.

        stepper = Stepper(programme, x)
        while stepper.stage is not None:
            stepper.advance(field(stepper.asks, stepper.here) if stepper.asks is not None else None)
        stepper.start                                       # the end of the run

    Attributes:
        start: the state at the end of the last step.
        here: the current state, at which the field is asked.
        t: the time of ``start``.
        stage: what comes next; None after the last.
    """

    def __init__(self, programme: Programme, y: Tensor, normals: Normals | None = None) -> None:
        self.start = self.here = y
        self.t = programme.start
        self._stages = iter(programme.stages)
        self._slots: list[Tensor | None] = [None] * programme.slots
        self._normals = normals
        self._basis = programme.basis or (_same, _same)
        self.stage: Stage | None = next(self._stages, None)

    @property
    def asks(self) -> float | None:
        """What the field is to be told for the next stage; None where it is not asked."""
        return (
            None
            if self.stage is None or self.stage.evaluation is None
            else self.stage.evaluation[0]
        )

    def made(self, answer: Tensor | None, diffusion: Tensor | None = None) -> Tensor:
        """The state that the next stage makes out of the field's answer."""
        stage = self.stage
        if stage is None:
            raise ValueError("this programme has ended")
        into, out = self._basis
        here = into(self.here)
        if stage.evaluation is not None and answer is not None:
            _, p, q, slot = stage.evaluation
            raw, answer = not isinstance(p, Tensor) and (p, q) == (0.0, 1.0), into(answer)
            self._slots[slot] = answer if raw else plus(times(p, here), q, answer)
        total: Tensor | None = None
        states = [(stage.here, here), *((c, self._slots[slot]) for slot, c in stage.slopes)]
        if not vanishes(stage.start):
            states.insert(0, (stage.start, into(self.start)))
        for c, v in states:
            if v is not None and not vanishes(c):
                total = times(c, v) if total is None else plus(total, c, v)
        total = torch.zeros_like(here) if total is None else total
        for draw in stage.noise:
            if self._normals is not None:
                size, s, r, area = draw
                if isinstance(size, Tensor):
                    total = plus(total, size, into(self._normals.draw((1.0, s, r, area))))
                    continue
                kick = into(self._normals.draw(draw))
                total = total + (kick if diffusion is None else diffusion * kick)
        return out(total)

    def take(self, y: Tensor) -> None:
        """Go on from the state ``y`` that the stage has made."""
        if self.stage is not None and self.stage.end is not None:
            self.start, self.t = y, self.stage.end
        self.here = y
        self.stage = next(self._stages, None)

    def advance(self, answer: Tensor | None, diffusion: Tensor | None = None) -> Tensor:
        """Run the next stage; the state that it makes."""
        y = self.made(answer, diffusion)
        self.take(y)
        return y


def recurrence(problem: Problem, programme: Programme, noise: NoiseKey | None = None) -> Report:
    """Run a programme."""
    run = Run(problem)
    stepper = Stepper(programme, run.y, None if noise is None else Normals(programme, noise, run.y))
    step = 0.0
    for _ in range(programme.saves):
        run.save(run.y)
    while (stage := stepper.stage) is not None:
        slope = diffusion = None
        if stage.evaluation is not None:
            slope = run.slope(stage.evaluation[0], stepper.here)
            if problem.diffusion is not None:
                told = problem.told(stage.evaluation[0])
                diffusion = run.call(problem.diffusion, told, stepper.here, "the diffusion")
        y = stepper.made(slope, diffusion)
        if not finite(y):
            run.rows = bad_rows(slope, y)
            end = next(s.end for s in _from(programme, stage) if s.end is not None)
            return run.report("non_finite", stepper.t, end - stepper.t)
        if stage.end is not None:
            step = stage.end - stepper.t
            run.y, run.accepted = y, run.accepted + 1
            for _ in range(stage.saves):
                run.save(y)
            if run.observe(stage.end, y):
                return run.report("stopped", stage.end, step)
        stepper.take(y)
    return run.report("done", stepper.t, step)


def _from(programme: Programme, stage: Stage) -> list[Stage]:
    """The stages from this one on."""
    where = next(i for i, s in enumerate(programme.stages) if s is stage)
    return programme.stages[where:]
