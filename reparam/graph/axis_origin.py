"""What an axis counts: samples of the batch, channels that a layer made, or places in the image.

Follows an axis back through the record to where it was born. A reshape can leave an axis with several origins, such as
(batch * heads); they are listed outermost first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from reparam.graph.axes import RESHAPES, Axis, axis_sources
from reparam.trace.record import Op, Ref, Trace

OriginKind = Literal["batch", "channels", "tokens", "unknown"]
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_CHANNEL_MAKERS = {"linear", "embedding"}


@dataclass(frozen=True, slots=True)
class Origin:
    """One part of an axis: what it counts, and how many."""

    kind: OriginKind
    size: int


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
        if len(parts) != 1:
            return tuple(origin for part in parts for origin in axis_origins(trace, part.ref, part.dim))
        if parts[0].size != axis.size:  # a piece of a longer axis, whose origins cannot be told apart any more
            kinds = {origin.kind for origin in axis_origins(trace, parts[0].ref, parts[0].dim)}
            return (Origin(kinds.pop() if len(kinds) == 1 else "unknown", axis.size),)
        axis = parts[0]


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


def _parts(trace: Trace, op: Op, axis: Axis) -> list[Axis]:
    """The axes that an axis was made from, outermost first."""
    if op.name in RESHAPES:
        return _reshaped(op, axis)
    if op.name in _CONVOLUTIONS:
        return [Axis(op.inputs[0], 0, 0)]
    # Class tokens come from parameters, and are few; what they stand beside tells more.
    sources = sorted(axis_sources(op, axis), key=lambda s: (trace.depends_on_input(s.ref), s.size), reverse=True)
    return [source for source in sources if source.size == axis.size or op.name == "cat"][:1]


def _reshaped(op: Op, axis: Axis) -> list[Axis]:
    """Source axes that share elements with an axis of the result; those of size 1 hold nothing."""
    source, target = op.inputs[0].shape, op.output.shape
    inner = math.prod(target[axis.dim + 1 :])
    outer = inner * axis.size
    found = []
    for dim, size in enumerate(source):
        begin = math.prod(source[dim + 1 :])
        if size > 1 and max(begin, inner) < min(begin * size, outer):
            found.append(Axis(op.inputs[0], dim, 0))
    return found if found or axis.size > 1 else [Axis(op.inputs[0], min(axis.dim, len(source) - 1), 0)]
