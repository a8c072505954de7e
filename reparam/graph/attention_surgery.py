"""Replaces the softmax attention inside one module by a core module, in every mode and call pattern that was seen.

Before                                       After
    q, k, v = ...                                q, k, v = ...
    x = softmax(scale * q @ k') @ v              x = self.core(q, k, v)
    ...                                          ...
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx, nn

from reparam.errors import RewriteError
from reparam.graph.attention_match import ANCHORS, AttentionMatch, match_attention
from reparam.graph.owner_swap import ForwardSource, Key, source_of, swap_forward
from reparam.graph.owner_trace import OwnerGraph, trace_owner
from reparam.trace.record import ModuleCall, Ref

CORE = "core"


def core_name(owner: nn.Module) -> str:
    """The name under which the core is registered; `core` unless the owner already has one."""
    name, number = CORE, 0
    while hasattr(owner, name):
        number += 1
        name = f"{CORE}_{number}"
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCore:
    """Forwards that call a core named `name`, and the attention dropout that the training forward applied."""

    name: str
    sources: dict[Key, ForwardSource]
    dropout: float


def open_core(owner: nn.Module, calls: Iterable[ModuleCall], path: str) -> OpenedCore:
    """Writes the forwards in which a core takes the attention's place; the owner is not changed.

    Raises:
        RewriteError: a forward cannot be traced, or its graph does not show exactly one attention.
    """
    name, dropout = core_name(owner), 0.0
    sources: dict[Key, ForwardSource] = {}
    for call in calls:
        for graph in trace_owner(owner, call, path).values():
            match = _single_match(graph, path)
            dropout = max(dropout, match.dropout)
            key = (graph.training, graph.pattern)
            if key not in sources:
                sources[key] = _replace_core(graph, match, name)
    return OpenedCore(name=name, sources=sources, dropout=dropout)


def install_core(owner: nn.Module, core: nn.Module, opened: OpenedCore) -> None:
    """Registers `core` on the owner and swaps the owner's forward; parameters and methods stay."""
    owner.register_module(opened.name, core)
    swap_forward(owner, opened.sources)


def remove_core(owner: nn.Module, opened: OpenedCore, own_class: type[nn.Module]) -> None:
    """Undoes `install_core` on an owner whose class was `own_class`."""
    owner.__class__ = own_class
    delattr(owner, opened.name)


@contextmanager
def installed(owner: nn.Module, core: nn.Module, opened: OpenedCore) -> Iterator[None]:
    """While open, the owner runs with `core`; then it is as it was."""
    own_class = type(owner)
    install_core(owner, core, opened)
    try:
        yield
    finally:
        remove_core(owner, opened, own_class)


def _replace_core(owner: OwnerGraph, match: AttentionMatch, name: str) -> ForwardSource:
    graph = owner.graph
    out: fx.Node = match.ops[-1].tag
    with graph.inserting_before(out):
        q, k, v = (_operand(owner, match, ref) for ref in (match.q, match.k, match.v))
        if match.k_is_transposed:
            k = graph.call_method("transpose", (k, -2, -1))
        core = graph.create_node("call_module", name, (q, k, v))
    out.replace_all_uses_with(core)
    _erase_orphans(graph, {op.tag for op in match.ops})
    return source_of(graph)


def _single_match(owner: OwnerGraph, path: str) -> AttentionMatch:
    found = [match_attention(owner.trace, op) for op in owner.trace.ops if op.name in ANCHORS]
    matches = [match for match in found if isinstance(match, AttentionMatch)]
    mode = "training" if owner.training else "evaluation"
    if len(matches) != 1:
        raise RewriteError(f'"{path}": its forward in {mode} mode shows {len(matches)} attention cores, wanted 1')
    nodes = {op.tag for op in matches[0].ops}
    inside = {op.index for op in matches[0].ops}
    foreign = [op for op in owner.trace.ops if op.tag in nodes and op.index not in inside]
    if foreign:
        raise RewriteError(
            f'"{path}": its child "{foreign[0].tag.target}" does a part of the attention together with '
            f"{foreign[0].name!r}, so the part cannot be replaced alone"
        )
    return matches[0]


def _operand(owner: OwnerGraph, match: AttentionMatch, ref: Ref) -> fx.Node:
    reader = next(op for op in match.ops if ref.number in {operand.number for operand in op.inputs})
    return owner.node_of(ref, read_by=reader)


def _erase_orphans(graph: fx.Graph, core: set[fx.Node]) -> None:
    """Erases the core's nodes and what was computed from them alone; everything else keeps its effects."""
    derived = set(core)
    for node in graph.nodes:
        if any(operand in derived for operand in node.all_input_nodes) and node.op != "output":
            derived.add(node)
    for node in reversed(graph.nodes):
        if node in derived and not node.users:
            graph.erase_node(node)
