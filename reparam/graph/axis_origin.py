"""What an axis counts: samples of the batch, channels that a layer made, or places in the image.

Follows an axis back through the record to where it was born. A reshape can leave an axis with several origins, such as
(batch * heads); they are listed outermost first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from reparam.graph.axes import RESHAPES, Axis, axis_sources, takes_slices
from reparam.trace.record import Op, Ref, Trace

OriginKind = Literal["batch", "channels", "tokens", "unknown"]
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_CHANNEL_MAKERS = {"linear", "embedding"}


@dataclass(frozen=True, slots=True)
class Origin:
    """One part of an axis: what it counts, and how many."""

    kind: OriginKind
    size: int


@dataclass(frozen=True, slots=True)
class _Part:
    """An axis that another was made from, and how many of its places went into it."""

    axis: Axis
    size: int

    @property
    def is_whole(self) -> bool:
        return self.size == self.axis.size


def axis_origins(trace: Trace, ref: Ref, dim: int) -> tuple[Origin, ...]:
    """Returns the origins of axis `dim` of a value, outermost first; neighbours of one kind are one origin."""
    key = (axis_origins, ref.number, dim % len(ref.shape))
    if key not in trace.memo:
        trace.memo[key] = _joined(_origins(trace, Axis(ref, dim % len(ref.shape), 0)))
    found: tuple[Origin, ...] = trace.memo[key]
    return found


def _joined(origins: Iterable[Origin]) -> tuple[Origin, ...]:
    groups = groupby(origins, key=lambda origin: origin.kind)
    return tuple(Origin(kind, math.prod(origin.size for origin in group)) for kind, group in groups)


def _origins(trace: Trace, axis: Axis) -> tuple[Origin, ...]:
    while True:
        op = trace.producer(axis.ref)
        born = _birth(trace, op, axis)
        if born is not None:
            return (Origin(born, axis.size),)
        assert op is not None
        parts = _parts(trace, op, axis)
        if len(parts) != 1 or not parts[0].is_whole:
            return tuple(origin for part in parts for origin in _origins_of_part(trace, part))
        axis = parts[0].axis


def _origins_of_part(trace: Trace, part: _Part) -> tuple[Origin, ...]:
    """Of a piece of an axis with several origins, it cannot be told any more which they are."""
    whole = axis_origins(trace, part.axis.ref, part.axis.dim)
    kinds = {origin.kind for origin in whole}
    return whole if part.is_whole else (Origin(kinds.pop() if len(kinds) == 1 else "unknown", part.size),)


def _birth(trace: Trace, op: Op | None, axis: Axis) -> OriginKind | None:
    rank = len(axis.ref.shape)
    if op is None or not trace.depends_on_input(axis.ref):
        if axis.ref not in trace.inputs:
            return "unknown"
        return "batch" if axis.dim == 0 else "channels" if (rank, axis.dim) == (4, 1) else "tokens"
    if op.name in _CONVOLUTIONS and axis.dim > 0:
        return "channels" if axis.dim == 1 else "tokens"
    if op.name in _CHANNEL_MAKERS and axis.dim == rank - 1:
        return "channels"
    return None if _parts(trace, op, axis) else "unknown"


def _parts(trace: Trace, op: Op, axis: Axis) -> list[_Part]:
    """What an axis was made from, outermost first."""
    if op.name in RESHAPES:
        return _reshaped(op, axis)
    if op.name in _CONVOLUTIONS:
        return [_Part(Axis(op.inputs[0], 0, 0), axis.size)]
    # Class tokens come from parameters, and are few; what they stand beside tells more.
    sources = sorted(axis_sources(op, axis), key=lambda s: (trace.depends_on_input(s.ref), s.size), reverse=True)
    found = [source for source in sources if source.size == axis.size or op.name == "cat"][:1]
    found = found if found or not takes_slices(op) else [Axis(op.inputs[0], axis.dim, 0)]
    return [_Part(source, axis.size) for source in found]


def _reshaped(op: Op, axis: Axis) -> list[_Part]:
    """Source axes that share elements with an axis of the result; those of size 1 hold nothing."""
    source, target = op.inputs[0].shape, op.output.shape
    inner = math.prod(target[axis.dim + 1 :])
    outer = inner * axis.size
    found = []
    for dim, size in enumerate(source):
        begin = math.prod(source[dim + 1 :])
        shared = min(begin * size, outer) // max(begin, inner)
        if size > 1 and shared > 1:
            found.append(_Part(Axis(op.inputs[0], dim, 0), shared))
    if not found and axis.size == 1:
        return [_Part(Axis(op.inputs[0], min(axis.dim, len(source) - 1), 0), 1)]
    # A batch of one image in front of the heads holds nothing either, but makes room for more of them.
    in_front = range(found[0].axis.dim if found and axis.dim == 0 else 0)
    return [*(_Part(Axis(op.inputs[0], dim, 0), 1) for dim in in_front), *found]
