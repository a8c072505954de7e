"""Replaces the softmax attention inside one module by core modules, in every mode and call pattern that was seen.

Before                                       After
    q, k, v = ...                                q, k, v = ...
    x = softmax(scale * q @ k') @ v              x = self.core(q, k, v)
    ...                                          ...

Operands that are not laid out as (batch, heads, tokens, width) are brought there and back around the core.
"""

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx, nn

from reparam.errors import RewriteError
from reparam.graph.attention_match import ANCHORS, AttentionMatch, Operand, match_attention
from reparam.graph.exact import exact_scores, exact_values, perturbed, there_and_back
from reparam.graph.guard import expect
from reparam.graph.layout import Heads, from_heads, inverse_axes, is_plain, to_heads
from reparam.graph.likeness import likeness
from reparam.graph.owner_swap import ForwardSource, Key, source_of, swap_forward
from reparam.graph.owner_trace import OwnerGraph, trace_owner
from reparam.ops.site import AttentionForm
from reparam.trace.record import ModuleCall, Op, Ref

CORE = "core"
Sources = dict[Key, ForwardSource]


def heads_of(form: AttentionForm) -> Heads:
    """Where the model keeps the heads."""
    return Heads(axis=form.head_axis, merged=form.heads if form.merged_heads else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCore:
    """Forwards of one owner: with core modules, by number, and for verification with exact products instead.

    `perturbed` holds, for each number, the exact forwards with that core's output changed; `observed` the model's own
    forwards, which show a module at each core's place the output.
    """

    names: dict[int, str]
    sources: Sources = field(default_factory=dict)
    exact: Sources = field(default_factory=dict)
    perturbed: dict[int, Sources] = field(default_factory=dict)
    observed: Sources = field(default_factory=dict)


def open_core(
    owner: nn.Module, calls: Iterable[ModuleCall], path: str, forms: Mapping[int, AttentionForm]
) -> OpenedCore:
    """Writes the forwards in which cores take the attention's place; the owner is not changed.

    Args:
        owner: the module whose forward holds the attention.
        calls: its recorded calls.
        path: for messages.
        forms: what to replace, by number within the forward.
    Raises:
        RewriteError: a forward cannot be traced, or its graph does not show the attention.
    """
    opened = OpenedCore(names=_free_names(owner, sorted(forms)), perturbed={number: {} for number in forms})
    for call in calls:
        for graph in _graphs(owner, call, path):
            key = (graph.training, graph.pattern)
            matches = _matches(graph)
            if key in opened.sources or not matches:
                continue
            chosen = {number: _chosen(matches, number, graph, path) for number in forms}
            opened.exact[key] = _variant(graph, chosen, forms, _put_exact_products)
            for number in forms:
                opened.perturbed[number][key] = _variant(graph, chosen, forms, _put_exact_products, changed=number)
            opened.observed[key] = _observed(graph, chosen, forms, opened.names)
            for number, match in chosen.items():
                _put_core(graph, match, heads_of(forms[number]), opened.names[number])
            opened.sources[key] = source_of(graph.graph)
    return opened


class CoreOpener:
    """Opens owners, and those that are alike once: a deep model repeats one block many times."""

    def __init__(self) -> None:
        self._opened: dict[Hashable, OpenedCore] = {}

    def open(
        self, owner: nn.Module, calls: Sequence[ModuleCall], path: str, forms: Mapping[int, AttentionForm]
    ) -> OpenedCore:
        """As `open_core`; owners that are alike share the result."""
        key = (likeness(owner, calls), tuple((number, heads_of(form)) for number, form in forms.items()))
        if key not in self._opened:
            self._opened[key] = open_core(owner, calls, path, forms)
        return self._opened[key]


def install_core(
    owner: nn.Module, cores: Mapping[int, nn.Module], opened: OpenedCore, *, sources: Sources | None = None
) -> None:
    """Registers the cores on the owner and swaps the owner's forward; parameters and methods stay.

    The forward is the one that runs the cores, or another one of the opened `sources`.
    """
    for number, core in cores.items():
        owner.register_module(opened.names[number], core)
    swap_forward(owner, opened.sources if sources is None else sources)


def remove_core(owner: nn.Module, opened: OpenedCore, own_class: type[nn.Module]) -> None:
    """Undoes `install_core` on an owner whose class was `own_class`."""
    owner.__class__ = own_class
    for name in opened.names.values():
        delattr(owner, name)


@contextmanager
def running(owner: nn.Module, sources: Sources) -> Iterator[None]:
    """While open, the owner runs the given forwards; then it is as it was."""
    own_class = type(owner)
    swap_forward(owner, sources)
    try:
        yield
    finally:
        owner.__class__ = own_class


def _free_names(owner: nn.Module, numbers: Iterable[int]) -> dict[int, str]:
    """`core`, `core_1`, ... as far as the owner has no such attribute."""
    names: dict[int, str] = {}
    candidate = 0
    for number in numbers:
        while hasattr(owner, _name(candidate)):
            candidate += 1
        names[number] = _name(candidate)
        candidate += 1
    return names


def _name(number: int) -> str:
    return f"{CORE}_{number}" if number else CORE


def _graphs(owner: nn.Module, call: ModuleCall, path: str) -> Iterator[OwnerGraph]:
    """The owner's graphs, with the children open that hold a part of an attention beside other things."""
    opened: frozenset[str] = frozenset()
    while True:
        graphs = trace_owner(owner, call, path, opened=opened)
        shared = frozenset(target for graph in graphs.values() for target in _shared_children(graph))
        if not shared - opened:
            yield from graphs.values()
            return
        opened |= shared


def _shared_children(graph: OwnerGraph) -> Iterator[str]:
    for match in (found for found in _matches(graph) if isinstance(found, AttentionMatch)):
        inside = {op.index for op in match.ops}
        nodes = {op.tag for op in match.ops if op.tag.op == "call_module"}
        for op in graph.trace.ops:
            if op.tag in nodes and op.index not in inside:
                yield str(op.tag.target)


def _matches(graph: OwnerGraph) -> list[AttentionMatch | str]:
    """The attention of this forward in order, without that of its children."""
    found = [match_attention(graph.trace, op) for op in graph.trace.ops if op.name in ANCHORS]
    return [match for match in found if match is not None and not _is_childs(match)]


def _is_childs(match: AttentionMatch | str) -> bool:
    if isinstance(match, str):
        return False
    nodes = {op.tag for op in match.ops}
    return len(nodes) == 1 and next(iter(nodes)).op == "call_module"


def _chosen(matches: list[AttentionMatch | str], number: int, graph: OwnerGraph, path: str) -> AttentionMatch:
    mode = "training" if graph.training else "evaluation"
    if number >= len(matches):
        raise RewriteError(
            f'"{path}": its forward in {mode} mode shows {len(matches)} attention cores, wanted number {number + 1}'
        )
    match = matches[number]
    if isinstance(match, str):
        raise RewriteError(f'"{path}": in {mode} mode {match}')
    return match


Put = Callable[["_Copy", AttentionMatch, Heads], fx.Node]


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of an owner's graph, to which the record's tags are led over."""

    owner: OwnerGraph
    graph: fx.Graph
    nodes: dict[fx.Node, fx.Node]

    def node_of(self, ref: Ref, read_by: Op) -> fx.Node:
        """The copied node that holds a value when an operation reads it."""
        return self.nodes[self.owner.node_of(ref, read_by=read_by)]


def _variant(
    owner: OwnerGraph,
    matches: Mapping[int, AttentionMatch],
    forms: Mapping[int, AttentionForm],
    put: Put,
    *,
    changed: int | None = None,
) -> ForwardSource:
    nodes: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    output = graph.graph_copy(owner.graph, nodes)
    graph.output(output)
    copied = _Copy(owner, graph, nodes)
    for number, match in matches.items():
        out = put(copied, match, heads_of(forms[number]))
        if number == changed:
            users = list(out.users)
            with graph.inserting_after(out):
                other = graph.call_function(perturbed, (out,))
            for user in users:
                user.replace_input_with(out, other)
    return source_of(graph)


def _observed(
    owner: OwnerGraph,
    matches: Mapping[int, AttentionMatch],
    forms: Mapping[int, AttentionForm],
    names: Mapping[int, str],
) -> ForwardSource:
    """The owner's own forward, with each output shown to a module whose result nothing reads."""
    nodes: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(owner.graph, nodes))
    for number, match in matches.items():
        shown = out = nodes[match.ops[-1].tag]
        heads, axes = heads_of(forms[number]), inverse_axes(match.out_axes)
        with graph.inserting_after(out):
            if not is_plain(axes, heads):
                shown = graph.call_function(to_heads, (out, axes, heads.axis, heads.merged))
        with graph.inserting_after(shown):
            graph.create_node("call_module", names[number], (shown,))
    return source_of(graph)


