"""Error against steps for each schedule, the best one that we can find beside them.

    python benchmarks/schedules.py [--parts mixtures single digits purposes picture]
                                   [--seeds 1] [--steps 4 8 16] [--run RUN]

Error is the RMS distance, per element, between where a run ends and where the flow itself takes the
same starts (dopri5 at 1e-9), and beside it the sliced Wasserstein distance between these two sets of
ends. Every schedule is a path, integrated by Heun where its view is regular, and a grid on it; each
closed form is shown with even steps, with the best of the named grids of `interp.grids`, and with the
best grid that `interp.best_schedule` finds for it.

mixtures  Mixtures of five normal laws in the plane: one schedule is optimised on half of them, and
          reported on the other half.
single    One mixture at a time, as for the one model that one has: optimised on some starts,
          reported on others; four mixtures for each seed.
digits    A network trained on scikit-learn's digits: optimised on some starts, reported on others.
purposes  What the grid of each objective gives each solver, on the linear path, in 8 steps.
picture   docs/best_schedule.png from the results of the first three, where there are several steps.

Each part writes results/schedules_PART.json. Numbers of several mixtures or seeds are geometric means,
"typical"; the mixtures also have the RMS over all of them, in which the hardest count most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mixtures import DIM, F64, Several, check
from report import RESULTS, write
from torch import Tensor

import interp
from interp import schedules
from interp.training import data, load
from interp.tuning import BestSchedule

MIXTURES, ROWS, REPORTED = 16, 24, 256
DOCS = Path(__file__).parent.parent / "docs"

#: Each closed form with the view in which its sampling is usually stated.
CLOSED: Mapping[str, tuple[interp.Interpolant, str]] = {
    "linear": (schedules.linear(), "velocity"),
    "trigonometric": (schedules.trigonometric(), "velocity"),
    "polynomial n=2": (schedules.polynomial(2), "velocity"),
    "cosine": (schedules.cosine(), "data"),
    "variance preserving": (schedules.variance_preserving(), "data"),
    "edm": (schedules.edm(0.002, 80.0), "noise"),
}


# Errors


def sliced(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """Sliced Wasserstein distance W2 of two sets of as many points, each (n, d)."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(a.shape[-1], directions, generator=g, dtype=a.dtype)
    u = u / u.norm(dim=0)
    return ((a @ u).sort(0).values - (b @ u).sort(0).values).square().mean().sqrt().item()


Errors = dict[str, float]
Ends = Callable[[interp.Interpolant, str, dict[str, object]], Tensor]


def errors(
    ends: Ends, path: interp.Interpolant, view: str, solver: str, grid: object, **more: object
) -> Errors:  # fmt: skip
    """How far the ends are from the flow's, and their laws."""
    truth = ends(path, view, {"rtol": 1e-9, "atol": 1e-9})
    found = ends(path, view, {"method": solver, "grid": grid, **more})
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(found, truth, strict=True)]
    return {
        "typical": statistics.geometric_mean(rms(a - b) for a, b in pairs),
        "rms": rms(found - truth),
        "laws": statistics.geometric_mean(sliced(a, b) for a, b in pairs),
    }


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def mixture_ends(laws: Several, seed: int) -> Ends:
    """Ends of fresh starts, (mixtures, rows, d)."""

    def ends(path: interp.Interpolant, view: str, options: dict[str, object]) -> Tensor:
        n = len(laws.means)
        x = path.base.sample((n * REPORTED, DIM), seed=seed, dtype=F64)
        model = getattr(laws, view)(path)
        found = interp.solve(path.ode(model, view=view), x, **options).x
        return found.reshape(REPORTED, n, DIM).transpose(0, 1)

    return ends


def even(steps: int) -> list[float]:
    return torch.linspace(0, 1, steps + 1, dtype=F64).tolist()


# Parts


