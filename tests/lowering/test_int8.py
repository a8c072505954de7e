"""int8: the integer reference bit for bit, the fake-quantised layer where its sums are exact, near values elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.beit import Beit
from torch import Tensor, nn

import reparam
from reparam.errors import BackendError
from reparam.lowering.base import LoweringSettings
from reparam.lowering.grouped_experts import GroupedExperts
from reparam.lowering.integer_experts import GroupedIntegerLinear
from reparam.lowering.integer_layers import IntegerShiftLinear
from reparam.lowering.integer_weight import shift_parts
from reparam.lowering.lower import lowered_copy
from reparam.lowering.ranges import input_ranges
from reparam.ops.adder_conv2d import AdderConv2d, AdderConv2dOptions
from reparam.ops.base import Example, Operator
from reparam.ops.conv_form import ConvForm
from reparam.ops.integer import shift_conv2d_integer, shift_linear_integer
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d, ShiftConv2dOptions
from reparam.ops.shift_weight import ShiftOptions
from tests.lowering.operators import ACCEPTED, made
from tests.pico import images, vit


def lowered(module: nn.Module, **chosen: Any) -> nn.Module:
    return lowered_copy(module, "int8", LoweringSettings(**chosen))[0]


def linear(weight: Tensor, *, absmax: float = 8.0, **options: Any) -> ShiftLinear:
    layer = ShiftLinear(weight, torch.randn(len(weight)), ShiftOptions(**options)).eval()
    if options.get("activation_bits"):
        layer.activation.absmax.fill_(absmax)  # type: ignore[union-attr,operator]
    return layer


def adder(dense: nn.Conv2d, **options: Any) -> AdderConv2d:
    """Weights of standard deviation 3, on whose grid inputs of 3.9 are."""
    weight, chosen = torch.randn_like(dense.weight), AdderConv2dOptions(**options)
    layer = AdderConv2d(weight, dense.bias, ConvForm.of(dense), chosen, norm=nn.Identity()).eval()
    nn.init.normal_(layer.weight, std=3)
    return layer


@given(
    rows=st.integers(1, 9), inputs=st.integers(1, 70), outputs=st.integers(1, 40), bits=st.integers(2, 5),
    terms=st.integers(1, 3), absmax=st.floats(1e-3, 1e3), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_linear_layer_with_8_bit_inputs_gives_the_integer_reference_and_the_fake_quantised_layer_bit_for_bit(
    rows: int, inputs: int, outputs: int, bits: int, terms: int, absmax: float, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = linear(torch.randn(outputs, inputs), absmax=absmax, bits=bits, terms=terms, activation_bits=8)
    layer.bias = None
    x = absmax * torch.randn(rows, inputs)  # a good part saturates
    out = lowered(layer)(x)
    assert torch.equal(out, shift_linear_integer(layer, x).float())
    if bits <= 4 and terms == 1:  # sums stay below 2**24, so float32 adds them exactly too
        assert torch.equal(out, layer(x))


@given(
    size=st.integers(4, 9), kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), groups=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_convolution_with_8_bit_inputs_gives_the_integer_reference_bit_for_bit(
    size: int, kernel: int, stride: int, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    dense = nn.Conv2d(6, 12 if groups < 6 else 6, kernel, stride, kernel // 2, groups=groups, bias=False)
    options = ShiftConv2dOptions(bits=4, activation_bits=8)
    layer = ShiftConv2d(dense.weight, None, ConvForm.of(dense), options).eval()
    x = 4 * torch.randn(2, 6, size, size)
    out = lowered(layer)(x)
    assert torch.equal(out, shift_conv2d_integer(layer, x).float())
    assert torch.equal(out, layer(x))


def test_a_floored_grid_is_floored() -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(5, 8), absmax=2.0, bits=4, activation_bits=8, activation_rounding="floor")
    x = torch.randn(6, 8)
    assert torch.equal(lowered(layer)(x), layer(x))


@pytest.mark.parametrize(("cls", "example"), ACCEPTED)
def test_every_operator_gives_values_near_its_own(cls: type[Operator], example: Example) -> None:
    operator, inputs = made(cls, example), example.inputs()
    out, wanted = lowered(operator, ranges=input_ranges(operator, inputs))(*inputs), operator(*inputs)
    assert out.shape == wanted.shape
    assert (out - wanted).norm() <= 0.03 * wanted.norm()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("terms", [1, 2])
def test_an_output_without_any_weight_is_its_bias_however_large_the_inputs(bits: int, terms: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 8)
    weight[1] = 0
    layer, x = linear(weight, bits=bits, terms=terms), 1e6 * torch.randn(5, 8)
    out = lowered(layer)(x)
    assert torch.equal(out[:, 1], layer.bias[1].expand(5))  # type: ignore[index]
    assert (out - layer(x)).norm() < 0.02 * layer(x).norm()
    assert [part.scale.isfinite().all().item() for part in shift_parts(layer, largest=127)] == [True]


def test_inputs_without_a_grid_get_a_step_for_each_row() -> None:
    torch.manual_seed(0)
    layer, x = linear(torch.randn(8, 32)), torch.randn(4, 32) * torch.tensor([[1e-6], [1.0], [1e3], [0.0]])
    out, wanted = lowered(layer)(x), layer(x)
    error = ((out - wanted).norm(dim=1) / (wanted - layer.bias).norm(dim=1).clamp_min(1e-20))[:3]  # type: ignore[operator]
    assert error.max() < 0.02
    assert torch.equal(out[3], layer.bias)  # type: ignore[arg-type]


def test_a_calibrated_step_covers_what_the_calibration_met_and_clips_beyond() -> None:
    torch.manual_seed(0)
    layer = linear(torch.eye(4), bits=4)
    layer.bias = None
    out = lowered(layer, ranges={layer: torch.tensor(3.0)})(torch.tensor([[3.0, 1.0, -9.0, 0.02]]))
    assert out.tolist() == [[3.0, 1.0, -4.0, 0.03125]]  # steps of 2**-5: codes 96, 32, -128 (clipped) and 1


def test_a_layer_that_met_only_zeros_in_a_calibration_finds_its_steps_as_it_runs() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(linear(torch.randn(4, 8))), torch.randn(3, 8)
    ranges = input_ranges(model, (torch.zeros(2, 8),))
    assert torch.equal(lowered(model, ranges=ranges)(x), lowered(model)(x))


def test_weights_that_one_int16_number_cannot_hold_are_split_into_parts_with_the_same_sum() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 40) * torch.exp2(-torch.randint(0, 24, (6, 40)).float())
    layer = linear(weight, bits=6, activation_bits=8)
    parts = shift_parts(layer, largest=127)
    assert len(parts) == 2
    total = sum(part.values.double() * part.scale[:, None].double() for part in parts)
    assert torch.equal(total, layer.weight.double())
    x = torch.randn(3, 40)
    torch.testing.assert_close(lowered(layer)(x), shift_linear_integer(layer, x, accumulator_bits=64).float())


@pytest.mark.parametrize("smallest", [-62, -64])
def test_weights_too_far_apart_for_int64_are_split_without_losing_one(smallest: int) -> None:
    layer = linear(torch.tensor([[1.0, 2.0**smallest]]), bits=8)
    parts = shift_parts(layer, largest=127)
    total = sum(part.values.double() * part.scale[:, None].double() for part in parts)
    assert torch.equal(total, layer.weight.double())


@pytest.mark.parametrize("smallest", [-63, -70, -120])
def test_weights_too_far_apart_for_int64_are_refused_where_they_cannot_be_split(smallest: int) -> None:
    with pytest.raises(BackendError, match=f"span {1 - smallest} exponents over 2 inputs"):
        shift_parts(linear(torch.tensor([[1.0, 2.0**smallest]]), bits=8), largest=127)


def test_many_large_weights_are_split_before_a_sum_can_leave_32_bits() -> None:
    layer = linear(torch.ones(1, 2**12), absmax=1.0, bits=5, activation_bits=8)
    with torch.no_grad():
        layer.latent[0, 0] = 2.0**-13  # so that the ones are 2**13 in integers
    assert [part.values.abs().max().item() for part in shift_parts(layer, largest=127)] == [1, 2**6]
    x = torch.full((1, 2**12), 0.9)
    torch.testing.assert_close(lowered(layer)(x), layer(x))


def test_a_range_that_would_need_too_many_products_is_refused_with_the_layer_and_a_way_out() -> None:
    layer = linear(torch.exp2(-torch.arange(100.0)).repeat(2, 1), bits=8)
    with pytest.raises(BackendError, match=r"^0: its weights span 100 exponents .*lower to float32"):
        lowered(nn.Sequential(layer))


@given(
    size=st.integers(3, 8), kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_an_adder_sums_the_differences_of_codes_on_the_grid_that_covers_inputs_and_weights(
    size: int, kernel: int, stride: int, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = adder(nn.Conv2d(4, 6, kernel, stride, kernel // 2, groups=groups))
    x = torch.randn(2, 4, size, size)
    step = 2.0**-5  # 127 steps reach 3.97
    with torch.no_grad():
        layer.weight.copy_(torch.round(layer.weight / step).clamp(-127, 127) * step)
    met = torch.tensor(3.9)
    on_grid = torch.round(x / step).clamp(-128, 127) * step
    torch.testing.assert_close(lowered(layer, ranges={layer: met})(x), layer(on_grid), rtol=0, atol=1e-5)


def test_an_adder_without_a_calibration_is_refused_with_the_layer_and_a_way_out() -> None:
    layer = AdderConv2d(
        torch.randn(2, 2, 1, 1), None, ConvForm.of(nn.Conv2d(2, 2, 1)), AdderConv2dOptions(), norm=nn.Identity()
    )
    with pytest.raises(BackendError, match=r"^0: an adder's inputs and weights share one step.*pass calibration="):
        lowered(nn.Sequential(layer))


def test_an_operator_that_has_no_integer_form_is_listed_as_it_was() -> None:
    _, layers = lowered_copy(nn.Sequential(adder(nn.Conv2d(2, 2, 1), mask=True)), "int8", LoweringSettings())
    assert [(layer.path, layer.form) for layer in layers] == [("0", "as it was")]


@given(
    inputs=st.integers(1, 200), bits=st.integers(2, 5), absmax=st.floats(1e-2, 1e2), seed=st.integers(0, 2**20),
    rounding=st.sampled_from(["nearest", "floor"]), zero_code=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_16_bit_inputs_give_the_integer_reference_to_the_rounding_of_float32(
    inputs: int, bits: int, absmax: float, seed: int, rounding: str, zero_code: bool
) -> None:
    torch.manual_seed(seed)
    layer = linear(
        torch.randn(6, inputs), absmax=absmax, bits=bits, activation_bits=16, activation_rounding=rounding,
        zero_code=zero_code,
    )  # fmt: skip
    x = absmax * torch.randn(3, inputs)
    wanted = shift_linear_integer(layer, x, accumulator_bits=64)
    terms = layer.activation(x).abs().double() @ layer.weight.abs().double().T + layer.bias.abs().double()  # type: ignore[union-attr]
    assert ((lowered(layer)(x).double() - wanted).abs() <= 2.0**-22 * terms).all()


@pytest.mark.parametrize("options", [{}, {"terms": 2}, {"bits": 8}], ids=["one part", "terms", "several parts"])
def test_the_rounded_weight_can_still_be_read_off_a_linear_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(6, 37) * torch.exp2(-torch.randint(0, 20, (6, 37)).float()), **options)
    assert torch.equal(lowered(layer).weight, layer.weight)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_rounded_weight_can_still_be_read_off_a_convolution(groups: int) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 12 if groups < 6 else 6, (3, 2), groups=groups)
    layer = ShiftConv2d(dense.weight, dense.bias, ConvForm.of(dense), ShiftConv2dOptions()).eval()
    assert torch.equal(lowered(layer).weight, layer.weight)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_weight_on_its_grid_can_be_read_off_an_adder(groups: int) -> None:
    torch.manual_seed(0)
    layer = adder(nn.Conv2d(6, 12 if groups < 6 else 6, (3, 2), groups=groups))
    read = lowered(layer, ranges={layer: torch.tensor(1.0)}).weight
    assert read.shape == layer.weight.shape
    assert (read - layer.weight).abs().max() <= layer.weight.abs().max() / 127  # half a step, which is a power of two


def converted(recipe: str, build: Callable[[], nn.Module] = vit) -> nn.Module:
    return reparam.convert(build(), recipe, example_input=images(), weights="none").model


@pytest.mark.parametrize("calibration", [None, images(8)], ids=["dynamic", "calibrated"])
def test_a_model_that_multiplies_by_a_layers_weight_itself_gets_it(calibration: Tensor | None) -> None:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    beit = Beit(**sizes, qkv_bias=True).eval()  # whose attention calls F.linear on qkv.weight and a bias of its own
    model = reparam.convert(beit, "shift-ptq", example_input=images(), weights="none").model
    out, wanted = reparam.lower(model, "int8", calibration=calibration).model(images()), model(images())
    assert (out - wanted).norm() < 0.05 * wanted.norm()


def test_a_mixture_runs_as_grouped_products_and_sends_tokens_where_its_router_does() -> None:
    model = converted("shiftaddvit")
    for name, parameter in model.named_parameters():
        if "router" in name:
            nn.init.normal_(parameter)
    lowering = reparam.lower(model, "int8")
    assert sum(isinstance(module, GroupedExperts) for module in lowering.model.modules()) == 2
    out, wanted = lowering.model(images(8)), model(images(8))
    assert (out - wanted).norm() < 0.05 * wanted.norm()
    swapped = reparam.lower(model, "int8").model
    for module in swapped.modules():
        if isinstance(module, GroupedExperts):
            module.router.weight.neg_()
    assert (swapped(images(8)) - wanted).norm() > 2 * (out - wanted).norm()


@given(tokens=st.integers(1, 40), width=st.sampled_from([5, 8, 21]), bits=st.integers(3, 5), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_in_a_mixture_each_layer_gives_the_bits_that_its_own_integer_layer_gives(
    tokens: int, width: int, bits: int, seed: int
) -> None:
    torch.manual_seed(seed)
    multiply, shift = nn.Linear(width, 7), linear(torch.randn(7, width), bits=bits)
    (own,), widest = shift_parts(shift, largest=127), 127
    if is_narrow := own.values.abs().max() <= 64:
        widest = 64
    scale = multiply.weight.double().abs().amax(1) / widest
    rounded = torch.round(multiply.weight.double() / scale[:, None])
    grouped, rows = GroupedIntegerLinear(multiply, shift, own, {}), torch.randn(tokens, width)
    first = int(torch.randint(tokens + 1, ()))
    out = grouped(rows, torch.tensor([first]))
    assert grouped.packed.dtype == (torch.int8 if is_narrow else torch.int16)
    assert torch.equal(out[first:], lowered(shift)(rows[first:]))
    step = torch.exp2(torch.ceil(torch.log2(rows[:first].abs().amax(1, keepdim=True).double() / 127)))
    codes = torch.round(rows[:first].double() / step).clamp(-128, 127)
    wanted = (codes @ rounded.T) * step * scale + multiply.bias.double()
    torch.testing.assert_close(out[:first].double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_range_in_a_mixture_that_is_refused_names_the_mixture_and_its_layer() -> None:
    model = converted("shiftaddvit")
    wide = model.blocks[1].mlp.shift.fc2  # type: ignore[index,union-attr]
    wide.options = wide.options.model_copy(update={"bits": 8})  # type: ignore[union-attr,operator]
    with torch.no_grad():
        wide.latent.copy_(torch.exp2(-1.5 * torch.arange(64.0)).expand_as(wide.latent))  # type: ignore[union-attr,operator,arg-type]
    with pytest.raises(BackendError, match=r"^blocks\.1\.mlp: its layer shift\.fc2: its weights span 9\d exponents"):
        reparam.lower(model, "int8")


def test_multiply_experts_stay_in_float32_when_asked() -> None:
    lowering = reparam.lower(converted("shiftaddvit"), "int8", experts="float32")
    mixtures = [layer for layer in lowering.layers if layer.type == "MoeMlp"]
    assert {layer.form for layer in mixtures} == {"one expert after the other, the multiply expert as it was"}
    assert len(mixtures) == 2
    assert not any(isinstance(module, GroupedExperts) for module in lowering.model.modules())
    assert any(isinstance(module, IntegerShiftLinear) for module in lowering.model.modules())
    assert torch.isfinite(lowering.model(images())).all()


@pytest.mark.slow
def test_compiled_it_gives_the_same_values() -> None:
    model = converted("shiftaddvit")
    lowering = reparam.lower(model, "int8", calibration=images(8))
    compiled = torch.compile(lowering.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), lowering.model(images()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_calibration_that_is_not_finite_is_refused_with_the_first_layer_that_meets_it(value: float) -> None:
    model, x = nn.Sequential(nn.ReLU(), linear(torch.randn(4, 4)), linear(torch.randn(4, 4))), torch.ones(2, 4)
    x[1, 2] = value
    with pytest.raises(BackendError, match=r"^1: meets values that are not finite in the calibration"):
        reparam.lower(model, "int8", calibration=x)


def test_a_calibration_that_the_model_does_not_take_is_told() -> None:
    model = nn.Sequential(linear(torch.randn(4, 4)))
    with pytest.raises(BackendError, match=r"^calibration: the model does not run on these inputs: [^\n]+$"):
        reparam.lower(model, "int8", calibration=torch.ones(2, 5))


def test_a_calibration_leaves_the_converted_model_as_it_was() -> None:
    model = converted("shiftaddvit").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lowering = reparam.lower(model, "int8", calibration=images(8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {"fixed step" in layer.form for layer in lowering.layers if layer.type == "ShiftLinear"} == {True}
