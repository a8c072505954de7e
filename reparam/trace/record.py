"""The record of one run: values, operations in order, and module calls; the raw material of finders and counts."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: These read the shape, type and device of their operand, not its values.
_CONSTANT_MAKERS = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like",
    "zeros_like",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor in the record: its number, and the dotted name when it is a parameter or buffer."""

    number: int
    shape: tuple[int, ...]
    name: str | None = None

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One call of a torch function; tensors in `args` and `kwargs` are replaced by `Ref`s.

    `stack` holds the dotted paths of the modules whose forward was running, outermost first; the model itself is "".
    `tag` is whatever the recorder was told the operation belongs to.
    """

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    stack: tuple[str, ...]
    tag: Any = None

    @property
    def output(self) -> Ref:
        """The first output."""
        return self.outputs[0]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCall:
    """One call of a module: its raw arguments, its tensors, and the operations `[first_op, end_op)` it ran."""

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    first_op: int
    end_op: int
    is_training: bool


@dataclass(slots=True)
class Trace:
    """Everything one run did; `inputs` must be known before the first operation.

    `tensors` keeps the recorded tensors alive, so that identities stay unique. `known` holds by number what the model's
    own buffers and tensor attributes contain, where the run itself had no values. `memo` is for what readers worked out
    about the complete record and will ask again.
    """

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    inputs: tuple[Ref, ...] = ()
    outputs: tuple[Ref, ...] = ()
    tensors: list[Tensor] = field(default_factory=list)
    known: dict[int, Tensor] = field(default_factory=dict)
    producers: dict[int, Op] = field(default_factory=dict)
    consumers: dict[int, list[Op]] = field(default_factory=dict)
    from_input: set[int] = field(default_factory=set)
    reads: dict[str, set[str]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    memo: dict[object, Any] = field(default_factory=dict)

    def add(self, op: Op) -> None:
        """Appends an operation and indexes it by its operands."""
        self.ops.append(op)
        for ref in op.outputs:
            self.producers[ref.number] = op
        for ref in dict.fromkeys(op.inputs):
            self.consumers.setdefault(ref.number, []).append(op)
        if op.name not in _CONSTANT_MAKERS and any(self.depends_on_input(ref) for ref in op.inputs):
            self.from_input.update(ref.number for ref in op.outputs)

    def producer(self, ref: Ref) -> Op | None:
        """The operation that made a value, None for inputs and parameters."""
        return self.producers.get(ref.number)

    def users(self, ref: Ref) -> list[Op]:
        """The operations that read a value."""
        return self.consumers.get(ref.number, [])

    def calls_of(self, path: str) -> list[ModuleCall]:
        """The calls of the module at `path`, in order."""
        return [call for call in self.calls if call.path == path]

    def ancestors(self, ref: Ref) -> Iterator[Op]:
        """The operations that a value depends on, nearest first."""
        seen: set[int] = set()
        queue = [ref]
        for value in queue:
            op = self.producer(value)
            if op is not None and op.index not in seen:
                seen.add(op.index)
                yield op
                queue.extend(() if op.name in _CONSTANT_MAKERS else op.inputs)

    def depends_on_input(self, ref: Ref) -> bool:
        """Whether a value depends on the model's input, and not on parameters alone."""
        return ref.number in self.from_input or ref in self.inputs
