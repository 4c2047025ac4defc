"""Commands on a run: train one, sample from it, measure it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..errors import DataError, OptionError
from .common import Common, parsed, say

if TYPE_CHECKING:
    from ..training.data import Images


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """Train a family and keep the run in a folder.

    Example: interp train flow_matching --data digits --steps 1000 --out run

    A folder of images may have subfolders, one a label; an .npz holds "x" and, if need be, "label" and,
    for bridges between pairs, "x0".
    """

    family: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FAMILY")]
    """A name from `interp list`."""
    data: str
    """digits, mnist, fashion_mnist, kmnist, cifar10, cifar100, a folder of images or an .npz file."""
    steps: int
    """Steps of the whole run, counted from its beginning."""
    out: Path
    """The run folder."""
    data_root: Path | None = None
    """Where torchvision's data sets are; else the environment variable INTERP_DATA_ROOT."""
    seed: int = 0
    """Of the weights and of all that is drawn."""
    batch_size: int = 128
    """Rows in a batch."""
    save_every: int = 500
    """Steps between checkpoints."""
    ema: float = 0.999
    """Decay of the averaged weights; 0 for none."""
    resume: bool = False
    """Go on with the run in the folder, to the same numbers as if it had not stopped, or begin one."""
    overwrite: bool = False
    """Remove the run in the folder first."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An option of the family, the value in JSON; as many as you like: --set width=64 --set path=linear."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    def run(self) -> None:
        """Train."""
        import torch

        from .. import families
        from ..seeds import derive
        from ..training import data, train
        from ..training.run import exists

        images = data.load(self.data, self.data_root)
        options = _offered(families.load(self.family), images) | parsed(self.set)
        if self.resume and not exists(self.out):
            say(f"There is no run in {self.out} to resume: beginning one.")
        torch.manual_seed(derive(self.seed, "weights"))
        family = families.create(self.family, images.shape, **options)
        about = {"name": self.data, "rows": len(images.x), "levels": images.levels}
        trained = train(
            family, images.columns, self.steps, self.out, batch_size=self.batch_size,
            seed=self.seed, save_every=self.save_every, ema=self.ema, resume=self.resume,
            overwrite=self.overwrite, device=self.device, about=about,
        )  # fmt: skip
        loss = f", last loss {trained.losses[-1]:.4f}" if trained.losses else ""
        say(f"{trained.step} steps{loss}. The run is in {self.out}: see samples.png and loss.png.")
        own = dict(getattr(family, "sampler", {})).get("method")
        solver = " --solver heun --steps 20" if own == "heun" else ""
        say(f"Next: interp sample {self.out} -n 16{solver} --out samples")


@dataclass(frozen=True, kw_only=True)
class Sample(Common):
    """Draw samples from a trained run: grid.png and samples.npz.

    Example: interp sample run -n 16 --solver heun --steps 20 --out samples
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder that `interp train` has written."""
    out: Path
    """Where to put grid.png and samples.npz, whose array "samples" is (n, c, h, w) in [-1, 1]."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many; 16, or all that --x0 has."""
    x0: Path | None = None
    """An .npz file of the points to start from, its array "x0", or else as in `interp train`."""
    solver: str | None = None
    """A name from `interp list`; without it the family's own choice."""
    steps: int | None = None
    """Steps of the solver; without it an adaptive solver chooses its own."""
    seed: int = 0
    """Of the samples."""
    label: int | None = None
    """One label for all; without it labels are drawn as often as they occur in the training data."""
    guidance: float | None = None
    """Classifier-free guidance: 1 guides nothing, more follows the label more closely."""
    diffusion: float | None = None
    """The size of the noise where the solver is one for SDEs."""
    batch_size: int = 256
    """Rows at once; the samples do not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    grid: Path | None = None
    """A file that `interp schedule` has written, instead of --solver and --steps."""

    def run(self) -> None:
        """Sample."""
        from ..solvers.catalogue import find
        from ..training import data, load
        from ..training.pictures import sample, write_samples
        from ..tuning import load as load_schedule

        _positive("-n", self.n)
        _positive("--steps", self.steps)
        if self.solver is not None:
            find(self.solver)  # a name that is none is refused by families without a solver too
        if self.grid is not None and (self.solver is not None or self.steps is not None):
            raise OptionError(
                f"{self.grid} names a solver and its steps. Leave out --solver and --steps."
            )
        asked = {
            "method": self.solver, "steps": self.steps, "guidance": self.guidance,
            "diffusion": self.diffusion,
        }  # fmt: skip
        options = {name: value for name, value in asked.items() if value is not None}
        if self.grid is not None:
            options |= load_schedule(self.grid).options
        family, config = load(self.run_folder, self.device)
        takes = getattr(family, "solver_options", tuple(options))
        for name, flag in (("method", "--solver"), ("steps", "--steps")):
            if name in options and name not in takes:
                say(
                    f"{family.name} has no solver to choose: {flag} {options.pop(name)} is not used."
                )
        n, x0 = self.n, None
        if self.x0 is not None:
            images = data.load(str(self.x0))
            x0 = (images.x if images.x0 is None else images.x0)[:n].to(self.device)
            n = len(x0)
        samples, labels = sample(
            family, n := 16 if n is None else n, seed=self.seed, label=self.label, x0=x0,
            frequencies=config["data"].get("label_frequencies"), batch_size=self.batch_size, **options,
        )  # fmt: skip
        write_samples(self.out, samples, labels)
        say(f"{n} samples are in {self.out}: see grid.png; samples.npz holds the array.")


@dataclass(frozen=True, kw_only=True)
class Schedule(Common):
    """Find the times of few steps on which a run samples best, and keep them beside it.

    Example: interp schedule run --solver heun --steps 8
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder that `interp train` has written."""
    solver: str = "heun"
    """A name from `interp list`, for ODEs."""
    steps: int = 8
    """Steps of the solver."""
    objective: str = "end_error"
    """What is minimised: end_error, local_error, kinetic_energy, lipschitz or likelihood."""
    out: Path | None = None
    """Where to put the times, for `interp sample --grid`; without it SOLVER-STEPS.json in the run."""
    rows: int = 64
    """Samples to search on; as many again are held out to report on."""
    seed: int = 0
    """Of these samples."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    def run(self) -> None:
        """Search."""
        from ..training import load
        from ..training.pictures import draw_labels
        from ..tuning import best_schedule

        family, config = load(self.run_folder, self.device)
        out = self.out or self.run_folder / f"{self.solver}-{self.steps}.json"
        cond = {}
        if (classes := getattr(family, "classes", None)) is not None:
            frequencies = config["data"].get("label_frequencies") or [1.0] * classes
            labels = draw_labels(2 * max(1, self.rows), frequencies, self.seed)
            cond = {"label": labels.to(self.device)}
        best = best_schedule(
            family, self.solver, self.steps, self.objective, cond=cond, rows=self.rows,
            seed=self.seed,
        )  # fmt: skip
        best.save(out)
        say(str(best))
        say(f"Next: interp sample {self.run_folder} -n 16 --grid {out} --out samples")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common):
    """Measure a trained run on held-out data: log likelihood, and how far samples are from them.

    Example: interp evaluate run --data digits -n 64

    The distances of as many samples stand beside those of the training data and of a Gaussian fit.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder that `interp train` has written."""
    data: str | None = None
    """As in `interp train`, of which the test split is used, if there is one; else the run's own."""
    data_root: Path | None = None
    """Where torchvision's data sets are; else the environment variable INTERP_DATA_ROOT."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many images, from the first; without it all of them."""
    seed: int = 0
    """Of the dequantisation, and of the samples."""
    divergence: str = "hutchinson"
    """In an ODE: hutchinson, an unbiased estimate, or exact, as many times dearer as there are elements."""
    tolerance: float = 1e-4
    """Of the solver, relative and absolute, where there is one."""
    batch_size: int = 64
    """Rows at once."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    def run(self) -> None:
        """Evaluate."""
        from ..training import data, load
        from ..training.evaluation import distances, likelihood
        from ..training.pictures import sample

        _positive("-n", self.n)
        family, config = load(self.run_folder, self.device)
        spec = self.data or config["data"].get("name")
        if spec is None or (self.data is None and not data.has_test_split(spec)):
            raise OptionError(
                f"the run in {self.run_folder} was not trained on a data set with a test split. "
                "Give --data with images that it has not seen."
            )
        images = data.load(
            spec, self.data_root, split="test" if data.has_test_split(spec) else "train"
        )
        if images.shape != family.shape:
            raise DataError(
                f"{spec} has images of shape {images.shape} but the run was trained on "
                f"{family.shape}. Give data of the run's own shape."
            )
        held_out = images.x[: self.n]
        ode = {"divergence": self.divergence, "rtol": self.tolerance, "atol": self.tolerance}
        if kind := family.supports("log_prob"):
            result = likelihood(
                family, held_out, seed=self.seed, batch_size=self.batch_size,
                **(ode if kind == "ode" else {}),
            )  # fmt: skip
            say(str(result))
        else:
            say(f"{family.name} has no log_prob: see `interp list`.")
        if not family.supports("sample") or len(held_out) < 2 or not data.has_test_split(spec):
            return
        samples, _ = sample(
            family, len(held_out), seed=self.seed, batch_size=self.batch_size,
            frequencies=config["data"].get("label_frequencies"),
        )  # fmt: skip
        seen = data.load(spec, self.data_root).x
        say(
            f"Distances from {len(held_out)} held-out rows: energy, sliced W2, near copies (new data: 1)"
        )
        for name, d in distances(samples, seen, held_out, self.seed).items():
            say(f"  {name:16s}{d.energy:9.4f}{d.sliced:9.4f}{d.copies:7.2f}")


def _positive(flag: str, value: int | None) -> None:
    """Refuse a number of things that is none."""
    if value is not None and value < 1:
        raise OptionError(f"{flag} is {value}. Give a whole number, 1 or more.")


def _offered(factory: Any, images: Images) -> dict[str, Any]:
    """What the data know about themselves and the family has an option for."""
    from .. import families

    known = families.options(factory)
    facts = {"classes": images.classes, "levels": images.levels}
    return {k: v for k, v in facts.items() if v is not None and (known is None or k in known)}
