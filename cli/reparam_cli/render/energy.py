"""Modelled energy by each table: a converted model beside its original in floats and in int8."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from reparam_cli.render.screen import amount, plain_table, three_figures

if TYPE_CHECKING:
    from reparam import Energy, Profile

_PREFIXES = ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ"))


def energy_view(profile: "Profile", *, has_memory: bool) -> RenderableType:
    """Returns a row for each table; the int8 column is the dense model's, the baseline that a conversion must beat."""
    dense = profile.dense or profile
    is_run = profile.dense is not None
    table = plain_table("energy of one image", "dense", "dense in int8", *(["converted", "to int8"] if is_run else []))
    beaten = []
    for energy, wide, narrow in zip(profile.energies, dense.energies, dense.int8_energies, strict=True):
        cells = [joules(wide.picojoules), joules(narrow.picojoules)]
        if is_run:
            ratio = energy.picojoules / narrow.picojoules if narrow.picojoules else float("inf")
            cells += [joules(energy.picojoules), f"{three_figures(ratio)}x"]
            beaten += [energy.table] if ratio > 1 else []
        table.add_row(Text(energy.table), *cells)
    where = "moving words is priced" if has_memory else "moving words is not priced: see --weights-in, --activations-in"
    notes = [Text(f"modelled from the counts; {where}", style="dim"), *_unpriced(profile.energies)]
    if beaten:
        notes.append(Text(f"the dense model in int8 would take less, by {', '.join(beaten)}", style="red"))
    return Group(Text(), table, *notes)


def joules(picojoules: float) -> str:
    """Picojoules with the largest prefix that leaves a number above one."""
    for size, unit in _PREFIXES:
        if picojoules >= size:
            return f"{three_figures(picojoules / size)} {unit}"
    return f"{three_figures(picojoules)} pJ"


def _unpriced(energies: "tuple[Energy, ...]") -> list[Text]:
    """What a table has no price for, once for all tables that agree."""
    lacking: dict[str, list[str]] = {}
    for energy in energies:
        if energy.unpriced:
            words = ", ".join(f"{amount(n)} {key}" for key, n in energy.unpriced.items())
            lacking.setdefault(words, []).append(energy.table)
    return [Text(f"without a price in {', '.join(tables)}: {what}", style="yellow") for what, tables in lacking.items()]
