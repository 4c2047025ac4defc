"""What float32 loses in a conversion of views, near both ends, beside the peers.

    python benchmarks/stability.py [--points 64] [--all]

Exact views of N(0.7, 0.6^2) in 60 digits are rounded to float32, converted by the library, and
compared with the exact target view: the root mean square over points drawn from the law at t,
relative to that of the target. The floor beside it is what rounding alone makes unavoidable: the
same rounded inputs converted in 60 digits and rounded once. Times are float32 numbers, and so are
1 - t, so that no library is charged for the rounding of t.

Peers, where they are installed (pip install interp[peers]), are compared with the exact views of
their own schedules: flow_matching's linear, cosine (our trigonometric) and VP schedulers, which
convert velocity, data and noise; azula's rectified, cosine and VP schedules with their defaults,
noise from data as its samplers take it. Beside azula's stands an Interpolant of its formulas as
they are written there, evaluated in float64 as every custom path is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath as mp
import torch
from torch import Tensor

from interp import Interpolant, schedules
from interp.views import VIEWS

Function = Callable[[Any], Any]
Convert = Callable[[Tensor, str, str, Tensor, float], Tensor]

MEAN, STD, SEED, DIGITS = 0.7, 0.6, 0, 60
MAIN = ("velocity", "score", "noise", "data")


def as_float32(t: float) -> float:
    """The nearest t that is a float32 as well as 1 - t."""
    return round(t * 2**24) / 2**24


DISTANCES = (1e-6, 1e-4, 1e-2)
TIMES = (*map(as_float32, DISTANCES), 0.5, *(as_float32(1 - u) for u in reversed(DISTANCES)))


# Definitions in as many digits as mpmath is asked for


def _vp_log(t: Any) -> Any:
    u, low = 1 - t, mp.mpf(0.1)
    return -u * u * (20 - low) / 4 - u * low / 2


def _cosine(t: Any) -> Any:
    c = mp.pi / 2 / (1 + mp.mpf(0.008))
    return mp.sin(c * t) / mp.sin(c)


def _left(beta: Function) -> Function:  # azula's sigma
    return lambda t: mp.sqrt((1 - beta(t)) * (1 + beta(t)) + mp.mpf(1e-3) ** 2)


def _azula_cosine(t: Any) -> Any:
    return mp.cos((1 - t) * mp.acos(mp.mpf(1e-3)))


def _azula_vp(t: Any) -> Any:
    return mp.exp(mp.log(mp.mpf(1e-3)) * (1 - t) ** 2)


def _beside(beta: Function) -> Function:
    return lambda t: mp.sqrt((1 - beta(t)) * (1 + beta(t)))


def _exp(log: Function) -> Function:
    return lambda t: mp.exp(log(t))


#: Sigma and beta of each path.
DEFINITIONS: Mapping[str, tuple[Function, Function]] = {
    "linear": (lambda t: 1 - t, lambda t: t),
    "cosine": (_beside(_cosine), _cosine),
    "VP": (lambda t: mp.sqrt(-mp.expm1(2 * _vp_log(t))), _exp(_vp_log)),
    "trigonometric": (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.sin(mp.pi * t / 2)),
    "azula rectified": (
        lambda t: 1 - t + t * mp.mpf(1e-3),
        lambda t: t + (1 - t) * mp.mpf(1e-3),
    ),
    "azula cosine": (_left(_azula_cosine), _azula_cosine),
    "azula VP": (_left(_azula_vp), _azula_vp),
}
PATHS = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "VP": schedules.variance_preserving(),
    "trigonometric": schedules.trigonometric(),
    "azula rectified": Interpolant(
        lambda t: 1 - t + t * 1e-3,
        lambda t: t + (1 - t) * 1e-3,
    ),
    "azula cosine": Interpolant(
        lambda t: torch.sqrt(1 - torch.cos((1 - t) * math.acos(1e-3)) ** 2 + 1e-3**2),
        lambda t: torch.cos((1 - t) * math.acos(1e-3)),
    ),
    "azula VP": Interpolant(
        lambda t: torch.sqrt(1 - torch.exp(2 * math.log(1e-3) * (1 - t) ** 2) + 1e-3**2),
        lambda t: torch.exp(math.log(1e-3) * (1 - t) ** 2),
    ),
}


class Exact:
    """The views of N(MEAN, STD^2) on a path at t, affine in x: each is slope x + offset."""

    def __init__(self, definition: tuple[Function, Function], t: float) -> None:
        now, small = mp.mpf(t), mp.mpf(10) ** (-DIGITS // 2)
        (s, b), (ds, db) = (
            [f(now) for f in definition],
            [mp.diff(f, now, h=small) for f in definition],
        )
        m, std2 = mp.mpf(MEAN), mp.mpf(STD) ** 2
        S = b * b * std2 + s * s
        self.mean, self.std = b * m, mp.sqrt(S)

        def affine(at_residual: Any, constant: Any) -> tuple[Any, Any]:
            slope = at_residual / S  # of (x - b m), and what is there without it
            return slope, constant - slope * b * m

        noise, data = affine(s, mp.mpf(0)), affine(b * std2, m)
        self.views = {
            "velocity": affine(b * db * std2 + s * ds, db * m),
            "score": affine(mp.mpf(-1), mp.mpf(0)),
            "noise": noise,
            "data": data,
            "base": noise,  # these paths have no latent
            "energy_gradient": affine(mp.mpf(1), mp.mpf(0)),
            "v_prediction": tuple(b * n - s * d for n, d in zip(noise, data, strict=True)),
            "flow_prediction": tuple(n - d for n, d in zip(noise, data, strict=True)),
        }

    def points(self, z: Tensor) -> list[Any]:
        return [self.mean + self.std * mp.mpf(v) for v in z.tolist()]

    def view(self, name: str, x: list[Any]) -> list[Any]:
        slope, offset = self.views[name]
        return [slope * v + offset for v in x]

    def shares(self, source: str, target: str) -> tuple[Any, Any]:
        """(p, q) of target = p x + q source: what holds for every x, also holds for rounded ones."""
        (a, b), (c, d) = self.views[source], self.views[target]
        q = d / b
        return c - q * a, q

    def convert(self, value: list[Any], source: str, target: str, x: list[Any]) -> list[Any]:
        """The target of given numbers, which need not be views of anything."""
        p, q = self.shares(source, target)
        return [p * u + q * v for u, v in zip(x, value, strict=True)]


def rounded(values: list[Any]) -> Tensor:
    """To float32, once."""
    return torch.tensor([float(v) for v in values], dtype=torch.float64).float()


def error(found: list[float], exact: list[Any]) -> float:
    """Root mean square error relative to the exact values."""
    if not all(math.isfinite(v) for v in found):
        return math.inf
    off = mp.fsum((v - e) ** 2 for v, e in zip(found, exact, strict=True))
    return float(mp.sqrt(off / mp.fsum(e * e for e in exact)))


def measure(
    path: str, t: float, source: str, target: str, z: Tensor, converters: Mapping[str, Convert]
) -> dict[str, float]:
    """The floor and the error of each converter."""
    with mp.workdps(DIGITS):
        exact = Exact(DEFINITIONS[path], t)
        points = exact.points(z)
        truth = exact.view(target, points)
        x, value = rounded(points), rounded(exact.view(source, points))
        on_rounded = exact.convert(
            [mp.mpf(v) for v in value.tolist()], source, target, [mp.mpf(v) for v in x.tolist()]
        )
        figures = {"floor": error(rounded(on_rounded).tolist(), truth)}
        for name, convert in converters.items():
            figures[name] = error(convert(value, source, target, x, t).double().tolist(), truth)
    return figures


# The libraries


def ours(path: str) -> Convert:
    return lambda value, source, target, x, t: PATHS[path].convert(value, source, target, x, t)


def by_flow_matching(path: str) -> Mapping[tuple[str, str], Convert]:
    """Its conversions on the scheduler that is this path; none where it has none."""
    try:
        from flow_matching.path import AffineProbPath
        from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, VPScheduler
    except ImportError:
        return {}
    known = {"linear": CondOTScheduler, "trigonometric": CosineScheduler, "VP": VPScheduler}
    if path not in known:
        return {}
    affine = AffineProbPath(known[path]())
    words = {"velocity": "velocity", "data": "target", "noise": "epsilon"}
    pairs = [(s, T) for s in words for T in words if s != T]

    def converter(source: str, target: str) -> Convert:
        call = getattr(affine, f"{words[source]}_to_{words[target]}")
        return lambda value, s, T, x, t: call(value, x, torch.full_like(x, t))

    return {pair: converter(*pair) for pair in pairs}


def by_azula(path: str) -> Mapping[tuple[str, str], Convert]:
    """Noise from data by its schedules' alpha and sigma; its time is 1 - t."""
    try:
        from azula.noise import CosineSchedule, RectifiedSchedule, VPSchedule
    except ImportError:
        return {}
    known = {
        "azula rectified": RectifiedSchedule(),
        "azula cosine": CosineSchedule(),
        "azula VP": VPSchedule(),
    }
    if path not in known:
        return {}

    def convert(value: Tensor, source: str, target: str, x: Tensor, t: float) -> Tensor:
        alpha, sigma = known[path](1 - torch.full_like(x, t))
        return (x - alpha * value) / sigma

    return {("data", "noise"): convert}


