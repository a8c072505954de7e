"""Labels that are read from a product reproduce it by einsum, whatever its spelling and its shapes."""

import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.trace.probe import Recorder
from reparam.trace.products import Product, read_product

SIZES = st.integers(1, 4)
LEADING = st.lists(SIZES, max_size=3)


def recorded(function: Callable[..., Tensor], *operands: Any, **options: Any) -> tuple[Product | None, Tensor]:
    """The product that is read from the last operation of a call, and the call's result."""
    recorder = Recorder()
    with recorder:
        out = function(*operands, **options)
    return read_product(recorder.trace.ops[-1]), out


def by_einsum(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """The product from its labels alone; axes of size 1 broadcast."""
    names = dict(zip(dict.fromkeys((*product.left_axes, *product.right_axes)), string.ascii_letters, strict=False))
    terms = ["".join(names[a] for a in axes) for axes in (product.left_axes, product.right_axes, product.out_axes)]
    return torch.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", left, right)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(LEADING, LEADING, SIZES, SIZES, SIZES, st.data())
def test_labels_of_a_matmul_reproduce_it(
    one: list[int], other: list[int], rows: int, depth: int, columns: int, data: st.DataObject
) -> None:
    shared = min(len(one), len(other))
    for back in range(1, shared + 1):  # leading axes broadcast from the right
        one[-back], other[-back] = data.draw(st.sampled_from([(2, 2), (1, 3), (3, 1), (1, 1)]))
    left, right = draw(*one, rows, depth), draw(*other, depth, columns)
    product, out = recorded(data.draw(st.sampled_from([torch.matmul, Tensor.matmul, Tensor.__matmul__])), left, right)
    assert product is not None
    assert product.inner == "c"
    torch.testing.assert_close(by_einsum(product, left, right), out)


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_labels_of_bmm_mm_and_baddbmm_reproduce_them(batch: int, rows: int, depth: int, columns: int) -> None:
    left, right, addend = draw(batch, rows, depth), draw(batch, depth, columns), draw(rows, columns)
    product, out = recorded(torch.bmm, left, mat2=right)
    assert product is not None
    torch.testing.assert_close(by_einsum(product, left, right), out)
    product, out = recorded(torch.mm, left[0], right[0])
    assert product is not None
    torch.testing.assert_close(by_einsum(product, left[0], right[0]), out)
    product, out = recorded(torch.baddbmm, addend, left, right, alpha=0.5)
    assert product is not None
    assert (product.alpha, product.addend is None) == (0.5, False)
    torch.testing.assert_close(addend + product.alpha * by_einsum(product, left, right), out)


def test_an_addend_that_is_multiplied_by_zero_is_none() -> None:
    product, _ = recorded(torch.baddbmm, torch.empty(1, 1, 1), torch.randn(2, 3, 4), torch.randn(2, 4, 3), beta=0)
    assert product is not None
    assert product.addend is None


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bhnd,bhmd->bhnm", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("b n h d, b m h d -> b h n m", (2, 4, 3, 5), (2, 6, 3, 5)),
        ("bhnd,bmd->bhnm", (2, 3, 4, 5), (2, 6, 5)),
        ("bnhd,bmd->bhnm", (2, 4, 3, 5), (2, 6, 5)),
        ("...nd,...md->...nm", (2, 3, 4, 5), (3, 6, 5)),
        ("...nd,md->n...m", (2, 3, 4, 5), (6, 5)),
        ("bhnd,bhmd->bhmn", (1, 3, 4, 5), (2, 3, 6, 5)),
        ("bnd,bmd", (2, 4, 5), (2, 6, 5)),
        ("...dn,...dm", (2, 5, 4), (2, 5, 6)),
    ],
)
def test_labels_of_an_einsum_reproduce_it(equation: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    operands = draw(*left), draw(*right)
    product, out = recorded(torch.einsum, equation, *operands)
    assert product is not None
    torch.testing.assert_close(by_einsum(product, *operands), out)
    again, _ = recorded(torch.einsum, equation, operands)  # as one tuple
    assert again is not None
    assert again.out_axes == product.out_axes


@pytest.mark.parametrize(
    ("equation", "right", "inner"),
    [
        ("bhnd,bhmd->bhnm", (2, 3, 6, 5), "d"),
        ("bhnd,bgmd->bhnm", (2, 7, 6, 5), None),  # one operand alone is summed over g
        ("bhnd,bhmd->bnm", (2, 3, 6, 5), None),
        ("bhnd,bhnd->bhnd", (2, 3, 4, 5), None),
    ],
)
def test_a_product_sums_over_one_label_that_both_operands_have_or_has_no_inner_one(
    equation: str, right: tuple[int, ...], inner: str | None
) -> None:
    product, _ = recorded(torch.einsum, equation, draw(2, 3, 4, 5), draw(*right))
    assert product is not None
    assert product.inner == inner


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.einsum("ii,ij->ij", draw(3, 3), draw(3, 4)),
        lambda: torch.einsum("ij,jk,kl->il", draw(2, 3), draw(3, 4), draw(4, 5)),
        lambda: torch.einsum("ij->ji", draw(2, 3)),
        lambda: draw(2, 3) @ draw(3),
        lambda: draw(2, 3) * draw(2, 3),
        lambda: nn.functional.linear(draw(2, 3), draw(4, 3)),
    ],
    ids=["diagonal", "three operands", "one operand", "a vector", "elementwise", "layer"],
)
def test_what_is_no_product_of_two_matrices_is_not_read_as_one(call: Callable[[], Tensor]) -> None:
    assert recorded(call)[0] is None
