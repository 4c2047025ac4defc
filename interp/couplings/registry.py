"""Couplings by name: what a checkpoint stores of a coupling, and how it comes back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError
from ..named import build
from .coupling import Coupling

#: The class of each name, by the module of `interp.couplings` that it is in.
_HOME = {
    "independent": ("independent", "Independent"),
    "given": ("independent", "Given"),
    "optimal_transport": ("exact", "OptimalTransport"),
    "unbalanced": ("unbalanced", "Unbalanced"),
    "partial": ("unbalanced", "Partial"),
    "schroedinger_bridge": ("bridge", "SchroedingerBridge"),
    "conditional": ("conditional", "Conditional"),
}


def names() -> tuple[str, ...]:
    """The names of the couplings that `from_config` can build, sorted."""
    return tuple(sorted(_HOME))


def from_config(config: Coupling | str | Mapping[str, Any]) -> Coupling:
    """The coupling that a ``coupling.config`` describes: {"name": ..., and its options}.

    Args:
        config: that mapping; or a name alone, for the default options; or a coupling, given back.

    Raises:
        OptionError: no name, an option whose value makes no sense, or semi_discrete, whose data no
            config can hold.
        UnknownName: a name or an option that does not exist.
    """
    if isinstance(config, Coupling):
        return config
    if (config.get("name") if isinstance(config, Mapping) else config) == "semi_discrete":
        raise OptionError(
            "semi_discrete is fitted to a data set, which a config cannot hold. Make it in Python by "
            "couplings.semi_discrete(data), fit it, and give that."
        )
    builders: dict[str, Callable[..., Coupling]] = {
        name: getattr(importlib.import_module(f".{module}", __package__), made)
        for name, (module, made) in _HOME.items()
    }
    return build("coupling", config, builders)
