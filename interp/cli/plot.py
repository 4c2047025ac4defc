"""Pictures from the command line: schedules, a path with what moves along it, couplings, biases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import OptionError, UnknownName
from .common import Common, config, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..exact import Target
    from ..interpolant import Interpolant
    from ..solvers import Method
    from ..solvers.result import Solution

_STILL = ("png", "svg", "pdf")


@dataclass(frozen=True, kw_only=True)
class Picture(Common):
    """What every picture takes."""

    out: Path
    """Where to write; the suffix says what: .png, .svg, .pdf, and .gif where it can move."""
    overwrite: bool = False
    """Replace the file that is there."""

    def kind(self, known: tuple[str, ...]) -> str:
        """The suffix of ``out``; refused before anything is computed.

        Raises:
            UnknownName: a suffix that is not ``known``.
            OptionError: a file that is there, or a folder that is not.
        """
        from ..plot import style

        found = style.suffix(self.out, known)
        style.check_folder(self.out)
        if self.out.exists() and not self.overwrite:
            raise OptionError(
                f"{self.out} is there already. Choose another name, or add --overwrite."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Schedules(Picture):
    """Draw alpha, beta, gamma and sigma of paths with their derivatives, or their log-SNR.

    Example: interp plot schedules linear cosine edm:sigma_max=20 --out schedules.png
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="(required)"),
    ]
    """Names from `interp list`, each with options if need be as NAME:OPTION=VALUE,OPTION=VALUE."""
    log_snr: bool = False
    """Draw log-SNR instead."""

    def run(self) -> None:
        """Draw."""
        from .. import plot, schedules

        self.kind(_STILL)
        paths = [schedules.from_config(config(name)) for name in self.names]
        (plot.log_snr if self.log_snr else plot.schedules)(paths, to=self.out)
        say(f"The picture is in {self.out}.")


