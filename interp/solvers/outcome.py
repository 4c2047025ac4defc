"""From a backend's report to the solution that a caller gets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..arguments import host, now
from ..errors import SolveError
from ..terms import PathODE, PathSDE, Term
from . import ending
from .events import Watch
from .plan import Plan, Request
from .problem import Observer, Report
from .result import RowStats, Solution, Stats
from .torch_backend.run import bad_rows, finite

ENDED = ("done", "stopped")
"""What a run's status is where nothing went wrong."""


def solution(
    term: Term, request: Request, made: Plan, report: Report, observer: Observer | None,
    began: float,
) -> Solution:  # fmt: skip
    done = report["status"] == "done"
    stop = made.stop if done else made.time(report["t"])
    rows = _row_stats(made, report) if request.per_row else None
    x = made.state(stop if rows is None else rows.t, report["y"])
    xs = made.problem.xs
    if made.between is not None:
        xs = made.between(xs if done else xs[: made.between.reached(report["t"])])
    saves = made.saves[: xs.shape[0]]
    if not done and rows is None:
        forward = request.ends[1] - request.ends[0]
        saves = [s for s in saves if (s - stop) * forward <= 0]
        xs = xs[: len(saves)]
    if made.coordinates is not None and saves:
        scale = made.coordinates.scale(host(saves))
        xs = spread_rows(scale, xs)
    stats = Stats(
        nfe=report["nfe"], steps=report["accepted"], accepted=report["accepted"],
        rejected=report["rejected"], wall_s=now() - began, field_s=report["field_s"],
        method=request.method.name, backend=request.backend, status=report["status"],
        seed=made.noise.seed if made.noise else None, depth=made.noise.depth if made.noise else None,
        gradient=request.gradient if torch.is_grad_enabled() else None,
        rows=rows,
    )  # fmt: skip
    ended = stats
    if done and made.last is not None and isinstance(term, (PathODE, PathSDE)):
        x, xs, stats = _last_step(term, request, made, x, xs, stats, observer)
    if stats.status == "done" and made.denoise and isinstance(term, (PathODE, PathSDE)):
        x, xs, stats = ending.to_clean_data(term, request, x, xs, stats)
        if observer is not None and stats.status == "done":
            observer(1.0, x, stats.nfe)
    if stats is not ended:
        stats = replace(stats, wall_s=now() - began)
    if rows is not None and stats.status == "done":
        whole = torch.tensor([s == "done" for s in rows.status], dtype=torch.bool)
        stats = replace(stats, rows=replace(rows, t=torch.where(whole, request.ends[1], rows.t)))
    if not request.end_alone:
        return Solution(x, host(made.asked[: len(xs)]), xs, stats)
    if stats.status == "done" or rows is not None:
        return Solution(x, request.ends[1], _end(x, stats), stats)
    return Solution(x, host([]), x.new_empty(0, *x.shape), stats)


def _end(x: Tensor, stats: Stats) -> Tensor | None:
    """The end as the only saved state, but NaN in rows that did not get there; None for x as it is."""
    lost = [r for r, s in enumerate(stats.rows.status if stats.rows else ()) if s not in ENDED]
    if not lost:
        return None
    xs = x[None].clone()
    xs[:, lost] = float("nan")
    return xs


def with_events(sol: Solution, watch: Watch, request: Request) -> Solution:
    """The solution that ends where its events ended it."""
    forward = 1 if request.ends[1] > request.ends[0] else -1
    x, xs, ts, stats = sol.x, sol.xs, sol.ts, sol.stats
    if None in watch.ends:
        t, x = watch.ends[None]
        kept = int(((ts - t) * forward <= 0).sum())
        ts, xs = ts[:kept], xs[:kept]
        if request.end_alone:  # wherever that is
            ts, xs = host([t]), x[None]
    elif watch.ends and stats.rows is not None:
        x, xs, rows = x.clone(), xs.clone(), stats.rows
        times, accepted, nfe = rows.t.clone(), rows.accepted, rows.nfe
        for row, (t, state) in watch.ends.items():
            x[row], times[row] = state, t
            xs[(ts - t) * forward > 0, row] = float("nan")
            if request.end_alone:
                xs[0, row] = state
        for row, (steps, evaluations) in watch.spent.items():
            accepted[row], nfe[row] = steps, evaluations
        status = tuple("stopped" if r in watch.ends else s for r, s in enumerate(rows.status))
        stats = replace(stats, rows=replace(rows, t=times, status=status))
    return Solution(x, ts, xs, stats, watch.occurrences())


def _row_stats(made: Plan, report: Report) -> RowStats:
    """The statistics of each row; of rows that took the same steps, the same."""
    each = report.get("each")
    if each is None:
        count = report["y"].shape[0]
        status = (report["status"],) * count
        t = host([made.stop if report["status"] == "done" else made.time(report["t"])] * count)
        accepted, rejected, nfe = (
            torch.full((count,), n) for n in (report["accepted"], report["rejected"], report["nfe"])
        )
    else:
        status = tuple(each["status"])
        whole = torch.tensor([s == "done" for s in status], dtype=torch.bool)
        t = torch.where(whole, made.stop, made.times(each["t"]))
        accepted, rejected, nfe = (
            torch.tensor(n, dtype=torch.int64)
            for n in (each["accepted"], each["rejected"], each["nfe"])
        )
    return RowStats(t, accepted, rejected, nfe, status)


def spread_rows(scale: Tensor, xs: Tensor) -> Tensor:
    """Multiply the i-th state by scale[i]."""
    return xs * scale.to(dtype=xs.dtype, device=xs.device).reshape(-1, *(1,) * (xs.ndim - 1))


def _last_step(
    term: PathODE | PathSDE, request: Request, made: Plan, x: Tensor, xs: Tensor, stats: Stats,
    observer: Observer | None,
) -> tuple[Tensor, Tensor, Stats]:  # fmt: skip
    """The first-order step to clean data, and the output times inside it."""
    began = now()
    at = host(made.stop)
    data = term.call(at, x, request.cond)
    field_s = now() - began
    stats = replace(stats, nfe=stats.nfe + 1, field_s=stats.field_s + field_s)

    def carried(t: float) -> Tensor:
        return term.first_order(at, host(t), x, data)

    end = carried(float(made.last or 0.0))
    if not finite(end):
        if request.options.get("on_failure") == "partial":
            return x, xs, replace(stats, status="non_finite")
        rows = bad_rows(end)
        raise SolveError(
            f"the model became NaN or infinite at t = {made.stop:.6g} in rows {rows[:8]}. Look at the "
            "model there.",
            time=made.stop, step=stats.accepted, rows=rows, last=x, reason="non_finite",
        )  # fmt: skip
    inside = made.saves[len(xs) :]
    xs = torch.cat([xs, torch.stack([carried(t) for t in inside])]) if inside else xs
    stats = replace(stats, steps=stats.steps + 1, accepted=stats.accepted + 1)
    if observer is not None:
        observer(float(made.last or 0.0), end, stats.nfe)
    return end, xs, stats
