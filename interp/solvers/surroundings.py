"""What goes on around a run: how torch records it, who is told of its steps, and the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..arguments import transforming
from ..errors import Unsupported
from ..terms import Cond, PathODE, PathSDE, Term
from .events import Watch, listed
from .plan import Request
from .problem import Observer
from .result import Solution, StepState

Bar = Callable[[float | Tensor, int], None]
"""Shown a time, or that of each row, and the number of evaluations."""


def recording(request: Request) -> contextlib.AbstractContextManager[object]:
    """Rust records no gradients; its buffers must be normal tensors, whose writes torch counts."""
    if request.backend == "rust" and torch.is_inference_mode_enabled():
        return _normal_mode()
    constant = request.gradient is None and torch.is_grad_enabled()
    return torch.no_grad() if constant else contextlib.nullcontext()


@contextlib.contextmanager
def _normal_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def progress(request: Request, wanted: bool) -> contextlib.AbstractContextManager[Bar | None]:
    """A progress bar as a function of (t, evaluations), or None."""
    return _bar(request) if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def _bar(request: Request) -> Iterator[Bar]:
    from tqdm import tqdm

    start, stop = request.ends
    with tqdm(total=100, desc=request.method.name, unit="%", bar_format=_BAR) as bar:

        def show(t: float | Tensor, nfe: int) -> None:
            done = (t - start) / (stop - start)
            least = float(done.min()) if isinstance(done, Tensor) else done
            bar.set_postfix_str(f"t={start + least * (stop - start):.3f}, {nfe} evaluations")
            bar.update(100 * least - bar.n)

        yield show


_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def observing(
    term: Term,
    cond: Cond,
    callback: Callable[[StepState], object] | None,
    bar: Bar | None,
) -> Observer | None:
    if callback is None and bar is None:
        return None
    count = 0

    def data(t: float | Tensor, x: Tensor) -> Tensor | None:
        return term.data(t, x, cond) if isinstance(term, (PathODE, PathSDE)) else None

    def observe(t: float | Tensor, x: Tensor, nfe: int) -> None:
        nonlocal count
        count += 1
        if bar is not None:
            bar(t, nfe)
        if callback is not None:
            callback(StepState(t, x, nfe, count, data))

    return observe


def watching(
    events: object, term: Term, request: Request, x: Tensor, again: Callable[..., Solution]
) -> Watch | None:
    """What looks for events, after a check that it can."""
    several = listed(events)
    if not several:
        return None
    one_step = request.method.tableau is not None and request.backend != "torchdiffeq"
    if not one_step or request.gradient not in (None, "direct") or transforming():
        raise Unsupported(
            "events are found in runs of interp's own Runge-Kutta methods, with gradients through every "
            'operation or none. Use e.g. method="dopri5".'
        )
    return Watch(several, term, request, x, again)


def watched(watch: Watch | None, observer: Observer | None) -> Observer | None:
    if watch is None:
        return observer

    def observe(t: float | Tensor, x: Tensor, nfe: int) -> object:
        if observer is not None:
            observer(t, x, nfe)
        return watch.observe(t, x, nfe)

    return observe