def compared(
    search: Callable[..., BestSchedule], ends: Ends, solver: str, steps: int,
    closed: Mapping[str, tuple[interp.Interpolant, str]],
) -> dict[str, dict[str, Errors]]:  # fmt: skip
    """Errors by schedule: closed forms, the ensemble of two of them, and the best path."""
    rows: dict[str, dict[str, Errors]] = {}
    for name, (path, view) in closed.items():
        best = search(path, view, solver, steps, "grid")
        rows[name] = {
            "even": errors(ends, path, view, solver, even(steps)),
            "named grid": errors(
                ends, path, view, solver, min(best.starts, key=best.starts.get), steps=steps
            ),
            "best grid": errors(ends, path, view, solver, list(best.grid)),
        }
    mixed = schedules.ensemble([closed["linear"][0], closed["trigonometric"][0]])
    best = search(mixed, "velocity", solver, steps, "grid")
    rows["ensemble"] = {
        "even": errors(ends, mixed, "velocity", solver, even(steps)),
        "best grid": errors(ends, mixed, "velocity", solver, list(best.grid)),
    }
    best = search(closed["linear"][0], "velocity", solver, steps, "path")
    found = errors(ends, best.path, "velocity", solver, list(best.grid))
    rows["optimised path"] = {"best grid": found}
    return rows


def mixtures(seed: int, solver: str, steps: int) -> dict[str, dict[str, Errors]]:
    """One schedule for several mixtures, reported on as many others."""
    laws = Several.drawn(2 * MIXTURES, seed)
    seen, other = laws.part(slice(0, MIXTURES)), laws.part(slice(MIXTURES, None))

    def search(
        path: interp.Interpolant, view: str, solver: str, steps: int, what: str
    ) -> BestSchedule:
        x = path.base.sample((2 * MIXTURES * ROWS, DIM), seed=seed, dtype=F64)
        return interp.best_schedule(
            seen, solver, steps, optimise=what, path=path, view=view, x=x, iterations=12
        )

    return compared(search, mixture_ends(other, seed + 1000), solver, steps, CLOSED)


def single(seed: int, solver: str, steps: int) -> dict[str, dict[str, Errors]]:
    """A schedule for one mixture, reported on other starts."""
    law = Several.drawn(1, seed)

    def search(
        path: interp.Interpolant, view: str, solver: str, steps: int, what: str
    ) -> BestSchedule:
        x = path.base.sample((2 * REPORTED, DIM), seed=seed, dtype=F64)
        return interp.best_schedule(
            law, solver, steps, optimise=what, path=path, view=view, x=x, iterations=12
        )

    three = {name: CLOSED[name] for name in ("linear", "trigonometric", "polynomial n=2")}
    return compared(search, mixture_ends(law, seed + 1000), solver, steps, three)


def purposes(seed: int, solvers: Sequence[str]) -> dict[str, dict[str, Errors]]:
    """The grid of each objective on the linear path, in 8 steps of each solver."""
    laws = Several.drawn(2 * MIXTURES, seed)
    seen, other = laws.part(slice(0, MIXTURES)), laws.part(slice(MIXTURES, None))
    path, ends, steps = schedules.linear(), mixture_ends(other, seed + 1000), 8
    x = path.base.sample((2 * MIXTURES * 8, DIM), seed=seed, dtype=F64)
    rows: dict[str, dict[str, Errors]] = {}
    for objective in ("kinetic_energy", "lipschitz", "likelihood", "local_error", "end_error"):
        own = objective in ("local_error", "end_error")
        found: dict[str, list[float]] = {}
        for solver in solvers if own else solvers[:1]:
            best = interp.best_schedule(
                seen, solver, steps, objective, path=path, x=x, iterations=10
            )
            found[solver] = list(best.grid)
        rows[objective] = {
            solver: errors(ends, path, "velocity", solver, found.get(solver, found[solvers[0]]))
            for solver in solvers
        }
    rows["even steps"] = {
        solver: errors(ends, path, "velocity", solver, even(steps)) for solver in solvers
    }
    return rows


