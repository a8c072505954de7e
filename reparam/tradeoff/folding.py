"""Many module paths as one expression: `re:blocks\\.(0|1)\\.attn\\.(qkv|proj)` is exactly four."""

import re
from collections.abc import Iterable, Sequence

#: The names that the folded paths have at each place between two dots.
_Row = tuple[tuple[str, ...], ...]


def path_pattern(paths: Iterable[str]) -> str:
    """Returns what a rule's `path` must be to pick exactly these paths: the path itself, or `re:` and an expression."""
    names = sorted(set(paths))
    if len(names) == 1 and re.fullmatch(r"[\w.]+", names[0]):
        return names[0]
    return "re:" + "|".join(r"\.".join(_alternatives(part) for part in row) for row in _folded(names))


def _folded(paths: Sequence[str]) -> list[_Row]:
    """Rows that stand for full grids of names, joined where they differ at one place only, the first places last."""
    rows: list[_Row] = [tuple((name,) for name in path.split(".")) for path in paths]
    for place in reversed(range(max(map(len, rows), default=0))):
        joined: dict[object, _Row] = {}
        for row in rows:
            if place >= len(row):
                joined[row] = row
                continue
            key = (row[:place], row[place + 1 :])
            before = joined[key][place] if key in joined else ()
            joined[key] = (*row[:place], (*before, *row[place]), *row[place + 1 :])
        rows = list(joined.values())
    return rows


def _alternatives(names: Sequence[str]) -> str:
    ordered = sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    return re.escape(ordered[0]) if len(ordered) == 1 else f"({'|'.join(map(re.escape, ordered))})"
