"""How axes map through operations: which operand axis an axis of a result came from, by shape semantics alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Ref

RESHAPES = {"reshape", "view", "flatten", "unflatten", "unsafe_view", "squeeze", "unsqueeze", "reshape_as", "view_as"}
TRANSPOSES = {"transpose", "swapaxes", "swapdims", "t", "mT", "T"}
_REMOVES_AXIS = {"unbind", "select"}
SLICES = {"chunk", "split", "tensor_split", "narrow"}
_LAST_AXIS_ONLY = {"linear", "layer_norm", "rms_norm"}
_REDUCTIONS = {"amax", "amin", "logsumexp", "max", "mean", "median", "min", "norm", "prod", "std", "sum", "var"}


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


def merged_dims(op: Op, axis: Axis) -> tuple[int, ...]:
    """The input axes with sizes above 1 that a reshape merges into this axis; empty for other operations."""
    if op.name not in RESHAPES or not op.inputs:
        return ()
    span = source_span(op.inputs[0].shape, op.output.shape, axis.dim)
    return tuple(d for d in range(*span) if op.inputs[0].shape[d] > 1) if span else ()


def source_span(source: tuple[int, ...], target: tuple[int, ...], dim: int) -> tuple[int, int] | None:
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
    if op.name in RESHAPES:
        span = source_span(op.inputs[0].shape, op.output.shape, axis.dim)
        if span:
            wide = [i for i in range(*span) if op.inputs[0].shape[i] == axis.size]
            yield from (Axis(op.inputs[0], i, axis.prefix) for i in wide[:1])
    elif op.name in TRANSPOSES or op.name == "permute":
        yield Axis(op.inputs[0], permutation(op)[axis.dim], axis.prefix)
    elif op.name in {"cat", "concat"}:
        yield from _cat_sources(op, axis)
    elif op.name in _REMOVES_AXIS:
        removed = int(op.argument(1, "dim", 0)) % len(op.inputs[0].shape)
        yield Axis(op.inputs[0], axis.dim + (removed <= axis.dim), axis.prefix)
    elif op.name in _REDUCTIONS and len(op.output.shape) < len(op.inputs[0].shape):
        yield from _kept_source(op, axis)
    elif op.name in SLICES:
        yield from _aligned(op.inputs[0], axis)
    elif op.name == "getitem":
        yield from _indexed_source(op, axis)
    elif (product := read_product(op)) is not None:
        yield from _product_sources(product, axis)
    elif op.name == "scaled_dot_product_attention":
        yield from _aligned(op.inputs[0], axis)
    elif op.name in _LAST_AXIS_ONLY:
        if axis.dim < len(op.output.shape) - 1:
            yield from _aligned(op.inputs[0], axis)
    else:
        # Elementwise and broadcast: any operand that has this axis at full size, counted from the right.
        for operand in op.inputs:
            yield from _aligned(operand, axis)


def _product_sources(product: Product, axis: Axis) -> Iterator[Axis]:
    label = product.out_axes[axis.dim]
    for operand, labels in ((product.left, product.left_axes), (product.right, product.right_axes)):
        if label in labels and operand.shape[labels.index(label)] == axis.size:
            yield Axis(operand, labels.index(label), axis.prefix)


def _aligned(operand: Ref, axis: Axis) -> Iterator[Axis]:
    dim = axis.dim - len(axis.ref.shape) + len(operand.shape)
    if dim >= 0 and operand.shape[dim] == axis.size:
        yield Axis(operand, dim, axis.prefix)


def takes_slices(op: Op) -> bool:
    """Whether an operation takes a stretch of an axis and leaves all axes where they are."""
    if op.name != "getitem":
        return op.name in SLICES
    index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    return all(part is Ellipsis or isinstance(part, slice) for part in index)


def permutation(op: Op) -> list[int]:
    """The operand axis behind each axis of a transpose's or permute's result."""
    rank = len(op.inputs[0].shape)
    order = list(range(rank))
    if op.name == "permute":
        dims = op.args[1] if len(op.args) == 2 and isinstance(op.args[1], tuple | list) else op.args[1:]
        return [int(d) % rank for d in dims or op.kwargs["dims"]]
    if rank < 2:
        return order
    first, second = _swapped_dims(op)
    order[first], order[second] = order[second], order[first]
    return order


def _kept_source(op: Op, axis: Axis) -> Iterator[Axis]:
    """The axis of the input behind an axis that a reduction keeps; none where it is not told which ones it removes."""
    rank, removed = len(op.inputs[0].shape), op.argument(1, "dim", op.kwargs.get("axis"))
    dims = {d % rank for d in ([removed] if isinstance(removed, int) else removed or ())}
    kept = [dim for dim in range(rank) if dim not in dims]
    if len(kept) == len(op.output.shape):
        yield Axis(op.inputs[0], kept[axis.dim], axis.prefix)


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


def _swapped_dims(op: Op) -> tuple[int, int]:
    """The two axes that a transpose or its aliases swaps; the last two of `mT` and of a matrix."""
    first, second = [dim for dim in (*op.args, *op.kwargs.values()) if isinstance(dim, int)] or (-2, -1)
    return first, second