def rows(points: int) -> list[dict[str, Any]]:
    """Every path, time and pair of views."""
    z = torch.randn(points, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    found = []
    for path in DEFINITIONS:
        peers = {"flow_matching": by_flow_matching(path), "azula": by_azula(path)}
        for t in TIMES:
            for source in VIEWS:
                for target in VIEWS:
                    converters = {
                        n: p[source, target] for n, p in peers.items() if (source, target) in p
                    }
                    if source == target or (path.startswith("azula") and not converters):
                        continue
                    converters["interp"] = ours(path)
                    figures = measure(path, t, source, target, z, converters)
                    found.append(
                        {"path": path, "t": t, "source": source, "target": target, **figures}
                    )
    return found


def table(found: list[dict[str, Any]], everything: bool) -> str:
    """Markdown, one conversion a line; without ``everything`` the ends and the four main views."""
    head = ["path", "t", "from", "to", "floor", "interp", "/ floor", "flow_matching", "azula"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ends = (TIMES[0], TIMES[-1])
    for row in found:
        main = row["source"] in MAIN and row["target"] in MAIN and row["t"] in ends
        if not (everything or main):
            continue
        near = f"{row['t']:g}" if row["t"] < 0.9 else f"1 - {1 - row['t']:.1g}"
        mine = row.get("interp")
        cells = [row["path"], near, row["source"], row["target"], f"{row['floor']:.1e}"]
        cells += ["", ""] if mine is None else [f"{mine:.1e}", f"{mine / row['floor']:.1f}"]
        cells += [f"{row[n]:.1e}" if n in row else "" for n in ("flow_matching", "azula")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of each library: its error over the floor, and where."""
    worst = {}
    for name in ("interp", "flow_matching", "azula"):
        having = [r for r in found if name in r]
        if having:
            r = max(having, key=lambda r: r[name] / r["floor"])
            where = {k: r[k] for k in ("path", "t", "source", "target", "floor")}
            worst[name] = {"times_floor": r[name] / r["floor"], "error": r[name], **where}
    return worst


def _cell(value: object) -> str:
    """A figure to three digits, a time in full, nothing where there is none."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return repr(value) if value in TIMES else f"{value:.3g}"


def main() -> None:
    from report import write

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--all", action="store_true", help="print every view and time")
    args = parser.parse_args()
    found = rows(args.points)
    print(table(found, args.all))
    for name in ("flow_matching", "azula"):
        if not any(name in row for row in found):
            print(f"{name} is not installed: pip install interp[peers]")
    for name, worst in summary(found).items():
        print(
            f"{name}: at worst {worst['times_floor']:.3g} times the floor, an error of "
            f"{worst['error']:.1e}: {worst['source']} to {worst['target']} on {worst['path']} at "
            f"t = {worst['t']:.9g}"
        )
    packages = ("interp", "torch", "mpmath", "flow_matching", "azula")
    columns = ("path", "t", "source", "target", "floor", "interp", "flow_matching", "azula")
    lines = [", ".join(_cell(row.get(name)) for name in columns) for row in found]
    worst = {n: {k: _cell(v) for k, v in w.items()} for n, w in summary(found).items()}
    path = write(
        "stability", packages, SEED, points=args.points, worst=worst, columns=columns, rows=lines
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
