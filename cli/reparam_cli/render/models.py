"""Architectures as a table of what converts, and the families that there are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from reparam_cli.render.screen import amount, columns, plain_table
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Examination

_SHOWN = 3
_KINDS = ("attention", "mlp", "linear", "conv2d")


def models_view(found: "Sequence[Examination]") -> RenderableType:
    """Returns one row per architecture, converted of found, and below it the reasons for what stays."""
    table = plain_table("model", "parameters", "attention", "MLPs", "linear", "conv2d")
    for examination in found:
        size = "" if examination.parameters is None else amount(examination.parameters)
        table.add_row(Text(examination.name), size, *(_converted(examination, kind) for kind in _KINDS))
    reasons = [*_failures(found), *_reasons(found)]
    legend = Text("converted / found; what lies inside a converted module is not counted apart", style="dim")
    return Group(table, legend, *reasons)


def families_view(families: Mapping[str, Sequence[str]]) -> RenderableType:
    """Returns the families with how many architectures each has, and how to ask for more."""
    table = columns()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for family, names in families.items():
        table.add_row(family, str(len(names)), f"{names[0]}, ..." if len(names) > 1 else names[0])
    total = sum(map(len, families.values()))
    note = f'{total} architectures in {len(families)} families. Name some: reparam models "swin*" deit_tiny; or --all.'
    return Group(table, Text(note))


def _converted(examination: "Examination", kind: str) -> str:
    tally = examination.tally(kind)  # type: ignore[arg-type]  # one of the kinds
    found = tally.found - tally.of("inside")
    return f"{tally.of('converted')} / {found}" if found else ""


def _failures(found: "Sequence[Examination]") -> Iterator[Text]:
    for examination in found:
        for failure in examination.failures:
            yield Text(f"{examination.name}: failed: {failure}", style="red")


def _reasons(found: "Sequence[Examination]") -> Iterator[Text]:
    """One line for each reason, with the architectures that it touches."""
    groups: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for examination in found:
        for r in examination.reasons:
            groups.setdefault((r.kind, r.fate, r.reason), []).append((examination.name, r.count))
    for (kind, fate, reason), places in groups.items():
        sites = counted(sum(count for _, count in places), f"{kind} site")
        names = ", ".join(name for name, _ in places[:_SHOWN])
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        style = "yellow" if fate == "refused" else "dim"
        yield Text(f"{sites} {_FATES[fate]}: {reason} ({names}{more})", style=style)


_FATES = {"refused": "refused", "no gain": "left, no gain", "idle": "idle", "keep": "kept"}
