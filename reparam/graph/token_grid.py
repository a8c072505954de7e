"""Where a token axis comes from: walks back through the record to the operation that flattened an image plane.

Before, (B, C, h, w) or (B, h, w, C); after, (B, C, h*w) or (B, h*w, C). The walk follows one axis through each
operation by its shape semantics, counts tokens that were concatenated in front, and never guesses from a square root.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reparam.graph.attention_match import swapped_dims
from reparam.ops.site import TokenGrid
from reparam.trace.record import Op, Ref, Trace

_RESHAPES = {"reshape", "view", "flatten", "unflatten", "unsafe_view", "squeeze", "unsqueeze", "reshape_as", "view_as"}
_TRANSPOSES = {"transpose", "swapaxes", "swapdims", "t", "mT", "T"}
_REMOVES_AXIS = {"unbind", "select"}
_SLICES = {"chunk", "split", "tensor_split", "narrow"}
_SPATIAL = {
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "conv2d", "group_norm", "interpolate", "max_pool2d",
}  # fmt: skip
_MATMULS = {"matmul", "bmm", "rmatmul"}
#: Operations after which the tokens may stand in another order, or their axis elsewhere.
_REORDERS = {
    "argsort", "channel_shuffle", "einsum", "flip", "fliplr", "flipud", "fold", "gather", "index_select",
    "masked_select", "moveaxis", "movedim", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "roll",
    "rot90", "sort", "take", "take_along_dim", "tensordot", "tile", "topk", "unfold",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one value, and how many tokens were put in front of it on the way (cut off, if below 0)."""

    ref: Ref
    dim: int
    prefix: int

    @property
    def size(self) -> int:
        """How long the axis is."""
        return self.ref.shape[self.dim]


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
    if not all(_is_of_image(trace, Axis(merge.source, d, 0)) for d in merge.dims):
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
        merged = _merged_dims(op, axis)
        if len(merged) > 1:
            return _Merge(axis, op.inputs[0], merged)
        if op.name in _REORDERS:
            reason = f"{op.name!r} stands between the image plane and the tokens and may reorder them"
            continue
        queue.extend(axis_sources(op, axis))
    return reason


def _is_of_image(trace: Trace, start: Axis) -> bool:
    """Whether an axis is one of an image, or of windows cut from one: it leads to a spatial operation or the input."""
    queue = [start]
    seen: set[tuple[int, int]] = set()
    for axis in queue:
        if (axis.ref.number, axis.dim) in seen:
            continue
        seen.add((axis.ref.number, axis.dim))
        op = trace.producer(axis.ref)
        if (op is None and axis.ref in trace.inputs) or (op is not None and op.name in _SPATIAL):
            # Channels come first: those of a map are no part of the plane.
            return axis.dim >= 2 or len(axis.ref.shape) != 4
        if op is None or op.name in _REORDERS or len(_merged_dims(op, axis)) > 1:
            continue
        padded = [Axis(op.inputs[0], axis.dim, 0)] if op.name == "pad" else []
        queue.extend(padded or axis_sources(op, axis) or _unsplit(trace, op, axis))
    return False


def _unsplit(trace: Trace, op: Op, axis: Axis) -> list[Axis]:
    """The axis that a reshape split; when that is a merge which the split undoes, the axis before the merge."""
    if op.name not in _RESHAPES:
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
        return []
    return [Axis(merge.source, merge.dims[split.index(axis.dim)], 0)]


def _merged_dims(op: Op, axis: Axis) -> tuple[int, ...]:
    """The input axes with sizes above 1 that a reshape merges into this axis; empty for other operations."""
    if op.name not in _RESHAPES or not op.inputs:
        return ()
    span = _source_span(op.inputs[0].shape, op.output.shape, axis.dim)
    return tuple(d for d in range(*span) if op.inputs[0].shape[d] > 1) if span else ()


def _source_span(source: tuple[int, ...], target: tuple[int, ...], dim: int) -> tuple[int, int] | None:
    """The range of source axes with the same elements as target axis `dim`, or None when it cuts through one."""
    before, size = math.prod(target[:dim]), target[dim]
    for start in range(len(source)):
        if math.prod(source[:start]) != before or source[start] == 1 != size:
            continue
        for end in range(start + 1, len(source) + 1):
            if math.prod(source[start:end]) == size:
                return start, end
    return None