@dataclass(frozen=True, kw_only=True)
class Along(Picture):
    """Draw a path: the density of I_t and solutions over it, exact, with no network; or film it.

    Example: interp plot path trigonometric --target moons --out path.gif
    """

    schedule: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCHEDULE")]
    """A name from `interp list`, with options if need be as NAME:OPTION=VALUE,OPTION=VALUE."""
    target: str = "moons"
    """Data: peaks (on the line), moons or eight (in the plane), or images as in `interp train --data`."""
    base: str | None = None
    """The law of x0, for a path between two laws: peaks, moons or eight; without it N(0, 1)."""
    show: Literal["trajectories", "density", "velocity"] = "trajectories"
    """What to draw; a .gif has trajectories."""
    solver: str = "dopri5"
    """A name from `interp list`."""
    steps: int | None = None
    """Steps of the solver; without it an adaptive solver chooses its own and any other takes 100."""
    diffusion: str = "reverse"
    """The size of the noise where the solver is one for SDEs: a number, or reverse."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many solutions."""
    seed: int = 0
    """Of all that is drawn."""
    data_root: Path | None = None
    """Where torchvision's data sets are; else the environment variable INTERP_DATA_ROOT."""

    def run(self) -> None:
        """Draw."""
        from .. import plot, schedules

        moving = self.kind((*_STILL, "gif")) == "gif"
        if moving and self.show != "trajectories":
            raise OptionError(
                f"a {self.show} does not move. Write it to a .png, or leave out --show."
            )
        path = schedules.from_config(config(self.schedule))
        target, shape = self._target()
        path, base = self._between(path, target)
        if self.show == "density":
            plot.density(target, path, base, to=self.out)
        elif self.show == "velocity":
            times = (0.01, 0.99) if target.dim == 1 else (0.05, 0.35, 0.65, 0.95)
            plot.velocity(
                target.velocity(path, base), target.dim, times=times, target=target, path=path,
                base=base, to=self.out,
            )  # fmt: skip
        else:
            self._trajectories(target, path, base, shape, moving)
        say(f"The {'film' if moving else 'picture'} is in {self.out}.")

    def _trajectories(
        self, target: Target, path: Interpolant, base: Target | None, shape: tuple[int, ...],
        moving: bool,
    ) -> None:  # fmt: skip
        from .. import plot

        images = len(shape) == 3
        if images:
            usual = 16 if moving else 4
        elif moving:
            usual = 60 if target.dim == 1 else 300
        else:  # a rough path hides more of what is under it
            usual = (60 if target.dim == 1 else 80) // (5 if self._method().kind == "sde" else 1)
        n = usual if self.n is None else self.n
        if n < 1:
            raise OptionError(f"-n is {n}. Give a whole number, 1 or more.")
        solution = self._solved(
            target, path, base, (n, *shape), 60 if moving else 8 if images else 200
        )
        if moving and images:
            plot.animate(solution, to=self.out)
        elif moving:
            plot.animate(solution, target, path, base, to=self.out)
        elif images:
            plot.strip(solution, rows=n, to=self.out)
        else:
            plot.trajectories(solution, target, path, base, to=self.out)

    def _target(self) -> tuple[Target, tuple[int, ...]]:
        """The law and the shape of a row."""
        from .. import exact
        from ..plot import presets
        from ..training import data

        if self.target in presets.names():
            law = presets.target(self.target)
            return law, (law.dim,)
        known = (*presets.names(), "digits", *data.TORCHVISION)
        if self.target not in known and not Path(self.target).expanduser().exists():
            raise UnknownName(
                f"{UnknownName.of('target', self.target, known)} Or give a folder of images, or a "
                "file ending in .npz."
            )
        found = data.load(self.target, self.data_root)
        # A kernel a tenth wide, of values in [-1, 1]: without one the samples are rows of the data.
        return exact.Empirical(found.x, bandwidth=0.1), found.shape

    def _between(self, path: Interpolant, target: Target) -> tuple[Interpolant, Target | None]:
        """The path, between two laws where a base was asked for, and the law of x0 if not N(0, 1)."""
        from .. import exact
        from ..interpolant import Interpolant
        from ..plot import presets

        if self.base is not None:
            path = Interpolant(path.alpha, path.beta, path.gamma, gaussian_base=False)
            base = presets.target(self.base)
            if base.dim != target.dim:
                raise OptionError(
                    f"--base {self.base} has {base.dim} dimensions and --target {self.target} has "
                    f"{target.dim}. Give two of one kind, e.g. eight and moons."
                )
            return path, base
        if path.gaussian_base:
            return path, None
        return path, exact.Gaussian([0.0] * target.dim, 1.0)

    def _solved(
        self, target: Target, path: Interpolant, base: Target | None, shape: tuple[int, ...],
        frames: int,
    ) -> Solution:  # fmt: skip
        """Solutions from t = 0 to 1, saved at ``frames`` + 1 times or at each step if these are fewer."""
        import torch

        from .. import solve

        method = self._method()
        steps = self.steps if self.steps is not None or method.adaptive else 100
        stochastic = method.kind == "sde"
        saved = min(frames, steps) if stochastic and steps else frames
        x = _start(target, path, base, shape, self.seed)
        if base is not None:
            model, view = target.velocity(path, base), "velocity"
        else:
            model, view = target.data(path), "data"
        if stochastic:
            score = target.score(path, base) if base is not None else None
            term = path.sde(model, view, diffusion=self._size(path), score=score)
        else:
            term = path.ode(model, view)  # type: ignore[assignment]
        times = torch.linspace(0, 1, (steps or saved) + 1, dtype=torch.float64)
        at = torch.linspace(0, len(times) - 1, saved + 1).round().long()
        even = torch.linspace(0, 1, saved + 1, dtype=torch.float64)
        return solve(
            term, x, method=method.name, steps=steps, seed=self.seed if stochastic else None,
            save_at=times[at] if stochastic else even,
        )  # fmt: skip

    def _method(self) -> Method:
        from ..solvers import methods

        known = {m.name: m for m in methods()}
        if self.solver not in known:
            raise UnknownName.of("solver", self.solver, known)
        return known[self.solver]

    def _size(self, path: Interpolant) -> float | str:
        if self.diffusion == "reverse" and path.gaussian_base:
            return "reverse"
        try:
            return float(self.diffusion)
        except ValueError:
            raise OptionError(
                f"--diffusion {self.diffusion} is no size of noise on this path. Give a number, e.g. 0.5."
            ) from None


