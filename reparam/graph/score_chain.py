"""What stands between the two products of an attention: the way from the scores through the softmax to the values.

    scores = q @ k'  ->  [scale, bias, mask, heads mixed, ...]  ->  softmax  ->  [dropout, heads mixed, ...]  ->  @ v

Each operation on the way keeps the number of elements; what it does to the scores is read in `score_losses.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reparam.graph.axes import RESHAPES, TRANSPOSES, Axis, axis_sources
from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Ref, Trace

NEUTRAL = RESHAPES | TRANSPOSES | {
    "clone", "contiguous", "detach", "dropout", "expand", "flatten", "float", "getitem", "half", "masked", "permute",
    "to", "type", "type_as",
}  # fmt: skip
DIVISIONS = {"div", "divide", "idiv", "itruediv", "truediv", "true_divide"}
SCALINGS = {"imul", "mul", "multiply", "rmul"} | DIVISIONS
SUMS = {"add", "iadd", "isub", "radd", "rsub", "sub", "subtract"}
MASKS = {"masked_fill", "where"}
FUNCTIONS = {"clamp", "clamp_max", "clamp_min", "exp", "log", "nan_to_num", "neg", "pow", "relu", "sigmoid", "tanh"}
MIXINGS = {"conv2d", "einsum", "linear", "matmul"}
ASSIGNMENT = "setitem"
_LONGEST = 24


@dataclass(frozen=True, slots=True)
class Chain:
    """The operations from the scores to the softmax, or from it to the weights that meet the values, in order."""

    ops: tuple[Op, ...]
    product: Product


def chain_to_scores(trace: Trace, softmax: Op) -> Chain | None:
    """The way from the product of queries and keys to a softmax; None when no such product feeds it."""
    start = softmax.inputs[0]
    for path, product in _paths_back(trace, start, _size(start), _LONGEST):
        return Chain(tuple(reversed(path)), product)
    return None


def chain_to_values(trace: Trace, softmax: Op) -> Chain | str | None:
    """The way from a softmax to its product with the values; None without one, a reason when it cannot be taken."""
    for ops, product in _paths_forward(trace, softmax.output, _size(softmax.output), _LONGEST):
        rival = next((op for op in ops if _joins_other_softmax(trace, op, {softmax.index})), None)
        if rival is not None and rival.name in {"isub", "rsub", "sub"}:
            return "its weights are a difference of two softmaxes (differential attention)"
        if rival is not None:
            return f"its weights are mixed with those of another softmax by {rival.name!r}"
        return Chain(ops, product)
    return None


def _size(ref: Ref) -> int:
    return math.prod(ref.shape)


def _paths_back(trace: Trace, ref: Ref, size: int, depth: int) -> Iterator[tuple[list[Op], Product]]:
    """Ways from a value back to a product of two computed values, through operations that may stand on the way."""
    op = trace.producer(ref)
    if op is None or not depth or not trace.depends_on_input(ref) or _size(op.output) != size:
        return
    product = read_product(op)
    if product is not None and all(trace.depends_on_input(side) for side in (product.left, product.right)):
        if product.inner is not None:
            yield [], product
        return
    for operand in dict.fromkeys(op.inputs):
        if _size(operand) == size and _may_stand_between(op, operand):
            for path, found in _paths_back(trace, operand, size, depth - 1):
                yield [op, *path], found


def _paths_forward(trace: Trace, ref: Ref, size: int, depth: int) -> Iterator[tuple[tuple[Op, ...], Product]]:
    for op in trace.users(ref) if depth else ():
        product = read_product(op)
        if product is not None and all(trace.depends_on_input(side) for side in (product.left, product.right)):
            if product.inner is not None:
                yield (), product
        elif _may_stand_between(op, ref) and _size(op.output) == size and op.output.number != ref.number:
            for path, found in _paths_forward(trace, op.output, size, depth - 1):
                yield (op, *path), found


def _may_stand_between(op: Op, value: Ref) -> bool:
    if op.name in DIVISIONS and op.args[0] != value:
        return False  # one over the scores
    return op.name in NEUTRAL | SCALINGS | SUMS | MASKS | FUNCTIONS | MIXINGS | {ASSIGNMENT}


def _joins_other_softmax(trace: Trace, op: Op, own: set[int]) -> bool:
    """Whether an operation brings in the weights of another softmax that looks at the image."""
    if op.name not in SUMS:
        return False
    return any(
        ancestor.name == "softmax" and ancestor.index not in own and trace.depends_on_input(ancestor.output)
        for side in op.inputs
        for ancestor in _near_ancestors(trace, side)
    )


def _near_ancestors(trace: Trace, ref: Ref) -> Iterator[Op]:
    """The operations that a map of weights went through since its softmax."""
    op = trace.producer(ref)
    for _ in range(_LONGEST):
        if op is None:
            return
        yield op
        if op.name == "softmax":
            return
        op = next((made for made in map(trace.producer, op.inputs) if made is not None), None)


def map_axes(ops: tuple[Op, ...], start: Ref, end: Ref) -> tuple[int | None, ...]:
    """For each axis of `end`, the axis of `start` that the operations in between made it from."""
    found = [_follow(ops, start, Axis(end, dim, 0)) for dim in range(len(end.shape))]
    lost = [dim for dim in range(len(start.shape)) if dim not in found]
    # An axis that layers mixed, or that was split and merged again, is the one that is left over on both sides.
    if found.count(None) == 1 and len(lost) == 1:
        found[found.index(None)] = lost[0]
    return tuple(found)


def _follow(ops: tuple[Op, ...], start: Ref, axis: Axis) -> int | None:
    for number in range(len(ops) - 1, -1, -1):
        before = ops[number - 1].output if number else start
        sources = [s for s in axis_sources(ops[number], axis) if s.ref.number == before.number]
        if not sources:
            return None
        axis = sources[0]
    return axis.dim
