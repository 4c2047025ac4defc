"""Optimal transport from a continuous base to a finite data set, fitted once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from .. import seeds
from ..arguments import positive, require_finite, require_floating, require_same, whole
from ..errors import OptionError
from ..noise import check_seed, normal_like
from .coupling import Coupling, check, check_labels, take
from .draws import uniform

Sampler = Callable[[int, Generator], Tensor]
"""base(rows, generator) -> x0 (rows, ...), of the data's shape, dtype and device."""

_TENSORS = ("weights", "average", "first", "second")


class SemiDiscrete(Coupling):
    """The plan of least cost |x - y|^2 between the whole base and the whole of a data set.

        x0 goes to the y_j of the largest 2 x0.y_j + w_j, where w maximises
        E[-max_j (2 x0.y_j + w_j)] + mean_j w_j,  whose gradient is 1 / N - P(x0 goes to y_j)

    so every y_j has the same share of the base. `fit` climbs by Adam with the average of its
    iterates; once fitted a pairing costs one product of matrices, whatever the size of the batch
    that trains. With reg the choice is drawn from softmax((2 x0.y + w) / reg).

    Marginals: the base exactly, every row of x0 stands in its pair and stays in its place; the data
    to the accuracy of the fit, which `frequencies` measures. The x1 of a call is not used but for
    its shape: points come from the data set, labels with them.

    Args:
        data: the data set (N, ...), floating; pairing is done on its device.
        labels: one a row of ``data``.
        reg: of the entropy, in the unit of the cost, positive; None is the plan without.
        within_labels: pair a row only with data of the label that the call gives it, so that the
            base given a label stays the base; else labels come with the data that are found, and
            the base given a label is the part of it nearest to the label's data.
        base: base(rows, generator) -> x0; None is N(0, 1).
        batch_size: base points in a step of the fit.
        lr: Adam's rate at the first step, in units of the spread of 2 x0.y; it falls as
            1 / sqrt(step).
        seed: of the fit.

    Raises:
        OptionError: data or labels that do not fit, or an option out of range.

    Source: Genevay, Cuturi, Peyre, Bach 2016 (1605.08527); in flow matching Mousavi-Hosseini,
    Zhang, Klein, Cuturi 2025 (2509.25519).
    """

    name: ClassVar[str] = "semi_discrete"

    def __init__(
        self,
        data: Tensor,
        labels: Tensor | None = None,
        reg: float | None = None,
        *,
        within_labels: bool = False,
        base: Sampler | None = None,
        batch_size: int = 256,
        lr: float = 0.05,
        seed: int = 0,
    ) -> None:
        check(data, data)
        require_finite("data", data)
        if labels is not None:
            check_labels(labels, len(data))
        if within_labels and labels is None:
            raise OptionError("within_labels needs the labels of the data. Give labels=.")
        self.data, self.labels, self.within_labels = data, labels, within_labels
        self.reg = None if reg is None else positive("reg", reg)
        self.base, self.lr = base, positive("lr", lr)
        self.batch_size, self.seed = whole("batch_size", batch_size, 1), check_seed(seed)
        rows = data.detach().reshape(len(data), math.prod(data.shape[1:]))
        rows = rows if rows.dtype is torch.float64 else rows.float()
        # Around their mean: this adds to 2 x.y one number for each x, which chooses nothing.
        self._twice = 2.0 * (rows - rows.mean(0))
        self._group = None
        if labels is not None and within_labels:
            self._kinds, self._group = torch.unique(labels, dim=0, return_inverse=True)
        self.step = 0
        self.weights, self._spread = self._begin()
        self.average = self.weights.clone()
        self.first, self.second = (torch.zeros_like(self.weights) for _ in range(2))

    @property
    def config(self) -> None:
        """None: the data are in no config."""

    def __repr__(self) -> str:
        return (
            f"semi_discrete({len(self.data)} points, reg={self.reg}, "
            f"within_labels={self.within_labels}, step={self.step})"
        )

    @property
    def potentials(self) -> Tensor:
        """The dual potentials g_j = w_j + |y_j|^2 of the cost |x - y|^2, but for a constant."""
        rows = self.data.detach().reshape(len(self.data), -1).to(self.average.dtype)
        found = self.average + rows.square().sum(1)
        return found - found.mean()

    # Fitting

    def fit(self, steps: int, progress: bool = True) -> SemiDiscrete:
        """Take steps until there have been ``steps`` in all; step k draws from (seed, k) alone.

        A fit that was stopped, also by Ctrl-C, or pickled, or whose `state_dict` was loaded into
        another, goes on by the same call to the same numbers.

        Raises:
            OptionError: steps below one, or a base that gives other points than the data's.
        """
        from tqdm import tqdm

        steps = whole("steps", steps, 1)
        with (
            torch.no_grad(),
            tqdm(total=steps, initial=self.step, disable=not progress, unit="step") as bar,
        ):
            while self.step < steps:
                share = self._climb()
                bar.update()
                if self.step % 50 == 0:
                    bar.set_postfix_str(f"data met in a step {100 * share:.0f} %", refresh=False)
        return self

    def _climb(self) -> float:
        """One step of Adam on the dual; the share of the data that its base points went to."""
        generator = seeds.generator(self.data.device, self.seed, "semi_discrete", self.step)
        x0, group = self._draw(self.batch_size, generator)
        scores = self._scores(x0, self.weights, group)
        count = len(self.data)
        if self.reg is None:
            mass = torch.bincount(scores.argmax(1), minlength=count).to(scores.dtype)
        else:
            mass = torch.softmax(scores / self.reg, 1).sum(0)
        gradient = 1.0 - mass * (count / self.batch_size)
        k = self.step + 1
        first = torch.lerp(self.first, gradient, 0.1)
        second = torch.lerp(self.second, gradient.square(), 0.01)
        scale = ((second / (1.0 - 0.99**k)).sqrt()).clamp_(min=torch.finfo(second.dtype).tiny)
        rate = self.lr * self._spread / math.sqrt(k)
        weights = self.weights + rate / (1.0 - 0.9**k) * first / scale
        # The average of the second half or so of the iterates: Shamir, Zhang 2012 (1212.1824).
        average = torch.lerp(self.average, weights, min(1.0, 4.0 / (k + 3.0)))
        self.weights, self.average, self.first, self.second = weights, average, first, second
        self.step = k  # last: whatever interrupts leaves the state of a whole number of steps
        return float((mass > 0).sum()) / count

    def _draw(self, rows: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Base points, and with ``within_labels`` the group of each, as frequent as in the data."""
        like = self.data
        if self.base is None:
            x0 = normal_like(like.new_empty(rows, *like.shape[1:]), generator)
        else:
            x0 = self.base(rows, generator)
            require_same(**{"data": like[:1].expand(rows, *like.shape[1:]), "the base's x0": x0})
        if self._group is None:
            return x0, None
        pick = torch.randint(len(like), (rows,), generator=generator, device=like.device)
        return x0, self._group[pick]

    def _begin(self) -> tuple[Tensor, float]:
        """The weights that would be right for normal data, and the spread of 2 x0.y.

        For a base of scale s0 around m0 and data of scale s around m the map is m + (s / s0)(x - m0),
        the gradient of a quadratic function, whose conjugate gives w = -|y - m|^2 s0 / s - 2 m0.y.
        """
        generator = seeds.generator(self.data.device, self.seed, "semi_discrete", "begin")
        centred = 0.5 * self._twice
        scale = centred.square().mean().sqrt().item()
        if scale == 0.0 or math.isnan(scale):
            return torch.zeros_like(centred[:, 0]) if centred.ndim else centred, 1.0
        x0 = self._rows(self._draw(max(self.batch_size, 256), generator)[0])
        mean = x0.mean(0)
        base_scale = (x0 - mean).square().mean().sqrt().item()
        weights = -centred.square().sum(1) * (base_scale / scale) - self._twice.mv(mean)
        features = centred.shape[1]
        return weights, 2.0 * math.sqrt(2.0 * features) * scale * (base_scale or 1.0)

    # Pairing

    def match(
        self, x0: Tensor, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The row of the data set that each row of ``x0`` goes to, on the data's device.

        Args:
            x0: base points (rows, ...), of the shape and dtype of the data.
            labels: with ``within_labels`` the label of each row.
            generator: only with ``reg`` is anything drawn.

        Raises:
            OptionError: points or labels that do not match, a label that no data have, or a
                coupling that was not fitted.
        """
        check(x0, x0, labels, generator)
        if self.step == 0:
            raise OptionError("this semi_discrete coupling was not fitted. Call fit(steps) first.")
        wanted = (self.data.shape[1:], self.data.dtype)
        if (x0.shape[1:], x0.dtype) != wanted:
            raise OptionError(
                f"x0 has rows of shape {tuple(x0.shape[1:])} and {x0.dtype} but the data have "
                f"{tuple(wanted[0])} and {wanted[1]}. Match them."
            )
        require_finite("x0", x0)
        with torch.no_grad():
            group = self._group_of(labels) if self.within_labels else None
            scores = self._scores(x0.detach().to(self.data.device), self.average, group)
            if self.reg is None:
                return scores.argmax(1)
            cdf = torch.softmax(scores.double() / self.reg, 1).cumsum(1)
            u = uniform(len(x0), generator).to(cdf.device)[:, None] * cdf[:, -1:]
            found = torch.searchsorted(cdf, u, right=True).squeeze(1)
            return found.clamp_(max=len(self.data) - 1)

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        labels: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """See `Coupling.__call__`; the points and labels returned are those of the data set.

        Raises:
            OptionError: also where labels are asked for and the data set has none.
        """
        check(x0, x1, labels, generator)
        if labels is not None and self.labels is None:
            raise OptionError(
                "labels are given but the data set of this coupling has none. Make it with labels=."
            )
        j = self.match(x0, labels, generator)
        paired = (x0, take(self.data, j).to(x0.device))
        if labels is None or self.labels is None:
            return paired
        return (*paired, take(self.labels, j).to(labels.device))

    def frequencies(self, rows: int, seed: int = 0) -> Tensor:
        """How often each of the data is met by ``rows`` base points: (N,), 1 / N each if fitted.

        Half the sum of |frequency - 1 / N| is the distance of the data marginal in total variation,
        with about 0.4 sqrt(N / rows) from counting alone.
        """
        rows, seed = whole("rows", rows, 1), check_seed(seed)
        found = torch.zeros(len(self.data), dtype=torch.float64)
        for k, begin in enumerate(range(0, rows, 1024)):
            generator = seeds.generator(self.data.device, seed, "frequencies", k)
            x0, group = self._draw(min(1024, rows - begin), generator)
            labels = None if group is None else self._kinds[group]
            j = self.match(x0, labels, generator)
            found += torch.bincount(j.cpu(), minlength=len(found))
        return found / rows

    def _scores(self, x0: Tensor, weights: Tensor, group: Tensor | None) -> Tensor:
        scores = torch.addmm(weights, self._rows(x0), self._twice.T)
        if group is None or self._group is None:
            return scores
        scores[group[:, None] != self._group] = -math.inf
        return scores

    def _rows(self, x0: Tensor) -> Tensor:
        require_floating(x0=x0)
        return x0.reshape(len(x0), self._twice.shape[1]).to(self._twice.dtype)

    def _group_of(self, labels: Tensor | None) -> Tensor:
        """The number of each label among those of the data."""
        if labels is None:
            raise OptionError("this coupling pairs within labels. Call it with labels=.")
        kinds = self._kinds.to(labels.device)
        if labels.shape[1:] != kinds.shape[1:]:
            raise OptionError(
                f"labels have shape {tuple(labels.shape[1:])} a row but those of the data have "
                f"{tuple(kinds.shape[1:])}. Match them."
            )
        same = (labels[:, None] == kinds).reshape(len(labels), len(kinds), -1).all(2)
        if not bool(same.any(1).all()):
            row = int((~same.any(1)).nonzero()[0])
            raise OptionError(
                f"row {row} has the label {labels[row].tolist()}, which no data have. Give labels of "
                "the data set."
            )
        group: Tensor = same.int().argmax(1).to(self.data.device)
        return group

    # To and from a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """What `fit` goes on from: tensors of N numbers each, and the step."""
        return {name: getattr(self, name) for name in _TENSORS} | {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a coupling with the same data and options.

        Raises:
            OptionError: a state of other data.
        """
        if missing := {*_TENSORS, "step"} - state.keys():
            raise OptionError(
                f"the state lacks {', '.join(sorted(missing))}. Give what state_dict() returned."
            )
        for name in _TENSORS:
            if state[name].shape != self.weights.shape:
                raise OptionError(
                    f"the state is of {len(state[name])} data and these are {len(self.data)}. Load "
                    "it into a coupling with the data it was fitted to."
                )
        for name in _TENSORS:
            setattr(self, name, state[name].to(self.weights).clone())
        self.step = whole("step", state["step"], 0)
