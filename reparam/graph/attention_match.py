"""Recognises one softmax attention in a record by dataflow: softmax between two products, or a fused call.

    softmax(scale * q @ k' + ...) @ v          scaled_dot_product_attention(q, k, v)

Anchored at the softmax: back to the product of queries and keys, forward to the product with the values, each spelled
in any way that `read_product` reads. Which operand holds the keys follows from the axis that the softmax runs along.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.graph.axes import TRANSPOSES, permutation
from reparam.graph.layout import Axes, permuted_shape
from reparam.graph.score_chain import Chain, chain_to_scores, chain_to_values, map_axes
from reparam.graph.score_losses import bias_kind, find_losses, score_scale
from reparam.ops.site import Dropped
from reparam.trace.products import Product
from reparam.trace.record import Op, Ref, Trace

FUSED = "scaled_dot_product_attention"
ANCHORS = {FUSED, "softmax"}
_WIDTH = "width of the values"


@dataclass(frozen=True, slots=True)
class Operand:
    """A value and, for each canonical axis (leading..., tokens, width), its own axis or None where it has none."""

    ref: Ref
    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in canonical order."""
        return permuted_shape(self.ref.shape, self.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMatch:
    """One attention core: its operands, its output, and every operation in between.

    `out_axes` gives the canonical axis (leading..., tokens, width) of each axis of `out`. `scores` and `values` are the
    two products, None in a fused call; `score_order` gives the axis in (leading..., queries, keys) of each axis of the
    scores, and `weights` is what meets the values. `transposes` only brought operands into the products' order.
    `dropped` is what a core of q, k and v alone would lose.
    """

    q: Operand
    k: Operand
    v: Operand
    out: Ref
    out_axes: tuple[int, ...]
    ops: tuple[Op, ...]
    transposes: tuple[Op, ...] = ()
    scores: Product | None = None
    values: Product | None = None
    score_order: tuple[int, ...] = ()
    weights: Operand | None = None
    scale: float | None = None
    dropout: float = 0.0
    dropped: tuple[Dropped, ...] = ()


def match_attention(trace: Trace, anchor: Op) -> AttentionMatch | str | None:
    """Returns the core around an anchor, the reason why it cannot be taken, or None when it is no attention."""
    return _match_fused(trace, anchor) if anchor.name == FUSED else _match_explicit(trace, anchor)


def _match_fused(trace: Trace, op: Op) -> AttentionMatch:
    q, k, v = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    mask, scale = op.argument(3, "attn_mask"), op.kwargs.get("scale")
    dropped: list[Dropped] = [bias_kind(trace, mask)] if isinstance(mask, Ref) else []
    dropped += ["causal"] if op.argument(5, "is_causal", False) else []
    rank = len(q.shape)
    return AttentionMatch(
        q=_plain(q, rank), k=_plain(k, rank), v=_plain(v, rank), out=op.output, out_axes=tuple(range(rank)), ops=(op,),
        scale=1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        dropout=float(op.argument(4, "dropout_p", 0.0)), dropped=tuple(dropped),
    )  # fmt: skip


def _plain(ref: Ref, rank: int) -> Operand:
    missing = rank - len(ref.shape)
    return Operand(ref, (*[None] * missing, *range(len(ref.shape))))


def _match_explicit(trace: Trace, softmax: Op) -> AttentionMatch | str | None:
    before, after = chain_to_scores(trace, softmax), chain_to_values(trace, softmax)
    if before is None or after is None:
        return None
    if isinstance(after, str):
        return after
    dim = int(softmax.argument(1, "dim", -1)) % len(softmax.output.shape)
    ops = (before.product.op, *before.ops, softmax, *after.ops, after.product.op)
    return _oriented(trace, before, after, ops, _normalised_label(before, softmax, dim), dim)


def _normalised_label(before: Chain, softmax: Op, dim: int) -> str | None:
    """The label, in the product of queries and keys, of the axis that the softmax runs along."""
    axis = map_axes(before.ops, before.product.op.output, softmax.inputs[0])[dim]
    return None if axis is None else before.product.out_axes[axis]


def _oriented(
    trace: Trace, before: Chain, after: Chain, ops: tuple[Op, ...], key_label: str | None, key_dim: int
) -> AttentionMatch | str | None:
    scores, values = before.product, after.product
    softmax = ops[len(before.ops) + 1]
    weights_ref = after.ops[-1].output if after.ops else softmax.output
    sides = ((values.left, values.left_axes), (values.right, values.right_axes))
    weights_first = values.left.number == weights_ref.number
    (_, weight_labels), (v_ref, v_labels) = sides if weights_first else sides[::-1]
    # From the axes of the weights, through the whole chain, to the labels of the scores.
    chain = (*before.ops, softmax, *after.ops)
    mapped = map_axes(chain, scores.op.output, weights_ref)
    if key_label is None or None in mapped:
        return "its softmax runs along an axis that cannot be followed back to the product of queries and keys"
    label_of = {
        label: scores.out_axes[axis] for label, axis in zip(weight_labels, mapped, strict=True) if axis is not None
    }
    if values.inner is None or label_of.get(values.inner) != key_label:
        return None  # its weights are summed along another axis than they were normalised along
    oriented = _name_sides(scores, key_label)
    if oriented is None:
        return "it attends across the batch"
    (q_ref, q_labels), (k_ref, k_labels), query_label = oriented
    leading = [label for label in scores.out_axes if label not in (key_label, query_label)]
    width = scores.inner or ""
    v_own = [label for label in v_labels if label not in label_of]
    if len(v_own) != 1:
        return f"its values {v_ref.shape} have {len(v_own)} axes of their own; wanted one, their width"
    # Each product names its axes for itself; those that only the second one has get names of their own.
    v_named = [label_of.get(label, _WIDTH) for label in v_labels]
    out_named = [label_of.get(label, _WIDTH) for label in values.out_axes]
    canonical = [*leading, query_label, _WIDTH]
    if sorted(out_named) != sorted(canonical):
        return "its output lacks an axis of its scores"
    rows = [*leading, query_label, key_label]
    raw = (
        _operand(q_ref, q_labels, [*leading, query_label, width]),
        _operand(k_ref, k_labels, [*leading, key_label, width]),
        _operand(v_ref, v_named, [*leading, key_label, _WIDTH]),
    )
    q, k, v = (_before_transpose(trace, operand) for operand in raw)
    undone = [trace.producer(a.ref) for a, b in zip(raw, (q, k, v), strict=True) if a is not b]
    return AttentionMatch(
        q=q,
        k=k,
        v=v,
        out=values.op.output,
        out_axes=tuple(canonical.index(label) for label in out_named),
        ops=ops,
        transposes=tuple(op for op in undone if op is not None),
        scores=scores,
        values=values,
        score_order=tuple(rows.index(label) for label in scores.out_axes),
        weights=_operand(weights_ref, [label_of[label] for label in weight_labels], rows),
        scale=score_scale(before),
        dropout=_dropout(after),
        dropped=find_losses(trace, before, softmax, after),
    )


def _name_sides(
    scores: Product, key_label: str
) -> tuple[tuple[Ref, tuple[str, ...]], tuple[Ref, tuple[str, ...]], str] | None:
    """(queries, keys, label of the queries' tokens): the keys' operand alone has the axis that is normalised."""
    left, right = (scores.left, scores.left_axes), (scores.right, scores.right_axes)
    owners = [side for side in (left, right) if key_label in side[1]]
    if len(owners) != 1:
        return None
    k, q = (left, right) if owners[0] is left else (right, left)
    # Keys without heads leave two: the heads and the tokens of the queries, which the scores have beside the keys.
    own = [label for label in scores.out_axes if label in q[1] and label not in k[1]]
    return (q, k, own[-1]) if own else None


def _operand(ref: Ref, labels: Sequence[str], canonical: list[str]) -> Operand:
    return Operand(ref, tuple(labels.index(label) if label in labels else None for label in canonical))


def _before_transpose(trace: Trace, operand: Operand) -> Operand:
    """The operand one transpose earlier, when that transpose is just what has to be undone."""
    op = trace.producer(operand.ref)
    if op is None or operand.axes == tuple(range(len(operand.axes))) or None in operand.axes:
        return operand
    if op.name not in TRANSPOSES | {"permute"} or _is_part_of_node(trace, op):
        return operand
    order = permutation(op)
    axes = tuple(order[axis] for axis in operand.axes if axis is not None)
    return Operand(op.inputs[0], axes) if axes == tuple(range(len(axes))) else operand


def _is_part_of_node(trace: Trace, op: Op) -> bool:
    """Whether the operation ran inside a larger one (einops, a child), so that its operand has no node of its own."""
    beside = trace.ops[max(op.index - 1, 0) : op.index + 2]
    return op.tag is not None and any(other is not op and other.tag is op.tag for other in beside)


def _dropout(after: Chain) -> float:
    rates = [op.argument(1, "p", 0.5) for op in after.ops if op.name == "dropout" and op.argument(2, "training", True)]
    return float(max(rates, default=0.0))
