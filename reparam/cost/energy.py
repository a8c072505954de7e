"""Prices counted operations in picojoules by a table. Counting knows no prices, and no price is made up.

    energy = sum over (verb, type) of n * pJ  +  sum over moved words of n * bits * pJ per bit of their memory

A word whose width the table lacks takes the next wider one's price. A verb that it lacks takes that of its stand-in, if
the table names one. What has no price at all is listed beside the sum. Bringing words from memory is priced only where
the caller says which memory they lie in: most published figures leave it out, and it often exceeds the arithmetic.
"""

import re
from collections.abc import Mapping

from pydantic import Field

from reparam.cost.energy_table import EnergyTable, MemoryLevels
from reparam.errors import CostError
from reparam.recipe.schema import Frozen
from reparam.suggest import did_you_mean

_MOVES = ("read", "write")
_WEIGHT = "weight."


class Energy(Frozen):
    """Modelled energy of one image, in picojoules, by the table of that name.

    `by_operation` splits the sum by operation ("mul.f32"). `unpriced` counts what the table has no price for: it is
    missing in the sum. `stand_ins` says by what else an operation was priced.
    """

    table: str
    picojoules: float
    by_operation: dict[str, float]
    unpriced: dict[str, int]
    stand_ins: dict[str, str] = Field(default_factory=dict)


def price(operations: Mapping[str, int], table: EnergyTable, *, memory: MemoryLevels | None = None) -> Energy:
    """Prices operations such as `Profile.operations`, {"mul.f32": n, ...}.

    Args:
        operations: how often each runs for one image.
        table: pJ of each.
        memory: where weights and activations lie; what lies nowhere moves for nothing and is not listed.
    Raises:
        CostError: the table has no memory of that name.
    """
    memory = memory or MemoryLevels()
    known, unpriced, stand_ins = {}, {}, {}
    for key, n in operations.items():
        verb, _, dtype = key.partition(".")
        if verb in _MOVES:
            level = memory.weights if dtype.startswith(_WEIGHT) else memory.activations
            if level is not None:
                known[key] = n * bits_of(dtype) * _per_bit(table, level)
            continue
        priced_as = _find(table, verb, dtype)
        if priced_as is None:
            unpriced[key] = n
            continue
        known[key] = n * table.operations[priced_as]
        if priced_as != key:
            stand_ins[key] = priced_as
    return Energy(
        table=table.name,
        picojoules=sum(known.values()),
        by_operation=known,
        unpriced=unpriced,
        stand_ins=stand_ins,
    )


def as_int8(operations: Mapping[str, int]) -> dict[str, int]:
    """The same operations in int8: multiplications of 8 bits, additions of 32, and words of 8 bits moved.

    This is the baseline that a multiplication-reduced model must beat: an int8 engine gives it without any conversion.
    It flatters the dense model, for the multiplications and additions of norms, which engines keep in floats, become
    integers too.
    """
    narrow = {"mul.f32": "mul.i8", "add.f32": "add.i32", "read.f32": "read.i8", "write.f32": "write.i8"}
    changed: dict[str, int] = {}
    for key, n in operations.items():
        name = narrow.get(key, key.replace("weight.f32", "weight.i8"))
        changed[name] = changed.get(name, 0) + n
    return changed


def bits_of(dtype: str) -> int:
    """Width of a type such as "f32", "i8" or "weight.i5"."""
    found = re.search(r"(\d+)$", dtype)
    if found is None:
        raise ValueError(f"{dtype!r} names no width")
    return int(found[1])


def _find(table: EnergyTable, verb: str, dtype: str) -> str | None:
    """The key of the table that prices an operation, None where none does."""
    for candidate in (verb, table.stand_ins.get(verb)):
        if candidate is None:
            continue
        # Shifting a float by a power of two adds to its exponent: integer hardware, on the whole word.
        family = "i" if candidate == "shift" else dtype[0]
        widths = sorted(bits_of(key) for key in table.operations if key.startswith(f"{candidate}.{family}"))
        fitting = [width for width in widths if width >= bits_of(dtype)]
        if fitting:
            return f"{candidate}.{family}{fitting[0]}"
    return None


def _per_bit(table: EnergyTable, level: str) -> float:
    if level not in table.memory:
        known = f" It has: {', '.join(table.memory)}." if table.memory else " It prices no memory."
        hint = did_you_mean(level, table.memory) or known
        raise CostError(f'energy table "{table.name}" has no memory "{level}".{hint}')
    return table.memory[level]
