"""Every family under one budget: how far its samples are from the truth, and what a few steps cost.

    mixtures   points of five Gaussians in the plane, where the law is known: energy distance, sliced W2,
               how far the weights of the components are off, the log likelihood that is lost
    digits     scikit-learn's handwritten digits: energy distance and sliced W2 from held-out digits, near
               copies of training images, what a classifier of real digits makes of the samples

Every family has as many steps of as many rows by an MLP of the same width, with all else its own default
(but for ``FEWER`` and ``CONVOLUTIONAL``), and is measured beside two weak baselines, a Gaussian with the
data's mean and covariance and the noise that sampling starts from, and beside fresh data, the floor of what
so many rows can tell. A step is a batch of data: a critic with five steps for each of its generator leaves
that a fifth of the steps. On the mixture a family passes if its energy distance is at most ``MARGIN`` of
the Gaussian's. In the 64 dimensions of the digits that distance sees little but mean and covariance, which
the Gaussian has: there a family passes if the Gaussian's samples are recognised at most ``MARGIN`` as
often as its own.

Times are of the processor, on as many threads as torch has. Each (family, seed) is trained in a folder of
its own, from which it is measured without its data, and nothing that is there is done again: a run that was
stopped goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from report import RESULTS, write
from torch import Tensor

import adapters
import interp
from interp import exact, families, metrics, plot
from interp.errors import InterpError
from interp.plot import style
from interp.training import data, load
from interp.training.evaluation import gaussian_fit

DOCS = Path(__file__).parent.parent / "docs"
PACKAGES = ("interp", "torch", "numpy", "scikit-learn")
MARGIN = 0.5
FEW = (1, 2, 4, 8, 50)
ROWS = {"mixtures": 2048, "digits": 1024}
STEPS = 1500
WIDTH = 128

#: Families of one network, which only sample differently.
SHARED = {"ddim": "ddpm"}

#: The share of the steps for families of dearer steps, so that a seed takes at most about a minute.
FEWER = {"diffflow": 1 / 4, "jko": 3 / 5, "energy_matching": 2 / 3}

#: What makes these what they are is convolutions, on images of this width.
CONVOLUTIONAL = {"dcgan": 16}

TARGET = exact.Mixture(
    weights=[0.3, 0.25, 0.2, 0.15, 0.1],
    means=[[1.4, 0.3], [-0.2, 1.5], [-1.5, 0.2], [-0.6, -1.3], [1.0, -1.2]],
    covs=[0.04, [[0.09, 0.05], [0.05, 0.06]], 0.02, 0.06, 0.01],
)

Row = dict[str, float | str | None]


# Truth


class Mixtures:
    """Five Gaussians in the plane."""

    def __init__(self) -> None:
        self.train = TARGET.sample(20_000, 1).float()
        self.test = TARGET.sample(ROWS["mixtures"], 2).float()
        self.columns: Mapping[str, Tensor] = {"x": self.train}
        self.facts: dict[str, object] = {}

    def measured(self, x: Tensor) -> Row:
        found = votes(self.parts(x), len(TARGET.weights))
        return {"weights off": 0.5 * (found - TARGET.weights).abs().sum().item()}

    def parts(self, x: Tensor) -> Tensor:
        """The component that each row most likely is of."""
        logs = [
            exact.Gaussian(mean, cov).log_prob(x.double()) + weight.log()
            for weight, mean, cov in zip(TARGET.weights, TARGET.means, TARGET.covs, strict=True)
        ]
        return torch.stack(logs).argmax(0)


class Digits:
    """Images of 8 x 8, and a classifier of real ones."""

    def __init__(self) -> None:
        from sklearn.ensemble import RandomForestClassifier

        images, held_out = data.load("digits"), data.load("digits", split="test")
        self.train, self.test = images.x, held_out.x
        self.columns = {"x": images.x}
        self.facts = {"levels": images.levels}
        self.classifier = RandomForestClassifier(300, random_state=0)
        self.classifier.fit(images.x.flatten(1).numpy(), images.label.numpy())
        sure, label = self.judged(held_out.x)
        print(
            f"classifier: sure of {sure.double().mean():.1%} of the held-out digits, and right in "
            f"{(label == held_out.label)[sure].double().mean():.1%} of these"
        )

    def judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where at least half of the trees agree, and on which digit."""
        shares = torch.from_numpy(self.classifier.predict_proba(x.flatten(1).numpy()))
        return shares.amax(1) >= 0.5, shares.argmax(1)

    def measured(self, x: Tensor) -> Row:
        sure, label = self.judged(x)
        found = votes(label[sure], 10)
        return {
            "near copies": metrics.near_copies(x, self.train, self.test),
            "recognised": sure.double().mean().item(),
            "classes": float((found >= 0.02).sum()),
        }


def votes(label: Tensor, classes: int) -> Tensor:
    """How often each label occurs."""
    return torch.bincount(label, minlength=classes).double() / max(1, len(label))


