"""Which value of a flat graph is the output of which module, from the modules that each node says it came from.

A module's output is taken to be the last value that is computed inside it and read outside.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopedNode:
    """One operation: the values it reads and writes by name, and the paths of the modules around it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scopes: frozenset[str]


def module_outputs(nodes: Sequence[ScopedNode], results: Iterable[str]) -> dict[str, str]:
    """Returns the value of each module that has one, in the order in which they are computed; parts come first.

    Args:
        nodes: in execution order.
        results: values that the graph returns.
    """
    returned, readers = set(results), dict[str, list[frozenset[str]]]()
    for node in nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node.scopes)
    found: dict[str, str] = {}
    for node in nodes:
        for name in node.writes:
            outside = [path for path in node.scopes if _leaves(path, name, readers, returned)]
            for path in sorted(outside, key=lambda path: -len(path)):
                found.pop(path, None)  # the later one counts, and stands later
                found[path] = name
    return found


def _leaves(path: str, name: str, readers: dict[str, list[frozenset[str]]], returned: set[str]) -> bool:
    return name in returned or any(path not in scopes for scopes in readers.get(name, ()))