def digits(run: Path, solver: str, steps: int) -> dict[str, dict[str, Errors]]:
    """Schedules for a trained network; on other paths it is adapted."""
    family, _ = load(run, "cpu")
    for weight in family.parameters():
        weight.requires_grad_(False)
    trained, model = family.path, family.term().model
    shape, rows = family.shape, 32

    def adapted(path: interp.Interpolant) -> object:
        return path.ode(path.adapt(model, trained_on=trained), view="velocity")

    def search(
        path: interp.Interpolant, view: str, solver: str, steps: int, what: str
    ) -> BestSchedule:
        x = path.base.sample((2 * rows, *shape), seed=0)
        own = path.config == trained.config
        term = family.term() if own else adapted(path)
        return interp.best_schedule(term, solver, steps, optimise=what, x=x, iterations=6)

    def ends(path: interp.Interpolant, view: str, options: dict[str, object]) -> Tensor:
        x = path.base.sample((REPORTED, *shape), seed=1)
        tight = {"rtol": 1e-6, "atol": 1e-6} if "rtol" in options else options
        own = path.config == trained.config
        with torch.no_grad():
            x = interp.solve(family.term() if own else adapted(path), x, **tight).x
        return x.double()[None]

    three = {name: CLOSED[name] for name in ("linear", "trigonometric", "polynomial n=2")}
    return compared(search, ends, solver, steps, three)


# Results


def mean(results: Sequence[dict[str, dict[str, Errors]]]) -> dict[str, dict[str, Errors]]:
    """The geometric mean over seeds of every number."""
    return {
        name: {
            how: {
                what: statistics.geometric_mean(r[name][how][what] for r in results)
                for what in results[0][name][how]
            }
            for how in results[0][name]
        }
        for name in results[0]
    }


def verdict(rows: dict[str, dict[str, Errors]], what: str = "typical") -> dict[str, object]:
    """The best closed forms, and how many times better the optimised path is than they are."""
    ours = rows["optimised path"]["best grid"][what]
    closed = {n: r for n, r in rows.items() if n not in ("optimised path", "ensemble")}
    told: dict[str, object] = {}
    for how in ("even", "named grid", "best grid"):
        name = min(closed, key=lambda n: closed[n][how][what])
        told[how] = {"closed form": name, "ratio": round(closed[name][how][what] / ours, 3)}
    return told


