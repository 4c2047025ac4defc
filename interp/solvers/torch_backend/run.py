"""What every run in torch does: call the field, count, save, and look for what is not finite."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ...arguments import holds, like, now, transforming
from ...errors import FieldError
from ..problem import Problem, Report


class Run:
    """A run in progress: the state, what has been counted, and what has been saved."""

    def __init__(self, problem: Problem) -> None:
        if problem.y is None:
            raise ValueError("the state of this problem was already taken by a run")
        self.problem, self.y = problem, problem.y
        if not self.y.requires_grad:
            self.y = self.y.clone()  # the field sees it: never the caller's memory
        problem.y = None
        self.nfe = self.accepted = self.rejected = self.saved = 0
        self.field_s = 0.0
        self.rows: list[int] = []
        self.kept: list[Tensor] = []

    def call(self, function: object, t: Tensor, y: Tensor, who: str = "the field") -> Tensor:
        version = version_of(y)
        start = now()
        result = function(t, y)  # type: ignore[operator]
        self.field_s += now() - start
        require_unwritten(y, version, who)
        result = like(result, y, who)
        if not backed(result):
            raise FieldError(
                f"{who} returned a tensor whose memory has been freed. Return one that keeps its own."
            )
        # A result that somebody else holds may be overwritten by the next call.
        if result.requires_grad or torch.compiler.is_compiling():
            return result
        own = sys.getrefcount(result) <= 2 and _exclusive(result)
        return result if own else result.clone()

    def slope(self, t: float, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.call(self.problem.field, self.problem.told(t), y)

    def save(self, value: Tensor) -> None:
        self.kept.append(value)
        self.saved += 1

    def save_state(self, t: float) -> None:
        saves = self.problem.saves
        while self.saved < len(saves) and saves[self.saved] == t:
            self.save(self.y)

    def saves_before(self, t: float, end: float) -> bool:
        """Whether an output time is waiting strictly before the end of the step from t."""
        saves = self.problem.saves
        return self.saved < len(saves) and (end - saves[self.saved]) * (end - t) > 0

    def accept(self, t: float, y: Tensor) -> bool:
        """Go on from (t, y), after the observer has seen it; whether it wants to stop there."""
        self.y = y
        self.accepted += 1
        self.save_state(t)
        return self.observe(t, y)

    def observe(self, t: float, y: Tensor) -> bool:
        """Tell of a state at the end of a step; whether the run is to stop there."""
        if self.problem.observer is None:
            return False
        version = version_of(y)
        stop = self.problem.observer(t, y, self.nfe)
        require_unwritten(y, version, "the callback")
        return bool(stop)

    def report(self, status: str, t: float, step: float) -> Report:
        if self.kept:
            kept = torch.stack(self.kept)
            if kept.requires_grad or transforming():
                self.problem.xs = kept
            else:
                self.problem.xs[: len(kept)] = kept
        return Report(
            y=self.y, status=status, t=t, accepted=self.accepted, rejected=self.rejected,
            nfe=self.nfe, step=abs(step), rows=self.rows, field_s=self.field_s,
        )  # fmt: skip


def version_of(y: Tensor) -> int:
    """How often y was written to; torch counts it in neither inference mode nor what it compiles."""
    return 0 if torch.compiler.is_compiling() or y.is_inference() else int(y._version)


def require_unwritten(y: Tensor, version: int, who: str) -> None:
    """Refuse with a `FieldError` that somebody wrote into the state."""
    if version_of(y) != version:
        raise FieldError(
            f"{who} wrote into the state that it was given. Work on a copy: x.clone()."
        )
    if not backed(y):
        raise FieldError(
            f"{who} freed the memory of the state that it was given. Work on a copy: x.clone()."
        )


def backed(x: Tensor) -> bool:
    """Whether a plain tensor still has the memory that its shape needs; of any other it is assumed."""
    if type(x) is not Tensor or x.numel() == 0 or transforming():
        return True
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (x.storage_offset() + last + 1) * x.element_size()


def _exclusive(result: Tensor) -> bool:
    """Whether a tensor is the only way to its memory, as far as torch knows."""
    uses = getattr(torch._C, "_storage_Use_Count", None)
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(result)
    if uses is None or transformed or result._use_count() != 1:
        return False
    storage = result.untyped_storage()
    return bool(uses(storage._cdata) == 2 and storage.resizable())


def finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; yes for what holds no numbers (compiling, meta)."""
    if torch.compiler.is_compiling() or value.device.type == "meta":
        return True
    return holds(value.isfinite())


def bad_rows(*values: Tensor | None) -> list[int]:
    """Rows with a NaN or an infinity, of the first of the values that has any."""
    for value in values:
        if value is not None and not finite(value):
            if transforming():  # whose rows are not the caller's
                return []
            bad = ~value.isfinite().reshape(value.shape[0] if value.ndim else 1, -1).all(1)
            return [int(i) for i in bad.nonzero().flatten()]
    return []


def combine(y: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """y + h sum_j weights_j k_j."""
    for weight, slope in zip(weights, slopes, strict=False):
        if weight != 0.0:
            y = y + (h * weight) * slope
    return y


@functools.cache
def load_forward_mode() -> None:
    """Make torch load its forward-mode rules, which warns about a part of torch itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
        one = torch.ones(())
        torch.func.jvp(torch.neg, (one,), (one,))