def _put_exact_products(copied: _Copy, match: AttentionMatch, heads: Heads) -> fx.Node:
    """Spells the two products canonically, leaves all else, and returns the node of the output."""
    if match.scores is None or match.values is None or match.weights is None:
        return _put_fused_operands(copied, match, heads)
    scores, values = match.scores, match.values
    q, k = (_operand(copied, match, operand) for operand in (match.q, match.k))
    order = match.score_order
    extra: dict[str, object] = {"alpha": scores.alpha, "by_einsum": scores.op.name == "einsum"}
    if scores.addend is not None:
        extra["addend"] = copied.node_of(scores.addend, scores.op)
    _replace(copied, scores.op, exact_scores, (q, k, match.q.axes, match.k.axes, order), extra)
    v = _operand(copied, match, match.v)
    weights = copied.node_of(match.weights.ref, values.op)
    args = (weights, v, match.weights.axes, match.v.axes, match.out_axes)
    return _replace(copied, values.op, exact_values, args, {"by_einsum": values.op.name == "einsum"})


def _replace(
    copied: _Copy, op: Op, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> fx.Node:
    old = copied.nodes[op.tag]
    with copied.graph.inserting_before(old):
        new = copied.graph.call_function(function, args, kwargs)  # type: ignore[arg-type]
    old.replace_all_uses_with(new)
    copied.graph.erase_node(old)
    copied.nodes[op.tag] = new
    return new


def _put_fused_operands(copied: _Copy, match: AttentionMatch, heads: Heads) -> fx.Node:
    """Calls the fused attention with the operands of the match, sent to the core's layout and back."""
    fused = copied.nodes[match.ops[0].tag]
    operands = []
    for operand in (match.q, match.k, match.v):
        node = _operand(copied, match, operand)
        if not is_plain(operand.axes, heads) and None not in operand.axes:
            with copied.graph.inserting_before(fused):
                node = copied.graph.call_function(there_and_back, (node, operand.axes, heads.axis, heads.merged))
        operands.append(node)
    fused.args = (*operands, *fused.args[3:])
    fused.kwargs = {key: value for key, value in fused.kwargs.items() if key not in {"query", "key", "value"}}
    return fused


def _operand(copied: _Copy, match: AttentionMatch, operand: Operand) -> fx.Node:
    return copied.node_of(operand.ref, _reader(match, operand))


def _reader(match: AttentionMatch, operand: Operand) -> Op:
    ops = (*match.transposes, *match.ops)
    return next(op for op in ops if operand.ref.number in {ref.number for ref in op.inputs})


def _put_core(owner: OwnerGraph, match: AttentionMatch, heads: Heads, name: str) -> None:
    graph = owner.graph
    out: fx.Node = match.ops[-1].tag
    with graph.inserting_before(out):
        raw = [owner.node_of(operand.ref, read_by=_reader(match, operand)) for operand in (match.q, match.k, match.v)]
        q, k, v = (
            _to_heads(graph, node, operand, heads)
            for node, operand in zip(raw, (match.q, match.k, match.v), strict=True)
        )
        core = graph.create_node("call_module", name, (q, k, v))
        if not (is_plain(match.q.axes, heads) and is_plain(match.out_axes, heads)):
            layout = (match.q.axes, match.out_axes, heads.axis, heads.merged)
            core = graph.call_function(from_heads, (core, raw[0], *layout))
    out.replace_all_uses_with(core)
    owner.nodes[match.out.number].append(core)
    _erase_vanished(graph, match)


def _to_heads(graph: fx.Graph, node: fx.Node, operand: Operand, heads: Heads) -> fx.Node:
    if is_plain(operand.axes, heads):
        return node
    return graph.call_function(to_heads, (node, operand.axes, heads.axis, heads.merged))


def _erase_vanished(graph: fx.Graph, match: AttentionMatch) -> None:
    """Erases the core's nodes, what was computed from them alone, and what was computed for them alone.

    Everything else keeps its effects. Weights that the forward returns become None, for they no longer exist.
    """
    vanishing = {op.tag for op in match.ops}
    for node in graph.nodes:
        if any(operand in vanishing for operand in node.all_input_nodes) and node.op != "output":
            vanishing.add(node)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = fx.node.map_arg(output.args, lambda node: None if node in vanishing else node)
    for node in reversed(graph.nodes):
        if node in vanishing and not node.users:
            vanishing.update(operand for operand in node.all_input_nodes if _is_pure(operand))
            graph.erase_node(node)


def _is_pure(node: fx.Node) -> bool:
    """Whether a node only computes its result: a bias from its table, the scale of the scores."""
    if node.op == "placeholder" or node.target in (expect, operator.setitem):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in {"call_module", "get_attr"} or not name.endswith("_") or name.endswith("__")
