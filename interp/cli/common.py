"""What the commands share: an option, a voice, and values as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..errors import OptionError

# torch is imported inside the commands: --help and a mistyped option need not wait for it.


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    debug: bool = False
    """Show the whole traceback of an error."""


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """name=value pairs; what is not JSON is taken as a string."""
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name.isidentifier() and equals):
            raise OptionError(f"--set {setting!r} is not name=value. Write it as --set width=64.")
        options[name] = _value(value)
    return options


def config(spec: str) -> dict[str, Any]:
    """A config out of NAME, NAME:OPTION=VALUE,OPTION=VALUE (values in JSON), or a JSON object.

    Raises:
        OptionError: something else.
    """
    if spec.startswith("{"):
        try:
            return dict(json.loads(spec))
        except ValueError as error:
            raise OptionError(
                f'{spec} is not JSON: {error}. Write {{"name": "linear"}}.'
            ) from error
    name, colon, given = spec.partition(":")
    options: dict[str, Any] = {}
    for setting in re.split(r",(?=\w+=)", given) if colon else ():
        option, equals, value = setting.partition("=")
        if not (option.isidentifier() and equals):
            raise OptionError(
                f"{spec!r} is not NAME:OPTION=VALUE. Write it as in edm:sigma_max=80."
            )
        options[option] = _value(value)
    return {"name": name, **options}


def _value(text: str) -> Any:
    """JSON, and what is not is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def say(text: str) -> None:
    Console(highlight=False).print(escape(text), soft_wrap=True)


def complain(text: str) -> None:
    Console(stderr=True, highlight=False).print(
        f"[bold red]error:[/] {escape(text)}", soft_wrap=True
    )
