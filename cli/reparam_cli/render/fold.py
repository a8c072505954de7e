"""Many module paths as few lines: `blocks.0.mlp.fc1 ... blocks.11.mlp.fc2` reads `blocks.0-11.mlp.{fc1,fc2}`.

Numbers are parts between dots and what follows an underscore at a part's end: `layer_0.attn`, but not `fc1`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

#: The names or numbers that the folded paths have at one place between two dots.
Part = tuple[str, ...]


_NUMBER = re.compile(r"(|.*_)(0|[1-9][0-9]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Folded:
    """A line that stands for `count` paths."""

    text: str
    count: int


def fold_paths(paths: Iterable[str]) -> list[Folded]:
    """Folds paths that differ only in their numbers or in their last name; nothing is dropped or invented.

    A line is written only for a full grid: `stages.0-1.blocks.0-3` stands for all eight combinations.
    """
    rows: list[tuple[Part, ...]] = [tuple((name,) for name in path.split(".")) for path in paths]
    longest = max((len(row) for row in rows), default=0)
    for position in reversed(range(longest)):
        rows = _merge(rows, position, numbers=True)
    rows = _merge(rows, -1, numbers=False)
    return [Folded(".".join(_shown(part) for part in row), math.prod(len(part) for part in row)) for row in rows]


def _merge(rows: Sequence[tuple[Part, ...]], position: int, *, numbers: bool) -> list[tuple[Part, ...]]:
    """Joins rows that are equal but for the part at `position`: both numbers after one stem, or both names."""
    merged: dict[object, tuple[Part, ...]] = {}
    for row in rows:
        if position >= len(row) or _is_number(row[position]) is not numbers:
            merged[row] = row
            continue
        at = position % len(row)
        key = (row[:at], _stem(row[at]) if numbers else "", row[at + 1 :])
        merged[key] = (*row[:at], _join(merged[key][at], row[at]), *row[at + 1 :]) if key in merged else row
    return list(merged.values())


def _join(left: Part, right: Part) -> Part:
    both = dict.fromkeys((*left, *right))
    return tuple(sorted(both, key=_value)) if _is_number(left) else tuple(both)


def _is_number(part: Part) -> bool:
    return _NUMBER.fullmatch(part[0]) is not None


def _stem(part: Part) -> str:
    """What stands before the number: nothing, or a name that ends in an underscore."""
    return part[0][: -len(str(_value(part[0])))]


def _value(name: str) -> int:
    found = _NUMBER.fullmatch(name)
    assert found is not None
    return int(found[2])


def _shown(part: Part) -> str:
    if len(part) == 1:
        return part[0]
    return _stem(part) + _ranges([_value(name) for name in part]) if _is_number(part) else f"{{{','.join(part)}}}"


def _ranges(numbers: Sequence[int]) -> str:
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        values = [number for _, number in run]
        runs.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return ",".join(runs)