def axis_sources(op: Op, axis: Axis) -> list[Axis]:
    """The axes of the operands that the axis came from."""
    return list(_iter_sources(op, axis))


def _iter_sources(op: Op, axis: Axis) -> Iterator[Axis]:
    if op.name in _RESHAPES:
        span = _source_span(op.inputs[0].shape, op.output.shape, axis.dim)
        if span:
            wide = [i for i in range(*span) if op.inputs[0].shape[i] == axis.size]
            yield from (Axis(op.inputs[0], i, axis.prefix) for i in wide[:1])
    elif op.name in _TRANSPOSES or op.name == "permute":
        yield Axis(op.inputs[0], _permutation(op)[axis.dim], axis.prefix)
    elif op.name in {"cat", "concat"}:
        yield from _cat_sources(op, axis)
    elif op.name in _REMOVES_AXIS:
        removed = int(op.argument(1, "dim", 0)) % len(op.inputs[0].shape)
        yield Axis(op.inputs[0], axis.dim + (removed <= axis.dim), axis.prefix)
    elif op.name in _SLICES:
        yield from _aligned(op.inputs[0], axis)
    elif op.name == "getitem":
        yield from _indexed_source(op, axis)
    elif op.name in _MATMULS:
        rank = len(op.output.shape)
        operand = op.inputs[0] if axis.dim < rank - 1 else op.inputs[1]
        yield from _aligned(operand, axis)
    elif op.name == "scaled_dot_product_attention":
        yield from _aligned(op.inputs[0], axis)
    elif op.name in {"linear", "layer_norm"}:
        if axis.dim < len(op.output.shape) - 1:
            yield from _aligned(op.inputs[0], axis)
    else:
        # Elementwise and broadcast: any operand that has this axis at full size, counted from the right.
        for operand in op.inputs:
            yield from _aligned(operand, axis)


def _aligned(operand: Ref, axis: Axis) -> Iterator[Axis]:
    dim = axis.dim - len(axis.ref.shape) + len(operand.shape)
    if dim >= 0 and operand.shape[dim] == axis.size:
        yield Axis(operand, dim, axis.prefix)


def _permutation(op: Op) -> list[int]:
    rank = len(op.inputs[0].shape)
    order = list(range(rank))
    if op.name == "permute":
        dims = op.args[1] if len(op.args) == 2 and isinstance(op.args[1], tuple | list) else op.args[1:]
        return [int(d) % rank for d in dims or op.kwargs["dims"]]
    if rank < 2:
        return order
    first, second = swapped_dims(op)
    order[first], order[second] = order[second], order[first]
    return order


def _cat_sources(op: Op, axis: Axis) -> Iterator[Axis]:
    dim = int(op.argument(1, "dim", 0)) % len(op.output.shape)
    in_front = 0
    for operand in op.inputs:
        if dim == axis.dim:
            yield Axis(operand, dim, axis.prefix + in_front)
            in_front += operand.shape[dim]
        elif operand.shape[axis.dim] == axis.size:
            yield Axis(operand, axis.dim, axis.prefix)


def _indexed_source(op: Op, axis: Axis) -> Iterator[Axis]:
    """The axis of the input behind an axis of `x[index]`; none when a tensor indexes or a slice leaves out tokens."""
    source, index = op.inputs[0], op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    if not all(part is None or part is Ellipsis or type(part) in {int, slice} for part in index):
        return
    named = sum(part is not None and part is not Ellipsis for part in index)
    whole = (slice(None),) * (len(source.shape) - named)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    kept: list[tuple[int, slice] | None] = []
    dim = 0
    for part in (*index[:at], *whole, *index[at + 1 :]):
        if part is None:
            kept.append(None)
            continue
        if isinstance(part, slice):
            kept.append((dim, part))
        dim += 1
    origin = kept[axis.dim]
    if origin is not None:
        start, stop, step = origin[1].indices(source.shape[origin[0]])
        # What is cut off in front may be class tokens; what stops early is taken out of the image, or is such a token.
        if step == 1 and stop == source.shape[origin[0]]:
            yield Axis(source, origin[0], axis.prefix - start)
