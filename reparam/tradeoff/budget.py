"""Budgets as a user writes them, `energy=0.4x` or `size=300kB`, and what models cost in their quantities.

Energy is modelled: operations per image, priced by a table, moving words left out. Multiplications are counted, per
image. Size is the bytes of the weights as a device would hold them: shift weights in their bits, others in 32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from reparam.cost.energy import price
from reparam.cost.energy_table import EnergyTable
from reparam.errors import BudgetError
from reparam.suggest import did_you_mean
from reparam.tradeoff.records import Sensitivity

Quantity = Literal["energy", "multiplications", "size"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
#: For each quantity its units, in picojoules, operations and bytes.
_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "energy": {"pJ": 1.0, "nJ": 1e3, "uJ": 1e6, "µJ": 1e6, "mJ": 1e9, "J": 1e12},
    "multiplications": _PREFIXES,
    "size": {f"{prefix}B": factor for prefix, factor in _PREFIXES.items()},
}
_NUMBER = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[^\W\d]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most `limit` of a quantity: picojoules, operations or bytes, or shares of the dense model's."""

    quantity: Quantity
    limit: float
    is_relative: bool
    text: str

    def absolute(self, dense: float) -> float:
        """The limit for a dense model that costs so much."""
        return self.limit * dense if self.is_relative else self.limit


def parse_budget(text: str) -> Budget:
    """Reads `QUANTITY=VALUE`; the value is relative to the dense model (`0.4x`) or has a unit (`3.2uJ`, `2M`, `300kB`).

    Raises:
        BudgetError: an unknown quantity, or a value that cannot be read.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    quantity = parse_quantity(name, where=f'budget "{text}"')
    read = _NUMBER.fullmatch(value)
    units = _UNITS[quantity]
    if not equals or read is None or read["unit"] not in (*units, "x"):
        known = ", ".join(unit for unit in units if unit)
        raise BudgetError(f'budget "{text}": wanted {quantity}=0.4x, or a number with one of the units {known}')
    is_relative = read["unit"] == "x"
    factor = 1.0 if is_relative else units[read["unit"]]
    return Budget(quantity=quantity, limit=float(read["number"]) * factor, is_relative=is_relative, text=text)


def parse_quantity(name: str, *, where: str) -> Quantity:
    """Returns a quantity by its name; raises BudgetError, with close names, for another."""
    found = next((quantity for quantity in QUANTITIES if quantity == name), None)
    if found is None:
        hint = did_you_mean(name, QUANTITIES) or f" Known: {', '.join(QUANTITIES)}."
        raise BudgetError(f'{where}: unknown quantity "{name}".{hint}')
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """One quantity of the dense model, and what each choice adds to it, in the order of the analysis."""

    dense: float
    changes: tuple[float, ...]


def costs_of(found: Sensitivity, table: EnergyTable) -> dict[Quantity, Costs]:
    """What the dense model of an analysis and each of its choices cost, in every quantity."""
    dense = found.dense
    energy = _picojoules(dense.operations, {}, table)
    return {
        "energy": Costs(
            dense=energy,
            changes=tuple(_picojoules(dense.operations, s.operations_change, table) - energy for s in found.sites),
        ),
        "multiplications": Costs(
            dense=_multiplications(dense.operations),
            changes=tuple(_multiplications(site.operations_change) for site in found.sites),
        ),
        "size": Costs(dense=dense.weight_bytes, changes=tuple(site.weight_bytes_change for site in found.sites)),
    }


def unpriced_in(found: Sensitivity, table: EnergyTable) -> tuple[str, ...]:
    """Kinds of operations, of the dense model or of any choice, that a table has no price for."""
    kinds: Sequence[Mapping[str, int]] = [found.dense.operations, *(site.operations_change for site in found.sites)]
    return tuple(sorted(price({kind: 1 for counts in kinds for kind in counts}, table).unpriced))


def _picojoules(operations: Mapping[str, int], change: Mapping[str, int], table: EnergyTable) -> float:
    total = {key: operations.get(key, 0) + change.get(key, 0) for key in {**operations, **change}}
    return price(total, table).picojoules


def _multiplications(operations: Mapping[str, int]) -> float:
    return float(sum(n for key, n in operations.items() if key.startswith("mul.")))
