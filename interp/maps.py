"""The views of a map between two times, and what turns each into each.

X(t, r, x) is the point to which the probability flow carries x from t to r, forwards or backwards.
On a path with a Gaussian base it says as much as the pair (D, n) of data and noise whose point goes
through both ends,

    x = beta_t D + sigma_t n,     X = beta_r D + sigma_r n,

that is, whose constant data estimate makes one first-order step (DDIM) the exact one. So the table of
`interp.views` holds for maps too, its slopes being divided differences between t and r:

    view           w * value = a D + c n, w = 1   at r = t
    point          beta_r D + sigma_r n           x, which tells nothing
    mean_velocity  the same less x, by r - t      velocity, E[dI/dt | x]
    data           D                              data, E[x1 | x]
    noise, ...     n, ...                         noise, E[standardised noise | x], ...

Where sigma(r) = 0 and beta(r) = 1 the data are the point: a consistency function (Song, Dhariwal, Chen,
Sutskever, 2303.01469). The mean velocity is that of Geng, Deng, Bai, Kolter, He (2505.13447), in our time,
and the shortcut of Frans, Hafner, Levine, Abbeel (2410.12557). On a path with beta = cos w, sigma = sin w
the v_prediction has X = cos(w - w_r) x - sin(w - w_r) v, as a TrigFlow network (Lu, Song, 2410.11081).

Nothing is divided by r - t but to tell a mean velocity from a point, which at r = t does not determine
it; every other conversion is the limit there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import views
from .arguments import Time, holds, require_same, spread
from .errors import UndeterminedView, UnknownName

if TYPE_CHECKING:
    from .interpolant import Interpolant

_BETWEEN = ("point", "mean_velocity")  # they tell each other on every path


def check(view: object) -> None:
    """Refuse what is not a view of a map.

    Raises:
        UnknownName: names the nearest.
    """
    if view not in views.MAP_VIEWS:
        raise UnknownName.of("view of a map", view, views.MAP_VIEWS)


def converted(
    path: Interpolant, value: Tensor, source: str, target: str, x: Tensor, t: Time, r: Time
) -> Tensor:
    """One view of the map from ``t`` to ``r`` as another; see `Interpolant.convert`."""
    require_same(x=x, value=value)
    check(source)
    check(target)
    first, second = path._time_of(t, x), path._time_of(r, x)
    if source == target:
        return value
    source, target = (_on_diagonal(view, first, second) for view in (source, target))
    if source in _BETWEEN and target in _BETWEEN:
        return _between(value, source, target, x, second - first)
    if not path.gaussian_base:
        raise UndeterminedView(
            f"the {source} of a map does not determine its {target} on this path, whose base is not "
            "Gaussian: only point and mean_velocity tell each other. Give a model of one of the two."
        )
    p, q = views.weights(path.secant(first, second), source, target)
    return path.combine((q, 0.0 if p is None else p), (value, x))


def _on_diagonal(view: str, t: Tensor, r: Tensor) -> str:
    """The mean velocity in place of the velocity, which is its limit at r = t."""
    if view != "velocity":
        return view
    if not holds(t == r):
        raise UndeterminedView(
            "a map between two different times has no velocity, which is that of one time. Ask for "
            "the mean_velocity, or for r = t."
        )
    return "mean_velocity"


def _between(value: Tensor, source: str, target: str, x: Tensor, h: Tensor) -> Tensor:
    """X = x + h u."""
    if source == target:
        return value
    if target == "point":
        return torch.addcmul(x, spread(h, x), value)
    if not holds(h != 0):
        raise UndeterminedView(
            "at r = t the point is x itself, and does not determine the velocity. Ask for r different "
            "from t, or have a model of the mean_velocity."
        )
    return (value - x) / spread(h, x)
