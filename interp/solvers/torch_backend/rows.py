"""Explicit Runge-Kutta methods with steps of its own for each row, as Rust's `rows`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...arguments import host
from ..problem import Adaptive, Problem, Report, RowsReport
from ..tableaus import Numbers
from .control import (
    Controller,
    bounded,
    estimate,
    first_trial,
    refined_step,
    row_norms,
    scaled_rows,
)
from .run import Run
from .runge_kutta import between, stage_time


@dataclass
class _Row:
    """A row on its way: its place in the batch, where it is, and the step that is being tried."""

    index: int
    t: float
    h: float
    controller: Controller
    step: float = 0.0
    next: float = 0.0
    saved: int = 0
    accepted: int = 0
    rejected: int = 0
    nfe: int = 0
    last: float = 0.0
    over: str | None = None


def runge_kutta_rows(problem: Problem, numbers: Numbers, adaptive: Adaptive) -> Report:
    """Integrate each row by an explicit Runge-Kutta method with steps of its own."""
    return _Rows(problem, numbers, adaptive).integrate()


class _Rows:
    def __init__(self, problem: Problem, numbers: Numbers, goal: Adaptive) -> None:
        self.run, self.numbers, self.goal = Run(problem), numbers, goal
        self.forward = 1.0 if goal.to >= goal.from_ else -1.0
        self.smallest = 4 * 2.0**-52 * max(abs(goal.from_), abs(goal.to))
        self.end = len(numbers.b) - numbers.fsal
        self.early = any(row[-1] != 0 for row in numbers.error)
        self.rows = [
            _Row(i, goal.from_, goal.first_step or 0.0, Controller(goal.gains, numbers.error_order))
            for i in range(len(self.run.y))
        ]
        self.all = list(self.rows)
        self.states: list[Tensor] = list(self.run.y)
        blank = torch.full_like(self.run.y[0], float("nan")) if self.rows else self.run.y
        self.saves = [[blank] * len(self.rows) for _ in problem.saves]
        self.slopes: list[Tensor] = []
        self._select()

    def integrate(self) -> Report:
        self._begin()
        while self.rows:
            self._round()
        return self._report()

    def _select(self) -> None:
        problem = self.run.problem
        if problem.cut is not None and self.rows:
            problem.field = problem.cut([row.index for row in self.rows])

    def _slope(self, times: list[float], y: Tensor) -> Tensor:
        self.run.nfe += 1
        return self.run.call(self.run.problem.field, self.run.problem.told_rows(times), y)

    def _combine(
        self, lengths: list[float], weights: list[float], y: Tensor | None = None
    ) -> Tensor:
        """y + h sum_j weights_j k_j, each row with its own h; y is the state where none is given."""
        y = self.run.y if y is None else y
        shape = (-1, *(1,) * (y.ndim - 1))
        for weight, slope in zip(weights, self.slopes, strict=False):
            if weight != 0.0:
                h = host([length * weight for length in lengths])
                y = y + h.to(device=y.device, dtype=y.dtype).reshape(shape) * slope
        return y

    def _lengths(self) -> list[float]:
        return [row.next - row.t for row in self.rows]

    def _begin(self) -> None:
        for row in self.rows:
            row.nfe += 1
            self._save_state(row, self.run.y[row.index])
        first = self._slope([row.t for row in self.rows], self.run.y)
        good = first.detach().isfinite().reshape(len(first), -1).all(1).tolist()
        for row, fine in zip(self.rows, good, strict=True):
            row.over = None if fine else "non_finite"
        self.slopes = [first]
        self._retire()
        if self.goal.first_step is None and self.rows:
            self._starting_steps()

    def _starting_steps(self) -> None:
        """The first steps after Hairer, Norsett and Wanner (Solving ODEs I, II.4)."""
        y, first, goal = self.run.y, self.slopes[0], self.goal
        sizes, speeds = (row_norms(scaled_rows(y, y, v, goal), goal.norm) for v in (y, first))
        for row, size, speed in zip(self.rows, sizes, speeds, strict=True):
            row.step = bounded(first_trial(size, speed), goal)
            row.next = goal.from_ + self.forward * row.step
            row.nfe += 1
        trial = self._combine([self.forward * row.step for row in self.rows], [1.0])
        moved = self._slope([row.next for row in self.rows], trial)
        changes = row_norms(scaled_rows(y, y, moved - first, goal), goal.norm)
        for row, speed, change in zip(self.rows, speeds, changes, strict=True):
            order = self.numbers.error_order
            row.h = bounded(refined_step(row.step, speed, change / row.step, order), goal)

    def _stage(self, i: int) -> Tensor:
        stage = self._combine(self._lengths(), self.numbers.a[i])
        c = self.numbers.c[i]
        return self._slope([stage_time(c, row.t, row.next) for row in self.rows], stage)

    def _round(self) -> None:
        """One step tried by every row."""
        for row in self.rows:
            left = abs(self.goal.to - row.t)
            last = 1.01 * row.h >= left
            row.step = left if last else row.h
            row.next = self.goal.to if last else row.t + self.forward * row.h
            row.nfe += self.end - 1
        for i in range(1, self.end):
            self.slopes.append(self._stage(i))
        y = self._combine(self._lengths(), self.numbers.b)
        good = y.detach().isfinite().reshape(len(y), -1).all(1).tolist()
        if self.early and any(good):
            self._finish(y, good)
        errors = self._errors(y, good)
        taken = [error <= 1 for error in errors]
        inside = [
            took and self._saves_before(row) for took, row in zip(taken, self.rows, strict=True)
        ]
        if not self.early:
            need = [
                took and (saves or row.next != self.goal.to)
                for took, saves, row in zip(taken, inside, self.rows, strict=True)
            ]
            if any(need):
                self._finish(y, need)
        if any(inside):
            self._save_inside(y, inside)
        self._move(y, taken, errors)
        self._tell()
        self._retire()

    def _finish(self, y: Tensor, wanted: list[bool]) -> None:
        """The slope at the end, for the rows that ask for it."""
        self.slopes.append(self._slope([row.next for row in self.rows], y))
        for row, asks in zip(self.rows, wanted, strict=True):
            row.nfe += asks

    def _errors(self, y: Tensor, good: list[bool]) -> list[float]:
        with torch.no_grad():
            norms = []
            for weights in self.numbers.error:
                error = self._combine(self._lengths(), weights, torch.zeros_like(y))
                norms.append(
                    row_norms(scaled_rows(self.run.y, y, error, self.goal), self.goal.norm)
                )
        pairs = zip(zip(*norms, strict=True), good, strict=True)
        return [estimate(each) if fine else float("nan") for each, fine in pairs]

    def _saves_before(self, row: _Row) -> bool:
        saves = self.run.problem.saves
        ahead = row.saved < len(saves)
        return ahead and (row.next - saves[row.saved]) * (row.next - row.t) > 0

    def _save_inside(self, y: Tensor, inside: list[bool]) -> None:
        """Dense output strictly inside the steps that were taken."""
        extra = range(len(self.numbers.b), len(self.numbers.a))
        for i in extra:
            self.slopes.append(self._stage(i))
        for r, row in enumerate(self.rows):
            row.nfe += len(extra) * inside[r]
            while inside[r] and row.over is None and self._saves_before(row):
                h = row.next - row.t
                theta = (self.run.problem.saves[row.saved] - row.t) / h
                towards, weights = between(self.numbers, theta)
                value = (1 - towards) * self.run.y[r] + towards * y[r]
                for weight, slope in zip(weights, self.slopes, strict=False):
                    if weight != 0.0:
                        value = value + (h * weight) * slope[r]
                if bool(value.isfinite().all()):
                    self._save(row, value)
                else:
                    row.over = "non_finite"

    def _save(self, row: _Row, value: Tensor) -> None:
        self.saves[row.saved][row.index] = value
        row.saved += 1

    def _save_state(self, row: _Row, y: Tensor) -> None:
        saves = self.run.problem.saves
        while row.saved < len(saves) and saves[row.saved] == row.t:
            self._save(row, y)

    def _move(self, y: Tensor, taken: list[bool], errors: list[float]) -> None:
        """Rows whose step was taken are at its end; all choose the next one."""
        shape = (-1, *(1,) * (y.ndim - 1))
        keep = [took and row.over is None for took, row in zip(taken, self.rows, strict=True)]
        mask = torch.tensor(keep, device=y.device).reshape(shape)
        self.run.y = torch.where(mask, y, self.run.y)
        if len(self.slopes) > self.end:
            self.slopes = [torch.where(mask, self.slopes[self.end], self.slopes[0])]
        else:
            self.slopes = self.slopes[:1]
        for r, (row, error) in enumerate(zip(self.rows, errors, strict=True)):
            if row.over is not None:
                continue
            if taken[r]:
                row.t, row.accepted = row.next, row.accepted + 1
                row.h = row.last = row.step * row.controller.accepted(error)
                self._save_state(row, self.run.y[r])
                if row.t == self.goal.to:
                    row.over = "done"
            else:
                row.rejected += 1
                row.h = row.last = row.step * row.controller.rejected(error)
                if row.h < self.smallest:
                    row.over = "step_underflow" if error < float("inf") else "non_finite"
            if row.over is None and row.accepted + row.rejected >= self.goal.max_steps:
                row.over = "too_many_steps"

    def _tell(self) -> None:
        """Tell an observer where every row is; the rows that it names stop there."""
        observer = self.run.problem.observer
        if observer is None:
            return
        for r, row in enumerate(self.rows):
            self.states[row.index] = self.run.y[r]
        stopped = observer([row.t for row in self.all], torch.stack(self.states), self.run.nfe)
        for row in self.rows:
            if stopped and row.over in (None, "done") and row.index in stopped:
                row.over = "stopped"

    def _retire(self) -> None:
        """Rows that are over leave the batch."""
        kept = [r for r, row in enumerate(self.rows) if row.over is None]
        if len(kept) == len(self.rows):
            return
        for r, row in enumerate(self.rows):
            self.states[row.index] = self.run.y[r]
        index = torch.tensor(kept, dtype=torch.int64, device=self.run.y.device)
        self.run.y = self.run.y.index_select(0, index)
        self.slopes = [self.slopes[0].index_select(0, index)]
        self.rows = [self.rows[r] for r in kept]
        self._select()

    def _report(self) -> Report:
        """The run as a whole: the first row that failed says why it did."""
        failed = [row for row in self.all if row.over not in ("done", "stopped")]
        first = failed[0] if failed else None
        run = self.run
        run.y = torch.stack(self.states)
        run.kept = [torch.stack(each) for each in self.saves]
        run.accepted = sum(row.accepted for row in self.all)
        run.rejected = sum(row.rejected for row in self.all)
        run.rows = [row.index for row in failed]
        status = first.over if first is not None and first.over is not None else "done"
        report = run.report(
            status, first.t if first else self.goal.to, first.last if first else 0.0
        )
        report["each"] = RowsReport(
            t=[row.t for row in self.all], accepted=[row.accepted for row in self.all],
            rejected=[row.rejected for row in self.all], nfe=[row.nfe for row in self.all],
            status=[row.over or "done" for row in self.all],
        )  # fmt: skip
        return report
