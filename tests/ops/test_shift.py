"""shift_linear against explicit formulas, its gradients against stated ones, and its integer form against itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import OptionError, ReparamError
from reparam.ops.base import parse_options
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.integer import shift_codes, shift_linear_integer, shift_matmul
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions, channel_offset, shift_terms, shift_weight


def layer(dense: nn.Linear | None = None, **options: object) -> ShiftLinear:
    dense = dense or nn.Linear(16, 6)
    return ShiftLinear(dense.weight, dense.bias, ShiftOptions(**options))  # type: ignore[arg-type]


def layer_of(weight: Tensor, **options: object) -> ShiftLinear:
    return ShiftLinear(weight, None, ShiftOptions(**options))  # type: ignore[arg-type]


def by_definition(weight: Tensor, offset: Tensor, options: ShiftOptions) -> Tensor:
    """Element by element: log2, nearest exponent, range, zero code."""
    out = torch.zeros_like(weight)
    for o, row in enumerate(weight.tolist()):
        top = int(offset[o])
        bottom = top + options.lowest_exponent
        for i, w in enumerate(row):
            if w == 0 or (options.zero_code and abs(w) < 2.0 ** (bottom - 1)):
                continue
            exponent = min(max(round(math.log2(abs(w))), bottom), top)
            out[o, i] = math.copysign(2.0**exponent, w)
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.booleans(), st.booleans(), st.integers(0, 2**16))
def test_weights_are_rounded_as_defined(bits: int, zero_code: bool, offset: bool, seed: int) -> None:
    options = ShiftOptions(bits=bits, zero_code=zero_code, per_channel_offset=offset)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 9, generator=generator) * torch.logspace(-3, 1, 4).unsqueeze(1)
    weight[0, 0] = 0.0
    shift = ShiftLinear(weight, None, options)
    assert torch.equal(shift.weight, by_definition(weight, shift.offset, options))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.booleans(), st.integers(0, 2**16))
def test_there_are_never_more_values_than_codes(bits: int, zero_code: bool, seed: int) -> None:
    weight = torch.randn(1, 4000, generator=torch.Generator().manual_seed(seed)) * 2
    rounded = ShiftLinear(weight, None, ShiftOptions(bits=bits, zero_code=zero_code)).weight
    exponents = {abs(w) for w in rounded.flatten().tolist()}
    assert len(exponents) <= 2 ** (bits - 1)
    assert (0.0 in exponents) <= zero_code


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 6), st.sampled_from(["log", "linear"]), st.integers(0, 2**16))
def test_more_terms_are_never_further_from_the_weights(bits: int, domain: str, seed: int) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 2, 6).unsqueeze(1)
    shifts = [
        layer_of(weight, bits=bits, domain=domain, terms=terms, init=init)
        for init in ("rounded", "least-squares")
        for terms in (1, 2, 3)
    ]
    errors = [(shift.weight - weight).square().sum(1) for shift in shifts]
    for fewer, more in [(0, 1), (1, 2), (3, 4), (4, 5)]:
        assert (errors[more] <= errors[fewer]).all()
    for rounded, fitted in [(0, 3), (1, 4), (2, 5)]:
        assert (errors[fitted] <= errors[rounded]).all()
    assert errors[1].sum() < errors[0].sum()


@pytest.mark.parametrize("terms", [2, 3])
@pytest.mark.parametrize("domain", ["log", "linear"])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_sum_of_powers_is_rounded_to_itself_and_taken_apart_again(bits: int, domain: str, terms: int) -> None:
    powers = [0.0, *(2.0**p for p in range(ShiftOptions(bits=bits).lowest_exponent, 1))]
    values = {0.0}
    for _ in range(terms):
        values = {value + sign * power for value in values for power in powers for sign in (1, -1)}
    weight = torch.tensor([sorted(values)])
    shift = layer_of(weight, bits=bits, domain=domain, terms=terms, per_channel_offset=False)
    assert torch.equal(shift.weight, weight)
    found = shift_terms(weight, shift.offset, shift.options)
    assert len(found) == terms
    assert set(found.abs().flatten().tolist()) <= set(powers)


def test_hand_made_sums_of_two_powers() -> None:
    weight = torch.tensor([[1.0, 0.7, 0.3, 0.26, -0.55, 0.0]])
    assert layer_of(weight, terms=2).weight.tolist() == [[1.0, 0.75, 0.3125, 0.2578125, -0.5625, 0.0]]


def test_rounding_rounded_weights_changes_nothing() -> None:
    first = layer(bits=4)
    second = ShiftLinear(first.weight.detach(), None, first.options)
    assert torch.equal(first.weight, second.weight)


def test_the_offset_is_the_power_of_two_nearest_to_the_largest_weight() -> None:
    weight = torch.tensor([[0.3, -0.1], [5.0, 0.0], [0.0, 0.0], [0.0, -1.5]])
    assert channel_offset(weight).flatten().tolist() == [-2, 2, 0, 1]


def test_a_scaled_channel_keeps_its_relative_error() -> None:
    weight = torch.randn(1, 50)
    options = ShiftOptions(bits=4)
    small = ShiftLinear(weight / 1024, None, options).weight
    assert torch.equal(small * 1024, ShiftLinear(weight, None, options).weight)
    fixed = ShiftLinear(weight / 1024, None, ShiftOptions(bits=4, per_channel_offset=False)).weight
    assert not torch.equal(fixed * 1024, ShiftLinear(weight, None, options).weight)


def test_the_published_range_has_no_zero_code_and_clamps_into_its_ends() -> None:
    options = ShiftOptions(per_channel_offset=False, zero_code=False)
    weight = torch.tensor([[0.7, 0.75, -0.3, 1.6, 1e-6, 0.0, -1e-9]])
    assert options.lowest_exponent == -15
    expected = [0.5, 1.0, -0.25, 1.0, 2.0**-15, 0.0, -(2.0**-15)]
    assert ShiftLinear(weight, None, options).weight.flatten().tolist() == expected


def test_the_latent_gradient_is_the_weight_gradient() -> None:
    shift, x = layer(), torch.randn(5, 16)
    weight = shift.weight.detach().requires_grad_()
    g = torch.randn(5, 6)
    shift(x).backward(g)
    F.linear(x, weight).backward(g)
    assert torch.equal(shift.latent.grad, weight.grad)  # type: ignore[arg-type]


def test_ps_gradients_are_the_published_ones() -> None:
    shift, x, g = layer(parameterisation="ps"), torch.randn(5, 16), torch.randn(5, 6)
    shift(x).backward(g)
    weight_gradient = g.T @ x
    torch.testing.assert_close(shift.sign.grad, weight_gradient)
    torch.testing.assert_close(shift.shift.grad, weight_gradient * shift.weight.detach() * math.log(2))


def test_ps_starts_at_the_weights_of_q() -> None:
    dense = nn.Linear(16, 6)
    assert torch.equal(layer(dense, parameterisation="ps").weight, layer(dense).weight)


def test_ps_signs_round_to_zero_at_one_half_and_shifts_stay_in_range() -> None:
    shift = layer(nn.Linear(4, 1), parameterisation="ps", bits=4, per_channel_offset=False)
    with torch.no_grad():
        shift.sign.copy_(torch.tensor([[0.5, 0.51, -7.0, -0.2]]))
        shift.shift.copy_(torch.tensor([[-1.0, -1.6, 3.0, -2.0]]))
    assert shift.weight.flatten().tolist() == [0.0, 0.25, -1.0, 0.0]


def test_stochastic_rounding_is_drawn_in_training_only() -> None:
    shift = layer(rounding="stochastic")
    shift.train()
    assert not torch.equal(shift.weight, shift.weight)
    shift.eval()
    nearest = shift.options.model_copy(update={"rounding": "nearest"})
    assert torch.equal(shift.weight, shift_weight(shift.latent, shift.offset, nearest))


def test_double_weights_round_like_floats() -> None:
    weight = torch.randn(4, 9)
    options = ShiftOptions()
    single = ShiftLinear(weight, None, options).weight
    assert torch.equal(ShiftLinear(weight.double(), None, options).weight, single.double())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("kind", [{}, {"parameterisation": "ps"}, {"terms": 2}, {"terms": 3}], ids=str)
def test_the_integer_form_gives_the_fake_quantised_bits(bits: int, rounding: str, kind: dict[str, object]) -> None:
    torch.manual_seed(0)
    options = {"activation_bits": bits, "activation_rounding": rounding, "bits": 4, **kind}
    shift = layer(**options).train()
    x = 4 * torch.randn(32, 16)
    shift(x)
    shift.eval()
    assert isinstance(shift.activation, FixedPoint)
    assert shift.bias is not None
    exact = F.linear(shift.activation(x).double(), shift.weight.double(), shift.bias.double())
    assert torch.equal(shift_linear_integer(shift, x), exact)
    torch.testing.assert_close(shift(x), exact.float())


def test_codes_rebuild_the_weights() -> None:
    shift = layer(bits=4)
    codes = shift_codes(shift)
    rebuilt = codes.sign.float() * torch.exp2((codes.shift + codes.lowest).float())
    assert torch.equal(rebuilt, shift.weight)
    assert int(codes.shift.max()) <= 6


def test_an_accumulator_that_could_overflow_is_refused_with_the_width_it_needs() -> None:
    shift = layer(nn.Linear(512, 2), bits=6, activation_bits=16)
    codes = torch.full((1, 512), 2**15 - 1)
    with pytest.raises(ReparamError, match=r"needs an accumulator of \d+ bits, the machine has 32"):
        shift_matmul(codes, shift_codes(shift))


def test_the_integer_form_needs_fixed_point_activations() -> None:
    with pytest.raises(ReparamError, match="set activation_bits = 8 or 16"):
        shift_linear_integer(layer(), torch.randn(2, 16))


def test_all_option_faults_are_reported_at_once() -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(ShiftLinear, {"bits": 9, "bit": 4}, where="stage 0, rule 1")
    assert 'stage 0, rule 1.options: shift_linear has no option "bit". Did you mean "bits"?' in str(caught.value)
    assert "stage 0, rule 1.options.bits: Input should be less than or equal to 8, got 9" in str(caught.value)


@pytest.mark.parametrize("fault", [{"zero_code": False}, {"rounding": "stochastic"}, {"terms": 2}], ids=str)
def test_ps_refuses_options_that_it_does_not_have(fault: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        parse_options(ShiftLinear, {"parameterisation": "ps", **fault}, where="here")


def test_hand_counted_operations_of_one_layer() -> None:
    count = layer(nn.Linear(16, 6)).op_count((2, 3, 16))
    assert count.as_dict() == {"shift.f32": 576, "add.f32": 576 + 36}


@pytest.mark.parametrize("terms", [2, 3])
def test_every_term_shifts_and_adds(terms: int) -> None:
    count = layer(nn.Linear(16, 6), terms=terms, activation_bits=8).op_count((2, 3, 16))
    scaled = {"shift.f32": 2 * 96, "cmp.f32": 2 * 96}
    assert count.as_dict() == {"shift.i8": terms * 576, "add.i32": terms * 576 + 36, **scaled}


def test_a_second_term_needs_a_code_for_zero() -> None:
    with pytest.raises(OptionError, match="a second term needs a code for zero; set zero_code = true"):
        parse_options(ShiftLinear, {"terms": 2, "zero_code": False}, where="here")


@pytest.mark.parametrize("direction", [-1.0, 1.0])
@pytest.mark.parametrize("parameterisation", ["q", "ps"])
def test_latents_do_not_wind_up_and_can_come_back(parameterisation: str, direction: float) -> None:
    shift = layer(nn.Linear(3, 2), parameterisation=parameterisation, per_channel_offset=False)
    optimiser = torch.optim.SGD(shift.parameters(), lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        shift.weight.backward(torch.full((2, 3), direction))
        optimiser.step()
    assert all(p.detach().abs().max() < 20 for p in shift.parameters())
    saturated = shift.weight.detach().clone()
    for _ in range(60):
        optimiser.zero_grad()
        shift.weight.backward(torch.full((2, 3), -direction))
        optimiser.step()
    assert not torch.equal(shift.weight, saturated)


def test_biases_are_corrected_by_images_or_by_norms_and_not_by_both() -> None:
    with pytest.raises(OptionError, match="calibration corrects biases on its images; set bias_correction = false"):
        parse_options(ShiftLinear, {"init": "calibrated", "bias_correction": True}, where="here")
