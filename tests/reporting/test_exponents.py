import torch
from torch import nn

from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from reparam.reporting.exponents import exponent_histograms


def layer(*weights: float, **options: object) -> ShiftLinear:
    return ShiftLinear(torch.tensor([weights]), None, ShiftOptions.model_validate(options))


def test_each_power_of_two_is_counted_whatever_its_sign() -> None:
    (found,) = exponent_histograms(nn.Sequential(layer(1.0, -0.5, 0.5, 0.0, 0.125), nn.ReLU()))
    assert (found.path, found.bits, found.lowest) == ("0", 5, -3)
    assert found.counts == (1, 0, 2, 1)
    assert (found.zeros, found.weights) == (1, 5)


def test_the_rounded_weights_are_counted_and_not_the_latent_ones() -> None:
    (found,) = exponent_histograms(nn.ModuleDict({"fc": layer(0.9, 0.26, bits=3)}))
    assert (found.lowest, found.counts, found.bits) == (-2, (1, 0, 1), 3)


def test_a_layer_of_zeros_has_no_exponents() -> None:
    (found,) = exponent_histograms(nn.Sequential(layer(0.0, 0.0)))
    assert (found.counts, found.zeros) == ((), 2)


def test_a_model_without_shift_layers_has_no_histogram() -> None:
    assert exponent_histograms(nn.Linear(2, 2)) == ()
