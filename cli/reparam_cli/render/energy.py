"""Modelled energy by each table: a converted model beside its original in floats and in int8."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from reparam_cli.render.screen import amount, plain_table, three_figures

if TYPE_CHECKING:
    from reparam import Energy, Profile

#: The accounting that has memories of its own.
_OWN_MEMORIES = "shiftaddvit-eyeriss"
_PREFIXES = ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ"))


def energy_view(profile: "Profile", *, weights_in: str | None, activations_in: str | None) -> RenderableType:
    """Returns a row for each table.

    The int8 column is the dense model's: the baseline that a conversion must beat. A conversion whose original is not
    there stands alone.
    """
    dense = profile if profile.dense is None and not profile.is_converted else profile.dense
    headings = ["dense", "dense in int8"] if dense else []
    if profile.is_converted:
        headings += ["converted", "to int8"] if dense else ["converted"]
    table, beaten = plain_table("energy of one image", *headings), list[str]()
    for index, energy in enumerate(profile.energies):
        cells = []
        if dense:
            narrow = dense.int8_energies[index].picojoules
            cells += [joules(dense.energies[index].picojoules), joules(narrow)]
        if profile.is_converted:
            cells.append(joules(energy.picojoules))
        if profile.is_converted and dense:
            cells.append(f"{three_figures(energy.picojoules / narrow)}x" if narrow else "-")
            beaten += [energy.table] if energy.picojoules > narrow else []
        table.add_row(Text(energy.table), *cells)
    notes = [Text(f"modelled from the counts; {_moves(weights_in, activations_in)}", style="dim")]
    if any(energy.table.startswith(_OWN_MEMORIES) for energy in profile.energies):
        notes.append(Text(f"{_OWN_MEMORIES} prices its own memories, and products alone", style="dim"))
    notes += _unpriced(profile.energies)
    if beaten:
        notes.append(Text(f"the dense model in int8 would take less, by {', '.join(beaten)}", style="red"))
    return Group(Text(), table, *notes)


def _moves(weights_in: str | None, activations_in: str | None) -> str:
    """Whose transport is priced."""
    priced = [
        f"{what} in {where}" for what, where in (("weights", weights_in), ("activations", activations_in)) if where
    ]
    if not priced:
        return "moving words is not priced: see --weights-in, --activations-in"
    rest = "" if len(priced) > 1 else f", not that of {'activations' if weights_in else 'weights'}"
    return f"moving {' and '.join(priced)} is priced{rest}, by tables that have such memories"


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
