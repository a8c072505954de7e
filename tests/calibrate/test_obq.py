"""Error feedback against the textbook loop that inverts what is left in every step, in double precision."""

import pytest
import torch
from torch import Tensor

from reparam.calibrate.obq import DAMPING, descend, factored_inverse, feed_back


def textbook(weight: Tensor, hessian: Tensor) -> Tensor:
    """OBQ in a fixed order: each step inverts the Hessian of the free weights anew (Frantar et al., equation 2)."""
    found = weight.clone()
    for row in found:
        free = list(range(len(row)))
        while free:
            inverse = torch.linalg.inv(hessian[free][:, free])
            rounded = row[free[0]].round()
            row[free] -= (row[free[0]] - rounded) / inverse[0, 0] * inverse[0]
            row[free[0]] = rounded
            free = free[1:]
    return found


def correlated(inputs: int, rows: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    return x.T @ x


@pytest.mark.parametrize("inputs", [1, 5, 70])
def test_feedback_is_the_textbook_loop_in_any_number_of_blocks(inputs: int) -> None:
    hessian, weight = correlated(inputs), 3 * torch.randn(4, inputs, dtype=torch.float64)
    inverse = factored_inverse(hessian[None])
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(inputs)
    found = feed_back(weight[None], inverse.factor, lambda column, _: column.round())
    assert torch.equal(found[0], textbook(weight, damped))


def test_feedback_beats_plain_rounding_where_inputs_are_correlated() -> None:
    hessian, weight = correlated(40), 3 * torch.randn(8, 40, dtype=torch.float64)
    found = feed_back(weight[None], factored_inverse(hessian[None]).factor, lambda column, _: column.round())[0]

    def error(rounded: Tensor) -> float:
        return float((((weight - rounded) @ hessian) * (weight - rounded)).sum())

    assert error(found) < 0.7 * error(weight.round())


def test_descent_never_goes_up_and_ends_where_no_single_weight_can_do_better() -> None:
    hessian, weight = correlated(12), 3 * torch.randn(1, 4, 12, dtype=torch.float64)
    start = weight.round()

    def error(rounded: Tensor) -> Tensor:
        return (((weight - rounded) @ hessian) * (weight - rounded)).sum(-1)

    found = descend(start, hessian[None], weight @ hessian, lambda column, _: column.round(), sweeps=20)
    assert (error(found) <= error(start)).all()
    assert error(found).sum() < error(start).sum()
    for i in range(12):
        for step in (-1.0, 1.0):
            moved = found.clone()
            moved[..., i] += step
            assert (error(moved) >= error(found) * (1 - 1e-9)).all()


def test_the_columns_are_handed_over_in_order_with_their_index() -> None:
    seen: list[int] = []

    def quantise(column: Tensor, index: int) -> Tensor:
        seen.append(index)
        return column

    weight = torch.randn(2, 3, 6, dtype=torch.float64)
    hessians = torch.stack([correlated(6, seed=1), correlated(6, seed=2)])
    assert torch.equal(feed_back(weight, factored_inverse(hessians).factor, quantise), weight)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_groups_do_not_meet() -> None:
    hessians, weight = torch.stack([correlated(6, seed=1), correlated(6, seed=2)]), 3 * torch.randn(2, 3, 6).double()
    together = feed_back(weight, factored_inverse(hessians).factor, lambda column, _: column.round())
    for group in (0, 1):
        alone = factored_inverse(hessians[group : group + 1]).factor
        assert torch.equal(together[group], feed_back(weight[group : group + 1], alone, lambda c, _: c.round())[0])


def test_a_singular_hessian_is_damped_until_it_can_be_inverted() -> None:
    x = torch.randn(3, 1, dtype=torch.float64) @ torch.randn(1, 8, dtype=torch.float64)
    found = factored_inverse((x.T @ x)[None], damping=1e-25)
    assert found.damping > 1e-25
    assert torch.isfinite(found.factor).all()


def test_inputs_that_are_always_zero_do_not_stand_in_the_way_of_others() -> None:
    hessian = correlated(5)
    hessian[2], hessian[:, 2] = 0.0, 0.0
    found = factored_inverse(hessian[None])
    assert found.damping == DAMPING
    weight = 3 * torch.randn(1, 4, 5, dtype=torch.float64)
    rounded = feed_back(weight, found.factor, lambda column, _: column.round())
    assert torch.equal(rounded[..., 2], weight[..., 2].round())


def test_a_layer_that_only_saw_zeros_is_rounded_as_it_is() -> None:
    found = factored_inverse(torch.zeros(1, 4, 4, dtype=torch.float64))
    weight = 3 * torch.randn(1, 2, 4, dtype=torch.float64)
    assert torch.equal(feed_back(weight, found.factor, lambda column, _: column.round()), weight.round())
