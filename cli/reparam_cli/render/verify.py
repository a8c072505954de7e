"""Two models compared: the verdict, the outputs, and the layers around the place where they part."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reparam_cli.render.screen import plain_table
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Difference, Verification


def verification_view(made: "Verification") -> RenderableType:
    """Returns the verdict, a table of the outputs and of the first layer that differs, and what was not compared."""
    verdict = Text("agree", "bold green") if made.agree else Text("differ", "bold red")
    head = Text.assemble((made.a, "bold"), " and ", (made.b, "bold"), " ", verdict)
    return Group(head, _figures(made), *(Text(line) for line in _words(made)))


def _figures(made: "Verification") -> Table:
    table = plain_table("", "relative error", "largest error", "correlation")
    _add(table, "outputs", made.outputs)
    if made.before is not None:
        _add(table, made.before.path, made.before)
    if made.first is not None:
        _add(table, made.first.path, made.first)
    return table


def _add(table: Table, name: str, found: "Difference") -> None:
    correlation = "-" if found.correlation is None else f"{found.correlation:.6f}"
    table.add_row(Text(name), _error(found.relative_error), _error(found.max_abs_error), correlation)


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2e}" if value else "0"


def _words(made: "Verification") -> Iterator[str]:
    yield f"same largest output on {made.top1_agreement:.2f} % of {counted(made.images, 'image')} ({made.data})"
    if not made.layers:
        yield "no layers compared: they share no module paths (torch's exporter writes them into a file, others do not)"
        return
    compared = f"{counted(len(made.layers), 'layer')} compared at a tolerance of {made.tolerance:g}"
    if made.first is None:
        yield f"{compared}: none differs"
    else:
        also = ", though the outputs agree" if made.agree else ""
        yield f"{compared}: {made.first.path} is the first that differs{also}"
    if made.uncompared:
        yield f"{counted(len(made.uncompared), 'layer')} of other shapes, the first {made.uncompared[0]}"