def table(by_steps: Mapping[int, dict[str, dict[str, Errors]]]) -> str:
    """A line for each schedule: typical errors of even steps and of its best grid, and of the laws."""
    head = ["schedule"]
    for n in by_steps:
        head += [f"{n} even", f"{n} named", f"{n} best grid", f"{n} laws"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in next(iter(by_steps.values())):
        cells = [name]
        for rows in by_steps.values():
            row = rows[name]
            for how in ("even", "named grid"):
                cells += [f"{row[how]['typical']:.2e}" if how in row else ""]
            cells += [f"{row['best grid']['typical']:.2e}", f"{row['best grid']['laws']:.2e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(parts: Mapping[str, Mapping[int, dict[str, dict[str, Errors]]]], to: Path) -> None:
    """Error against steps, a panel for each part; each schedule on its own best grid."""
    from interp.plot import style

    figure, axes = style.figure(1, len(parts), (4.6 * len(parts), 4.4))
    looks = {name: style.line_style(k) for k, name in enumerate((*CLOSED, "ensemble"))}
    looks["ensemble"] |= {"color": style.GREY}
    looks["optimised path"] = {"color": style.INK}
    drawn = {}
    for panel, (title, by_steps) in zip(axes, parts.items(), strict=True):
        steps = [int(n) for n in by_steps]
        for name in next(iter(by_steps.values())):
            values = [rows[name]["best grid"]["typical"] for rows in by_steps.values()]
            width = 2.8 if name == "optimised path" else 1.3
            (drawn[name],) = panel.plot(
                steps, values, marker="o", markersize=3.5, linewidth=width, **looks[name]
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(steps, [str(n) for n in steps])
        panel.minorticks_off()
        style.name_axes(panel, x="steps of Heun", y="RMS error at the end", title=title)
    names = [name for name in looks if name in drawn]
    style.header(figure, [drawn[name] for name in names], names)
    style.finish(figure, to, colours=128)


TITLES = {
    "single": "one mixture, unseen starts",
    "mixtures": "one schedule for unseen mixtures",
    "digits": "a network of digits, unseen starts",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*TITLES, "purposes", "picture"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--run", type=Path, help="of interp train flow_matching --data digits")
    args = parser.parse_args()
    check(Several.drawn(2, 0))
    for part in args.parts:
        if part == "picture":
            stored = {t: json.loads(result(p).read_text())["errors"] for p, t in TITLES.items()}
            curves = {title: found for title, found in stored.items() if len(found) > 1}
            picture(curves, DOCS / "best_schedule.png")
        elif part == "purposes":
            report_purposes()
        else:
            with tempfile.TemporaryDirectory() as folder:
                report(part, args, Path(folder))


def report(part: str, args: argparse.Namespace, folder: Path) -> None:
    """Run, print and write one of the comparisons."""
    began, seeds, run = time.process_time(), args.seeds, args.run
    if part == "digits":
        seeds, run = 1, run or train(folder / "run")
    found = {}
    for steps in args.steps:
        parts = {
            "mixtures": lambda seed, n=steps: mixtures(seed, "heun", n),
            "single": lambda seed, n=steps: single(seed, "heun", n),
            "digits": lambda seed, n=steps: digits(run, "heun", n),
        }
        times = 4 if part == "single" else 1
        found[steps] = mean([parts[part](seed) for seed in range(times * seeds)])
        print(f"{part}, {steps} steps: {verdict(found[steps])}", flush=True)
    kinds = ("typical", "rms") if part == "mixtures" else ("typical",)
    verdicts = {w: {n: verdict(rows, w) for n, rows in found.items()} for w in kinds}
    print(f"{TITLES[part]}: typical RMS error at the end; laws: sliced W2 with the best grid")
    print(table(found))
    print(
        "closed forms with even steps, their best named and their best grid, over the optimised path:"
    )
    for what, by_steps in verdicts.items():
        for steps, told in by_steps.items():
            print(f"  {what}, {steps} steps: {told}")
    cpu_s = round(time.process_time() - began)
    print(
        "written to",
        write(f"schedules_{part}", PACKAGES, 0, verdicts=verdicts, errors=found, cpu_s=cpu_s),
    )


def report_purposes() -> None:
    """Run, print and write what each objective gives each solver."""
    solvers = [name for name in ("euler", "heun", "rk4", "dpm++2m", "unipc") if known(name)]
    rows = purposes(0, solvers)
    print(
        "typical RMS error at the end in 8 steps on the linear path, by the objective of the grid"
    )
    print(f"  {'':15s}", "  ".join(f"{solver:>9s}" for solver in solvers))
    for name, row in rows.items():
        print(f"  {name:15s}", "  ".join(f"{e['typical']:9.2e}" for e in row.values()))
    print("written to", write("schedules_purposes", PACKAGES, 0, errors=rows))


PACKAGES = ("interp", "torch", "numpy", "scipy")


def result(part: str) -> Path:
    return RESULTS / f"schedules_{part}.json"


def known(name: str) -> bool:
    return any(method.name == name for method in interp.methods())


def train(folder: Path) -> Path:
    """An MLP of 2000 steps on the digits."""
    import adapters

    images = data.load("digits", None)
    torch.manual_seed(0)
    family = adapters.create("flow_matching", images.shape, network="mlp", width=256)
    interp.train(family, images.columns, 2000, folder)
    return folder


if __name__ == "__main__":
    main()
