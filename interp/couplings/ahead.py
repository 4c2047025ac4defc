"""Batches coupled ahead of the training that takes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Generator, Tensor

from .. import seeds
from ..arguments import whole
from ..background import ahead_of
from ..errors import DataError, OptionError
from ..noise import check_seed, normal_like
from .coupling import BatchCoupling, Coupling, take
from .registry import from_config

Base = Callable[[Tensor, Generator | None], Tensor]
"""base(x1, generator) -> x0, of the shape, dtype and device of x1."""


def ahead(
    coupling: Coupling | str | Mapping[str, Any],
    batches: Iterable[Any],
    depth: int = 2,
    *,
    seed: int = 0,
    start: int = 0,
    base: Base | None = None,
) -> Iterator[dict[str, Any]]:
    """Each batch with its base, paired by a thread that works ``depth`` batches ahead.

    Batch k draws from a generator of its own, made from (seed, start + k): the pairs do not depend
    on when the thread runs, and an iterator begun at ``start`` goes on where another one stopped,
    to the same numbers. See `interp.background.ahead_of` for exceptions and for how it ends. Where
    torch's own threads fill all cores a thread more is in their way: take depth=0 there, as
    `interp.train` does by itself.

    Args:
        coupling: a coupling, its name, or its config.
        batches: tensors x1, pairs (x1, label), or mappings with "x" and perhaps "label" and "x0".
        depth: how many batches to have ready; 0 couples in the caller's thread.
        seed: of everything that is drawn here.
        start: the number of the first batch.
        base: base(x1, generator) -> x0; None draws from N(0, 1).

    Yields:
        {"x0", "x", and all that the batch held}, rows paired.

    Raises:
        OptionError: a depth, seed or start out of range; what the coupling refuses.
        DataError: a batch of another form.
    """
    coupling = from_config(coupling)
    seed, start = check_seed(seed), whole("start", start, 0)

    def pair(numbered: tuple[int, Any]) -> dict[str, Any]:
        number, batch = numbered
        columns = as_columns(batch)
        generator = seeds.generator(columns["x"].device, seed, "coupling", number)
        return couple(coupling, columns, generator, base)

    return ahead_of(pair, zip(itertools.count(start), batches), depth)


def couple(
    coupling: Callable[..., tuple[Tensor, ...]],
    batch: Any,
    generator: Generator | None,
    base: Base | None = None,
) -> dict[str, Any]:
    """The ``batch`` with an "x0" drawn from the base, unless it has one, and its rows paired.

    Every column of the batch goes with the rows of "x" it belongs to; a ``coupling`` that is not one
    of ours can carry "label" alone.

    Raises:
        DataError: a batch of another form than `ahead` takes.
        OptionError: what the coupling refuses, or columns that it cannot carry.
    """
    columns = as_columns(batch)
    x1, label = columns["x"], columns.get("label")
    if (x0 := columns.get("x0")) is None:
        x0 = (base or normal_like)(x1, generator)
    if isinstance(coupling, BatchCoupling):
        i, j = coupling.match(x0, x1, label, generator)
        carried = {k: take(v, j) if _of_rows(v, len(x1)) else v for k, v in columns.items()}
        return {**carried, "x0": take(x0, i)}
    if others := columns.keys() - {"x", "x0", "label"}:
        raise OptionError(
            f"this coupling gives points and labels alone and cannot carry "
            f"{', '.join(sorted(others))}. Give batches of 'x' and 'label'."
        )
    paired = coupling(x0, x1, labels=label, generator=generator)
    return dict(zip(("x0", "x", "label"), paired, strict=False))


def as_columns(batch: Any) -> dict[str, Any]:
    """A batch as a mapping with "x".

    Raises:
        DataError: any other form.
    """
    if isinstance(batch, Tensor):
        return {"x": batch}
    if isinstance(batch, Mapping) and isinstance(batch.get("x"), Tensor):
        return dict(batch)
    if isinstance(batch, tuple | list) and len(batch) in (1, 2) and isinstance(batch[0], Tensor):
        return dict(zip(("x", "label"), batch, strict=False))
    raise DataError(
        f"a batch is a {type(batch).__name__}. Give a tensor x1, (x1, label), or a mapping with 'x' "
        "and perhaps 'label' and 'x0'."
    )


def _of_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
