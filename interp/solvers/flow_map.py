"""Steps of a map between two times: one call of its model each, exact where the model is."""

from __future__ import annotations

import itertools

from torch import Tensor

from ..arguments import host
from ..errors import OptionError
from ..terms import PathMap
from .plan import Plan, Request, pose
from .problem import Observer
from .programme import Move, compiled
from .recurrence import run_of


def flow_map(term: PathMap, x: Tensor, request: Request, observer: Observer | None) -> Plan:
    """x_r = X(t, r, x) from each time of the grid to the next.

    With ``renoise`` a step maps to t = 1 and noises back to r by a normal of its own, numbered by the
    step: x_r = share X(t, 1, x) + noise z, the multistep sampling of consistency models (Song, Dhariwal,
    Chen, Sutskever, 2303.01469, algorithm 1). At t = 1 the state is the map's: a path that keeps noise
    there gets no further step to clean data.
    """
    times = request.times
    renoise = request.options.get("renoise", False)
    if not isinstance(renoise, bool):
        raise OptionError(f"renoise={renoise!r} is neither True nor False. Give one of the two.")
    pairs = list(itertools.pairwise(times))
    shares = term.renoised(times) if renoise else [(1.0, 0.0)] * len(pairs)
    goal = {t: host(1.0 if renoise else r) for t, r in pairs}

    def field(t: Tensor, y: Tensor) -> Tensor:
        return term.between(t, goal[float(t)].to(t.device), y, request.cond)

    moves = [
        Move(t, slopes={i: share}, noise=[(noise, float(i), None, 0.0)], end=r)
        for i, ((t, r), (share, noise)) in enumerate(zip(pairs, shares, strict=True))
    ]
    programme = compiled(moves, times[0], request.saves)
    problem = pose(x, x, request.saves, field, True, request.backend)
    problem.observer = observer
    return run_of(programme, problem, request, term, x)
