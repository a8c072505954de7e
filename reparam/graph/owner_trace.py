"""Traces the forward of one module with torch.fx, its children as leaves, and runs the graph under the recorder.

Only a meta copy of the owner is traced: caches that a forward leaves behind, and attributes that tracing adds, never
reach the model. Running the graph node by node gives each recorded operation its node, so that the same matcher that
found the attention in the model finds it in the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.copying import meta_copy
from reparam.errors import RewriteError
from reparam.graph.call_pattern import CallPattern, join_call, split_call
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
        return [node for node in self.nodes[ref.number] if order[node] < order[read_by.tag]][-1]


class _OwnerTracer(fx.Tracer):
    """Keeps every child a leaf and reads buffers by name, so that no tensor is copied into the graph."""

    proxy_buffer_attributes = True
    traced_func_name = _ENTRY

    def __init__(self) -> None:
        super().__init__()
        self.grad_modes: set[tuple[bool, bool]] = set()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Notes in which gradient mode the forward was when it made the node; a graph does not keep it."""
        self.grad_modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace_owner(owner: nn.Module, call: ModuleCall, path: str) -> dict[bool, OwnerGraph]:
    """Returns the graphs of one call of `owner`, by training mode.

    Raises:
        RewriteError: the forward cannot be traced; the message says where and why.
    """
    return {training: _trace(owner, call, path, training=training) for training in (False, True)}


def _trace(owner: nn.Module, call: ModuleCall, path: str, *, training: bool) -> OwnerGraph:
    duplicate = meta_copy(owner).train(training)
    pattern, varying, spec = split_call(call.args, call.kwargs)
    entry = _make_entry(type(owner), pattern, spec, len(varying))
    try:
        graph = _trace_entry(duplicate, entry)
        interpreter = _TaggingInterpreter(fx.GraphModule(duplicate, graph), varying)
        trace = interpreter.record()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RewriteError(
            f'"{path}": the forward of {type(owner).__name__} cannot be traced ({reason}). Keep it with a rule '
            f'operator = "keep", match.path = "{path}", or write the branch so that it does not depend on values.'
        ) from error
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        raise RewriteError(
            f'"{path}": the forward of {type(owner).__name__} makes a constant tensor; register it as a buffer'
        )
    return OwnerGraph(pattern=pattern, training=training, graph=graph, trace=trace, nodes=interpreter.nodes)


def _make_entry(owner: type[nn.Module], pattern: CallPattern, spec: pytree.TreeSpec, count: int) -> Callable[..., Any]:
    """A method that takes only what varies and calls the owner's own forward with the fixed leaves filled in."""

    def call_forward(self: nn.Module, *varying: Any) -> Any:
        args, kwargs = join_call(pattern, list(varying), spec)
        return owner.forward(self, *args, **kwargs)

    names = ", ".join(f"x{number}" for number in range(count))
    scope: dict[str, Any] = {"call_forward": call_forward}
    exec(f"def {_ENTRY}(self, {names}):\n    return call_forward(self, {names})", scope)
    made: Callable[..., Any] = scope[_ENTRY]
    return made


def _trace_entry(duplicate: nn.Module, entry: Callable[..., Any]) -> fx.Graph:
    # A graph has no context managers, so a forward that opens one would silently lose it.
    code = getattr(type(duplicate).forward, "__code__", None)
    if code is not None and "autocast" in code.co_names:
        raise ValueError("it switches autocast inside its forward")
    duplicate.__class__ = type(type(duplicate).__name__, (type(duplicate),), {_ENTRY: entry})
    tracer = _OwnerTracer()
    with torch.enable_grad():
        graph = tracer.trace(duplicate)
    if len(tracer.grad_modes) > 1:
        raise ValueError("it switches gradients on or off inside its forward")
    return graph


class _TaggingInterpreter(fx.Interpreter):
    """Runs a graph on meta tensors; tells the recorder which node runs and keeps which nodes held which value."""

    def __init__(self, module: fx.GraphModule, varying: list[Any]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.nodes: dict[int, list[fx.Node]] = {}
        self._recorder = Recorder()
        self._recorder.name_state(module)
        self._inputs = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in varying]

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
        if isinstance(result, Tensor):
            self.nodes.setdefault(self._recorder.ref(result).number, []).append(n)
        return result
