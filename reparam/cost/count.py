"""Counts the operations of one run, module by module: torch functions by formula, operators by their declaration.

What has no formula is listed, never dropped. Counts are per image: those of the run divided by its batch size, where
each image reads the weights anew.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from torch import nn

from reparam.cost.formulas import count_moves, count_op
from reparam.cost.walk import FunctionRan, OperatorRan, images_in, walk
from reparam.counts import OpCount
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.weight_words import weight_words
from reparam.recipe.schema import Frozen
from reparam.trace.record import Ref, Trace


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
        self.model, self.trace, self.mult_share = model, trace, mult_share
        self.images = images_in(trace)
        self.operations: dict[str, OpCount] = {}
        self.uncounted: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def run(self) -> None:
        for ran in walk(self.model, self.trace):
            count = self._of_operator(ran) if isinstance(ran, OperatorRan) else self._of_function(ran)
            self.operations[ran.path] = self.operations.get(ran.path, OpCount()) + count

    def _of_function(self, ran: FunctionRan) -> OpCount:
        moved = count_moves(ran.op, self.trace, images=self.images)
        counted = count_op(ran.op)
        if counted is None:
            self.uncounted[ran.path][ran.op.name] += 1
        return moved if counted is None else counted + moved

    def _of_operator(self, ran: OperatorRan) -> OpCount:
        """What it declares; and it reads its inputs and its weights, and writes its outputs."""
        operator, shapes = ran.operator, [ref.shape for ref in ran.inputs]
        if isinstance(operator, MoeMlp | RoutedLayer):
            count = operator.op_count(shapes[0], mult_share=self.mult_share.get(f"{ran.path}.router"))
        else:
            count = operator.op_count(*shapes)
        weights = OpCount({("read", f"weight.{type_}"): n for type_, n in weight_words(operator).items()})
        moved = OpCount.moves(read=_words(ran.inputs), write=_words(ran.outputs))
        return count + moved + self.images * weights


def per_image(counts: OpCount, images: int) -> dict[str, int]:
    """Divides a run's counts by its batch size, as `{"mul.f32": n, ...}`."""
    return {key: round(n / images) for key, n in counts.as_dict().items()}


def _words(refs: tuple[Ref, ...]) -> int:
    return sum(ref.size for ref in dict.fromkeys(refs))
