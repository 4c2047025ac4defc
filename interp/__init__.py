"""interp: one stochastic interpolant, one solver engine, every generative family on top.

    I_t = alpha(t) x0 + beta(t) x1 + gamma(t) z,    z ~ N(0, 1),  t in [0, 1]

x0 is the base (noise) at t = 0, x1 the data at t = 1. A path says where the points lie, a model
says where they go, a term puts the two together, and `solve` integrates it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        couplings,
        equivalence,
        errors,
        exact,
        grids,
        guidance,
        hooks,
        losses,
        metrics,
        native,
        noise,
        plot,
        schedules,
        times,
        tuning,
    )  # fmt: skip
    from .conservative import curl, energy_of_score
    from .elsewhere.diffusers import from_diffusers
    from .elsewhere.scheduler import InterpScheduler as InterpScheduler
    from .elsewhere.sigma import from_k_diffusion
    from .guidance import guide
    from .interpolant import Interpolant
    from .likelihood import log_prob, sample_and_log_prob
    from .native import compile
    from .preconditioning import precondition
    from .solvers import methods, solve
    from .terms import ODE, SDE, Energy
    from .training import train
    from .tuning import best_schedule

# Where each public name lives. Loaded at first use, so that `import interp` costs what torch costs
# and `interp --help` does not even cost that.
_HOME = {
    "Event": "solvers",
    "InterpScheduler": "elsewhere.scheduler",
    "Energy": "terms",
    "Interpolant": "interpolant",
    "compile": "native",
    "ODE": "terms",
    "SDE": "terms",
    "best_schedule": "tuning",
    "curl": "conservative",
    "energy_of_score": "conservative",
    "from_diffusers": "elsewhere.diffusers",
    "from_k_diffusion": "elsewhere.sigma",
    "guide": "guidance",
    "log_prob": "likelihood",
    "sample_and_log_prob": "likelihood",
    "methods": "solvers",
    "precondition": "preconditioning",
    "solve": "solvers",
    "train": "training",
}
_MODULES = (
    "couplings", "equivalence", "errors", "exact", "families", "grids", "guidance",
    "hooks", "losses", "metrics",
    "native", "noise", "plot",
    "schedules", "testing", "times", "tuning",
)  # fmt: skip

__all__ = [  # noqa: RUF022 - grouped as a reader meets them
    "schedules", "Interpolant", "couplings", "ODE", "SDE", "Energy", "Event", "solve", "methods",
    "log_prob", "curl", "energy_of_score",
    "sample_and_log_prob", "guide", "precondition", "from_diffusers", "from_k_diffusion", "compile",
    "native", "best_schedule", "tuning", "exact", "grids", "guidance", "hooks", "losses", "times", "train",
    "equivalence", "metrics", "plot", "noise", "errors",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        from .errors import UnknownName

        hint = UnknownName.of("name in interp", name, [*_HOME, *_MODULES])
        raise AttributeError(str(hint))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})


def _check_adapters() -> None:
    """Refuse to run beside another distribution's top-level package called ``adapters``."""
    spec = importlib.util.find_spec("adapters")
    here = Path(__file__).resolve().parent.parent
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent == here:
        return
    from importlib.metadata import packages_distributions

    owners = [d for d in packages_distributions().get("adapters", []) if d != "interp"]
    raise ImportError(
        f"the package `adapters` at {spec.origin} is not interp's own"
        f"{' but belongs to the distribution ' + ', '.join(owners) if owners else ''}. "
        "Uninstall it, or install interp in an environment of its own."
    )


_check_adapters()
