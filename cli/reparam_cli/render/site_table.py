"""Sites of a plan in aligned columns; a long path takes several lines, so that what is said of it stays readable."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from reparam_cli.render.screen import columns

_BREAKS = re.compile(r"(?<=\.)|(?<=,)(?=\D)")
#: The share of the width that paths may take.
_PATHS = 0.45


@dataclass(frozen=True, slots=True)
class SiteTable:
    """Rows of a path, a count, what becomes of it, and the rule that says so."""

    rows: Sequence[tuple[str, str, Text, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table for the width at hand."""
        width = int(options.max_width * _PATHS)
        table = columns()
        table.add_column(no_wrap=True, overflow="fold")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(no_wrap=True, style="dim")
        for path, count, outcome, rule in self.rows:
            table.add_row("\n".join(broken(path, width)), count, outcome, rule)
        yield table


@dataclass(frozen=True, slots=True)
class PathList:
    """Paths, one below the other."""

    paths: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the paths, indented, for the width at hand."""
        for path in self.paths:
            yield Text("\n".join(f"  {line}" for line in broken(path, options.max_width - 2)), style="dim")


def broken(path: str, width: int) -> list[str]:
    """Breaks a path after dots, or between names in braces, into lines of at most `width` characters, if it can be."""
    lines = [""]
    for part in _BREAKS.split(path) if len(path) > width else [path]:
        if lines[-1].strip() and len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return lines
