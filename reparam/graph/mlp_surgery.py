"""Moves MLPs that stand inline in a forward into modules of their own, in every mode and call pattern that was seen.

Before                                          After
    x = x + self.fc2(gelu(self.fc1(x)))             x = x + self.mlp(x)

The new module owns the layers and whatever else only the MLP used; its forward is the lines that left the owner's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from reparam.errors import RewriteError
from reparam.graph.call_pattern import split_call
from reparam.graph.mlp_regions import Region, find_regions, steps_of_graph
from reparam.graph.owner_swap import ForwardSource, Key, source_of
from reparam.graph.owner_trace import OwnerGraph, trace_owner
from reparam.trace.record import ModuleCall

MLP = "mlp"
Sources = dict[Key, ForwardSource]


class InlineMlp(nn.Module):
    """Holds the layers of an MLP that stood in another module's forward; that forward's lines become its own."""


@dataclass(slots=True, kw_only=True)
class OpenedMlp:
    """One MLP to move out: its name on the owner, its forwards, and the modules it takes along, old to new name.

    `shared` are those among them without parameters that the owner goes on using.
    """

    name: str
    sources: Sources = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def renamed(self, name: str) -> str:
        """The name inside the new module of what the owner has under `name`."""
        target = next(old for old in self.moved if name == old or name.startswith(f"{old}."))
        return self.moved[target] + name.removeprefix(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedMlps:
    """The MLPs of one owner by number, and the owner's forwards that call them."""

    mlps: dict[int, OpenedMlp]
    sources: Sources = field(default_factory=dict)


def open_mlps(
    owner: nn.Module, calls: Iterable[ModuleCall], path: str, layers: Mapping[int, tuple[str, ...]]
) -> OpenedMlps:
    """Writes the forwards in which modules take the place of inline MLPs; the owner is not changed.

    Args:
        owner: the module whose forward holds the MLPs.
        calls: its recorded calls.
        path: for messages.
        layers: the layers of each MLP, by number, as paths inside the owner.
    Raises:
        RewriteError: a forward cannot be traced, or an MLP cannot be taken out of its graph.
    """
    names = _free_names(owner, sorted(layers))
    opened = OpenedMlps(mlps={number: OpenedMlp(name=name) for number, name in names.items()})
    for call in calls:
        for graph in trace_owner(owner, call, path).values():
            regions = find_regions(graph.trace, steps_of_graph(graph.trace))
            for number, wanted in layers.items():
                _Extraction(owner, graph, _with_layers(regions, wanted, path), path).move(opened.mlps[number])
            opened.sources[graph.training, graph.pattern] = source_of(graph.graph)
    return opened


def _free_names(owner: nn.Module, numbers: Iterable[int]) -> dict[int, str]:
    """`mlp`, `mlp_1`, ... as far as the owner has no such attribute."""
    candidates = (f"{MLP}_{count}" if count else MLP for count in range(len(dir(owner)) + len(list(numbers)) + 1))
    free = (name for name in candidates if not hasattr(owner, name))
    return {number: next(free) for number in numbers}


def _with_layers(regions: list[Region], wanted: tuple[str, ...], path: str) -> Region:
    for region in regions:
        if tuple(str(weight.name).rpartition(".")[0] for weight in region.flow.weights) == wanted:
            return region
    raise RewriteError(f'"{path}": its graph shows no MLP of the layers {", ".join(wanted)}')