Truth = Mixtures | Digits


def distances(truth: Truth, x: Tensor) -> Row:
    return {
        "energy": metrics.energy_distance(x, truth.test),
        "sliced": metrics.sliced_wasserstein(x, truth.test),
        **truth.measured(x),
    }


def baselines(truth: Truth) -> dict[str, Row]:
    """A Gaussian fit, noise, and data that no model has seen."""
    n = ROWS[part_of(truth)]
    fresh = TARGET.sample(n, 3).float() if isinstance(truth, Mixtures) else truth.train[:n]
    rows = {
        "fresh data" if isinstance(truth, Mixtures) else "training data": fresh,
        "a Gaussian fit": gaussian_fit(truth.train, n, 0),
        "noise": interp.noise.normal((n, *truth.train.shape[1:]), seed=0),
    }
    return {name: distances(truth, x) for name, x in rows.items()}


# Runs


def trained(name: str, seed: int, truth: Truth, folder: Path, steps: int) -> tuple[Path, float]:
    """The folder of a run, and the seconds of processor time that its steps took."""
    part = part_of(truth)
    out, clock = folder / part / f"{name}-{seed}", folder / part / f"{name}-{seed}.seconds"
    if clock.exists():
        return out, float(clock.read_text())
    torch.manual_seed(seed)
    known = families.options(families.load(name)) or ()
    facts = {**truth.facts, "width": WIDTH}
    options = {option: value for option, value in facts.items() if option in known}
    began = time.process_time()
    steps = round(steps * FEWER.get(name, 1))
    family = made(name, truth.train.shape[1:], options)
    interp.train(
        family, truth.columns, steps, out, batch_size=256 if part == "mixtures" else 128, seed=seed,
        save_every=steps, ema=0.995, resume=True, progress=False,
    )  # fmt: skip
    taken = time.process_time() - began
    clock.write_text(f"{taken:.2f}")
    return out, taken


def made(name: str, shape: Sequence[int], options: Mapping[str, object]) -> families.Family:
    """With an MLP where the family lets one choose, else with what it has."""
    if name in CONVOLUTIONAL and len(shape) == 3:
        return adapters.create(name, shape, **{**options, "width": CONVOLUTIONAL[name]})
    try:
        return adapters.create(name, shape, network="mlp", **options)
    except InterpError:
        return adapters.create(name, shape, **options)


def measured(name: str, seed: int, truth: Truth, folder: Path, steps: int) -> Row:
    """All numbers of one (family, seed)."""
    out, taken = trained(SHARED.get(name, name), seed, truth, folder, steps)
    family, config = load(out)
    if name in SHARED:
        weights = family.state_dict()
        family = adapters.create(name, **config["config"])
        family.load_state_dict(weights)
    n = ROWS[part_of(truth)]
    began = time.process_time()
    x = samples(family, n, seed)
    row: Row = {"train s": taken, "sample s": time.process_time() - began, **distances(truth, x)}
    torch.save(x[:1024], folder / part_of(truth) / f"{name}-{seed}.pt")
    if isinstance(truth, Mixtures) and family.supports("log_prob"):
        some = truth.test[:512]
        found = family.log_prob(some).double().mean() - TARGET.log_prob(some.double()).mean()
        row |= {"nats lost": -found.item(), "log_prob": str(family.supports("log_prob"))}
    if isinstance(getattr(family, "path", None), interp.Interpolant):
        row |= few(family, truth, n, seed)
    return row


def samples(family: families.Family, n: int, seed: int, **options: object) -> Tensor:
    chunks = [
        family.sample(min(512, n - first), seed=seed, first_row=first, **options).detach()
        for first in range(0, n, 512)
    ]
    return torch.cat(chunks).float()


def few(family: families.Family, truth: Truth, n: int, seed: int) -> Row:
    """The energy distance after few steps of the family's own sampler."""
    row: Row = {}
    for steps in FEW:
        x = samples(family, n, seed, steps=steps)
        finite = torch.isfinite(x).flatten(1).all(1)
        row[f"{steps} steps"] = (
            metrics.energy_distance(x, truth.test) if bool(finite.all()) else None
        )
    return row


def part_of(truth: Truth) -> str:
    return "mixtures" if isinstance(truth, Mixtures) else "digits"


# Reports


def averaged(rows: Sequence[Row]) -> Row:
    """Means over seeds, with the standard deviation of the energy distance."""
    mean: Row = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        numbers = [v for v in values if isinstance(v, float)]
        mean[key] = statistics.fmean(numbers) if len(numbers) == len(values) else values[0]
    energies = [float(row["energy"]) for row in rows]  # type: ignore[arg-type]
    mean["energy sd"] = statistics.stdev(energies) if len(energies) > 1 else 0.0
    return mean


