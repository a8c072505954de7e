"""Finds MLPs that stand in a forward of their own, without a module around them: regions of its steps.

A step is one line of the forward: an operation, or everything that one call of a child does. A region is a layer, all
that follows from it, and the next layer, when nothing else reads what is in between.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reparam.graph.mlp_flow import MlpFlow, read_flow
from reparam.trace.record import ModuleCall, Op, Ref, Trace


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a forward. `key` tells it apart: a number in the model's record, the node in a graph's."""

    key: object
    ops: tuple[Op, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The steps of one MLP, what they read and what they give."""

    steps: tuple[Step, ...]
    x: Ref
    y: Ref
    flow: MlpFlow

    @property
    def ops(self) -> list[Op]:
        """The operations in the order in which they ran."""
        return sorted((op for step in self.steps for op in step.ops), key=lambda op: op.index)


def steps_of_call(trace: Trace, call: ModuleCall) -> list[Step]:
    """The steps of one recorded call of a module."""
    inner = [c for c in trace.calls if c is not call and call.first_op <= c.first_op and c.end_op <= call.end_op]
    starts: dict[int, int] = {}
    # Calls are recorded as they end, so the outermost ones come last and have the last word.
    for child in inner:
        starts.update(dict.fromkeys(range(child.first_op, child.end_op), child.first_op))
    return _group((starts.get(op.index, op.index), op) for op in trace.ops[call.first_op : call.end_op])


def steps_of_graph(trace: Trace) -> list[Step]:
    """The steps of a run of a graph whose nodes are the tags of the operations."""
    return _group((op.tag, op) for op in trace.ops)


def _group(keyed: Iterator[tuple[object, Op]]) -> list[Step]:
    groups: dict[object, list[Op]] = {}
    for key, op in keyed:
        groups.setdefault(key, []).append(op)
    return [Step(key, tuple(ops)) for key, ops in groups.items()]


def find_regions(trace: Trace, steps: Sequence[Step]) -> list[Region]:
    """Returns the MLPs among the steps of one forward, in the order of their last layers; none overlap."""
    forward = _Forward(trace, steps)
    found: list[Region] = []
    taken: set[object] = set()
    for step in steps:
        region = forward.region_ending_at(step)
        if region is not None and not taken & {part.key for part in region.steps}:
            taken |= {part.key for part in region.steps}
            found.append(region)
    return found


class _Forward:
    """The steps of one forward, with who made which value."""

    def __init__(self, trace: Trace, steps: Sequence[Step]) -> None:
        self.trace = trace
        self.makers = {out.number: step for step in steps for op in step.ops for out in op.outputs}
        self.returned = {ref.number for ref in trace.outputs}

    def region_ending_at(self, last: Step) -> Region | None:
        if _count_layers(last) != 1:
            return None
        steps = self._back_to_layers(last)
        if steps is None:
            return None
        firsts = [step for step in steps if _count_layers(step) and step is not last]
        read = {ref for step in firsts for ref in self._inputs(step)}
        y = last.ops[-1].output
        if len(read) != 1 or self._is_read_outside(steps, y):
            return None
        ops = sorted((op for step in steps for op in step.ops), key=lambda op: op.index)
        flow = read_flow(self.trace, ops, next(iter(read)), y)
        if isinstance(flow, str):
            return None
        return Region(steps=tuple(steps), x=read.pop(), y=y, flow=flow)

    def _back_to_layers(self, last: Step) -> list[Step] | None:
        """The steps from the nearest layers before `last` up to it, when every way back meets one."""
        found, queue = {last.key: last}, [last]
        for step in queue:
            if step is not last and _count_layers(step):
                continue
            for ref in self._inputs(step):
                maker = self.makers.get(ref.number)
                if maker is None or _count_layers(maker) > 1:
                    return None
                if maker.key not in found:
                    found[maker.key] = maker
                    queue.append(maker)
        return list(found.values()) if len(found) > 1 else None

    def _inputs(self, step: Step) -> list[Ref]:
        own = {out.number for op in step.ops for out in op.outputs}
        read = [ref for op in step.ops for ref in op.inputs if ref.number not in own]
        return [ref for ref in dict.fromkeys(read) if self.trace.depends_on_input(ref)]

    def _is_read_outside(self, steps: Sequence[Step], y: Ref) -> bool:
        inside = {op.index for step in steps for op in step.ops}
        hidden = [out for step in steps for op in step.ops for out in op.outputs if out != y]
        return any(
            out.number in self.returned or any(op.index not in inside for op in self.trace.users(out)) for out in hidden
        )


def _count_layers(step: Step) -> int:
    return sum(_is_layer(op) for op in step.ops)


def _is_layer(op: Op) -> bool:
    """A linear layer or 1x1 convolution on more than one token."""
    if op.name == "linear":
        return op.inputs[1].name is not None and math.prod(op.inputs[0].shape[1:-1]) > 1
    return op.name == "conv2d" and op.inputs[1].shape[2:] == (1, 1) and math.prod(op.output.shape[2:]) > 1
