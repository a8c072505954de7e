"""Layers of a `.pt2` file: its graph is interpreted, and each node knows the modules that it came from."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from reparam.compare.recording import Recorder, Recording
from reparam.compare.scopes import ScopedNode, module_outputs
from reparam.models.pt2_file import Pt2Model


def record_pt2(model: Pt2Model) -> Recorder:
    """Returns a recorder of an exported program."""
    nodes = list(model.program.graph.nodes)
    results = [value.name for node in nodes if node.op == "output" for value in node.all_input_nodes]
    names = module_outputs([_scoped(node) for node in nodes if node.op == "call_function"], results)

    def record(images: Tensor) -> Recording:
        watcher = _Watcher(model.program, frozenset(names.values()))
        model.call(watcher.run, model.filled(images))
        found = {path: watcher.found[name] for path, name in names.items() if name in watcher.found}
        layers = {path: [model.rows(value, images)] for path, value in found.items()}
        return Recording(logits=model(images), layers=layers)

    return record


class _Watcher(Interpreter):
    """Keeps the floating-point values of some nodes."""

    def __init__(self, program: torch.fx.GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(program)
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            self.found[n.name] = value.clone()
        return value


def _scoped(node: Node) -> ScopedNode:
    stack = node.meta.get("nn_module_stack", {})
    return ScopedNode(
        reads=tuple(value.name for value in node.all_input_nodes),
        writes=(node.name,),
        scopes=frozenset(path for path, _ in stack.values() if path),
    )
