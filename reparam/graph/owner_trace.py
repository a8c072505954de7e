"""Traces the forward of one module with torch.fx, its children as leaves, and runs the graph under the recorder.

Only a meta copy of the owner is traced: caches that a forward leaves behind, and attributes that tracing adds, never
reach the model. Running the graph node by node gives each recorded operation its node, so that the same matcher that
found the attention in the model finds it in the graph.
"""

import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.copying import meta_copy
from reparam.errors import RewriteError
from reparam.graph.call_pattern import CallPattern, join_call, split_call
from reparam.graph.owner_swap import generated_forward
from reparam.graph.value_tracer import ValueTracer, wrapping_only
from reparam.trace.probe import Recorder
from reparam.trace.record import ModuleCall, Op, Ref, Trace

_ENTRY = "_reparam_entry"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerGraph:
    """One call pattern of an owner in one mode: its graph, and the record of running it; op tags are nodes.

    `nodes` lists, for each recorded value, the nodes whose result it was: an identity passes its input on.
    """

    pattern: CallPattern
    training: bool
    graph: fx.Graph
    trace: Trace
    nodes: dict[int, list[fx.Node]]

    def node_of(self, ref: Ref, *, read_by: Op) -> fx.Node:
        """The last node before the reader that holds the value."""
        order = {node: number for number, node in enumerate(self.graph.nodes)}
        return [node for node in self.nodes[ref.number] if order.get(node, len(order)) < order[read_by.tag]][-1]


def trace_owner(
    owner: nn.Module, call: ModuleCall, path: str, *, opened: frozenset[str] = frozenset()
) -> dict[bool, OwnerGraph]:
    """Returns the graphs of one call of `owner`, by training mode.

    Args:
        owner: the module; not touched.
        call: a recorded call of it.
        path: for messages.
        opened: children, by path relative to the owner, whose forwards become part of the graph.
    Raises:
        RewriteError: the forward cannot be traced; the message says where and why.
    """
    return {training: _trace(owner, call, path, opened=opened, training=training) for training in (False, True)}


def _trace(owner: nn.Module, call: ModuleCall, path: str, *, opened: frozenset[str], training: bool) -> OwnerGraph:
    duplicate = meta_copy(owner)
    duplicate.train(training)  # not chained: some models' own `train` returns nothing
    pattern, varying, spec = split_call(call.args, call.kwargs)
    inputs = tuple(leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in varying)
    entry = _make_entry(type(owner), (training, pattern), spec, len(varying))
    try:
        graph = _trace_entry(duplicate, entry, opened, inputs)
        interpreter = _TaggingInterpreter(fx.GraphModule(duplicate, graph), inputs)
        trace = interpreter.record()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RewriteError(
            f'"{path}": the forward of {type(owner).__name__} cannot be traced ({reason}). Keep it with a rule '
            f'operator = "keep", match.path = "{path}", or write the branch so that it does not depend on values.'
        ) from error
    return OwnerGraph(pattern=pattern, training=training, graph=graph, trace=trace, nodes=interpreter.nodes)


def _make_entry(
    owner: type[nn.Module], key: tuple[bool, CallPattern], spec: pytree.TreeSpec, count: int
) -> Callable[..., Any]:
    """A method that takes only what varies and calls the owner's own forward with the fixed leaves filled in."""
    generated = generated_forward(owner, key)

    def call_forward(self: nn.Module, *varying: Any) -> Any:
        if generated is not None:
            return generated(self, *varying)
        args, kwargs = join_call(key[1], list(varying), spec)
        return owner.forward(self, *args, **kwargs)

    names = ", ".join(f"x{number}" for number in range(count))
    source = (
        f"def make(call_forward):\n    def {_ENTRY}(self, {names}):\n        return call_forward(self, {names})\n"
        f"    return {_ENTRY}"
    )
    scope: dict[str, Any] = {}
    # The functions that a tracer keeps whole (math, einops) are looked up in the globals of what it traces.
    exec(source, getattr(generated or owner.forward, "__globals__", {}), scope)
    made: Callable[..., Any] = scope["make"](call_forward)
    return made


def _trace_entry(
    duplicate: nn.Module, entry: Callable[..., Any], opened: frozenset[str], inputs: tuple[Any, ...]
) -> fx.Graph:
    if "forward" in vars(duplicate):
        raise ValueError("its forward was replaced on the object, which hides that of its class")
    # A graph has no context managers, so a forward that opens one would silently lose it.
    for module in (duplicate, *(duplicate.get_submodule(path) for path in opened)):
        code = getattr(type(module).forward, "__code__", None)
        if code is not None and "autocast" in code.co_names:
            raise ValueError("it switches autocast inside its forward")
    name = type(duplicate).__name__
    duplicate.__class__ = type(name, (type(duplicate),), {_ENTRY: entry})
    whole = (math, *([sys.modules["einops"]] if "einops" in sys.modules else []))
    tracer = ValueTracer(name, opened=opened, inputs=inputs, autowrap=whole)
    tracer.traced_func_name = _ENTRY
    with torch.enable_grad(), wrapping_only(("len",), entry.__globals__):
        graph = tracer.trace(duplicate)
    if len(tracer.grad_modes) > 1:
        raise ValueError("it switches gradients on or off inside its forward")
    return graph


class _TaggingInterpreter(fx.Interpreter):
    """Runs a graph on meta tensors; tells the recorder which node runs and keeps which nodes held which value."""

    def __init__(self, module: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.nodes: dict[int, list[fx.Node]] = {}
        self._recorder = Recorder()
        self._recorder.name_state(module)
        self._inputs = inputs

    def record(self) -> Trace:
        """Runs the graph and returns the record."""
        trace = self._recorder.trace
        trace.inputs = self._recorder.refs(self._inputs)
        with torch.no_grad(), self._recorder:
            trace.outputs = self._recorder.refs(self.run(*self._inputs))
        return trace

    def run_node(self, n: fx.Node) -> Any:
        self._recorder.tag = n
        result = super().run_node(n)
        # An assignment to elements gives its first operand another value.
        changed = n.args[0] if n.target is operator.setitem else n
        value = self.env[changed] if isinstance(changed, fx.Node) and changed is not n else result
        if isinstance(value, Tensor) and isinstance(changed, fx.Node):
            self.nodes.setdefault(self._recorder.ref(value).number, []).append(changed)
        return result
