"""Couplings by name: what a checkpoint stores of a coupling, and how it comes back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError, UnknownName
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
    "semi_discrete": ("semi_discrete", "SemiDiscrete"),
}


def names() -> tuple[str, ...]:
    """The names of the couplings that `from_config` can build, sorted."""
    return tuple(sorted(set(_HOME) - {"semi_discrete"}))


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
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, Mapping) or "name" not in config:
        raise OptionError(
            f"the coupling {config!r} is no coupling, name or mapping with a name. Give one of "
            f"{', '.join(names())}."
        )
    options = dict(config)
    name = str(options.pop("name"))
    if name not in _HOME:
        raise UnknownName.of("coupling", name, _HOME)
    if name == "semi_discrete":
        raise OptionError(
            "semi_discrete is fitted to a data set, which a config cannot hold. Make it in Python by "
            "couplings.semi_discrete(data), fit it, and give that."
        )
    module, made = _HOME[name]
    builder = getattr(importlib.import_module(f".{module}", __package__), made)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise UnknownName.of(f"option of the coupling {name}", option, known)
    coupling: Coupling = builder(**options)
    return coupling
