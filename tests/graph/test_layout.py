"""Operands come to (batch, heads, tokens, width) and back without a change, wherever a model keeps its heads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam.graph.layout import Heads, canonical, from_heads, is_plain, permuted_shape, to_heads


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensor, tuple[int, ...], int | None, int]:
    """A tensor in a model's layout, its axes, the axis of its heads, and how many are merged into the batch."""
    rank = draw(st.integers(3, 6))
    axes = tuple(draw(st.permutations(range(rank))))
    sizes = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    head_axis = draw(st.none() | st.integers(0, rank - 3))
    merged = 1
    if rank == 3 and head_axis is None:
        merged = draw(st.integers(1, 3))
        sizes[axes[0]] *= merged
    return torch.arange(math.prod(sizes)).view(sizes), axes, head_axis, merged


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_a_trip_to_heads_and_back_changes_nothing(layout: tuple[Tensor, tuple[int, ...], int | None, int]) -> None:
    x, axes, head_axis, merged = layout
    there = to_heads(x, axes, head_axis, merged)
    assert there.dim() == 4
    assert there.shape[-2:] == (x.shape[axes[-2]], x.shape[axes[-1]])
    heads = merged if head_axis is None else x.shape[axes[head_axis]]
    assert there.shape[1] == heads
    inverse = tuple(axes.index(dim) for dim in range(x.dim()))
    back = from_heads(there, x, axes, inverse, head_axis, merged)
    assert torch.equal(back, x)
    assert back.is_contiguous()


def test_windows_before_the_heads_are_counted_to_the_batch_element_by_element() -> None:
    x = torch.arange(2 * 3 * 5 * 4 * 6).view(2, 3, 5, 4, 6)  # image, window, token, head, width
    there = to_heads(x, (0, 1, 3, 2, 4), 2, 1)
    assert there.shape == (6, 4, 5, 6)
    for image, window, token, head in [(0, 0, 0, 0), (1, 2, 4, 3), (0, 2, 1, 2)]:
        assert torch.equal(there[image * 3 + window, head, token], x[image, window, token, head])


def test_merged_heads_lie_behind_the_batch() -> None:
    x = torch.arange(6 * 5 * 4).view(6, 5, 4)  # (batch * heads), tokens, width
    there = to_heads(x, (0, 1, 2), None, 3)
    assert there.shape == (2, 3, 5, 4)
    assert torch.equal(there[1, 2], x[5])


def test_keys_without_heads_get_an_axis_for_one() -> None:
    x = torch.arange(2 * 5 * 4).view(2, 5, 4)
    assert torch.equal(to_heads(x, (0, None, 1, 2), 1, 1), x[:, None])
    assert torch.equal(canonical(x, (None, 0, 1, 2)), x[None])
    assert permuted_shape((2, 5, 4), (0, None, 2, 1)) == (2, 1, 4, 5)


def test_an_output_of_another_width_comes_back_to_the_place_of_the_models() -> None:
    query, out = torch.zeros(2, 5, 3, 4), torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7)  # (batch, token, head, width)
    back = from_heads(out, query, (0, 2, 1, 3), (0, 2, 1, 3), 1, 1)
    assert torch.equal(back, out.transpose(1, 2))


@pytest.mark.parametrize(
    ("axes", "heads", "plain"),
    [
        ((0, 1, 2, 3), Heads(), True),
        ((0, 2, 1, 3), Heads(), False),
        ((0, 1, 2, 3), Heads(axis=0), False),
        ((0, 1, 2), Heads(axis=None, merged=2), False),
    ],
)
def test_only_batch_heads_tokens_width_is_plain(axes: tuple[int, ...], heads: Heads, plain: bool) -> None:
    assert is_plain(axes, heads) == plain
