"""The step of fixed-point activations: the best power of two, over all batches."""

import torch
from torch import Tensor

from reparam.calibrate.activation import fit_range_
from reparam.ops.fixed_point import INITIAL_ABSMAX, FixedPoint


def error(bits: int, exponent: int, x: Tensor) -> float:
    largest, step = 2 ** (bits - 1) - 1, 2.0**exponent
    return float(((x / step).round().clamp(-largest - 1, largest) * step - x).square().sum())


def test_no_other_power_of_two_has_a_smaller_squared_error() -> None:
    torch.manual_seed(0)
    for scale in (0.01, 1.0, 300.0):
        x = scale * torch.randn(4000)
        grid = FixedPoint(8)
        fit_range_(grid, x.split(1000))
        steps = {exponent: error(8, exponent, x) for exponent in range(-20, 12)}
        assert float(grid.step()) == 2.0 ** min(steps, key=lambda exponent: steps[exponent])


def test_an_outlier_is_clipped_where_that_is_cheaper() -> None:
    x = torch.cat([torch.randn(100_000), torch.tensor([9.0])])
    grid = FixedPoint(8)
    fit_range_(grid, [x])
    assert float(grid.step()) * grid.largest < 9.0


def test_only_zeros_leave_the_range_as_it_was() -> None:
    grid = FixedPoint(8)
    fit_range_(grid, [torch.zeros(5)])
    assert float(grid.absmax) == INITIAL_ABSMAX
