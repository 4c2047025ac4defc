"""What there is: families, solvers, schedules, couplings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InterpError
from .common import Common, complain


@dataclass(frozen=True, kw_only=True)
class List(Common):
    """Show the families, solvers, schedules and couplings, with what each can do.

    Example: interp list
    """

    def run(self) -> None:
        """List."""
        console = Console()
        console.print(_families(), sep="\n")
        _options(console)
        console.print("", _solvers(), _schedules(), _couplings(), sep="\n")


def _options(console: Console) -> None:
    """A line for each family with what may follow --set."""
    from .. import families

    for name in families.available():
        try:
            options = families.options(families.load(name))
        except InterpError:
            continue
        known = "any option" if options is None else ", ".join(("network", *options))
        console.print(f"[bold]{name}[/] --set  {known}", highlight=False)


def _families() -> Table:
    from .. import families

    table = Table("family", *families.VERBS, title="Families", title_justify="left")
    for name in families.available():
        try:
            factory = families.load(name)
        except InterpError as error:
            table.add_row(name, *["?"] * len(families.VERBS))
            complain(str(error))
            continue
        verbs = families.verbs(factory)
        table.add_row(name, *(_cell(verbs[verb]) for verb in families.VERBS))
    return table


def _cell(value: bool | str) -> str:
    return value if isinstance(value, str) else "yes" if value else "-"


def _solvers() -> Table:
    from .. import solvers

    columns = ("solver", "kind", "order", "adaptive", "backends")
    table = Table(*columns, title="Solvers", title_justify="left")
    for m in solvers.methods():
        adaptive = "yes" if m.adaptive else "-"
        table.add_row(m.name, m.kind, str(m.order), adaptive, ", ".join(m.backends))
    return table


def _schedules() -> Table:
    """Each path with its options, and what holds at its ends."""
    from .. import schedules

    table = _described("schedule", "Schedules", "from", "to")
    for name in schedules.names():
        builder = getattr(schedules, name)
        try:
            path = schedules.from_config({"name": name})
        except InterpError:  # it needs an option: a table, another path
            starts = ends = "-"
        else:
            at = path.boundary
            starts = "base" if at.starts_at_base else "base, data"
            ends = "data" if at.ends_clean else "data, noise"
        table.add_row(f"[bold]{name}[/]", starts, ends, _about(builder))
    return table


def _couplings() -> Table:
    from .. import couplings

    table = _described("coupling", "Couplings")
    for name in couplings.names():
        builder = getattr(couplings, name)
        table.add_row(f"[bold]{name}[/]", _about(builder))
    return table


def _described(kind: str, title: str, *columns: str) -> Table:
    """A table of names with what each is and which options it has."""
    from rich import box

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (kind, *columns):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is, and its options")
    return table


def _about(builder: Callable[..., object]) -> str:
    """Its docstring's first line, and below it its arguments with their defaults."""
    line = (inspect.getdoc(builder) or "").partition("\n")[0].replace("`", "")
    options = ", ".join(
        p.name if p.default is p.empty else f"{p.name}={_short(p.default)}"
        for p in inspect.signature(builder).parameters.values()
    )
    return f"{escape(line)}\n[dim]{escape(options)}[/]" if options else escape(line)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
