"""Two families: their paths, who they pair, what their losses weigh, one step, and what they sample.

Of a family is read its `interp.families.ExactModel`, from ``exact()``; one that is no interpolant raises
there, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, cast

from ..errors import InterpError, Unsupported
from ..families import ExactModel
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
    "maps": "maps of one flow: one to its end, one between any two times",
    "pairs": "other pairs of noise and data",
    "curve": "different curves between base and data",
    "base": "a Gaussian base against any base",
    "space": "laws of points of other spaces",
    "none": "no interpolant",
}


@dataclass(frozen=True)
class FamilyReport(PathReport):
    """What `compare` found of two families; beside the paths:

    Attributes:
        relation: one of `RELATIONS`; `equivalent` is True for "one" alone.
        models: what each is when nothing is left to learn, an `interp.families.ExactModel`; None for one
            that is no interpolant.
        apart: differences of log density, of the data estimate by each network's view, after one
            first-order step (DDIM) and after the whole flow, on each path with the exact model of a
            mixture, at matched times and after the scale map; NaN without Gaussian bases.
        maps_apart: of two maps of one flow, the largest difference of where they carry points of a mixture
            on the line from matched times to the end; NaN where their runs end elsewhere.
        pairs_apart: the root mean square difference of their exact velocities, on the first's path at
            t = 1/2, for data N(1/2, 1/4); 0 for equal pairs, NaN where a plan has no closed form.
        sample_errors: the W2 distance from data N(1/2, 1/4) of what each makes of them by its own
            sampler and its exact model.
        loss_ratio: the losses, in expectation, are sum_lambda w(lambda) E|n_model - n|^2 with the weight
            and the law of time of each; this is the largest of w_a / w_b over its smallest, where both
            put 99 % of theirs: 1 where they are one loss up to a constant; NaN where one is no regression.
    """

    relation: str = "none"
    models: tuple[ExactModel | None, ExactModel | None] = (None, None)

    # Measured when asked for: whether they are one is known without.

    @cached_property
    def apart(self) -> Apart:
        """How far apart their exact models of a mixture are; see the class."""
        if not (pair := self._matched) or pair[0].pairs != pair[1].pairs:
            return Apart()
        own = [one.view if one.view in VIEWS else "velocity" for one in pair]
        return cast(Apart, _tried(lambda: measures.apart(self._between(), *own), Apart()))

    @cached_property
    def maps_apart(self) -> float:
        """How far apart they are as maps; see the class."""
        if not (pair := self._matched) or self.relation not in ("maps", "one"):
            return _NAN
        if any(one.view in VIEWS for one in pair):
            return _NAN
        views = (pair[0].view, pair[1].view)
        return float(_tried(lambda: measures.maps_apart(self._between(), *views), _NAN))

    @cached_property
    def pairs_apart(self) -> float:
        """How far apart their velocities are by their pairs; see the class."""
        if not (pair := self._matched):
            return _NAN
        if pair[0].pairs == pair[1].pairs:
            return 0.0
        return float(_tried(lambda: measures.pairs_apart(*pair), _NAN))

    @cached_property
    def sample_errors(self) -> tuple[float, float]:
        """How far their own samples are from the data; see the class."""
        if not (pair := self._matched):
            return _NAN, _NAN
        a, b = (_tried(partial(measures.sampled, one), _NAN) for one in pair)
        return a, b

    @cached_property
    def loss_ratio(self) -> float:
        """How far the weights of their losses are apart, as a factor; see the class."""
        if not (pair := self._matched) or any(one.regression is None for one in pair):
            return _NAN
        return float(_tried(lambda: measures.loss_ratio(*pair, self._between()), _NAN))

    @property
    def _matched(self) -> tuple[ExactModel, ExactModel] | None:
        """Both exact models, where a change of time and scale leads from one Gaussian base to the other."""
        a, b = self.models
        if (
            a is None
            or b is None
            or a.space != b.space
            or self._change is None
            or not a.path.gaussian_base
        ):
            return None
        return a, b

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
        if self.relation in ("none", "space"):
            return [("equivalent", "no"), ("because", self.reason)]
        *lines, because = super().rows()
        a, b = self.models
        if a is None or b is None:
            return [lines[0], because]
        lines.insert(1, ("they are", RELATIONS[self.relation]))
        lines.append(("networks return", f"{a.view} and {b.view}"))
        said = " and ".join(dict.fromkeys((a.pairs, b.pairs)))
        gap = "" if not self.pairs_apart > 0 else f": velocities {self.pairs_apart:.2g} apart"
        lines.append(("noise and data paired", said + gap))
        if none := [_name(f) for f, m in ((self.a, a), (self.b, b)) if m.regression is None]:
            lines.append(
                ("weights of the losses", f"that of {' and '.join(none)} is no regression")
            )
        elif not math.isnan(self.loss_ratio):
            one = " (one loss)" if self.loss_ratio < 1.01 else ""
            lines.append(("weights of the losses", f"within a factor {self.loss_ratio:.3g}{one}"))
        if not math.isnan(self.apart.flow):
            off = self.apart
            lines += [
                ("log densities apart", f"{off.marginals:.2g}"),
                ("views apart", f"{off.views:.2g}, as data estimates"),
                ("one DDIM step apart", f"{off.step:.2g}"),
                ("flows apart", f"{off.flow:.2g}, on a mixture of two normals"),
            ]
        if not math.isnan(self.maps_apart):
            lines.append(("maps apart", f"{self.maps_apart:.2g}, on a mixture on the line"))
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
    models = (exact_model(a), exact_model(b))
    mine, theirs = (None if isinstance(one, str) else one for one in models)
    if mine is None or theirs is None:
        why = next(one for one in models if isinstance(one, str))
        return _without_path(a, b, why, tol, (mine, theirs))
    try:
        paths = compare_paths(mine.path, theirs.path, tol)
    except InterpError as error:  # one schedule an element
        return FamilyReport(a, b, False, _NAN, _NAN, _NAN, str(error), tol, None, relation="curve")
    shared = {
        f.name: getattr(paths, f.name) for f in fields(PathReport) if f.name not in ("a", "b")
    }
    relation, reason = _relation(paths, (_name(a), _name(b)), mine, theirs)
    found = {"relation": relation, "reason": reason, "equivalent": relation == "one"}
    return FamilyReport(a, b, **{**shared, **found}, models=(mine, theirs))


def exact_model(family: Any) -> ExactModel | str:
    """What a family is when nothing is left to learn, or why it is no interpolant."""
    if not hasattr(family, "exact"):
        return f"{_name(family)} does not say by exact() which path and view its exact model is of."
    try:
        found: ExactModel = family.exact()
    except Unsupported as error:
        return str(error)
    return found


def _tried(measure: Callable[[], Any], otherwise: Any) -> Any:
    """A measure that a family of another kind may not have."""
    try:
        return measure()
    except (InterpError, AttributeError):
        return otherwise


def _without_path(
    a: Any, b: Any, why: str, tol: float, models: tuple[ExactModel | None, ExactModel | None]
) -> FamilyReport:
    alike = models == (None, None) and type(a) is type(b) and _name(a) == _name(b)
    mine, theirs = _options(a), _options(b)
    if alike and mine == theirs:
        reason = f"both are {_name(a)}, and so are all their options."
        return FamilyReport(
            a, b, True, 0.0, _NAN, _NAN, reason, tol, None, relation="one", models=models
        )
    if alike:
        other = [key for key in mine if mine[key] != theirs.get(key)]
        why = f"both are {_name(a)}, with other options: {', '.join(other)}."
    return FamilyReport(a, b, False, math.pi / 2, _NAN, _NAN, why, tol, None, models=models)


def _options(family: Any) -> dict[str, Any]:
    """What of a config makes another model: all but the learning rate."""
    return {k: v for k, v in dict(getattr(family, "config", {})).items() if k != "lr"}


def _relation(
    paths: PathReport, names: tuple[str, str], mine: ExactModel, theirs: ExactModel
) -> tuple[str, str]:
    """Which of `RELATIONS` it is, and why."""
    a, b = names
    if mine.space != theirs.space:
        where = [one.space.split(" {")[0] for one in (mine, theirs)]
        return "space", (
            f"{a} is a law of {where[0]} and {b} of {where[1]}"
            + (", other ones." if where[0] == where[1] else ".")
        )
    if paths._change is None:
        one_base = mine.path.gaussian_base == theirs.path.gaussian_base
        return ("curve" if one_base else "base"), paths.reason
    if mine.pairs != theirs.pairs:
        return "pairs", (
            f"{a} pairs noise and data by {mine.pairs}, {b} by {theirs.pairs}. Where the ends go together "
            "otherwise, the points between have another velocity."
        )
    ends = "" if paths.equivalent else f" And {paths.reason}"
    if (mine.view in VIEWS) != (theirs.view in VIEWS):
        field_, map_ = (a, b) if mine.view in VIEWS else (b, a)
        return "map", (
            f"{map_} learns where the flow of {field_} leads: an integral of its field, to which no "
            f"change of time, scale and view leads.{ends}"
        )
    if mine.view != theirs.view and mine.view not in VIEWS:
        end, any_ = (a, b) if mine.view == "point" else (b, a)
        return "maps", (
            f"{end} learns X(t, 1, x), which {any_} has at r = 1 as x + (1 - t) U(t, 1, x); from there to "
            f"U(t, r, x) the map to the end would have to be inverted.{ends}"
        )
    return ("one" if paths.equivalent else "overlap"), paths.reason
