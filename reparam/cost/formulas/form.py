"""The form of a formula, and the smallest ones: so many operations for each element of the result or of the operand."""

from collections.abc import Callable
from typing import Any

from reparam.counts import OpCount, Verb
from reparam.trace.record import Op, Ref

#: Returns None for a call that it cannot read.
Formula = Callable[[Op], OpCount | None]


def floats(n: int = 1, **verbs: int) -> OpCount:
    """`n` times so many operations of each verb on 32-bit floats: `floats(8, mul=2, add=1)`."""
    counts: dict[tuple[Verb, str], int] = {(verb, "f32"): n * times for verb, times in verbs.items()}  # type: ignore[misc]
    return OpCount(counts)


def per_output(**verbs: int) -> Formula:
    """A formula with so many operations for each element of the result."""
    return lambda op: floats(op.output.size, **verbs)


def per_input(**verbs: int) -> Formula:
    """A formula with so many operations for each element of the first operand."""
    return lambda op: floats(first(op).size, **verbs)


def first(op: Op) -> Ref:
    """The first tensor that an operation reads."""
    return op.inputs[0]


def sides(value: Any, *, axes: int) -> tuple[int, ...]:
    """The sides of a window along so many axes, given by one number or by each."""
    return (value,) * axes if isinstance(value, int) else tuple(value)
