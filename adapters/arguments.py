"""What a family is given, checked in one place: batches, labels, paths."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp import Interpolant, schedules
from interp.arguments import require_finite
from interp.errors import DataError, OptionError, UnknownName
from interp.families import Batch

_OWN = "own"


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of one data point.

    Raises:
        OptionError: no sizes, or one that is not positive.
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise OptionError(
            f"shape is {shape!r}. Give the positive sizes of one data point, such as (1, 28, 28)."
        )
    return sizes


def as_points(x: object, shape: Sequence[int], like: Tensor) -> Tensor:
    """``x`` as points of ``shape`` in the dtype of ``like``, whatever its own floating one.

    Raises:
        DataError: no floating tensor, points of another shape, on another device than ``like``, or not
            finite (names the first row).
    """
    if not isinstance(x, Tensor):
        raise DataError(
            f"the points of a batch are a {type(x).__name__}. Give a floating-point tensor."
        )
    if not x.is_floating_point():
        raise DataError(
            f"the points of a batch are {x.dtype}. Give floating-point tensors; images of bytes as "
            "x / 127.5 - 1."
        )
    if x.ndim == 0 or tuple(x.shape[1:]) != tuple(shape):
        raise DataError(
            f"a batch has points of shape {tuple(x.shape[1:])} but the family was made for "
            f"{tuple(shape)}. Give (rows, {', '.join(map(str, shape))})."
        )
    if x.device != like.device:
        raise DataError(
            f"the points of a batch are on {x.device} and the family on {like.device}. Bring both to one."
        )
    require_finite("x", x, DataError)
    return x.to(like.dtype)


def split(batch: Batch, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The points, as `as_points`, and the labels (None where there are none) of a ``batch``.

    Raises:
        DataError: no "x", no rows, or labels that are not one integer a row.
    """
    if isinstance(batch, Mapping):
        if "x" not in batch:
            raise DataError(f"a batch has the keys {sorted(batch)} but no 'x'. Add the points.")
        x, label = batch["x"], batch.get("label")
    else:
        x, label = batch, None
    x = as_points(x, shape, like)
    if len(x) == 0:
        raise DataError("a batch has no rows, and a loss no mean over none. Give at least one.")
    if label is not None and not isinstance(label, Tensor):
        raise DataError(
            f"the labels of a batch are a {type(label).__name__}. Give a tensor of one integer a row."
        )
    if label is not None and (label.is_floating_point() or label.shape != x.shape[:1]):
        raise DataError(
            f"labels are {label.dtype} of shape {tuple(label.shape)} for {len(x)} points. "
            "Give one integer a row."
        )
    return x, label


def check_label(
    label: Tensor | Sequence[int] | int, rows: int, classes: int | None, device: torch.device
) -> Tensor:
    """Labels in [0, classes), one a row, int64; a single one is repeated for all rows.

    Raises:
        OptionError: a model without labels, a label outside the range, or a wrong number of them.
    """
    if classes is None:
        raise OptionError(
            "a label was given to a model without labels. Make the family with classes=..., or "
            "leave the label out."
        )
    try:
        labels = torch.as_tensor(label, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"label={label!r} is no integer, nor one a row. Give numbers.") from error
    if labels.is_floating_point() or labels.shape not in ((), (rows,)):
        raise OptionError(
            f"label is {labels.dtype} of shape {tuple(labels.shape)} for {rows} rows. Give an "
            "integer, or one a row."
        )
    if labels.numel() and not bool(((labels >= 0) & (labels < classes)).all()):
        raise OptionError(
            f"labels run from {int(labels.min())} to {int(labels.max())} but there are {classes} "
            f"classes. Give labels from 0 to {classes - 1}."
        )
    return labels.long().expand(rows)


def refuse(name: str, verb: str, options: Mapping[str, object]) -> None:
    """Refuse ``options`` that were given to a ``verb`` which has none, such as a solver's.

    Raises:
        OptionError: names the first.
    """
    for option in options:
        raise OptionError(
            f"{verb} of {name} has no option {option!r}: it solves nothing and knows no labels. Leave "
            "it out."
        )


def filled(name: str, kind: type, *layers: Any) -> dict[str, Any]:
    """The options of a TypedDict ``kind``, each of the last of ``layers`` that has it.

    Raises:
        UnknownName: one that is none of ``kind``; ``name`` is the family that has no such option.
    """
    options = {key: value for layer in layers for key, value in layer.items()}
    if unknown := options.keys() - kind.__annotations__.keys():
        raise UnknownName.of(f"option of {name}", unknown.pop(), kind.__annotations__)
    return options


def recorded(value: object) -> object:
    """What a config holds of an option that may be an object of the user's own.

    Names, mappings and None are themselves; an object with a ``config`` is that.
    """
    if value is None or isinstance(value, (str, Mapping)):
        return value
    config = getattr(value, "config", None)
    return {_OWN: type(value).__qualname__} if config is None else config


def given(option: str, value: object) -> None:
    """Refuse what `recorded` could not record.

    Raises:
        OptionError: names the option and what it was.
    """
    if isinstance(value, Mapping) and _OWN in value:
        raise OptionError(
            f"this family was made with a {option} of the user's own, {value[_OWN]}, which a config "
            f"cannot hold. Make the family in Python with {option}=..., and load its weights into that."
        )


def within_labels(coupling: Any, classes: int | None) -> Any:
    """The config of a coupling for a model of ``classes`` labels: the same, within each of them.

    A plan over all rows gives each label the part of the base nearest to its data, while sampling
    starts from all of it.
    """
    if coupling is None or classes is None:
        return coupling
    return {"name": "conditional", "coupling": coupling}


def as_path(path: Interpolant | str | Mapping[str, object] | None) -> Interpolant:
    """A path from itself, from its name, or from its config.

    Raises:
        UnknownName: no path of that name.
        OptionError: None, the config of a path that the user made.
    """
    if isinstance(path, Interpolant):
        return path
    if path is None:
        raise OptionError(
            "this family was made with a path of the user's own, which a config cannot hold. Make "
            "the family in Python with path=..., and load its weights into that."
        )
    return schedules.from_config({"name": path} if isinstance(path, str) else path)
