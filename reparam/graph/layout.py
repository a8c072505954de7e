"""Brings the operands of an attention into (batch, heads, tokens, width), and its output back.

Models keep heads and windows where they like: (B, N, H, D), (B*H, N, D), (B, H, W, N, D), or keys without heads. The
generated forwards of converted owners call these two functions where the layout is another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Axes = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Where the heads are among the leading axes.

    `axis` is theirs, None without one. `merged` heads lie inside a single leading axis, behind the batch.
    """

    axis: int | None = 1
    merged: int = 1


def is_plain(axes: Axes, heads: Heads) -> bool:
    """Whether operands with these axes are laid out as wanted already."""
    return axes == (0, 1, 2, 3) and heads == Heads()


def to_heads(x: Tensor, axes: Axes, axis: int | None, merged: int) -> Tensor:
    """Returns `x` as (B, H, N, D).

    Args:
        x: an operand in the model's layout.
        axes: for each canonical axis (leading..., tokens, width) the axis of `x`, None where it has none.
        axis, merged: see `Heads`; windows and other leading axes are counted to the batch.
    """
    x = canonical(x, axes)
    leading = x.dim() - 2
    if merged > 1:
        split: Tensor = x.unflatten(0, (-1, merged))
        return split
    if axis is None:
        return x.flatten(0, leading - 1).unsqueeze(1)
    x = x.movedim(axis, leading - 1)
    return x.flatten(0, leading - 2) if leading > 2 else x if leading == 2 else x.unsqueeze(0)


def from_heads(out: Tensor, query: Tensor, query_axes: Axes, out_axes: Axes, axis: int | None, merged: int) -> Tensor:
    """Returns `out` (B, H, N, E) in the model's layout, contiguous.

    Args:
        query: the queries in the model's layout, for the sizes of their leading axes.
        query_axes: as `axes` of `to_heads`.
        out_axes: for each axis of the result, its canonical axis.
    """
    sizes = list(canonical(query, query_axes).shape[:-2])
    if merged > 1:
        out = out.flatten(0, 1)
    elif axis is None:
        out = out.squeeze(1).unflatten(0, sizes)
    else:
        others = sizes[:axis] + sizes[axis + 1 :]
        out = out.unflatten(0, others) if len(others) > 1 else out if others else out.squeeze(0)
        out = out.movedim(len(sizes) - 1, axis)
    return out.permute([dim for dim in out_axes if dim is not None]).contiguous()


def canonical(x: Tensor, axes: Axes) -> Tensor:
    """Returns `x` as (leading..., tokens, width)."""
    x = x.permute([axis for axis in axes if axis is not None])
    for dim, axis in enumerate(axes):
        x = x.unsqueeze(dim) if axis is None else x
    return x


def inverse_axes(axes: Axes) -> Axes:
    """The axes that undo a permutation."""
    return tuple(axes.index(dim) for dim in range(len(axes)))


def permuted_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape of an operand in canonical order, before its leading axes are folded."""
    return tuple(1 if axis is None else shape[axis] for axis in axes)
