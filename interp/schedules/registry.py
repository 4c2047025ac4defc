"""Paths by name: what a checkpoint stores of a path, and how it comes back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

from ..errors import OptionError, UnknownName
from ..interpolant import Interpolant

#: The builder of each name is the function of that name in this module of `interp.schedules`.
#: Its ``path.config`` is {"name": name, and its arguments as JSON}; see `from_config`.
HOME = {
    "linear": "closed",
    "power": "closed",
    "polynomial": "closed",
    "trigonometric": "closed",
    "cosine": "closed",
    "variance_preserving": "diffusions",
    "sub_variance_preserving": "diffusions",
    "variance_exploding": "diffusions",
    "edm": "diffusions",
    "brownian_bridge": "bridges",
    "foellmer": "bridges",
    "encode_decode": "bridges",
    "mirror": "bridges",
    "with_gamma": "bridges",
    "from_betas": "tables",
    "from_alphas_cumprod": "tables",
    "from_sigmas": "tables",
}

#: The same for what is made of other paths, and so cannot be built from its name alone.
COMPOSED = {
    "clocked": "composed",
    "ensemble": "composed",
    "learned": "learned",
    "piecewise": "composed",
    "product": "composed",
    "rescale": "composed",
    "reverse": "composed",
    "shifted": "composed",
    "warp": "composed",
    "weighted_sum": "composed",
}


def names() -> tuple[str, ...]:
    """The names of the paths that `from_config` can build, sorted."""
    return tuple(sorted(HOME))


def from_config(config: str | Mapping[str, object]) -> Interpolant:
    """The path that a ``path.config`` describes: {"name": ..., and the builder's arguments}.

    Every argument is JSON: numbers, strings, lists of them. A mapping with a "name", also one
    inside a list, is the config of a path and is built first: a path composed of others stores
    theirs. A name alone is the path of the default options.

    Raises:
        OptionError: no name, an argument that is missing, or one whose value makes no sense.
        UnknownName: a name or an argument that does not exist.
    """
    if not isinstance(config, str | Mapping):
        raise OptionError(
            f"a {type(config).__name__} is no config of a schedule. Give a name, or a mapping such as "
            '{"name": "linear"}.'
        )
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.pop("name", None)
    if name is None:
        raise OptionError(
            f'the schedule {options} has no "name". Give one of {", ".join(names())}.'
        )
    home = (HOME | COMPOSED).get(str(name))
    if home is None:
        raise UnknownName.of("schedule", name, [*HOME, *COMPOSED])
    builder = getattr(importlib.import_module(f".{home}", __package__), str(name))
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise UnknownName.of(f"option of the schedule {name}", option, known)
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise OptionError(
                f'the schedule {name} needs "{parameter.name}", and {config} has none. Give it.'
            )
    built = {option: _built(value) for option, value in options.items()}
    path: Interpolant = builder(**built)
    return path


def _built(value: object) -> object:
    """``value`` with the configs of paths in it made into paths."""
    if isinstance(value, Mapping) and "name" in value:
        return from_config(value)
    if isinstance(value, (list, tuple)):
        return [_built(item) for item in value]
    return value
