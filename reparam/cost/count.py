"""Counts the operations of one run, module by module: torch functions by formula, operators by their declaration.

What has no formula is listed, never dropped. Counts are per image: those of the run divided by its batch size, where
each image reads the weights anew.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from torch import nn

from reparam.cost.formulas import count_moves, count_op
from reparam.counts import OpCount
from reparam.ops.base import Operator
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.weight_words import weight_words
from reparam.recipe.schema import Frozen
from reparam.trace.record import ModuleCall, Op, Ref, Trace

#: What says itself which operations its code runs.
_Declaring = Operator | RoutedLayer


class ModuleCount(Frozen):
    """Operations of one image in one module's own code, without its children; an operator's with all it contains.

    `operations` maps "mul.f32" and the like to counts, `uncounted` tells how often functions ran that have no formula.
    """

    path: str
    type: str
    operations: dict[str, int]
    uncounted: dict[str, int]


def count_modules(
    model: nn.Module, trace: Trace, *, mult_share: Mapping[str, float] | None = None
) -> tuple[ModuleCount, ...]:
    """Returns what each module ran for one image of the recorded run, in the order of their first operation.

    Arguments as for `count_operations`.
    """
    counting = _Counting(model, trace, mult_share or {})
    counting.run()
    modules = dict(model.named_modules())
    return tuple(
        ModuleCount(
            path=path,
            type=type(modules[path]).__name__,
            operations=per_image(operations, counting.images),
            uncounted=dict(sorted(counting.uncounted[path].items())),
        )
        for path, operations in counting.operations.items()
    )


def count_operations(
    model: nn.Module, trace: Trace, *, mult_share: Mapping[str, float] | None = None
) -> tuple[OpCount, Counter[str]]:
    """Returns the operations of the whole recorded run, and how often each uncounted torch function ran.

    Args:
        model: whose run it is.
        trace: the run.
        mult_share: the measured share of tokens that take the multiply expert, by path of the router; a mixture that is
            not in it is counted at its balanced load.
    """
    counting = _Counting(model, trace, mult_share or {})
    counting.run()
    return sum(counting.operations.values(), OpCount()), sum(counting.uncounted.values(), Counter[str]())


class _Counting:
    """One pass over a record."""

    def __init__(self, model: nn.Module, trace: Trace, mult_share: Mapping[str, float]) -> None:
        self.trace, self.mult_share = trace, mult_share
        self.images = images_in(trace)
        self.operators = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, _Declaring) and not _is_transparent(module)
        }
        self.operations: dict[str, OpCount] = {}
        self.uncounted: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def run(self) -> None:
        readers, hidden = _weight_readers(self.trace, self.operators)
        calls = {call.first_op: call for call in self.trace.calls if self._is_outermost(call.path)}
        for op in self.trace.ops:
            owner = next((path for path in op.stack if path in self.operators), None)
            if owner is not None and op.index in calls:
                self._add(owner, self._declared(owner, calls[op.index]))
            if op.index in readers:
                path = readers[op.index]
                count = self.operators[path].op_count(op.inputs[0].shape)
                self._add(path, count + self._moved(path, op.inputs[:1], op.outputs))
            elif op.index not in hidden and not self._is_declared(owner, op):
                self._count(op)

    def _is_outermost(self, path: str) -> bool:
        return path in self.operators and not any(path.startswith(f"{other}.") for other in self.operators)

    def _is_declared(self, owner: str | None, op: Op) -> bool:
        """Whether an operator's declaration covers an operation."""
        if owner is None:
            return False
        operator = self.operators[owner]
        return not isinstance(operator, Operator) or operator.declares(op.stack[-1].removeprefix(owner).lstrip("."))

    def _count(self, op: Op) -> None:
        path = op.stack[-1] if op.stack else ""
        counted = count_op(op)
        if counted is None:
            self.uncounted[path][op.name] += 1
            counted = OpCount()
        self._add(path, counted + count_moves(op, self.trace, images=self.images))

    def _declared(self, path: str, call: ModuleCall) -> OpCount:
        operator, shapes = self.operators[path], [ref.shape for ref in call.inputs]
        if isinstance(operator, MoeMlp | RoutedLayer):
            count = operator.op_count(shapes[0], mult_share=self.mult_share.get(f"{path}.router"))
        else:
            count = operator.op_count(*shapes)
        return count + self._moved(path, call.inputs, call.outputs)

    def _moved(self, path: str, inputs: tuple[Ref, ...], outputs: tuple[Ref, ...]) -> OpCount:
        """An operator reads its inputs and its weights, and writes its outputs."""
        weights = OpCount({("read", f"weight.{type_}"): n for type_, n in weight_words(self.operators[path]).items()})
        activations = OpCount({("read", "f32"): _words(inputs), ("write", "f32"): _words(outputs)})
        return activations + self.images * weights

    def _add(self, path: str, count: OpCount) -> None:
        self.operations[path] = self.operations.get(path, OpCount()) + count


def images_in(trace: Trace) -> int:
    """The batch size of a recorded run."""
    return trace.inputs[0].shape[0] if trace.inputs and trace.inputs[0].shape else 1


def per_image(counts: OpCount, images: int) -> dict[str, int]:
    """Divides a run's counts by its batch size, as `{"mul.f32": n, ...}`."""
    return {key: round(n / images) for key, n in counts.as_dict().items()}


def _is_transparent(module: nn.Module) -> bool:
    """An MLP whose layers are routed one by one: they declare themselves, and what is between them is dense."""
    return isinstance(module, MoeMlp) and module.form.mixes_tokens


def _weight_readers(trace: Trace, operators: Mapping[str, _Declaring]) -> tuple[dict[int, str], set[int]]:
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


def _words(refs: tuple[Ref, ...]) -> int:
    return sum(ref.size for ref in dict.fromkeys(refs))
