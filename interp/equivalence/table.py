"""A table of two columns in plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, and lines of a name and what is to be said of it, folded at ``width``."""

    title: str
    rows: Sequence[tuple[str, str]]
    width: int = 100

    def __str__(self) -> str:
        left = max(len(name) for name, _ in self.rows)
        lines = textwrap.wrap(self.title, self.width)
        for name, text in self.rows:
            folded = textwrap.wrap(text, self.width - left - 4) or [""]
            lines.append(f"  {name.ljust(left)}  {folded[0]}")
            lines += [" " * (left + 4) + more for more in folded[1:]]
        return "\n".join(lines)
