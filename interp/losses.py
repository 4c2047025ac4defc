"""One loss for all: the regression of a model of any view on a path.

    E w(t) |model(t, I_t) - target|^2,   I_t = alpha x0 + beta x1 + gamma z

The target is the variable whose mean given I_t the view is, so that the minimiser is the view:

    velocity  dI_t/dt      noise  (alpha x0 + gamma z) / sigma    score            -noise / sigma
    data      x1           base   x0                              energy_gradient  noise / sigma
    v_prediction           beta noise - sigma x1
    flow_prediction        noise - x1

Where the base is not Gaussian the noise is z and sigma is gamma. Weights are in `interp.weights`,
laws of time in `interp.times`, pairings of the ends in `interp.couplings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from . import times as laws
from . import views
from . import weights as weighting
from .arguments import (
    Time,
    as_time,
    check_element,
    check_rows,
    host,
    require_floating,
    require_same,
    spread,
)
from .coefficients import Coefficients
from .errors import FieldError, OptionError, UndeterminedView
from .noise import normal_like
from .terms.model import call, check_own_path, check_own_view, check_time_name
from .weights import Learned, Weight

if TYPE_CHECKING:
    from .interpolant import Interpolant, Model, Share

__all__ = ["Coupling", "Learned", "Regression", "Weight", "weights"]

Coupling = Callable[..., tuple[Tensor, ...]]
"""coupling(x0, x1, labels=None, generator=None) -> x0, x1[, labels], paired."""

_SINGULAR = 1e-5


def weights() -> tuple[str, ...]:
    """The names of the weights."""
    return weighting.names()


class Regression(nn.Module):
    """The mean of w(t) |model - target|^2 over rows and elements: ``loss(model, x1)``.

    A module, since a learned weight has parameters and importance sampling a memory.

    Args:
        path: the path.
        view: what the model returns, one of `interp.views.VIEWS`.
        weight: by name (`weights`), {"name": ..., and its options}, a function of log-SNR that weighs
            the noise's error, or a `Weight`.
        times: the law of t, in the same ways; None is uniform.
        coupling: pairs base and data, coupling(x0, x1, labels=None, generator=None), or the name or
            config of one of `interp.couplings`; None leaves them independent.
        time: what the model is told: "t", "noise" (1 - t), "sigma", "log_snr" or ("index", n).
        unbiased: whether the weight of a drawn time makes this the loss of uniform time; None leaves
            it to the law: no for published laws, whose density is part of the loss, yes for
            importance sampling.

    Attributes:
        interval: where t lies: (0, 1), less 1e-5 at an end where a velocity is infinite, as for
            the variance-preserving path at t = 1 (1e-5 is that of Song et al., 2011.13456).

    Raises:
        UnknownName, OptionError: a name or an option that does not exist, or does not fit the path.
        UndeterminedView: a view that has no target on this path or under this coupling.
    """

    def __init__(
        self,
        path: Interpolant,
        view: str = "velocity",
        weight: Weight | Learned | str | Mapping[str, Any] | Callable[[Tensor], Tensor] = "simple",
        times: laws.Times | str | Mapping[str, Any] | None = None,
        coupling: Coupling | str | Mapping[str, Any] | None = None,
        time: str | tuple[str, int] = "t",
        unbiased: bool | None = None,
    ) -> None:
        super().__init__()
        self.coupling = _coupling(coupling)
        _check_view(path, view, self.coupling)
        check_time_name(time)
        self.path, self.view, self.time = path, view, time
        self._straight = view == "velocity" and _is_straight(path)
        self.weight = weighting.resolve(weight)
        self.weight.check(path, view)
        drawn = laws.resolve(times, path)
        low, high = _interval(path, view)
        self.interval = max(low, drawn.interval[0]), min(high, drawn.interval[1])
        self.times = drawn if self.interval == drawn.interval else drawn.within(*self.interval)
        self.unbiased = drawn.corrects if unbiased is None else unbiased

    def extra_repr(self) -> str:
        """The path, and what is regressed where."""
        parts = {"view": self.view, "times": self.times, "coupling": self.coupling}
        said = ", ".join(f"{name}={value!r}" for name, value in parts.items() if value is not None)
        return f"{self.path!r}, {said}, interval={self.interval}"

    def forward(
        self,
        model: Model,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        cond: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        paired: bool = False,
    ) -> Tensor:
        """The loss of one batch, a scalar of x1's dtype.

        Args:
            model: model(time, x, **cond) -> tensor of x's shape.
            x1: data, (rows, ...), floating.
            x0: base points; drawn from N(0, 1) where the base is Gaussian.
            cond: what the model is conditioned on; a coupling may carry "label" along.
            generator: of every random draw.
            paired: whether ``x0`` is paired with ``x1`` already, and the coupling is left out.

        Raises:
            OptionError: points that do not fit together, no rows, or a missing ``x0``.
            FieldError: a model that returns something else than a tensor of x's shape.
        """
        check_own_view(model, self.view)
        check_own_path(model, self.path)
        drawn = x0 is None and self.coupling is None
        x0, x1, cond = self.ends(x0, x1, dict(cond or {}), generator, paired)
        z = None if self.path.gamma is None else normal_like(x1, generator)
        t = self.times.draw(len(x1), generator=generator, device=x1.device)
        found, target = self._predict(model, t, x0, x1, z, cond, x0 if drawn else None)
        if self._plain:
            return nn.functional.mse_loss(found, target)
        k, rows = self._rows(t, found, target)
        counts = self.times.weight(t) if self.unbiased else 1.0
        if isinstance(self.times, laws.Importance):
            self.times.update(t, rows)
        return (self.scaled(k, rows) * counts).mean().to(x1.dtype)

    def rows(
        self, model: Model, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        """The weighted loss of each row at its time ``t`` (rows,): (rows,) float64."""
        t = as_time(t)
        return self.scaled(*self._rows(t, *self._predict(model, t, x0, x1, z, cond or {})))

    def target(
        self, t: Time, x0: Tensor, x1: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The point I_t and what the model is regressed on there."""
        time = as_time(t)
        check_rows(time, x1)
        return self._point_and_target(time, x0, x1, z)

    @property
    def _plain(self) -> bool:
        """Whether every error counts alike."""
        one = isinstance(self.weight, Weight) and self.weight.view is None
        return one and not (self.unbiased or isinstance(self.times, laws.Importance))

    def _predict(
        self, model: Model, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None,
        cond: Mapping[str, Any], spare: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What the model says at the point, and what it should."""
        if self.path.element:
            check_element(t, x1, self.path.element)
        point, target = self._point_and_target(t, x0, x1, z, spare)
        found = call(model, self.path, self.time, t, point, cond)
        if not isinstance(found, Tensor) or found.shape != target.shape:
            what = (
                f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise FieldError(
                f"the model returned {what} for points of shape {tuple(target.shape)}. Return a tensor "
                "of the points' shape."
            )
        return found.to(target.dtype), target

    def _rows(self, t: Tensor, found: Tensor, target: Tensor) -> tuple[Coefficients, Tensor]:
        """The mean over the elements of each row, weighted: (rows,) float64."""
        k, path = self.path.coefficients(t), self.path
        w = self.weight.on(k, self.view)
        if w is not None and path.element:  # a weight for each element, in the path's basis
            error = found - target if path.basis is None else path.basis[0](found - target)
            squared = error.square()
            return k, (spread(w, squared, path.element) * squared).flatten(1).mean(1).double()
        squared = nn.functional.mse_loss(found, target, reduction="none")
        rows = (squared.flatten(1).mean(1) if squared.ndim > 1 else squared).double()
        return k, rows if w is None else rows * w

    def scaled(self, k: Coefficients, rows: Tensor) -> Tensor:
        """Losses of ``rows`` at coefficients k: L exp(-u) + u where the weight is learned, else L."""
        if not isinstance(self.weight, Learned):
            return rows
        u = self.weight.log_scale(k)
        return rows * torch.exp(-u) + u

    def _point_and_target(
        self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor | None, spare: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """I_t and what the model is regressed on there; the memory of ``spare`` may take I_t."""
        if self._straight and t.ndim:
            target, share = x1 - x0, spread(t, x0)
            return (torch.lerp(x0, x1, share) if spare is None else spare.lerp_(x1, share)), target
        path, ends = self.path, (x0, x1, z)
        schedules = (path.alpha, path.beta, path.gamma)
        if self.view == "velocity":
            pairs = [(0.0, 0.0) if f is None else f.value_and_slope(t) for f in schedules]
            values, shares = zip(*pairs, strict=True)
        else:
            values = tuple(0.0 if f is None else f(t) for f in schedules)
            shares = self._shares(*values)
        target = path.combine(shares, ends)
        # A gradient through the target's shares may have kept x0.
        kept = target is spare or target.requires_grad
        return path.combine(values, ends, None if kept else spare), target

    def _shares(self, alpha: Tensor, beta: Tensor, gamma: Share) -> tuple[Share, Share, Share]:
        """What the target takes of x0, x1 and z, where it is not the rate."""
        if self.view in ("data", "base"):
            return (0.0, 1.0, 0.0) if self.view == "data" else (1.0, 0.0, 0.0)
        scale, a, g = self._noise(alpha, gamma)
        if self.view == "noise":
            return a, 0.0, g
        if self.view == "flow_prediction":
            return a, -1.0, g
        v = self.view == "v_prediction"
        factor = beta if v else (-1.0 if self.view == "score" else 1.0) / scale
        a, g = (share if _is_zero(share) else share * factor for share in (a, g))
        return a, -scale if v else 0.0, g

    def _noise(self, alpha: Tensor, gamma: Share) -> tuple[Tensor, Share, Share]:
        """The scale of the noise, and what the noise takes of x0 and z."""
        if not isinstance(gamma, Tensor):
            return alpha, 1.0, 0.0
        if not self.path.gaussian_base:
            return gamma, 0.0, 1.0
        scale = torch.hypot(alpha, gamma)
        return scale, alpha / scale, gamma / scale

    def ends(
        self, x0: Tensor | None, x1: Tensor, cond: dict[str, Any], generator: Generator | None,
        paired: bool,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
        """Base and data, paired by the coupling, and what the model is conditioned on."""
        require_floating(x1=x1)
        if x1.ndim == 0 or len(x1) == 0:
            raise OptionError(f"x1 has shape {tuple(x1.shape)}. Give at least one row of data.")
        if x0 is None and not self.path.gaussian_base:
            raise OptionError(
                "this path was built with gaussian_base=False, so the law of x0 is not known. Give "
                "the base points too: loss(model, x1, x0)."
            )
        if x0 is None:
            x0 = normal_like(x1, generator)
        else:
            require_same(x1=x1, x0=x0)
        if self.coupling is None or paired:
            return x0, x1, cond
        if set(cond) - {"label"}:
            raise OptionError(
                f"a coupling carries labels along, and cond has {sorted(cond)}. Give the label alone, "
                "or no coupling."
            )
        if "label" not in cond:
            x0, x1 = self.coupling(x0, x1, generator=generator)[:2]
            return x0, x1, cond
        x0, x1, label = self.coupling(x0, x1, labels=cond["label"], generator=generator)
        return x0, x1, {"label": label}


def _is_straight(path: Interpolant) -> bool:
    """Whether I_t = x0 + t (x1 - x0), by schedules that give their slopes as numbers."""
    if path.gamma is not None or path.element or path.basis is not None:
        return False
    (a, da), (b, db) = (f.value_and_slope(host(0.0)) for f in (path.alpha, path.beta))
    constant = isinstance(da, float) and isinstance(db, float)
    return constant and (float(a), da, float(b), db) == (1.0, -1.0, 0.0, 1.0)


def _is_zero(share: Share) -> bool:
    return isinstance(share, float) and share == 0.0


def _interval(path: Interpolant, view: str) -> tuple[float, float]:
    """(0, 1), less a little at an end where the target is infinite."""
    if view != "velocity":
        return 0.0, 1.0
    boundary = path.boundary
    return (
        0.0 if boundary.finite_rate0 else _SINGULAR,
        1.0 if boundary.finite_rate1 else 1.0 - _SINGULAR,
    )


def _coupling(spec: Coupling | str | Mapping[str, Any] | None) -> Coupling | None:
    if spec is None or callable(spec):
        return spec
    from .couplings import from_config

    return from_config(spec)


def _check_view(path: Interpolant, view: str, coupling: object) -> None:
    views.check(view)
    latent = ("noise", "score", "energy_gradient")
    if not path.gaussian_base and view in ("v_prediction", "flow_prediction"):
        raise UndeterminedView(
            f"{view} mixes noise and data, which are two functions where the base is not Gaussian. "
            "Train the velocity, and the score beside it."
        )
    if not path.gaussian_base and path.gamma is None and view in latent:
        raise UndeterminedView(
            f"a path without a gamma has no z, and no {view} is known of a base that is not Gaussian. "
            "Train the velocity, or give the path a gamma."
        )
    independent = coupling is None or getattr(coupling, "name", None) == "independent"
    if independent or not path.gaussian_base or view in ("velocity", "data", "base"):
        return
    if path.gamma is not None or view in ("score", "energy_gradient"):
        raise UndeterminedView(
            f"under a coupling the base depends on the data, and the {view} is not told by x0. Train the "
            "velocity, or build the path with gaussian_base=False and a gamma, whose z tells the score."
        )
