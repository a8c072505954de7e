"""How an owner is called: which leaves of its arguments vary (tensors, numbers) and which are fixed (None, flags)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class CallPattern:
    """The shape of one call: nesting, and for each leaf its fixed value or the mark that it varies."""

    spec: str
    fixed: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join("tensor or number" if value is VARIES else repr(value) for value in self.fixed)


class _Varies:
    def __repr__(self) -> str:
        return "<varies>"

    def __reduce__(self) -> str:
        return "VARIES"


VARIES = _Varies()


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CallPattern, list[Any], pytree.TreeSpec]:
    """Returns the pattern of a call, its varying leaves in order, and the tree that puts them together again."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    fixed = tuple(VARIES if _varies(leaf) else leaf for leaf in leaves)
    # A torch.Size is a tuple to every forward, and mapping over a call makes it one.
    shape = str(spec).replace("TreeSpec(Size,", "TreeSpec(tuple,")
    return CallPattern(shape, fixed), [leaf for leaf in leaves if _varies(leaf)], spec


def join_call(
    pattern: CallPattern, varying: list[Any], spec: pytree.TreeSpec
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts varying leaves back into the call that `split_call` took apart."""
    rest = iter(varying)
    args, kwargs = pytree.tree_unflatten([next(rest) if leaf is VARIES else leaf for leaf in pattern.fixed], spec)
    return args, kwargs


def _varies(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | int | float) and not isinstance(leaf, bool)
