"""Reads the matrix products of torch in one notation: a label for each axis of both operands and of the result.

matmul, @, bmm and mm   left (..., i, c), right (..., c, j), out (..., i, j); leading axes broadcast
baddbmm                 the same, after the addend
einsum                  its equation, for two operands
"""

from dataclasses import dataclass
from itertools import count

from reparam.trace.record import Op, Ref

_MATMULS = {"matmul", "bmm", "mm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product of two values. Axes with one label run together; a label in both operands but not in `out` is summed.

    `addend` is what baddbmm adds, unless it is multiplied by zero; `alpha` is its factor on the product.
    """

    op: Op
    left: Ref
    right: Ref
    left_axes: tuple[str, ...]
    right_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    addend: Ref | None = None
    alpha: float = 1.0

    @property
    def inner(self) -> str | None:
        """The label that both operands have and that alone is summed over; None when there are more, or none."""
        summed = [a for a in dict.fromkeys((*self.left_axes, *self.right_axes)) if a not in self.out_axes]
        is_single = len(summed) == 1 and summed[0] in self.left_axes and summed[0] in self.right_axes
        return summed[0] if is_single else None


def read_product(op: Op) -> Product | None:
    """Returns the product that an operation computes, None for any other operation."""
    if op.name in _MATMULS:
        return _matmul(op, *_two(op.argument(0, "input"), op.argument(1, "other", op.argument(1, "mat2"))))
    if op.name == "rmatmul":
        return _matmul(op, *_two(op.args[1], op.args[0]))
    if op.name == "baddbmm":
        return _baddbmm(op)
    if op.name == "einsum":
        return _einsum(op)
    return None


def _two(left: object, right: object) -> tuple[Ref | None, Ref | None]:
    return (left if isinstance(left, Ref) else None, right if isinstance(right, Ref) else None)


def _matmul(
    op: Op, left: Ref | None, right: Ref | None, *, addend: Ref | None = None, alpha: float = 1.0
) -> Product | None:
    if left is None or right is None or min(len(left.shape), len(right.shape)) < 2:
        return None
    leading = [f"b{number}" for number in range(max(len(left.shape), len(right.shape)) - 2)]
    axes = {
        side: (*leading[len(leading) - (len(ref.shape) - 2) :], *last)
        for side, ref, last in (("left", left, "ic"), ("right", right, "cj"))
    }
    return Product(
        op=op, left=left, right=right, left_axes=axes["left"], right_axes=axes["right"], out_axes=(*leading, "i", "j"),
        addend=addend, alpha=alpha,
    )  # fmt: skip


def _baddbmm(op: Op) -> Product | None:
    beta, alpha = op.kwargs.get("beta", 1), op.kwargs.get("alpha", 1)
    operands = [a for a in (*op.args, *(op.kwargs.get(k) for k in ("input", "batch1", "batch2"))) if isinstance(a, Ref)]
    if len(operands) != 3:
        return None
    return _matmul(op, operands[1], operands[2], addend=operands[0] if beta else None, alpha=float(alpha))


def _einsum(op: Op) -> Product | None:
    equation, operands = op.args[0], op.args[1:]
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    left, right = _two(*operands)
    sides = equation.replace(" ", "").partition("->")
    terms = sides[0].split(",")
    if left is None or right is None or len(terms) != 2:
        return None
    target = sides[2] if sides[1] else _implied(terms)
    rest = max(len(ref.shape) - len(term.replace("...", "")) for ref, term in zip((left, right), terms, strict=True))
    axes = [_letters(term, len(ref.shape)) for ref, term in zip((left, right), terms, strict=True)]
    out = _letters(target, len(target.replace("...", "")) + (rest if "..." in target else 0))
    if any(len(set(labels)) != len(labels) for labels in axes):
        return None  # a diagonal
    return Product(op=op, left=left, right=right, left_axes=axes[0], right_axes=axes[1], out_axes=out)


def _implied(terms: list[str]) -> str:
    """The result of an equation without an arrow: the ellipsis, then the letters that stand once, sorted."""
    letters = "".join(terms).replace("...", "")
    return ("..." if any("..." in term for term in terms) else "") + "".join(
        sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    )


def _letters(term: str, rank: int) -> tuple[str, ...]:
    """One label per axis; an ellipsis stands for leading axes, named from the right so that operands align."""
    before, _, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    numbers = count(hidden - 1, -1)
    return (*before, *(f"...{next(numbers)}" for _ in range(hidden)), *after)
