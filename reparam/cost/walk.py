"""Walks a recorded run once: what ran as an operator, which declares itself, and what ran as a plain torch function."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from reparam.ops.base import Operator
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.trace.record import Op, Ref, Trace

#: What says itself which operations its code runs.
Declaring = Operator | RoutedLayer


@dataclass(frozen=True, slots=True)
class FunctionRan:
    """A torch function that no operator's declaration covers, in the module at `path`."""

    path: str
    op: Op


@dataclass(frozen=True, slots=True)
class OperatorRan:
    """One call of the operator at `path`, or a product of the model's that reads its weight."""

    path: str
    operator: Declaring
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


def walk(model: nn.Module, trace: Trace) -> Iterator[FunctionRan | OperatorRan]:
    """Yields what ran, in order; each operation is in one of the yielded."""
    operators: dict[str, Declaring] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Declaring) and not _is_transparent(module)
    }
    readers, hidden = _weight_readers(trace, operators)
    calls = {
        call.first_op: call
        for call in trace.calls
        if call.path in operators and not any(call.path.startswith(f"{other}.") for other in operators)
    }
    for op in trace.ops:
        owner = next((path for path in op.stack if path in operators), None)
        if owner is not None and op.index in calls:
            call = calls[op.index]
            yield OperatorRan(call.path, operators[call.path], call.inputs, call.outputs)
        if op.index in readers:
            path = readers[op.index]
            yield OperatorRan(path, operators[path], op.inputs[:1], op.outputs)
        elif op.index not in hidden and not (owner is not None and _is_declared(operators[owner], owner, op)):
            yield FunctionRan(op.stack[-1] if op.stack else "", op)


def images_in(trace: Trace) -> int:
    """The batch size of a recorded run."""
    return trace.inputs[0].shape[0] if trace.inputs and trace.inputs[0].shape else 1


def _is_transparent(module: nn.Module) -> bool:
    """An MLP whose layers are routed one by one: they declare themselves, and what is between them is dense."""
    return isinstance(module, MoeMlp) and module.form.mixes_tokens


def _is_declared(operator: Declaring, path: str, op: Op) -> bool:
    inside = op.stack[-1].removeprefix(path).lstrip(".")
    return not isinstance(operator, Operator) or operator.declares(inside)


def _weight_readers(trace: Trace, operators: Mapping[str, Declaring]) -> tuple[dict[int, str], set[int]]:
    """Products outside an operator that read its weight, by index, and the operations that made the weight.

    Models such as EVA call `F.linear(x, self.qkv.weight)`: the operator's module never runs, its weight does.
    """
    readers: dict[int, str] = {}
    hidden: set[int] = set()
    for op in trace.ops:
        is_outside = not any(path in operators for path in op.stack)
        if op.name == "linear" and is_outside and not trace.depends_on_input(op.inputs[1]):
            made = list(trace.ancestors(op.inputs[1]))
            read = [op.inputs[1], *(ref for step in made for ref in step.inputs)]
            owners = {ref.name.rpartition(".")[0] for ref in read if ref.name} & operators.keys()
            if len(owners) == 1:
                readers[op.index] = owners.pop()
                hidden.update(step.index for step in made)
    return readers, hidden
