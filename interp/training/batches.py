"""An endless stream of batches whose order is a function of (seed, step)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..arguments import require_finite
from ..errors import DataError, OptionError
from ..families import Batch
from ..seeds import derive, generator

Data = Tensor | Mapping[str, Tensor] | Dataset[Any] | DataLoader[Any]


def batches(data: Any, batch_size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """The batches of steps ``start``, ``start + 1``, ... without end.

    Tensors and data sets are shuffled anew in every epoch, by (seed, epoch), and what does not
    fill a batch is left for another epoch. A loader keeps its own order; torch's global generator,
    and the loader's, are seeded by (seed, epoch) before each of its epochs.

    Raises:
        OptionError: a batch size below one.
        DataError: data that are empty, of a kind not named here, or with a batch of another form
            than a tensor, (x,), (x, label) or a mapping with "x".
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}. Give the number of rows, 1 or more.")
    if isinstance(data, Tensor | Mapping):
        return _from_tensors(data, batch_size, seed, start)
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    if isinstance(data, DataLoader):
        return _from_loader(data, seed, start)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str):
        return _from_dataset(data, batch_size, seed, start)
    raise DataError(
        f"data is a {type(data).__name__}. Give a tensor, a mapping of tensors with 'x', a Dataset "
        "or a DataLoader."
    )


def check_tensors(data: Tensor | Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be trained on.

    Raises:
        DataError: no "x", not floating, empty, not finite (names the row), or columns of unequal
            length.
    """
    columns = {"x": data} if isinstance(data, Tensor) else data
    if "x" not in columns:
        raise DataError(f"the data have the keys {sorted(columns)} but no 'x'. Add the points.")
    for name, column in columns.items():
        if not isinstance(column, Tensor):
            raise DataError(
                f"{name} of the data is a {type(column).__name__}. Give a tensor, e.g. "
                f"torch.as_tensor({name})."
            )
    x = columns["x"]
    if not x.is_floating_point():
        raise DataError(f"x has dtype {x.dtype}. Give floating-point points, images in [-1, 1].")
    for name, column in columns.items():
        if column.ndim == 0 or len(column) != len(x):
            raise DataError(f"{name} has {column.shape[:1]} rows and x has {len(x)}. Match them.")
    if len(x) == 0:
        raise DataError("the data have no rows. Give at least one.")
    label = columns.get("label")
    if label is not None and not label.is_floating_point() and int(label.min()) < 0:
        raise DataError(f"a label is {int(label.min())}. Give labels from zero up.")
    require_finite("x", x, DataError)


def _order(rows: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """The rows of each step's batch."""
    size = min(batch_size, rows)
    each = rows // size
    for epoch in itertools.count(start // each):
        shuffled = torch.randperm(rows, generator=generator("cpu", seed, "epoch", epoch))
        for k in range(start % each if epoch == start // each else 0, each):
            yield shuffled[k * size : (k + 1) * size]


def _from_tensors(
    data: Tensor | Mapping[str, Tensor], batch_size: int, seed: int, start: int
) -> Iterator[Batch]:
    check_tensors(data)
    rows = len(data if isinstance(data, Tensor) else data["x"])
    for index in _order(rows, batch_size, seed, start):
        if isinstance(data, Tensor):
            yield data[index.to(data.device)]
        else:
            yield {name: column[index.to(column.device)] for name, column in data.items()}


def _from_dataset(data: Any, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    if len(data) == 0:
        raise DataError("the data set is empty. Give at least one row.")
    for index in _order(len(data), batch_size, seed, start):
        yield as_batch(default_collate([data[i] for i in index.tolist()]))


def _from_loader(loader: DataLoader[Any], seed: int, start: int) -> Iterator[Batch]:
    """A loader's epochs one after the other.

    The batches of the epoch before ``start`` are drawn and thrown away. What is drawn while a batch
    is made (augmentation) comes from the caller's generator, but for the first of an epoch, where
    loaders draw their order.
    """
    callers = torch.get_rng_state()
    try:
        each = len(loader)
    except TypeError:  # an iterable data set without a length: walk there from the beginning
        each = 0
    first = start // each if each else 0
    skip = start - first * each
    for epoch in itertools.count(first):
        torch.manual_seed(derive(seed, "epoch", epoch))
        if loader.generator is not None:
            loader.generator.manual_seed(derive(seed, "loader", epoch))
        items, count = iter(loader), 0
        while (item := _next(items, callers if 0 < count == skip else None)) is not _END:
            if count >= skip:
                yield as_batch(item)
            count += 1
        if count == 0:
            raise DataError("the loader gives no batch. Check its data set and drop_last.")
        skip = max(0, skip - count)


_END = object()


def _next(items: Iterator[Any], state: Tensor | None) -> Any:
    """The next item, drawn from torch's generator at ``state`` if that is given."""
    if state is not None:
        torch.set_rng_state(state)
    return next(items, _END)


def as_batch(item: Any) -> Batch:
    """One batch in our form: a tensor, or a mapping with "x" and perhaps "label".

    Raises:
        DataError: any other form.
    """
    if isinstance(item, Tensor) or (isinstance(item, Mapping) and "x" in item):
        return item
    if isinstance(item, Sequence) and not isinstance(item, str):
        if len(item) == 1:
            return item[0]
        if len(item) == 2:
            return {"x": item[0], "label": item[1]}
    raise DataError(
        f"a batch is a {type(item).__name__}. Give a tensor, (x,), (x, label), or a mapping with "
        "'x' and perhaps 'label'."
    )
