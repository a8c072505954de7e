"""What stands around the scores and weights of an attention that a core of q, k and v alone would lose.

Scaling, casts, dropout, and whatever a softmax undoes anyway (adding the same to all keys of a query) are no loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from reparam.graph.causality import is_causal
from reparam.graph.score_chain import (
    ASSIGNMENT,
    DIVISIONS,
    FUNCTIONS,
    MASKS,
    MIXINGS,
    NEUTRAL,
    SCALINGS,
    SUMS,
    Chain,
    map_axes,
)
from reparam.ops.site import Dropped
from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Ref, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """The scores or, behind the softmax, the weights, before an operation on them.

    `keys` is their axis of keys, counted from the back, and `heads` are axes that both operands of the scores have;
    `keys` is None where it cannot be followed.
    """

    ref: Ref
    keys: int | None
    heads: tuple[int, ...]
    is_weights: bool


def find_losses(trace: Trace, before: Chain, softmax: Op, after: Chain) -> tuple[Dropped, ...]:
    """Returns, sorted, what the operations on the way from the scores to the values do beyond a softmax."""
    addend = before.product.addend
    found: list[Dropped] = [] if addend is None else [bias_kind(trace, addend)]
    for op, value in _steps(before, softmax, after):
        if op.name == ASSIGNMENT:
            found += _assigned(trace, op, value)
        else:
            found += _loss(trace, op, value)
    return tuple(sorted(set(found)))


def _steps(before: Chain, softmax: Op, after: Chain) -> Iterator[tuple[Op, _Value]]:
    """Each operation with the value it takes."""
    chain = (*before.ops, softmax, *after.ops)
    start = before.product.op.output
    dim = int(softmax.argument(1, "dim", -1)) % len(softmax.output.shape)
    keys = map_axes(before.ops, start, softmax.inputs[0])[dim]
    shared = _shared_axes(before.product)
    for number, op in enumerate(chain):
        ref = chain[number - 1].output if number else start
        axes = map_axes(chain[:number], start, ref)
        if op is not softmax:
            yield (
                op,
                _Value(
                    ref=ref,
                    keys=None if keys is None or keys not in axes else axes.index(keys) - len(axes),
                    heads=tuple(dim - len(axes) for dim, axis in enumerate(axes) if axis in shared),
                    is_weights=number > len(before.ops),
                ),
            )


def _shared_axes(product: Product) -> set[int]:
    both = {*product.left_axes} & {*product.right_axes}
    return {axis for axis, label in enumerate(product.out_axes) if label in both}


def _loss(trace: Trace, op: Op, value: _Value) -> list[Dropped]:
    if op.name in NEUTRAL:
        return []
    sides = [ref for ref in op.inputs if ref.number != value.ref.number]
    if op.name in MIXINGS:
        return ["talking_heads" if _mixed_axis(op, value) in value.heads else "mixture"]
    if op.name in MASKS:
        return [_mask_kind(trace, sides)]
    if op.name in FUNCTIONS:
        return ["mixture"] if op.name == "neg" and value.is_weights else [] if op.name == "neg" else ["score_function"]
    if any(is_causal(trace, side) for side in sides):
        return ["causal"]
    return _weights_loss(trace, op, value, sides) if value.is_weights else _scores_loss(trace, op, value, sides)


def _scores_loss(trace: Trace, op: Op, value: _Value, sides: list[Ref]) -> list[Dropped]:
    """A factor or term that is the same for all keys of a query changes the temperature, or nothing."""
    if len(op.inputs) > 1 and not sides:
        return ["score_function"]  # their square
    varying = [side for side in sides if _varies_over_keys(side, value)]
    if not varying:
        return []
    if op.name in SCALINGS or _is_made_from(trace, varying[0], value.ref):
        return ["score_function"]
    return [bias_kind(trace, varying[0])]


def _weights_loss(trace: Trace, op: Op, value: _Value, sides: list[Ref]) -> list[Dropped]:
    """Only a division by their own sum leaves weights as they are."""
    is_sum = len(sides) == 1 and _is_made_from(trace, sides[0], value.ref) and not _varies_over_keys(sides[0], value)
    return [] if op.name in DIVISIONS and is_sum else ["mixture"]


def _varies_over_keys(side: Ref, value: _Value) -> bool:
    if value.keys is None:
        return True
    return len(side.shape) >= -value.keys and side.shape[value.keys] > 1


def _mixed_axis(op: Op, value: _Value) -> int | None:
    """Which axis of the value, counted from the back, a layer or product sums over; None when there are several."""
    rank = len(value.ref.shape)
    if op.name == "linear":
        return -1
    if op.name == "conv2d":
        return 1 - rank if set(op.inputs[1].shape[2:]) == {1} else None
    product = read_product(op)
    if product is None or product.inner is None:
        return None
    labels = product.left_axes if product.left.number == value.ref.number else product.right_axes
    return labels.index(product.inner) - rank


def _assigned(trace: Trace, op: Op, value: _Value) -> list[Dropped]:
    """`scores[part] = scores[part] + bias`: what the operations on the part did; `scores[part] = value` is a mask."""
    sides = op.inputs[1:]
    if not sides or not all(_is_made_from(trace, side, value.ref) for side in sides):
        return [bias_kind(trace, side) for side in sides] or ["mask"]
    made = trace.producer(value.ref)
    steps = [a for side in sides for a in trace.ancestors(side) if made is None or a.index > made.index]
    found: list[Dropped] = []
    for step in steps:
        for ref in step.inputs:
            if ref.number == value.ref.number or _is_made_from(trace, ref, value.ref):
                part = _Value(ref=ref, keys=value.keys, heads=value.heads, is_weights=value.is_weights)
                found += _loss(trace, step, part)
                break
    return found


def _is_made_from(trace: Trace, side: Ref, value: Ref) -> bool:
    return any(ref.number == value.number for op in trace.ancestors(side) for ref in op.inputs)


def _mask_kind(trace: Trace, sides: list[Ref]) -> Dropped:
    if any(is_causal(trace, side) for side in sides):
        return "causal"
    return "input_mask" if any(trace.depends_on_input(side) for side in sides) else "mask"


def bias_kind(trace: Trace, side: Ref) -> Dropped:
    """A bias comes from parameters, a query bias from the image too, a mask from neither."""
    if is_causal(trace, side):
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


def score_scale(before: Chain) -> float | None:
    """The product of the scalar factors on the scores, with its sign; None when a tensor scales them."""
    scale = before.product.alpha
    value = before.product.op.output
    for op in before.ops:
        factor = _factor(op, value)
        if factor is None:
            return None
        scale *= factor
        value = op.output
    return float(scale)


def _factor(op: Op, value: Ref) -> float | None:
    if op.name == "neg":
        return -1.0
    if op.name in SCALINGS:
        numbers = [a for a in (*op.args, *op.kwargs.values()) if isinstance(a, int | float)]
        return None if len(numbers) != 1 else 1 / numbers[0] if op.name in DIVISIONS else numbers[0]
    if op.name not in SUMS:
        return 1.0
    is_first = op.args[0] == value
    # rsub(x, y) is y - x. `alpha` belongs to what is added or subtracted: the second operand, the first of rsub.
    is_subtracted = is_first if op.name == "rsub" else not is_first
    alpha = float(op.kwargs.get("alpha", 1)) if is_subtracted else 1.0
    return -alpha if is_subtracted and op.name in {"isub", "rsub", "sub", "subtract"} else alpha
