"""Where a network can be cut in two: the input of a module on which everything after it depends, and nothing else.

A cut is read off the record of one run. Before each module call the live values are those that were made, depend on the
model's input, and will still be read on the way to its output. Where the module's input is the only one, and nobody but
the module reads it, the rest of the network is a function of that one tensor. A skip connection over the module is a
second live value or a second reader, so there is no cut.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from reparam.ops.site import Site
from reparam.trace.record import ModuleCall, Ref, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The input of a module that is called once.

    `position` is the number of the first operation after the cut, `skipped` the modules that need not run before it,
    and `bytes_per_image` the size of the cut tensor.
    """

    path: str
    position: int
    skipped: tuple[str, ...]
    bytes_per_image: float


def find_cuts(trace: Trace) -> tuple[Cut, ...]:
    """Every cut of a recorded run in eval mode, in order of execution; none where the run read values of tensors."""
    if trace.unseen:
        return ()
    live = _LiveValues(trace)
    calls = _single_calls(trace)
    cuts: dict[int, Cut] = {}
    for call in calls:
        value = _only_input(trace, call)
        if value is None or value in trace.inputs or value.number in cuts or not live.is_all_of(value, call):
            continue
        cuts[value.number] = _cut_at(trace, calls, call, value)
    return tuple(cuts.values())


def first_operation(trace: Trace, site: Site) -> int:
    """The number of the first operation that converting a site can change; 0 where the record does not tell."""
    paths = (site.path, *site.shared_with)
    calls = [call.first_op for call in trace.calls if call.path in paths]
    readers = [
        op.index
        for op in trace.ops
        if any(ref.name and any(ref.name.startswith(f"{path}.") for path in paths) for ref in op.inputs)
    ]
    return min(*calls, *readers, len(trace.ops)) if calls or readers else 0


def _single_calls(trace: Trace) -> list[ModuleCall]:
    """The calls of modules inside the model that are called once, by their start, the outermost of several first."""
    times = Counter(call.path for call in trace.calls)
    return sorted((c for c in trace.calls if c.path and times[c.path] == 1), key=lambda c: (c.first_op, -c.end_op))


def _only_input(trace: Trace, call: ModuleCall) -> Ref | None:
    """The one input of a call that depends on the model's, where it is the first argument and given once."""
    depending = [ref for ref in call.inputs if trace.depends_on_input(ref)]
    is_first = bool(call.args) and isinstance(call.args[0], Tensor) and depending == [call.inputs[0]]
    return depending[0] if is_first else None


class _LiveValues:
    """Which values are live before an operation: made, depending on the input, and read later for the output."""

    def __init__(self, trace: Trace) -> None:
        needed = {op.index for ref in trace.outputs for op in trace.ancestors(ref)}
        self._end = len(trace.ops)
        self._last_read: dict[int, int] = {ref.number: self._end for ref in trace.outputs}
        self._born: dict[int, int] = {ref.number: 0 for ref in trace.inputs}
        for op in trace.ops:
            if op.index not in needed:
                continue
            for ref in op.outputs:
                self._born[ref.number] = op.index + 1
            for ref in op.inputs:
                if trace.depends_on_input(ref):
                    self._last_read[ref.number] = max(op.index, self._last_read.get(ref.number, 0))
        changes: dict[int, int] = defaultdict(int)
        for number, last in self._last_read.items():
            if number in self._born:
                changes[self._born[number]] += 1
                changes[last + 1] -= 1
        self._counts = list(_running(changes, self._end))

    def is_all_of(self, value: Ref, call: ModuleCall) -> bool:
        """Whether a value is the only live one before a call, and only the call reads it."""
        last = self._last_read.get(value.number, -1)
        return self._counts[call.first_op] == 1 and call.first_op <= last < call.end_op


def _running(changes: Mapping[int, int], end: int) -> Iterator[int]:
    count = 0
    for position in range(end + 1):
        count += changes.get(position, 0)
        yield count


def _cut_at(trace: Trace, calls: Sequence[ModuleCall], call: ModuleCall, value: Ref) -> Cut:
    tensor = trace.tensors[value.number]
    return Cut(
        path=call.path,
        position=call.first_op,
        skipped=tuple(_left_out(trace, calls, call.first_op)),
        bytes_per_image=tensor.numel() * tensor.element_size() / trace.inputs[0].shape[0],
    )


def _left_out(trace: Trace, calls: Sequence[ModuleCall], position: int) -> Iterator[str]:
    """The outermost modules that have run before an operation and give nothing but tensors that depend on the input.

    What does not depend on it (a table of positions) is read after the cut too.
    """
    done_until = 0
    for call in calls:
        is_before = done_until <= call.first_op < call.end_op <= position
        if is_before and call.outputs and all(trace.depends_on_input(ref) for ref in call.outputs):
            yield call.path
            done_until = call.end_op
