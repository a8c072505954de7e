"""Where a token axis comes from: walks back through the record to the operation that flattened an image plane.

Before, (B, C, h, w) or (B, h, w, C); after, (B, C, h*w) or (B, h*w, C). The walk follows one axis through each
operation by its shape semantics, counts tokens that were concatenated in front, and never guesses from a square root.
"""

import math
from dataclasses import dataclass

from reparam.graph.axes import RESHAPES, Axis, axis_sources, merged_dims, takes_slices
from reparam.ops.site import TokenGrid
from reparam.trace.record import Op, Ref, Trace

_SPATIAL = {
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "conv2d", "group_norm", "interpolate", "max_pool2d",
}  # fmt: skip
#: Operations after which the tokens may stand in another order, or their axis elsewhere.
_REORDERS = {
    "argsort", "channel_shuffle", "flip", "fliplr", "flipud", "fold", "gather", "index_select",
    "masked_select", "moveaxis", "movedim", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "roll",
    "rot90", "sort", "take", "take_along_dim", "tensordot", "tile", "topk", "unfold",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Merge:
    """Where an axis was made from several, or else why the walk found no such place."""

    axis: Axis
    source: Ref
    dims: tuple[int, ...]


def find_token_grid(trace: Trace, tokens: Ref, *, dim: int) -> tuple[TokenGrid | None, str | None]:
    """Returns the grid behind axis `dim` of a value, or None and the reason, in words for the plan."""
    merge = _find_merge(trace, Axis(tokens, dim % len(tokens.shape), 0))
    if isinstance(merge, str):
        return None, merge
    sizes = tuple(merge.source.shape[d] for d in merge.dims)
    if len(sizes) > 2:
        return None, f"the token axis merges {len(sizes)} axes of sizes {'x'.join(map(str, sizes))}"
    height, width = sizes
    axes = [_image_axis(trace, Axis(merge.source, d, 0)) for d in merge.dims]
    if None in axes or axes[0] == axes[1]:
        return None, f"the token axis merges {height}x{width}, which are not the two axes of an image plane"
    suffix = tokens.shape[dim] - merge.axis.prefix - height * width
    if merge.axis.prefix < 0:
        return None, f"the tokens are only a part of the {height}x{width} image tokens"
    if suffix:
        return None, f"{suffix} tokens follow the {height}x{width} image tokens"
    return TokenGrid(prefix=merge.axis.prefix, height=height, width=width), None


def _find_merge(trace: Trace, start: Axis) -> _Merge | str:
    """The nearest operation behind an axis that merged several axes into it, or why there is none."""
    queue = [start]
    seen: set[tuple[int, int]] = set()
    reason = "no operation that flattens an image plane was found behind the tokens"
    for axis in queue:
        if (axis.ref.number, axis.dim) in seen:
            continue
        seen.add((axis.ref.number, axis.dim))
        op = trace.producer(axis.ref)
        # Tables of positions are planes too, but not those that the tokens come from.
        if op is None or not trace.depends_on_input(axis.ref):
            continue
        merged = merged_dims(op, axis)
        if len(merged) > 1:
            return _Merge(axis, op.inputs[0], merged)
        if op.name in _REORDERS:
            reason = f"{op.name!r} stands between the image plane and the tokens and may reorder them"
            continue
        # Norms over (batch * tokens) merge the axis and split it again.
        queue.extend(axis_sources(op, axis) or _unsplit(trace, op, axis))
    return reason


def _image_axis(trace: Trace, start: Axis) -> int | None:
    """Which axis of an image an axis is, whole or cut into windows: that of the convolution or input behind it."""
    key = (_image_axis, start.ref.number, start.dim)
    if key not in trace.memo:
        trace.memo[key] = _find_image_axis(trace, start)
    found: int | None = trace.memo[key]
    return found


def _find_image_axis(trace: Trace, start: Axis) -> int | None:
    queue = [start]
    seen: set[tuple[int, int]] = set()
    for axis in queue:
        if (axis.ref.number, axis.dim) in seen:
            continue
        seen.add((axis.ref.number, axis.dim))
        op = trace.producer(axis.ref)
        if (op is None and axis.ref in trace.inputs) or (op is not None and op.name in _SPATIAL):
            # Channels come first: those of a map are no part of the plane.
            return axis.dim if axis.dim >= 2 or len(axis.ref.shape) != 4 else None
        # A cyclic shift (Swin's) moves places along the axis and leaves it an axis of the plane.
        if op is None or op.name in _REORDERS - {"roll"}:
            continue
        merged = merged_dims(op, axis)
        if len(merged) > 1:
            parts = {_image_axis(trace, Axis(op.inputs[0], d, 0)) for d in merged}
            if len(parts) == 1 and None not in parts:
                return parts.pop()  # windows put together again
            continue
        # Padding and strided slices (Swin's patch merging) change how long the axis is, not which one it is.
        same = [Axis(op.inputs[0], axis.dim, 0)] if op.name == "pad" or takes_slices(op) else []
        queue.extend(same or axis_sources(op, axis) or _unsplit(trace, op, axis))
    return None


def _unsplit(trace: Trace, op: Op, axis: Axis) -> list[Axis]:
    """The axis that a reshape split; when that is a merge which the split undoes, the axis before the merge."""
    if op.name not in RESHAPES:
        return []
    source, target = op.inputs[0], op.output
    before = math.prod(target.shape[: axis.dim])
    parent = next((d for d in range(len(source.shape)) if math.prod(source.shape[: d + 1]) > before), None)
    if parent is None:
        return []
    merge = _find_merge(trace, Axis(source, parent, 0))
    if isinstance(merge, str):
        return [Axis(source, parent, 0)]
    whole = math.prod(source.shape[:parent])
    inside = [
        d for d in range(len(target.shape)) if whole <= math.prod(target.shape[:d]) < whole * source.shape[parent]
    ]
    split = [d for d in inside if target.shape[d] > 1]
    if [target.shape[d] for d in split] != [merge.source.shape[d] for d in merge.dims] or axis.dim not in split:
        # Windows put together again are one axis of the image, which may be cut another way.
        whole_axis = _image_axis(trace, Axis(source, parent, 0))
        return [] if whole_axis is None else [Axis(source, parent, 0)]
    return [Axis(merge.source, merge.dims[split.index(axis.dim)], 0)]
