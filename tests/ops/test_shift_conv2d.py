"""shift_conv2d against convolutions with weights rounded row by row, its integers against double precision."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import OptionError, PlanError, ReparamError
from reparam.ops.base import parse_options
from reparam.ops.conv_examples import conv_site
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.integer import activation_codes, shift_codes, shift_conv2d_integer, shift_linear_integer, shift_matmul
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d, ShiftConv2dOptions
from reparam.ops.shift_weight import ShiftOptions, channel_offset, shift_weight
from tests.pico import convert, recipe

FORMS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "padded, no bias": lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), bias=False),
    "strided groups": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), groups=2),
    "depthwise, dilated": lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=4),
    "reflected": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
    "circular groups": lambda: nn.Conv2d(4, 4, 2, padding="same", padding_mode="circular", groups=2),
    "as TensorFlow": lambda: Conv2dSame(4, 6, 3, stride=2),
}
each_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
both_parameterisations = pytest.mark.parametrize("parameterisation", ["q", "ps"])


def shifted(conv: nn.Conv2d, **options: Any) -> ShiftConv2d:
    return ShiftConv2d.from_dense(conv, conv_site(conv), ShiftConv2dOptions(**options))


def dense(make: Callable[[], nn.Conv2d] = FORMS["plain"], *, seed: int = 0) -> nn.Conv2d:
    """Channels of very different sizes."""
    torch.manual_seed(seed)
    conv = make()
    with torch.no_grad():
        conv.weight.mul_(torch.logspace(-2, 1, len(conv.weight)).view(-1, 1, 1, 1))
    return conv


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(seed))


def is_power_of_two(values: Tensor) -> bool:
    exponents = torch.log2(values.abs())
    return torch.equal(exponents, exponents.round())


OPTIONS: dict[str, dict[str, Any]] = {
    "q": {},
    "3 bits": {"bits": 3},
    "linear domain": {"domain": "linear", "bits": 4},
    "as published": {"per_channel_offset": False, "zero_code": False},
    "ps": {"parameterisation": "ps"},
}


@each_form
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_the_convolution_with_the_weights_of_a_shift_linear_layer(
    make: Callable[[], nn.Conv2d], options: dict[str, Any]
) -> None:
    conv = dense(make)
    rows = conv.weight.detach().flatten(1)
    chosen = ShiftOptions(**options)
    expected = ShiftLinear(rows, None, chosen).weight.detach()
    layer = shifted(conv, **options)
    assert torch.equal(layer.weight.flatten(1), expected)
    if chosen.parameterisation == "q":
        offset = channel_offset(rows, domain=chosen.domain) if chosen.per_channel_offset else layer.offset.flatten(1)
        assert torch.equal(layer.weight.flatten(1), shift_weight(rows, offset, chosen))
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.copy_(expected.view_as(conv.weight))
    assert torch.equal(layer(images()), twin(images()))
    assert not torch.allclose(layer(images()), conv(images()), rtol=1e-2)


def test_each_output_channel_has_its_own_offset() -> None:
    conv = nn.Conv2d(2, 4, 2, groups=2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1], conv.weight[1, 0, 0, 1], conv.weight[3, 0, 1, 0] = 0.3, -5.0, 1.5
    layer = shifted(conv)
    assert layer.offset.shape == (4, 1, 1, 1)
    assert layer.offset.flatten().tolist() == [-2, 2, 0, 1]
    assert shifted(conv, per_channel_offset=False).offset.flatten().tolist() == [0, 0, 0, 0]


def test_a_scaled_channel_keeps_its_relative_error() -> None:
    conv = dense()
    scale = torch.tensor([1.0, 2.0**-10, 4.0, 1.0, 2.0**6, 0.5]).view(-1, 1, 1, 1)
    before = shifted(copy.deepcopy(conv), bits=4).weight
    with torch.no_grad():
        conv.weight.mul_(scale)
    assert torch.equal(shifted(conv, bits=4).weight, before * scale)
    assert not torch.equal(shifted(conv, bits=4, per_channel_offset=False).weight, before * scale)


@both_parameterisations
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_the_smallest_weights_of_a_layer_are_pruned_and_the_others_are_rounded_as_without(
    parameterisation: str, sparsity: float
) -> None:
    conv = dense()
    magnitude = conv.weight.detach().abs()
    layer = shifted(conv, parameterisation=parameterisation, sparsity=sparsity, bits=8)
    assert layer.kept is not None
    kept = layer.kept
    assert int((~kept).sum()) == round(sparsity * conv.weight.numel())
    assert magnitude[~kept].max() < magnitude[kept].min()
    assert layer.weight[~kept].abs().max() == 0
    whole = shifted(conv, parameterisation=parameterisation, bits=8)
    assert whole.kept is None
    assert torch.equal(layer.weight[kept], whole.weight[kept])
    assert whole.weight[~kept].abs().min() > 0


@both_parameterisations
def test_pruned_weights_get_no_gradient_and_stay_zero_while_the_others_stay_powers_of_two(
    parameterisation: str,
) -> None:
    layer = shifted(dense(), parameterisation=parameterisation, sparsity=0.5)
    assert layer.kept is not None
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.3, weight_decay=0.1)
    before = layer.weight.detach().clone()
    for seed in range(3):
        optimiser.zero_grad()
        layer(images(seed)).square().mean().backward()
        for name, parameter in layer.named_parameters():
            if name != "bias":
                assert parameter.grad is not None
                assert parameter.grad[~layer.kept].abs().max() == 0, name
                assert parameter.grad[layer.kept].abs().max() > 0, name
        optimiser.step()
    after = layer.weight.detach()
    assert after[~layer.kept].abs().max() == 0
    assert is_power_of_two(after[layer.kept & (after != 0)])
    assert not torch.equal(after, before)


def test_pruning_is_restored_with_the_state_and_not_found_again() -> None:
    layer = shifted(dense(seed=0), sparsity=0.5)
    other = shifted(dense(seed=1), sparsity=0.5)
    assert not torch.equal(other(images()), layer(images()))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images()), layer(images()))


@both_parameterisations
def test_frozen_shifts_do_not_learn_and_the_bias_does(parameterisation: str) -> None:
    layer = shifted(dense(), parameterisation=parameterisation, frozen=True, sparsity=0.5)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias"]
    free = shifted(dense(), parameterisation=parameterisation)
    assert all(p.requires_grad for p in free.parameters())
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # type: ignore[union-attr]
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = images().requires_grad_()
    layer(x).square().mean().backward()
    optimiser.step()
    assert torch.equal(layer.weight, weight)
    assert not torch.equal(layer.bias, bias)  # type: ignore[arg-type]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_dense_layer_that_does_not_learn_gives_a_shift_layer_that_does_not() -> None:
    layer = shifted(dense().requires_grad_(False))
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 0.5, "zero_code": False}, "sparsity needs a code for zero; set zero_code = true"),
        ({"sparsity": 1.0}, "options.sparsity: Input should be less than 1, got 1.0"),
        ({"sparsity": -0.1}, "options.sparsity: Input should be greater than or equal to 0, got -0.1"),
        ({"froze": True}, 'shift_conv2d has no option "froze". Did you mean "frozen"?'),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(ShiftConv2d, options, where="here")
    assert words in str(caught.value)


def test_hand_counted_operations_of_a_strided_grouped_padded_convolution() -> None:
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2)
    # Of 9 x 8 pixels 5 x 7 outputs; of 4 channels each output reads 2, at 6 places.
    assert conv(torch.zeros(2, 4, 9, 8)).shape == (2, 6, 5, 7)
    outputs, products = 2 * 6 * 5 * 7, 2 * 6 * 5 * 7 * 12
    count = shifted(conv).op_count((2, 4, 9, 8))
    assert count.as_dict() == {"shift.f32": products, "add.f32": products + outputs}
    half = shifted(conv, sparsity=0.5)
    assert half.op_count((2, 4, 9, 8)).as_dict() == {"shift.f32": products // 2, "add.f32": products // 2 + outputs}
    coded = shifted(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, bias=False), activation_bits=8)
    scaled = 2 * (2 * 4 * 9 * 8)
    assert coded.op_count((2, 4, 9, 8)).as_dict() == {
        "shift.i8": products,
        "add.i32": products,
        "shift.f32": scaled,
        "cmp.f32": scaled,
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.floats(0.01, 0.99))
def test_what_is_counted_is_what_pruning_left(inputs: int, outputs: int, kernel: int, sparsity: float) -> None:
    layer = shifted(nn.Conv2d(inputs, outputs, kernel, bias=False), sparsity=sparsity)
    assert layer.kept is not None
    assert layer.op_count((1, inputs, kernel, kernel)).total("shift") == int(layer.kept.sum())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_pointwise_convolution_is_the_linear_layer_on_channels(options: dict[str, Any]) -> None:
    conv = dense(lambda: nn.Conv2d(4, 6, 1))
    linear = ShiftLinear(conv.weight.detach().flatten(1), conv.bias, ShiftOptions(**options))
    layer, x = shifted(conv, **options), images()
    torch.testing.assert_close(layer(x), linear(x.movedim(1, -1)).movedim(-1, 1))
    assert layer.op_count(x.shape) == linear.op_count(x.movedim(1, -1).shape)


# -- integers


def calibrated(make: Callable[[], nn.Conv2d], **options: Any) -> ShiftConv2d:
    layer = shifted(dense(make), **options).train()
    layer(4 * images())
    return layer.eval()


@each_form
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_the_integer_form_gives_the_fake_quantised_bits(
    make: Callable[[], nn.Conv2d], bits: int, rounding: str
) -> None:
    layer = calibrated(make, bits=4, activation_bits=bits, activation_rounding=rounding)
    x = 4 * images(2)
    # Double precision holds every sum of these codes, so it has one right answer.
    exact = copy.deepcopy(layer).double()(x.double())
    assert torch.equal(shift_conv2d_integer(layer, x), exact)
    torch.testing.assert_close(layer(x), exact.float(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(shift_conv2d_integer(layer, x.flip(-1)), exact)


@pytest.mark.parametrize(
    "options",
    [
        {"parameterisation": "ps"},
        {"sparsity": 0.5},
        {"terms": 3, "sparsity": 0.25},
        {"per_channel_offset": False, "zero_code": False},
    ],
    ids=str,
)
def test_the_integer_form_follows_every_kind_of_weight(options: dict[str, Any]) -> None:
    layer = calibrated(FORMS["strided groups"], bits=4, activation_bits=8, **options)
    exact = copy.deepcopy(layer).double()(images().double())
    assert torch.equal(shift_conv2d_integer(layer, images()), exact)


def test_a_pointwise_convolution_has_the_integer_form_of_the_linear_layer() -> None:
    conv = dense(lambda: nn.Conv2d(4, 6, 1))
    options = {"bits": 4, "activation_bits": 8}
    linear = ShiftLinear(conv.weight.detach().flatten(1), conv.bias, ShiftOptions(**options)).eval()
    by_rows = shift_linear_integer(linear, images().movedim(1, -1).flatten(0, 2)).view(2, 7, 8, 6)
    assert torch.equal(shift_conv2d_integer(shifted(conv, **options).eval(), images()), by_rows.movedim(-1, 1))


def test_codes_rebuild_the_weights_row_by_row() -> None:
    layer = shifted(dense(FORMS["strided groups"]), bits=4, sparsity=0.5)
    codes = shift_codes(layer)
    assert (codes.sign.shape, codes.shift.shape, codes.lowest.shape) == ((6, 12), (6, 12), (6, 1))
    rebuilt = codes.sign.float() * torch.exp2((codes.shift + codes.lowest).float())
    assert torch.equal(rebuilt, layer.weight.flatten(1))
    assert int(codes.shift.min()) == 0
    assert int(codes.shift.max()) <= 6


def test_an_accumulator_that_could_overflow_is_refused_with_the_channel_and_the_width_it_needs() -> None:
    conv = nn.Conv2d(8, 4, 8, groups=2, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[3] = 1.0  # in the second group
    layer = shifted(conv, bits=6, activation_bits=16).eval()
    assert isinstance(layer.activation, FixedPoint)
    x = torch.ones(1, 8, 8, 8) * layer.activation.step()
    # 256 codes of 1, each shifted by 30 places: 2**38, and one bit for the sign.
    with pytest.raises(ReparamError, match="output channel 3 needs an accumulator of 40 bits, the machine has 32"):
        shift_conv2d_integer(layer, x)
    with pytest.raises(ReparamError, match="of 40 bits, the machine has 39"):
        shift_conv2d_integer(layer, x, accumulator_bits=39)
    expected = torch.tensor([0.0, 0.0, 0.0, 256.0]).double() * layer.activation.step()
    assert torch.equal(shift_conv2d_integer(layer, x, accumulator_bits=40).flatten(), expected)


def test_a_sum_that_64_bits_cannot_hold_is_refused_and_not_wrapped() -> None:
    weights = shift_codes(ShiftLinear(torch.tensor([[1.0, 2.0**-100]]), None, ShiftOptions(bits=8)))
    assert weights.shift.tolist() == [[126, 26]]
    with pytest.raises(ReparamError, match="needs an accumulator of 128 bits, the machine has 64"):
        shift_matmul(torch.ones(1, 2, dtype=torch.int32), weights, accumulator_bits=64)


def test_no_rows_give_no_sums() -> None:
    layer = ShiftLinear(torch.ones(3, 2), torch.zeros(3), ShiftOptions(activation_bits=8))
    assert shift_linear_integer(layer, torch.empty(0, 2)).shape == (0, 3)


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_doubles_are_coded_as_the_activation_rounds_them(rounding: str) -> None:
    activation = FixedPoint(8, rounding=rounding).eval()  # type: ignore[arg-type]
    step = activation.step().item()
    x = torch.tensor([0.5, 0.5 + 1e-12, 1 - 1e-12, 300.0, -300.0], dtype=torch.float64) * step
    assert torch.equal(activation_codes(x, activation) * step, activation(x).float())


def test_the_integer_form_needs_fixed_point_activations() -> None:
    with pytest.raises(ReparamError, match="set activation_bits = 8 or 16"):
        shift_conv2d_integer(shifted(dense()), images())


class ReadsItsWeight(nn.Module):
    """Convolves with the weight of a layer that it does not call, at strides of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)


def test_a_layer_that_is_not_called_is_refused() -> None:
    rule = {"match": {"kind": "conv2d"}, "operator": "shift_conv2d"}
    with pytest.raises(PlanError, match="only its weight is read, by an operation of its owner"):
        convert(ReadsItsWeight(), recipe([rule]))
    converted = convert(nn.Sequential(nn.Conv2d(3, 4, 3)), recipe([rule]))
    assert isinstance(converted[0], ShiftConv2d)  # type: ignore[index]