class _Extraction:
    """One region of one graph, on its way into a module."""

    def __init__(self, owner: nn.Module, graph: OwnerGraph, region: Region, path: str) -> None:
        self.owner, self.graph, self.region, self.path = owner, graph, region, path
        last = graph.trace.producer(region.y)
        assert last is not None
        self.out: fx.Node = last.tag
        self.nodes = self._between()
        self.tensors = {node for nodes in graph.nodes.values() for node in nodes}

    def move(self, mlp: OpenedMlp) -> None:
        """Replaces the region by a call of the module `mlp.name` and writes the module's forward."""
        source_node = self._source()
        self._check_nothing_escapes()
        for target in self._targets():
            self._claim(target, mlp)
        pattern, _, _ = split_call((torch.empty(0, device="meta"),), {})
        source = source_of(self._own_graph(source_node, mlp))
        if mlp.sources.setdefault((self.graph.training, pattern), source) != source:
            raise RewriteError(f'"{self.path}": its MLP differs from call to call')
        with self.graph.graph.inserting_before(self.out):
            call = self.graph.graph.create_node("call_module", mlp.name, (source_node,))
        self.out.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            self.graph.graph.erase_node(node)
        for node in [node for node in self.graph.graph.nodes if node.op == "get_attr" and not node.users]:
            self.graph.graph.erase_node(node)
        self.graph.nodes[self.region.y.number].append(call)

    def _between(self) -> list[fx.Node]:
        """The region's nodes and those without an operation between them (identities, sizes), in order."""
        tagged = {step.key for step in self.region.steps}
        after: set[fx.Node] = set()
        for node in self.graph.graph.nodes:
            if node in tagged or any(operand in after for operand in node.all_input_nodes):
                after.add(node)
        before: set[fx.Node] = set()
        for node in reversed(self.graph.graph.nodes):
            if node is self.out or any(user in before for user in node.users):
                before.add(node)
        return [node for node in self.graph.graph.nodes if node in after and node in before]

    def _source(self) -> fx.Node:
        """The one node that the region reads; parameters and sizes come along."""
        read = {node for node in self._operands() if node.op != "get_attr" and node in self.tensors}
        if len(read) != 1:
            raise RewriteError(f'"{self.path}": its MLP reads {len(read)} values of the forward, wanted one')
        return read.pop()

    def _operands(self) -> list[fx.Node]:
        return [operand for node in self.nodes for operand in node.all_input_nodes if operand not in self.nodes]

    def _check_nothing_escapes(self) -> None:
        for node in self.nodes:
            readers = [user for user in node.users if user not in self.nodes]
            if node is not self.out and readers:
                raise RewriteError(f'"{self.path}": "{readers[0]}" reads a value from the middle of its MLP')

    def _targets(self) -> list[str]:
        """Modules that the region calls, or whose parameters it reads."""
        called = [str(node.target) for node in self.nodes if node.op == "call_module"]
        read = [self._module_of(node) for node in self._operands() if node.op == "get_attr"]
        return list(dict.fromkeys(called + read))

    def _module_of(self, node: fx.Node) -> str:
        module, _, parameter = str(node.target).rpartition(".")
        if not module:
            raise RewriteError(f'"{self.path}": its MLP reads "{parameter}", which is the owner\'s own')
        return module

    def _claim(self, target: str, mlp: OpenedMlp) -> None:
        mlp.moved[target] = target.replace(".", "_")
        module = self.owner.get_submodule(target)
        names = [name for name, other in self.owner.named_modules(remove_duplicate=False) if other is module]
        serves_others = len(names) > 1 or any(self._is_read_elsewhere(node, target) for node in self.graph.graph.nodes)
        if serves_others and any(True for _ in module.parameters()):
            raise RewriteError(f'"{self.path}": "{target}" serves more than its MLP')
        if serves_others:
            mlp.shared.add(target)

    def _is_read_elsewhere(self, node: fx.Node, target: str) -> bool:
        is_of_target = node.op in {"call_module", "get_attr"} and f"{node.target}.".startswith(f"{target}.")
        is_inside = node in self.nodes or (node.op == "get_attr" and set(node.users) <= set(self.nodes))
        return is_of_target and not is_inside

    def _own_graph(self, source: fx.Node, mlp: OpenedMlp) -> fx.Graph:
        graph = fx.Graph()
        copied = {source: graph.placeholder("x")}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copied:
                copied[node] = self._copy(graph, node, copy, mlp)
            return copied[node]

        for node in self.nodes:
            copy(node)
        graph.output(copied[self.out])
        return graph

    def _copy(self, graph: fx.Graph, node: fx.Node, copy: Callable[[fx.Node], fx.Node], mlp: OpenedMlp) -> fx.Node:
        is_value = node.op in {"placeholder", "call_module"} or (node in self.tensors and node.op != "get_attr")
        if is_value and node not in self.nodes:
            raise RewriteError(f'"{self.path}": its MLP reads "{node}" beside its input')
        for operand in node.all_input_nodes:
            copy(operand)
        made = graph.node_copy(node, copy)
        if node.op in {"call_module", "get_attr"}:
            made.target = mlp.renamed(str(node.target))
        return made
