"""The perturbed twin of a path or a family: what a test that says yes must say no to."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from .. import families
from ..equivalence.families import exact_model
from ..errors import OptionError
from ..interpolant import Interpolant

_TRAINING = ("lr", "shape", "width", "network", "classes", "levels", "label_dropout")


def perturbed(one: Any, by: float = 0.01) -> Any:
    """Nearly the same path, or family, and another all the same.

    A path begins at the time ``by`` of the given one; a family has this path instead of its own. In
    a family without a path the first number among its options is larger by the share ``by``, or by 1.

    Args:
        one: an `Interpolant` or a family; left as it is.
        by: how much, in (0, 1).

    Raises:
        OptionError: a ``by`` out of range, or a family without a path and without a number.
    """
    if not 0 < by < 1:
        raise OptionError(f"by={by!r}. Give a share in (0, 1), e.g. 0.01.")
    if isinstance(one, Interpolant):
        return _later(one, by)
    exact = exact_model(one)
    if not isinstance(exact, str):
        twin, later = copy.deepcopy(one), _later(exact.path, by)
        if getattr(one, "path", None) is exact.path:
            twin.path = later
            if getattr(exact.regression, "path", None) is exact.path:
                twin.regression.path = later
        else:  # the path of a part of it
            twin.exact = lambda: replace(exact, path=later, regression=None)
        return twin
    config = dict(one.config)
    for key, value in config.items():
        if key in _TRAINING or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        config[key] = value + 1 if isinstance(value, int) else (value * (1 + by) or by)
        return families.create(one.name, **config)
    raise OptionError(
        f"{one.name} has neither a path nor a number among its options. Compare others."
    )


def _later(path: Interpolant, by: float) -> Interpolant:
    def clock(t: torch.Tensor) -> torch.Tensor:
        return (1 - by) * t if path.reversed else by + (1 - by) * t

    return path.warp(clock)
