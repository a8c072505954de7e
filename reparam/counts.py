"""OpCount: an immutable multiset of operations, (verb, type) -> how many. Counting knows no prices."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Verb = Literal["mul", "add", "shift", "abs", "cmp", "xnor", "popcount", "div", "exp", "sqrt", "lookup", "read", "write"]
VERBS: tuple[Verb, ...] = get_args(Verb)


class OpCount:
    """How often each operation runs, keyed by verb and operand type (such as "f32" or "i8").

    One multiply-accumulate is one `mul` and one `add`; accumulations are never free. What is read and written are
    words; those of weights have types of their own ("weight.i5"), because they may lie in another memory.
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[tuple[Verb, str], int] | None = None) -> None:
        for (verb, _), n in (counts or {}).items():
            if verb not in VERBS:
                raise ValueError(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")
            if n < 0:
                raise ValueError(f"a count cannot be negative, got {n} for {verb!r}")
        self._counts = {key: n for key, n in sorted((counts or {}).items()) if n}

    @classmethod
    def multiply_accumulate(cls, n: int, *, dtype: str = "f32") -> "OpCount":
        """`n` multiplications and `n` additions."""
        return cls({("mul", dtype): n, ("add", dtype): n})

    @classmethod
    def moves(cls, *, read: int = 0, write: int = 0, dtype: str = "f32") -> "OpCount":
        """Words brought from and to memory."""
        return cls({("read", dtype): read, ("write", dtype): write})

    def total(self, verb: Verb) -> int:
        """Operations of one verb over all types."""
        return sum(n for (v, _), n in self._counts.items() if v == verb)

    def items(self) -> Iterable[tuple[tuple[Verb, str], int]]:
        """Pairs of (verb, type) and count, sorted."""
        return self._counts.items()

    def as_dict(self) -> dict[str, int]:
        """`{"mul.f32": n, ...}`, for JSON."""
        return {f"{verb}.{dtype}": n for (verb, dtype), n in self._counts.items()}

    def __add__(self, other: "OpCount") -> "OpCount":
        merged = dict(self._counts)
        for key, n in other.items():
            merged[key] = merged.get(key, 0) + n
        return OpCount(merged)

    def __mul__(self, times: int) -> "OpCount":
        return OpCount({key: n * times for key, n in self._counts.items()})

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpCount) and self._counts == other._counts

    def __hash__(self) -> int:
        return hash(tuple(self._counts.items()))

    def __repr__(self) -> str:
        return f"OpCount({self.as_dict()})"
