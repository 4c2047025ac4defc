"""What a config says by a name, or by a mapping with a name and options: JSON-able either way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import OptionError, UnknownName

T = TypeVar("T")


def build(kind: str, spec: object, builders: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """What ``spec`` names: "name", or {"name": "name", and options of that builder}.

    ``given`` are further arguments, for the builders that take them.

    Raises:
        UnknownName: a name or an option that does not exist.
        OptionError: something else than a name or a mapping, or a mapping without a name.
    """
    options = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or "name" not in options:
        raise OptionError(
            f"the {kind} is {spec!r}. Give a name, such as {sorted(builders)[0]!r}, or a mapping "
            'with "name" and options.'
        )
    options = dict(options)
    name = options.pop("name")
    if name not in builders:
        raise UnknownName.of(kind, name, builders)
    builder = builders[name]
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known or option in given:
            raise UnknownName.of(f"option of the {kind} {name}", option, set(known) - set(given))
    return builder(**options, **{key: value for key, value in given.items() if key in known})
