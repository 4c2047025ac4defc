"""Two families: their paths, who they pair, what their losses weigh, one step, and what they sample.

Of a family of a path are read ``path``, ``view`` and, where it has them, ``pairing``, ``regression`` and
``sampler``. A family without a path has at most ``no_path``, the sentence that says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

from ..errors import InterpError
from ..interpolant import Interpolant
from ..terms import PathMap
from ..views import VIEWS
from . import measures
from .measures import Apart
from .paths import PathReport, compare_paths
from .table import Table

_NAN = math.nan

RELATIONS = {
    "one": "one model in other clothes",
    "overlap": "one where both have the noise level; their ends differ",
    "map": "one flow, of which one learns the field and the other the solution",
    "pairs": "other pairs of noise and data",
    "curve": "different curves between base and data",
    "base": "a Gaussian base against any base",
    "none": "no interpolant",
}


@dataclass(frozen=True)
class FamilyReport(PathReport):
    """What `compare` found of two families; beside the paths:

    Attributes:
        relation: one of `RELATIONS`; `equivalent` is True for "one" alone.
        views: what each network returns.
        pairing: how each pairs noise and data, as it stands.
        apart: differences of log density, of the data estimate by each network's view, after one
            first-order step (DDIM) and after the whole flow, on each path with the exact model of a
            mixture, at matched times and after the scale map; NaN without Gaussian bases.
        pairs_apart: the root mean square difference of their exact velocities, on the first's path at
            t = 1/2, for data N(1/2, 1/4); 0 for equal pairs, NaN where a plan has no closed form.
        sample_errors: the W2 distance from data N(1/2, 1/4) of what each makes of them by its own
            sampler and its exact model.
        loss_ratio: the losses, in expectation, are sum_lambda w(lambda) E|n_model - n|^2 with the weight
            and the law of time of each; this is the largest of w_a / w_b over its smallest, where both
            put 99 % of theirs: 1 where they are one loss up to a constant.
    """

    relation: str = "none"
    views: tuple[str, str] = ("", "")
    pairing: tuple[str, str] = ("", "")

    # Measured when asked for: whether they are one is known without.

    @cached_property
    def apart(self) -> Apart:
        """How far apart their exact models of a mixture are; see the class."""
        if not self._matched or self.pairing[0] != self.pairing[1]:
            return Apart()
        own = [view if view in VIEWS else "velocity" for view in self.views]
        return cast(Apart, _tried(lambda: measures.apart(self._between(), *own), Apart()))

    @cached_property
    def pairs_apart(self) -> float:
        """How far apart their velocities are by their pairs; see the class."""
        if self.pairing[0] == self.pairing[1]:
            return 0.0
        if not self._matched:
            return _NAN
        return float(_tried(lambda: measures.pairs_apart(self.a, self.b), _NAN))

    @cached_property
    def sample_errors(self) -> tuple[float, float]:
        """How far their own samples are from the data; see the class."""
        if not self._matched:
            return _NAN, _NAN
        a, b = (_tried(partial(measures.sampled, one), _NAN) for one in (self.a, self.b))
        return a, b

    @cached_property
    def loss_ratio(self) -> float:
        """How far the weights of their losses are apart, as a factor; see the class."""
        if not self._matched or any(view not in VIEWS for view in self.views):
            return _NAN  # the loss of a map is no regression of a view
        return measures.loss_ratio(self.a, self.b, self._between())

    @property
    def _matched(self) -> bool:
        return self._change is not None and bool(self.a.path.gaussian_base)

    @property
    def step_error(self) -> float:
        """After one first-order step: see ``apart``."""
        return self.apart.step

    @property
    def flow_error(self) -> float:
        """After the whole flow: see ``apart``."""
        return self.apart.flow

    def rows(self) -> list[tuple[str, str]]:
        """What the table says, line by line."""
        if self.relation == "none":
            return [("equivalent", "no"), ("because", self.reason)]
        *lines, because = super().rows()
        if not self.views[0]:
            return [lines[0], because]
        lines.insert(1, ("they are", RELATIONS[self.relation]))
        lines.append(("networks return", " and ".join(self.views)))
        said = " and ".join(dict.fromkeys(self.pairing))
        gap = "" if not self.pairs_apart > 0 else f": velocities {self.pairs_apart:.2g} apart"
        lines.append(("noise and data paired", said + gap))
        if not math.isnan(self.loss_ratio):
            one = " (one loss)" if self.loss_ratio < 1.01 else ""
            lines.append(("weights of the losses", f"within a factor {self.loss_ratio:.3g}{one}"))
        if not math.isnan(self.apart.flow):
            a = self.apart
            lines += [
                ("log densities apart", f"{a.marginals:.2g}"),
                ("views apart", f"{a.views:.2g}, as data estimates"),
                ("one DDIM step apart", f"{a.step:.2g}"),
                ("flows apart", f"{a.flow:.2g}, on a mixture of two normals"),
            ]
        if not math.isnan(self.sample_errors[0]):
            own = " and ".join(f"{error:.1g}" for error in self.sample_errors)
            lines.append(("own samplers miss by (W2)", f"{own}, for data N(0.5, 0.25)"))
        lines += [("in phases", said) for said in map(_phases, (self.a, self.b)) if said]
        return [*lines, because]

    def __str__(self) -> str:
        return str(Table(f"{_name(self.a)}  and  {_name(self.b)}", self.rows()))


def _name(family: Any) -> str:
    return getattr(family, "name", "") or type(family).__name__


def _phases(family: Any) -> str:
    names = family.stages() if hasattr(family, "stages") else ()
    return f"{_name(family)} trains {', '.join(names)}; as it stands now" if names[1:] else ""


def compare_families(a: Any, b: Any, tol: float) -> FamilyReport:
    """See `interp.equivalence.compare`."""
    if without := [one for one in (a, b) if _why_not(one)]:
        return _without_path(a, b, without[0], tol)
    try:
        paths = compare_paths(a.path, b.path, tol)
    except InterpError as error:  # one schedule an element
        return FamilyReport(a, b, False, _NAN, _NAN, _NAN, str(error), tol, None, relation="curve")
    shared = {
        f.name: getattr(paths, f.name)
        for f in dataclasses.fields(PathReport)
        if f.name not in ("a", "b")
    }
    views, pairs = (_view(a), _view(b)), (_pairs(a), _pairs(b))
    relation, reason = _relation(paths, (a, b), views, pairs)
    found = {"relation": relation, "reason": reason, "equivalent": relation == "one"}
    return FamilyReport(a, b, **{**shared, **found}, views=views, pairing=pairs)


def _tried(measure: Callable[[], Any], otherwise: Any) -> Any:
    """A measure that a family of another kind may not have."""
    try:
        return measure()
    except (InterpError, AttributeError):
        return otherwise


def _why_not(family: Any) -> str:
    """Why a family is no interpolant of its data; empty where it is one."""
    if said := str(getattr(family, "no_path", "")):
        return f"{_name(family)} is no interpolant: {said}"
    if not isinstance(getattr(family, "path", None), Interpolant):
        return (
            f"{_name(family)} is no interpolant: it has no path of points between noise and data that a "
            "time and a scale could carry onto another."
        )
    return ""


def _without_path(a: Any, b: Any, without: Any, tol: float) -> FamilyReport:
    if type(a) is type(b) and _name(a) == _name(b) and _options(a) == _options(b):
        reason = f"both are {_name(a)}, and so are all their options."
        return FamilyReport(a, b, True, 0.0, _NAN, _NAN, reason, tol, None, relation="one")
    reason = _why_not(without)
    if type(a) is type(b) and _name(a) == _name(b):
        mine, theirs = _options(a), _options(b)
        other = [key for key in mine if mine[key] != theirs.get(key)]
        reason = f"both are {_name(a)}, with other options: {', '.join(other)}."
    return FamilyReport(a, b, False, math.pi / 2, _NAN, _NAN, reason, tol, None)


def _options(family: Any) -> dict[str, Any]:
    """What of a config makes another model: all but the learning rate."""
    return {k: v for k, v in dict(getattr(family, "config", {})).items() if k != "lr"}


def _view(family: Any) -> str:
    return str(getattr(family, "view", "velocity"))


def _is_map(family: Any) -> bool:
    """Whether the family is a map between two times, which its ``flow_map`` or its ``term`` then is."""
    made = (getattr(family, name, None) for name in ("flow_map", "term"))
    return any(isinstance(_tried(make, None), PathMap) for make in made if make is not None)


def _pairs(family: Any) -> str:
    return str(getattr(family, "pairing", "independent"))


def _relation(
    paths: PathReport, families: tuple[Any, Any], views: tuple[str, str], pairs: tuple[str, str]
) -> tuple[str, str]:
    """Which of `RELATIONS` it is, and why."""
    a, b = (_name(one) for one in families)
    if paths._change is None:
        one_base = families[0].path.gaussian_base == families[1].path.gaussian_base
        return ("curve" if one_base else "base"), paths.reason
    if pairs[0] != pairs[1]:
        return "pairs", (
            f"{a} pairs noise and data by {pairs[0]}, {b} by {pairs[1]}. Where the ends go together "
            "otherwise, the points between have another velocity."
        )
    maps = [_is_map(one) for one in families]
    if maps[0] != maps[1]:
        field_, map_ = (b, a) if maps[0] else (a, b)
        return "map", (
            f"{map_} learns where the flow of {field_} leads: an integral of its field, to which no "
            "change of time, scale and view leads."
            + ("" if paths.equivalent else f" And {paths.reason}")
        )
    return ("one" if paths.equivalent else "overlap"), paths.reason
