"""Tells a triangular mask from others: tokens that must not look ahead, however the mask is made.

Either the record shows `tril` or `triu`, or the values of what comes from the model alone are a triangle: a buffer, or
a comparison of positions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from reparam.graph.constants import constant_value
from reparam.trace.products import read_product
from reparam.trace.record import Op, Ref, Trace

_TRIANGLES = {"tril", "triu"}
#: Operations that make features: a mask behind one is another attention's.
_MAKES_FEATURES = {
    "conv1d", "conv2d", "conv3d", "embedding", "layer_norm", "linear", "multi_head_attention_forward",
    "scaled_dot_product_attention", "softmax",
}  # fmt: skip
#: Of these only the first operand is part of the result; the others say which elements are taken.
_PICKS = {"gather", "getitem", "index_select", "take_along_dim"}


def is_causal(trace: Trace, side: Ref) -> bool:
    """Whether a mask or bias on the scores holds a triangle that hides what lies on one side of the diagonal."""
    queue = [side]
    seen: set[int] = set()
    for ref in queue:
        if ref.number in seen:
            continue
        seen.add(ref.number)
        op = trace.producer(ref)
        if op is not None and op.name in _TRIANGLES:
            return True
        value = constant_value(trace, ref) if len(ref.shape) > 1 else None
        if value is not None and _is_triangular(value):
            return True
        if op is not None:
            queue.extend(_parts(op))
    return False


def _parts(op: Op) -> Iterator[Ref]:
    if op.name in _MAKES_FEATURES or read_product(op) is not None:
        return
    yield from op.inputs[:1] if op.name in _PICKS else op.inputs


def _is_triangular(value: Tensor) -> bool:
    """Whether one of the square matrices (..., n, n) hides all that lies above its diagonal, or all below."""
    size = value.shape[-1]
    if size < 2 or value.shape[-2] != size:
        return False
    squares = value.reshape(-1, size, size)
    return bool((_hides_above(squares) | _hides_above(squares.mT)).any())


def _hides_above(squares: Tensor) -> Tensor:
    """For each matrix (count, n, n): its corner's value fills all above the diagonal or, in blocks, lies only there.

    A symmetric matrix hides tokens from each other, as the masks of shifted windows do, and has no direction.
    """
    corner, diagonal = squares[:, :1, -1:], squares[:, :1, :1]
    hidden = squares == corner
    above = torch.ones_like(hidden[0]).triu(1)
    fills = hidden[:, above].all(-1) & ~hidden.diagonal(dim1=-2, dim2=-1).any(-1)
    has_direction = (hidden != hidden.mT).flatten(1).any(-1)
    is_in_blocks = ((hidden | (squares == diagonal)).flatten(1).all(-1)) & ~hidden[:, ~above].any(-1)
    return has_direction & (fills | is_in_blocks)