def table(rows: Mapping[str, Row], columns: Sequence[str]) -> str:
    lines = ["".join([f"{'':22s}", *(f"{c:>12s}" for c in columns)])]
    for name, row in rows.items():
        cells = [row.get(c) for c in columns]
        lines.append(
            f"{name:22s}"
            + "".join(f"{c:12.4f}" if isinstance(c, float) else f"{c or '-':>12s}" for c in cells)
        )
    return "\n".join(lines)


def report(part: str, args: argparse.Namespace) -> None:
    truth = Mixtures() if part == "mixtures" else Digits()
    steps = args.steps or STEPS
    stored = RESULTS / f"families_{part}.json"
    kept: dict[str, dict[str, Row]] = {}
    if stored.exists() and (old := json.loads(stored.read_text()))["steps"] == steps:
        kept = old["runs"]
    (args.runs / part).mkdir(parents=True, exist_ok=True)
    below = baselines(truth)

    def store() -> None:
        means = {n: averaged(list(runs.values())) for n, runs in sorted(kept.items())}
        passed = {n: passes(part, row, below["a Gaussian fit"]) for n, row in means.items()}
        write(
            f"families_{part}", PACKAGES, 0, steps=steps, width=WIDTH, rows=ROWS[part],
            margin=MARGIN, baselines=below, means=means, passed=passed, runs=kept,
        )  # fmt: skip

    for seed in args.seeds:
        for name in args.families or adapters.available():
            key = str(seed)
            if key in kept.get(name, {}) and not args.again:
                continue
            began = time.process_time()
            kept.setdefault(name, {})[key] = measured(name, seed, truth, args.runs, steps)
            spent = time.process_time() - began
            print(
                f"{name}, seed {seed}: {spent:.0f} s, energy {kept[name][key]['energy']:.4f}",
                flush=True,
            )
            store()
    store()
    show(part)
    picture(part, args.runs, DOCS / f"families_{part}.png")


def passes(part: str, row: Row, gaussian: Row) -> bool:
    """Whether a family is better than a Gaussian fit by the margin, in the measure of its part."""
    if part == "mixtures":
        return float(row["energy"]) <= MARGIN * float(gaussian["energy"])  # type: ignore[arg-type]
    return float(row["recognised"]) * MARGIN >= float(gaussian["recognised"])  # type: ignore[arg-type]


def show(part: str) -> None:
    """Print what the result file holds."""
    found = json.loads((RESULTS / f"families_{part}.json").read_text())
    kinds = {
        "mixtures": (
            "energy",
            "energy sd",
            "sliced",
            "weights off",
            "nats lost",
            "train s",
            "sample s",
        ),
        "digits": (
            "energy",
            "energy sd",
            "sliced",
            "near copies",
            "recognised",
            "classes",
            "train s",
        ),
    }
    print(f"{part}: {found['steps']} steps, means over seeds")
    print(table({**found["baselines"], **found["means"]}, kinds[part]))
    few_steps = {n: row for n, row in found["means"].items() if "1 steps" in row}
    print("energy distance after few steps")
    print(table(few_steps, [f"{n} steps" for n in FEW]))
    missed = [name for name, fine in found["passed"].items() if not fine]
    print(
        f"better than a Gaussian fit by the margin, {found['margin']:g}: "
        + (f"all but {', '.join(missed)}" if missed else "all of them")
    )


def picture(part: str, runs: Path, to: Path) -> None:
    """Samples of every family in one picture."""
    drawn = {p.stem.removesuffix("-0"): torch.load(p) for p in sorted((runs / part).glob("*-0.pt"))}
    if part == "mixtures":
        drawn = {"the law itself": TARGET.sample(1024, 4).float(), **drawn}
        columns = 6
        rows = -(-len(drawn) // columns)
        figure, axes = style.figure(rows, columns, (2 * columns, 2.1 * rows))
        for a in axes[len(drawn) :]:
            a.set_visible(False)
        for a, (name, x) in zip(axes, drawn.items(), strict=False):
            a.scatter(*x.T.numpy(), s=1.5, c=style.DATA, linewidths=0, alpha=0.6)
            a.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect="equal")
            a.set_title(name, fontsize=9, color=style.INK)
    else:
        drawn = {"real digits": data.load("digits", split="test").x, **drawn}
        figure, axes = style.figure(len(drawn), 1, (7, 0.42 * len(drawn)))
        for a, (name, x) in zip(axes, drawn.items(), strict=True):
            a.imshow(plot.images.tiled(x[:20], 20, 640))
            a.set(xticks=[], yticks=[])
            a.spines[:].set_visible(False)
            a.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=style.INK)
    style.finish(figure, to, colours=64)
    print("drawn to", to)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["mixtures", "digits"])
    parser.add_argument("--families", nargs="+", help="names; without them all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of training; without it those of the part")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs_families"), help="where runs are kept"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    args = parser.parse_args()
    for part in args.parts:
        report(part, args)


if __name__ == "__main__":
    main()
