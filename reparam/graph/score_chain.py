"""What stands between the two products of an attention: the way from the scores through the softmax to the values.

    scores = q @ k'  ->  [scale, bias, mask, heads mixed, ...]  ->  softmax  ->  [dropout, heads mixed, ...]  ->  @ v

Each operation on the way keeps the number of elements. What it does beyond scaling, casting and dropout is named, for
a core of q, k and v alone would lose it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from reparam.graph.axes import RESHAPES, TRANSPOSES, Axis, axis_sources
from reparam.ops.site import Dropped
from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Ref, Trace

_NEUTRAL = RESHAPES | TRANSPOSES | {
    "clone", "contiguous", "detach", "dropout", "expand", "flatten", "float", "getitem", "half", "masked", "permute",
    "to", "type", "type_as",
}  # fmt: skip
DIVISIONS = {"div", "divide", "idiv", "itruediv", "truediv", "true_divide"}
_SCALINGS = {"imul", "mul", "multiply", "rmul"} | DIVISIONS
_SUMS = {"add", "iadd", "isub", "radd", "rsub", "sub", "subtract"}
_MASKS = {"masked_fill", "where"}
_FUNCTIONS = {"clamp", "clamp_max", "clamp_min", "exp", "log", "nan_to_num", "neg", "pow", "relu", "sigmoid", "tanh"}
_MIXINGS = {"conv2d", "einsum", "linear", "matmul"}
_TRIANGLES = {"tril", "triu"}
_ASSIGNMENT = "setitem"
_LONGEST = 24


@dataclass(frozen=True, slots=True)
class Chain:
    """The operations from the scores to the softmax, or from it to the weights that meet the values, in order."""

    ops: tuple[Op, ...]
    product: Product
    dropped: tuple[Dropped, ...]


def chain_to_scores(trace: Trace, softmax: Op) -> Chain | None:
    """The way from the product of queries and keys to a softmax; None when no such product feeds it."""
    start = softmax.inputs[0]
    for path, product in _paths_back(trace, start, _size(start), _LONGEST):
        ops = tuple(reversed(path))
        addend = (bias_kind(trace, product.addend),) if product.addend is not None else ()
        return Chain(ops, product, _unique((*addend, *_all_dropped(trace, ops, product.op.output))))
    return None


def chain_to_values(trace: Trace, softmax: Op) -> Chain | str | None:
    """The way from a softmax to its product with the values; None without one, a reason when it cannot be taken."""
    for ops, product in _paths_forward(trace, softmax.output, _size(softmax.output), _LONGEST):
        rival = next((op for op in ops if _joins_other_softmax(trace, op, {softmax.index})), None)
        if rival is not None and rival.name in {"isub", "rsub", "sub"}:
            return "its weights are a difference of two softmaxes (differential attention)"
        if rival is not None:
            return f"its weights are mixed with those of another softmax by {rival.name!r}"
        return Chain(ops, product, _unique(_all_dropped(trace, ops, softmax.output, weights=True)))
    return None


def _unique(kinds: tuple[Dropped, ...]) -> tuple[Dropped, ...]:
    return tuple(sorted(set(kinds)))


def _size(ref: Ref) -> int:
    return math.prod(ref.shape)


def _paths_back(trace: Trace, ref: Ref, size: int, depth: int) -> Iterator[tuple[list[Op], Product]]:
    """Ways from a value back to a product of two computed values, through operations that may stand on the way."""
    op = trace.producer(ref)
    if op is None or not depth or not trace.depends_on_input(ref) or _size(op.output) != size:
        return
    product = read_product(op)
    if product is not None and all(trace.depends_on_input(side) for side in (product.left, product.right)):
        if len(product.summed) == 1:
            yield [], product
        return
    if not _may_stand_between(op):
        return
    for operand in dict.fromkeys(op.inputs):
        if _size(operand) == size:
            for path, found in _paths_back(trace, operand, size, depth - 1):
                yield [op, *path], found


def _paths_forward(trace: Trace, ref: Ref, size: int, depth: int) -> Iterator[tuple[tuple[Op, ...], Product]]:
    for op in trace.users(ref) if depth else ():
        product = read_product(op)
        if product is not None and all(trace.depends_on_input(side) for side in (product.left, product.right)):
            if len(product.summed) == 1:
                yield (), product
        elif _may_stand_between(op) and _size(op.output) == size and op.output.number != ref.number:
            for path, found in _paths_forward(trace, op.output, size, depth - 1):
                yield (op, *path), found


def _may_stand_between(op: Op) -> bool:
    return op.name in _NEUTRAL | _SCALINGS | _SUMS | _MASKS | _FUNCTIONS | _MIXINGS | {_ASSIGNMENT}


def _all_dropped(trace: Trace, ops: tuple[Op, ...], start: Ref, *, weights: bool = False) -> tuple[Dropped, ...]:
    found: list[Dropped] = []
    value = start
    for op in ops:
        if op.name == _ASSIGNMENT:
            found += _assigned(trace, op, value, weights=weights)
        else:
            kind = _dropped(trace, op, value, weights=weights)
            found += [kind] if kind else []
        value = op.output
    return tuple(found)


def _dropped(trace: Trace, op: Op, value: Ref, *, weights: bool) -> Dropped | None:
    """What an operation on the scores or weights does that a core of q, k and v would lose."""
    sides = [ref for ref in op.inputs if ref.number != value.number]
    if op.name in _NEUTRAL or (op.name in _SCALINGS | _SUMS and not sides):
        return None
    if op.name in _MIXINGS:
        return "talking_heads"
    if op.name in _MASKS:
        return _mask_kind(trace, sides)
    if op.name in _FUNCTIONS:
        return "score_function"
    if all(_is_made_from(trace, side, value) for side in sides):
        return None  # minus their maximum, over their sum: what a softmax does anyway
    if op.name in _SCALINGS:
        return "score_function" if weights or any(_varies_over_keys(side, value) for side in sides) else None
    return "mixture" if weights else bias_kind(trace, sides[0])


def _assigned(trace: Trace, op: Op, value: Ref, *, weights: bool) -> list[Dropped]:
    """`scores[part] = scores[part] + bias`: what the operations on the part did; `scores[part] = value` is a mask."""
    sides = op.inputs[1:]
    if not all(_is_made_from(trace, side, value) for side in sides) or not sides:
        return [bias_kind(trace, side) for side in sides] or ["mask"]
    made = [a for side in sides for a in trace.ancestors(side) if a.index > _index_of(trace, value)]
    found: list[Dropped] = []
    for step in made:
        whole = next(
            (ref for ref in step.inputs if ref.number == value.number or _is_made_from(trace, ref, value)), None
        )
        kind = None if whole is None else _dropped(trace, step, whole, weights=weights)
        found += [kind] if kind else []
    return found


def _index_of(trace: Trace, ref: Ref) -> int:
    made = trace.producer(ref)
    return -1 if made is None else made.index


def _is_made_from(trace: Trace, side: Ref, value: Ref) -> bool:
    return any(ref.number == value.number for op in trace.ancestors(side) for ref in op.inputs)


def _varies_over_keys(side: Ref, value: Ref) -> bool:
    return len(side.shape) > 0 and side.shape[-1] == value.shape[-1] > 1


def _mask_kind(trace: Trace, sides: list[Ref]) -> Dropped:
    if any(op.name in _TRIANGLES for side in sides for op in trace.ancestors(side)):
        return "causal"
    return "input_mask" if any(trace.depends_on_input(side) for side in sides) else "mask"


def bias_kind(trace: Trace, side: Ref) -> Dropped:
    """A bias comes from parameters, a query bias from the image too, a mask from neither."""
    if any(op.name in _TRIANGLES for op in trace.ancestors(side)):
        return "causal"
    if trace.depends_on_input(side):
        return "query_bias" if _depends_on_image(trace, side) else "input_mask"
    return "bias" if any(isinstance(_tensor(trace, ref), nn.Parameter) for ref in _leaves(trace, side)) else "mask"


def _depends_on_image(trace: Trace, side: Ref) -> bool:
    image = next((ref for ref in trace.inputs if _tensor(trace, ref).is_floating_point()), None)
    is_flag = _tensor(trace, side).dtype == torch.bool
    return image is not None and not is_flag and any(ref.number == image.number for ref in _leaves(trace, side))


def _tensor(trace: Trace, ref: Ref) -> torch.Tensor:
    return trace.tensors[ref.number]


def _leaves(trace: Trace, ref: Ref) -> Iterator[Ref]:
    """Parameters, buffers and inputs that a value was computed from; itself when it is one."""
    if trace.producer(ref) is None:
        yield ref
    for op in trace.ancestors(ref):
        yield from (operand for operand in op.inputs if trace.producer(operand) is None)


def _joins_other_softmax(trace: Trace, op: Op, own: set[int]) -> bool:
    """Whether an operation brings in the weights of another softmax that looks at the image."""
    if op.name not in _SUMS:
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
