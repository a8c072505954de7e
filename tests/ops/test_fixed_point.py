"""Fixed-point activations against the explicit grid."""

import pytest
import torch
from torch import nn

from reparam.ops.fixed_point import INITIAL_ABSMAX, FixedPoint, calibrate_fixed_point_


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("absmax", [0.3, 1.0, 5.0, 127.0 / 128, 300.0])
def test_the_step_is_the_smallest_power_of_two_that_covers_the_range(bits: int, absmax: float) -> None:
    activation = FixedPoint(bits)  # type: ignore[arg-type]
    activation.absmax.fill_(absmax)
    step = activation.step().item()
    largest = 2 ** (bits - 1) - 1
    assert torch.tensor(step).log2().item() % 1 == 0
    assert step * largest >= absmax > step / 2 * largest


def test_values_are_rounded_to_the_grid_ties_to_even_and_clipped() -> None:
    activation = FixedPoint(8).eval()
    assert activation.absmax.item() == INITIAL_ABSMAX
    step = activation.step().item()
    x = torch.tensor([0.0, 0.5, 1.5, 2.4, -0.6, 1000.0, -1000.0]) * step
    assert (activation(x) / step).tolist() == [0.0, 0.0, 2.0, 2.0, -1.0, 127.0, -128.0]


def test_floor_rounds_down_and_passes_every_gradient() -> None:
    activation = FixedPoint(8, rounding="floor").eval()
    step = activation.step().item()
    x = (torch.tensor([0.9, -0.1, 500.0]) * step).requires_grad_()
    out = activation(x)
    assert (out / step).tolist() == [0.0, -1.0, 127.0]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_the_gradient_stops_where_the_value_was_clipped() -> None:
    activation = FixedPoint(8).eval()
    x = torch.tensor([0.1, 1000.0, -1000.0], requires_grad=True)
    activation(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


def test_the_range_follows_training_batches_and_stays_in_evaluation() -> None:
    activation = FixedPoint(8).train()
    activation(torch.tensor([20.0]))
    assert activation.absmax.item() == 20.0
    activation(torch.tensor([1.0]))
    assert activation.absmax.item() == pytest.approx(19.8)
    activation.eval()(torch.tensor([500.0]))
    assert activation.absmax.item() == pytest.approx(19.8)


def test_half_precision_beyond_its_fixed_point_range_stays_finite() -> None:
    x = torch.tensor([1.5, -3.0, 40.0], dtype=torch.float16)
    activation = FixedPoint(16).train()
    torch.testing.assert_close(activation(x), x, rtol=1e-3, atol=1e-2)
    assert activation(x).dtype == torch.float16


def test_rounding_twice_is_rounding_once() -> None:
    activation = FixedPoint(8).eval()
    once = activation(torch.randn(100))
    assert torch.equal(activation(once), once)


def test_calibration_takes_the_range_of_real_data_and_leaves_the_mode() -> None:
    model = nn.Sequential(FixedPoint(8), nn.Linear(3, 2), FixedPoint(16)).train()
    x = torch.tensor([[30.0, -40.0, 5.0]])
    expected = model[1](x).abs().max().item()
    calibrate_fixed_point_(model, (x,))
    assert model[0].absmax.item() == 40.0
    assert model[2].absmax.item() == pytest.approx(expected, rel=0.05)
    assert all(module.training for module in model.modules())


def test_calibration_keeps_the_range_of_what_meets_no_data() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = FixedPoint(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Skips()
    calibrate_fixed_point_(model, (torch.ones(2),))
    assert model.idle.absmax.item() == INITIAL_ABSMAX
