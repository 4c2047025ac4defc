"""Consistency models: a network of where the flow ends, the same from every point of a trajectory.

Song, Dhariwal, Chen, Sutskever, 2303.01469 (CT, CD); Song, Dhariwal, 2310.14189 (iCT); Geng, Pokle, Luo,
Lin, Kolter, 2406.14548 (ECT); Lu, Song, 2410.11081 (sCT, sCD). Their noise level is sigma / beta, on EDM's
path the sigma of 0.002 to 80 that falls as our t rises, and on TrigFlow's tan of their time. What they
call f(x, sigma) is the point X(t, 1, x) of the map of `interp.maps`, whose data view the network is:

    f = X(t, 1, x) = (sigma_1 / sigma) x + (beta_1 - beta sigma_1 / sigma) D,   D = c_skip x + c_out network.

So f = x at t = 1 whatever the network says, on every path. On EDM's path c_out is theirs and the share of x
is (sd^2 + e s) / (s^2 + sd^2), where they have sd^2 / ((s - e)^2 + sd^2): with e = 0.002, within 0.002.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Generator, Tensor, nn

import interp
from interp import Interpolant, families, schedules
from interp.arguments import real, whole
from interp.errors import OptionError, UnknownName
from interp.training import load

from . import consistency_recipes as recipes
from .arguments import as_path
from .consistency_recipes import RECIPES, Discrete
from .few_step import FewStep, follow, rowwise, total_derivative
from .path_family import Common, PathFamily
from .protocol import Batch, Objective

_TAUGHT = ("cd", "scd")
_LEVELLED = ("ict", "ct")


class Consistency(FewStep):
    """Make f(t, x_t) what f(r, x_r) is, x_t and x_r being two points of one trajectory, t < r.

    ``recipe`` is the paper's: how far apart t and r are, how the difference counts, who the target is.

        ict   N = 11 to ``finest`` + 1 levels, doubled over the run; s log-normal(-1.1, 2); |d| pseudo-Huber
              with c = 0.00054 sqrt(dim), by 1 / (s_t - s_r); the target is the network itself, stopped
        ct    N = 2 to 151 levels (eq. of appendix C), even in s^(1/7); |d|^2; the target is an average whose
              decay exp(2 log 0.9 / N) rises with N
        cd    the same with x_r from one Heun step of a teacher, at 18 levels, as for CIFAR-10, and a
              decay of 0.95, as for ImageNet (CIFAR-10 has none)
        ect   s_r / s_t = 1 - (1 + 8 sigmoid(-s_t)) / 2^(stage + 1), 8 stages; |d| by 1 / (s_t - s_r)
        sct   r -> t: the derivative along the trajectory, by one JVP; normalised, with a learned weight
        scd   the same along a teacher's trajectory

    x_t and x_r have one x1 and one z; the label is hidden from both. Training tells how far it is
    (`objectives`); `loss` alone takes the middle of the curriculum. In several steps it samples by
    mapping to the data and noising again, at even times (Karras's levels on EDM's path) or at levels that
    are asked for, ``grid=("sigmas", [80.0, 0.8])``. There is no density.

    Ours, for short runs: iCT's ``finest`` is 160, not 1280, which is theirs for 400 000 steps. A difference
    of neighbouring levels tells the less the more levels there are, and what is learned next to the data
    needs as many steps to get to the noise: with 1280 a run of 1500 steps in the plane was, in one step
    from the noise, no better than a Gaussian fit. And for points c is sqrt(dim). Theirs is small beside |d|,
    and where E |d| is least is a median, not the mean that f is; the two are near where |d| is much the
    same for all rows of a time, as in many dimensions, and in the plane they were not.
    Ours, for small networks: lr 1e-3, times told at frequencies up to 10; sct's second term comes in over the
    first tenth of the run (theirs: 10 000 steps, when fine-tuned); a student starts from its own weights.

    Args:
        shape, network: as for every `PathFamily`; the network is told log(sigma / beta) / 4, where that is
            infinite at an end of the path and for sct and scd atan(sigma / (beta sigma_data)).
        recipe: one of the above.
        teacher: of cd and scd: a run folder, or a family that is one network on a path. It is copied.
        finest: of ict and ct, the largest N - 1; None is 160 and 150.
        path: the name of a path, its config, or an Interpolant; None is EDM's from 80 to 0.002, or
            "trigonometric" for sct and scd.
        sigma_data: the standard deviation of the data.
        common: see `adapters.path_family.Common`; ``times`` is the law of t.

    Raises:
        OptionError: a path without a Gaussian base; ``finest`` for another recipe than ict and ct; cd or
            scd without a teacher, a teacher that is no network on a path, is of another shape or not asked
            for; and as `PathFamily`.
        UnknownName: a recipe that does not exist.
    """

    name = "consistency"
    verbs: ClassVar[Mapping[str, bool | str]] = {
        "reverse": "exact", "loss": "exact", "sample": "exact",
    }  # fmt: skip
    map_view = "data"
    renoises = True

    def __init__(
        self,
        shape: Sequence[int],
        network: nn.Module | str | None = None,
        recipe: str = "ict",
        teacher: Any = None,
        finest: int | None = None,
        path: Interpolant | str | Mapping[str, object] | None = None,
        sigma_data: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        if recipe not in RECIPES:
            raise UnknownName.of("recipe of consistency", recipe, RECIPES)
        self.continuous = recipe in ("sct", "scd")
        default = schedules.trigonometric() if self.continuous else schedules.edm(0.002, 80.0)
        chosen = default if path is None else as_path(path)
        if finest is not None:
            whole("finest", finest, 10)
        if recipe not in _LEVELLED:
            self.refuse_idle(
                f"recipe={recipe!r} has no number of levels that grows. Leave it out, or take recipe="
                f"{' or '.join(map(repr, _LEVELLED))}.",
                finest=finest,
            )
        _check(chosen, recipe, teacher)
        told = "edm" if _levels_finite(chosen) and not self.continuous else "angle"
        kind = "trigflow" if self.continuous else "edm"
        taught = None if teacher is None else _teacher(teacher, tuple(shape))
        own = {
            "recipe": recipe, "finest": finest, "path": chosen.config, "sigma_data": sigma_data,
            "teacher": None if taught is None else {"name": taught.name, **taught.config},
        }  # fmt: skip
        filled = cast(Common, {**RECIPES[recipe].defaults, **common})
        super().__init__(
            shape, network, chosen, own, view="data", embedding={"fastest": 10.0},
            precondition={"kind": kind, "noise": told, "sigma_data": real("sigma_data", sigma_data)},
            **filled,
        )  # fmt: skip
        self.view = "point"
        self.recipe, self.sigma_data, self.finest = recipe, sigma_data, finest
        self.teacher = taught
        averaged = getattr(RECIPES[recipe], "averaged", False)
        self.average = copy.deepcopy(self.network).requires_grad_(False) if averaged else None

    # Sampling

    def mapping(self, t: Tensor, r: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The data view of X(t, 1, x).

        Raises:
            OptionError: an r other than 1.
        """
        if not bool((r == 1).all()):
            raise OptionError(
                "a consistency model maps to t = 1 alone, and was asked for another time. Leave out "
                "renoise=False, and run towards t = 1."
            )
        data: Tensor = self.model(t, x, **cond)
        return data

    mapping.exact_time = True  # type: ignore[attr-defined]

    def term(self, *args: Any, **options: Any) -> Any:
        """There is no flow to integrate.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "a consistency model knows where the flow ends and not its velocity. Sample by "
            'method="map", or take meanflow or shortcut.'
        )

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """There is none: the map goes one way."""
        raise self._unsupported("forward")

    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """There is none: the map has no density that one could tell."""
        raise self._unsupported("log_prob")

    # Training

    def objectives(self, step: int, total: int) -> Iterator[Objective]:
        """The loss at step / total of the curriculum."""
        free = tuple(p for p in self.parameters() if p.requires_grad)
        loss = functools.partial(self.loss, progress=step / total)
        yield Objective("loss", free, loss, self.optimizer(step, total))

    def after_step(self, step: int, total: int) -> None:
        """The target of ct and cd follows."""
        recipe = RECIPES[self.recipe]
        if self.average is not None and isinstance(recipe, Discrete):
            follow(self.average, self.network, recipe.decay(step / total, self.finest))

    def loss(
        self, batch: Batch, generator: Generator | None = None, progress: float = 0.5
    ) -> Tensor:
        """The loss of the recipe at ``progress`` in [0, 1] of its curriculum."""
        x0, x1, cond = self.ends(batch, generator)
        t = self.regression.times.draw(len(x1), generator=generator, device=x1.device)
        z = self.latent(x1, generator)
        recipe = RECIPES[self.recipe]
        if not isinstance(recipe, Discrete):
            return self._continuous(t, x0, x1, z, cond, min(1.0, progress / recipe.warmup))
        t, r, gap = recipe.pair(self.path, t, progress, self.finest)
        x = self.path.at(t, x0, x1, z)
        with torch.no_grad():
            there = self._carried(t, r, x, cond) if self.teacher else self.path.at(r, x0, x1, z)
            target = self.end(
                r, there, cond, self.network if self.average is None else self.average
            )
        return self.weighed(recipe.distance(self.end(t, x, cond, self.network) - target, gap), t)

    def end(self, t: Tensor, x: Tensor, cond: Mapping[str, Any], network: nn.Module) -> Tensor:
        """f(t, x) = X(t, 1, x) by a ``network``."""
        model = interp.precondition(network, self.path, **(self.precondition or {}))
        return self.path.convert(model(t, x, **cond), "data", "point", x, t, 1.0)

    def _carried(self, t: Tensor, r: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """x from t to r by one Heun step of the teacher's flow in (x / beta, sigma / beta)."""
        noise = self._taught("noise", cond)
        k, e = self.path.coefficients(t), self.path.coefficients(r)
        step = e.beta * (e.sigma / e.beta - k.sigma / k.beta)
        kept, gain = rowwise(e.beta / k.beta, x), rowwise(step, x)
        first = noise(t, x)
        second = noise(r, kept * x + gain * first)
        there: Tensor = kept * x + gain * (first + second) / 2
        return there

    def _taught(self, view: str, cond: Mapping[str, Any]) -> Any:
        """The teacher's view on this path, under what labels it knows."""
        teacher = self.teacher
        if teacher is None:
            raise OptionError("this family was made without a teacher. Give teacher=...")
        told = {} if teacher.classes is None else cond
        model = self.path.adapt(teacher.model, teacher.path, teacher.view, teacher.time, to=view)
        return lambda t, x: model(t, x, **told)

    def _continuous(
        self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None, cond: Mapping[str, Any],
        warm: float,
    ) -> Tensor:  # fmt: skip
        """|F - F- - G / (|G| + 0.1)|^2 in the coordinates of TrigFlow (2410.11081, eq. 8, algorithm 1)."""
        x = self.path.at(t, x0, x1, z)
        w, y = self._trigflow(t, x)

        def output(w: Tensor, y: Tensor) -> Tensor:
            found: Tensor = self.network(w, y, **cond)
            return found

        with torch.no_grad():
            data, noise = self._pair(t, x, x0, x1, cond)
        G, F = self.tangent(w, y, data, noise, output, warm)
        size = torch.linalg.vector_norm(G.flatten(1), dim=1)
        wanted = F + G / rowwise(size + recipes.TANGENT, G)
        return self.weighed((output(w, y) - wanted).square().flatten(1).mean(1), t)

    def _trigflow(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The angle w = atan(sigma / (beta sd)), and y = x_w / sd of unit variance."""
        k = self.path.coefficients(t)
        w = torch.atan2(k.sigma, k.beta * self.sigma_data).to(x.dtype)
        y = x / rowwise(torch.hypot(k.sigma, k.beta * self.sigma_data), x)
        return w, y

    def _pair(
        self, t: Tensor, x: Tensor, x0: Tensor, x1: Tensor, cond: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Data and noise of the trajectory: those drawn, or the teacher's estimates."""
        if self.teacher is not None:
            return self._taught("data", cond)(t, x), self._taught("noise", cond)(t, x)
        if self.path.gamma is None:
            return x1, x0
        k = self.path.coefficients(t)
        return x1, (x - rowwise(k.beta, x) * x1) / rowwise(k.sigma, x)

    def tangent(
        self, w: Tensor, y: Tensor, data: Tensor, noise: Tensor,
        output: Callable[[Tensor, Tensor], Tensor], warm: float = 1.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """G, which is 0 where F tells the end of the trajectory, and F: constants.

            G = -cos^2 w (sd F - dx_w/dw) - warm cos w sin w (x_w + sd dF/dw)

        along x_w = sd y, dx_w/dw = cos w sd n - sin w D: cos w times the derivative of f, by one JVP.
        """
        sd, (c, s) = self.sigma_data, (rowwise(f(w), y) for f in (torch.cos, torch.sin))
        rate = c * sd * noise - s * data
        F, slope = total_derivative(output, (w, y), (torch.ones_like(w), rate / sd))
        G = -(c**2) * (sd * F - rate) - warm * c * s * sd * (y + slope)
        return G, F


def _levels_finite(path: Interpolant) -> bool:
    """Whether log(sigma / beta) is finite at both ends."""
    return bool(path.log_snr(0.0).isfinite() and path.log_snr(1.0).isfinite())


def _check(path: Interpolant, recipe: str, teacher: object) -> None:
    if not path.gaussian_base:
        raise OptionError(
            "a consistency model maps noise to data, and this path was built with gaussian_base=False. "
            'Give a path with a Gaussian base, such as path="edm" or path="linear".'
        )
    if not path.monotone or path.element:
        raise OptionError(
            f"a consistency model goes from noise level to noise level, and {path!r} has not one that "
            'falls for each time. Give a path such as path="edm".'
        )
    if recipe in _TAUGHT and teacher is None:
        raise OptionError(
            f"recipe={recipe!r} distils a teacher, and none is given. Give teacher=..., a run folder or a "
            'family such as edm or flow_matching; or train alone by recipe="ict".'
        )
    if recipe not in _TAUGHT and teacher is not None:
        raise OptionError(
            f"a teacher was given, and recipe={recipe!r} has none. Ask for recipe='cd' or 'scd', or leave "
            "the teacher out."
        )


def _teacher(given: Any, shape: tuple[int, ...]) -> PathFamily:
    """A frozen copy of a family, that of a run folder, or the one of a config."""
    if isinstance(given, (str, Path)):
        made: Any = load(given)[0]
    elif isinstance(given, Mapping):
        made = families.create(**given)
    else:
        made = copy.deepcopy(given)
    if not isinstance(made, PathFamily) or isinstance(made, FewStep) or not made.path.gaussian_base:
        what = getattr(made, "name", "") or type(made).__name__
        raise OptionError(
            f"the teacher is {what}, which has no flow on a path with a Gaussian base. Give a run of edm, "
            "ddpm, flow_matching or such."
        )
    if made.shape != tuple(shape):
        raise OptionError(
            f"the teacher was made for points of shape {made.shape}, not {tuple(shape)}. Give one of the "
            "same data."
        )
    return made.eval().requires_grad_(False)
