"""Recognises one softmax attention in a record by dataflow: softmax between two products, or a fused call.

    softmax(scale * q @ k') @ v          scaled_dot_product_attention(q, k, v)

Anchored at the softmax: back through one scaling to the product of q and k', forward through dropout to the product
with v. What stands in between and is neither (a bias, a mask, a layer over heads) is named in the refusal.
"""

import math
from dataclasses import dataclass

from reparam.trace.record import Op, Ref, Trace

ANCHORS = {"scaled_dot_product_attention", "softmax"}
_PRODUCTS = {"matmul", "bmm"}
_UNREAD_PRODUCTS = {"einsum", "baddbmm", "tensordot"}
_TRANSPARENT = {"dropout", "contiguous", "to", "float", "type_as", "clone"}
_DIVISIONS = {"div", "divide", "truediv", "true_divide"}
_SCALINGS = {"mul", "rmul", "multiply"} | _DIVISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMatch:
    """One attention core: operands, the operations between them and the output, and how scores are scaled.

    `k_is_transposed` says that `k` is the product's right operand (..., D, M) and no transpose of it was seen.
    """

    q: Ref
    k: Ref
    v: Ref
    out: Ref
    ops: tuple[Op, ...]
    k_is_transposed: bool
    scale: float
    scale_divides: bool
    is_fused: bool
    dropout: float


def match_attention(trace: Trace, anchor: Op) -> AttentionMatch | str | None:
    """Returns the core around an anchor, the reason why it cannot be taken, or None when it is no attention."""
    if anchor.name == "scaled_dot_product_attention":
        return _match_fused(anchor)
    return _match_explicit(trace, anchor)


def _match_fused(op: Op) -> AttentionMatch | str:
    q, k, v = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    if op.argument(3, "attn_mask") is not None:
        return "it adds a mask or bias to the scores, which binary linear attention cannot express"
    if op.argument(5, "is_causal", False):
        return "it is causal, which linear attention without a running sum cannot express"
    if op.kwargs.get("enable_gqa", False):
        return "several query heads share a key head (enable_gqa)"
    scale = op.kwargs.get("scale")
    return AttentionMatch(
        q=q, k=k, v=v, out=op.output, ops=(op,), k_is_transposed=False, is_fused=True, scale_divides=False,
        scale=1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        dropout=float(op.argument(4, "dropout_p", 0.0)),
    )  # fmt: skip


def _match_explicit(trace: Trace, softmax: Op) -> AttentionMatch | str | None:
    scores = softmax.inputs[0]
    if int(softmax.argument(1, "dim", -1)) % len(scores.shape) != len(scores.shape) - 1:
        return None
    found = _walk_to_scores(trace, scores)
    if found is None or isinstance(found, str):
        return found
    product, between, scale, divides = found
    weighted = _walk_to_values(trace, softmax)
    if weighted is None or isinstance(weighted, str):
        return weighted
    value_product, after, dropout = weighted
    q, right = product.inputs
    k, transposes = _strip_transpose(trace, right)
    return AttentionMatch(
        q=q, k=k, v=value_product.inputs[1], out=value_product.output, is_fused=False,
        ops=(*transposes, product, *between, softmax, *after, value_product),
        k_is_transposed=not transposes, scale=scale, scale_divides=divides, dropout=dropout,
    )  # fmt: skip


def _walk_to_scores(trace: Trace, scores: Ref) -> tuple[Op, tuple[Op, ...], float, bool] | str | None:
    """From the softmax input back to the product: (product, operations between, scale, whether it divides)."""
    scale, divides, between = 1.0, False, list[Op]()
    op = trace.producer(scores)
    foreign: Op | None = None
    while op is not None and op.name not in _PRODUCTS and op.inputs:
        if op.name in _UNREAD_PRODUCTS and all(trace.depends_on_input(ref) for ref in op.inputs[-2:]):
            return f"its scores are made by {op.name!r}; write them as q @ k.transpose(-2, -1)"
        number = _scalar_factor(op)
        if number is not None and scale == 1.0:
            scale, divides = number, op.name in _DIVISIONS
        elif op.name not in _TRANSPARENT:
            foreign = foreign or op
        between.append(op)
        same = [ref for ref in op.inputs if math.prod(ref.shape) == math.prod(scores.shape)]
        op = trace.producer(same[0]) if same else None
    if op is None or op.name not in _PRODUCTS or not trace.depends_on_input(op.output):
        return None
    if foreign is not None:
        return _stands_between("the scores and the softmax", foreign)
    return op, tuple(between), scale, divides


def _stands_between(where: str, op: Op) -> str:
    return f"between {where} stands {op.name!r}, which binary linear attention cannot express"


def _scalar_factor(op: Op) -> float | None:
    if op.name not in _SCALINGS or len(op.inputs) != 1:
        return None
    numbers = [a for a in (*op.args, *op.kwargs.values()) if isinstance(a, int | float)]
    return float(numbers[0]) if len(numbers) == 1 else None


def _walk_to_values(trace: Trace, softmax: Op) -> tuple[Op, tuple[Op, ...], float] | str | None:
    """From the softmax forward to the product with v: (product, operations between, dropout probability)."""
    dropout, between, op = 0.0, list[Op](), softmax
    while True:
        users = trace.users(op.output)
        if len(users) != 1:
            return "its attention weights are read in more than one place" if users else None
        op = users[0]
        if op.name in _PRODUCTS:
            break
        if op.name not in _TRANSPARENT:
            return _stands_between("the softmax and the values", op)
        if op.name == "dropout" and op.argument(2, "training", True):
            dropout = float(op.argument(1, "p", 0.5))
        between.append(op)
    if op.inputs[0].number != (between[-1] if between else softmax).output.number:
        return "the values stand left of the weights (v @ weights')"
    return op, tuple(between), dropout


def _strip_transpose(trace: Trace, right: Ref) -> tuple[Ref, tuple[Op, ...]]:
    """The keys (..., M, D) behind the product's right operand, when the last operation swapped the last two axes."""
    op = trace.producer(right)
    if op is None or not op.inputs:
        return right, ()
    source = op.inputs[0]
    rank = len(source.shape)
    if op.name == "mT" or (op.name in {"transpose", "swapaxes", "swapdims"} and _swaps_last(op, rank)):
        return source, (op,)
    return right, ()


def _swaps_last(op: Op, rank: int) -> bool:
    return {dim % rank for dim in swapped_dims(op)} == {rank - 2, rank - 1}


def swapped_dims(op: Op) -> tuple[int, int]:
    """The two axes that a transpose or its aliases swaps; the last two of `mT` and of a matrix."""
    first, second = [dim for dim in (*op.args, *op.kwargs.values()) if isinstance(dim, int)] or (-2, -1)
    return first, second