@dataclass(frozen=True, kw_only=True)
class Coupled(Picture):
    """Draw who is paired with whom: base points, data points and a line between the two of a pair.

    Example: interp plot coupling independent optimal_transport --out pairs.png
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="(required)"),
    ]
    """Names from `interp list`, each with options if need be as NAME:OPTION=VALUE,OPTION=VALUE."""
    target: str = "moons"
    """The law of the data in the plane: moons or eight."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 96
    """How many pairs."""
    seed: int = 0
    """Of all that is drawn."""

    def run(self) -> None:
        """Draw."""
        import torch

        from .. import couplings, noise, plot
        from ..plot import presets
        from ..seeds import derive

        self.kind(_STILL)
        law = presets.target(self.target)
        if law.dim != 2:
            raise OptionError(f"{self.target} is not in the plane. Give --target moons or eight.")
        if self.n < 1:
            raise OptionError(f"-n is {self.n}. Give a whole number, 1 or more.")
        if not self.names:
            raise OptionError("no coupling is named. Give one or more of those of `interp list`.")
        x1 = law.sample(self.n, seed=self.seed)
        x0 = noise.normal((self.n, 2), seed=derive(self.seed, "base"))
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.names:
            coupling = couplings.from_config(config(name))
            generator = torch.Generator().manual_seed(self.seed)
            pairs[name.replace("_", " ").replace(":", ", ")] = coupling(
                x0, x1, generator=generator
            )[:2]  # type: ignore[assignment]
        plot.coupling(pairs, to=self.out)
        say(f"The picture is in {self.out}.")


@dataclass(frozen=True, kw_only=True)
class Left(Picture):
    """Draw what stochastic samplers leave of a known standard deviation, for your own steps and data.

    Example: interp plot bias euler_maruyama dpm++2m_sde srk --steps 10 30 --out bias.png
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SOLVER ...]")
    ] = ()
    """Names from `interp list`; without any, all that draw noise."""
    steps: tuple[int, ...] = (20, 50, 200)
    """A dot each."""
    mean: float = 0.3
    """Of the data."""
    variance: float = 0.25
    """Of the data."""
    schedule: Annotated[str, tyro.conf.arg(metavar="SCHEDULE")] = "linear"
    """A name from `interp list`, with options if need be as NAME:OPTION=VALUE,OPTION=VALUE."""

    def run(self) -> None:
        """Draw."""
        from .. import methods, plot, schedules

        self.kind(_STILL)
        table = methods(
            bias=True, steps=self.steps, mean=self.mean, variance=self.variance,
            path=schedules.from_config(config(self.schedule)),
        )  # fmt: skip
        plot.bias(table, self.names or None, to=self.out)
        say(f"The picture is in {self.out}.")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw schedules, a path with what moves along it, couplings, or the bias of samplers.

    Example: interp plot path linear --target peaks --out path.png
    """

    picture: Annotated[
        Annotated[Schedules, tyro.conf.subcommand("schedules")]
        | Annotated[Along, tyro.conf.subcommand("path")]
        | Annotated[Coupled, tyro.conf.subcommand("coupling")]
        | Annotated[Left, tyro.conf.subcommand("bias")],
        tyro.conf.arg(name=""),  # its options are those of the command, not of a group in it
    ]

    @property
    def debug(self) -> bool:
        """Whether to show the whole traceback of an error."""
        return self.picture.debug

    def run(self) -> None:
        """Draw."""
        self.picture.run()


def _start(
    target: Target, path: Interpolant, base: Target | None, shape: tuple[int, ...], seed: int
) -> Tensor:
    """Base points, float64."""
    import torch

    if base is not None:
        return base.sample(shape[0], seed=seed, dtype=torch.float64).reshape(shape)
    return path.base.sample(shape, seed=seed, dtype=torch.float64)
