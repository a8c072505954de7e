"""The module tree for reading: consecutive blocks that are alike are one entry, and folds say what they hold."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.reporting.module_tree import ModuleNode
from reparam.reporting.page import words


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One module, or `alike` neighbours, named from the first to the last. `holds` counts what became what inside.

    `is_new` says that the dense model has no such module.
    """

    name: str
    alike: int
    node: ModuleNode
    holds: tuple[tuple[str, int], ...]
    children: tuple["Entry", ...]
    is_open: bool
    is_new: bool


def outline(tree: ModuleNode) -> Entry:
    """Folds a tree; open is the way to the first conversions."""
    return _entry([tree], is_open=True, has_dense=tree.before is not None)


def _entry(alike: Sequence[ModuleNode], *, is_open: bool, has_dense: bool) -> Entry:
    node = alike[0]
    holds = _holds(node)
    opens = is_open and bool(holds) and not node.fates
    groups = _groups(node.children)
    first = next((group for group in groups if _holds(group[0])), None)
    return Entry(
        name=node.name if len(alike) == 1 else f"{node.name} {words.DASH} {alike[-1].name}",
        alike=len(alike),
        node=node,
        holds=tuple((operator, n * len(alike)) for operator, n in holds.most_common()),
        children=tuple(_entry(group, is_open=opens and group is first, has_dense=has_dense) for group in groups),
        is_open=opens,
        is_new=has_dense and node.before is None,
    )


def _groups(nodes: Sequence[ModuleNode]) -> list[list[ModuleNode]]:
    groups: list[list[ModuleNode]] = []
    for node in nodes:
        if groups and _is_numbered(node) and _nameless(groups[-1][0]) == _nameless(node):
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups


def _is_numbered(node: ModuleNode) -> bool:
    return node.name[-1:].isdigit() and bool(node.children)


def _nameless(node: ModuleNode) -> ModuleNode:
    return node.model_copy(update={"name": ""})


def _holds(node: ModuleNode) -> Counter[str]:
    inside = Counter(fate.operator for child in node.children for fate in child.fates if fate.operator)
    for child in node.children:
        inside += _holds(child)
    return inside
