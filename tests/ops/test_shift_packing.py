"""Packed shift weights: to the bit the rounded ones, in as many bits as they were given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ops.conv_form import ConvForm
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d, ShiftConv2dOptions
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_packing import PackedShift, pack_shift, unpack_shift
from reparam.ops.shift_weight import ShiftOptions


def linear(weight: Tensor, **options: object) -> ShiftLinear:
    return ShiftLinear(weight, None, ShiftOptions(**options))  # type: ignore[arg-type]


def reloaded(layer: ShiftLayer) -> Tensor:
    """The weight that the layer reads from what was packed; the layer itself forgets its parameters."""
    form, stream, zeros = pack_shift(layer)
    assert stream.dtype == torch.uint8
    assert len(stream) == math.ceil(form.terms * math.prod(form.shape) * form.bits / 8)
    tensors = unpack_shift(form, stream, layer.offset, zeros=zeros)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("latent", "shift", "sign"):
                parameter.fill_(math.nan)
                parameter.copy_(tensors.pop(name))
    assert not tensors
    return layer.weight


@st.composite
def options(draw: st.DrawFn) -> dict[str, object]:
    chosen: dict[str, object] = {
        "bits": draw(st.integers(2, 8)),
        "domain": draw(st.sampled_from(["log", "linear"])),
        "per_channel_offset": draw(st.booleans()),
        "init": draw(st.sampled_from(["rounded", "least-squares"])),
    }
    kind = draw(st.sampled_from(["q", "q of terms", "ps", "no zero code"]))
    extra: dict[str, dict[str, object]] = {
        "q": {},
        "q of terms": {"terms": draw(st.integers(2, 3))},
        "ps": {"parameterisation": "ps"},
        "no zero code": {"zero_code": False},
    }
    return chosen | extra[kind]


@settings(max_examples=150, deadline=None)
@given(
    chosen=options(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 7)),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
    seed=st.integers(0, 2**31),
)
def test_unpacked_weights_are_the_rounded_ones_to_the_bit(
    chosen: dict[str, object], shape: tuple[int, int], scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * torch.exp(3 * torch.randn(shape, generator=generator)) * scale
    weight[torch.rand(shape, generator=generator) < 0.2] = 0.0
    layer = linear(weight, **chosen)
    before = layer.weight.clone()
    assert torch.equal(reloaded(layer), before)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(3, 6),
    groups=st.sampled_from([1, 2]),
    sparsity=st.sampled_from([0.0, 0.6]),
    parameterisation=st.sampled_from(["q", "ps"]),
    seed=st.integers(0, 2**31),
)
def test_a_pruned_or_grouped_convolution_comes_back_too(
    bits: int, groups: int, sparsity: float, parameterisation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 6, 3, groups=groups)
    chosen = ShiftConv2dOptions(bits=bits, sparsity=sparsity, parameterisation=parameterisation)  # type: ignore[arg-type]
    layer = ShiftConv2d(conv.weight, conv.bias, ConvForm.of(conv), chosen)
    before = layer.weight.clone()
    assert torch.equal(reloaded(layer), before)
    assert bool((before == 0).any()) or not sparsity


def test_trained_shifts_and_signs_come_back_as_the_numbers_they_round_to() -> None:
    layer = linear(torch.randn(3, 5), parameterisation="ps", bits=4)
    with torch.no_grad():
        layer.shift.uniform_(-8, 1)
        layer.sign.uniform_(-1.2, 1.2)
    before = layer.weight.clone()
    assert torch.equal(reloaded(layer), before)
    assert set(layer.sign.flatten().tolist()) <= {-1.0, 0.0, 1.0}


def test_a_hand_made_layer_has_these_codes() -> None:
    """e = 0, p_min = -6: the code of 1 is 7, of -1/2 is 8 + 6, of 1/64 is 1, of 0 is 0; two to a byte."""
    form, stream, _ = pack_shift(linear(torch.tensor([[1.0, -0.5, 1 / 64, 0.0]]), bits=4))
    assert form == PackedShift(bits=4, terms=1, zero_code=True, trains=("latent",), shape=(1, 4))
    assert [f"{byte:02x}" for byte in stream.tolist()] == ["e7", "01"]


def test_all_first_terms_stand_before_all_second_ones() -> None:
    _, stream, _ = pack_shift(linear(torch.tensor([[1.0, 0.75]]), bits=4, terms=2))
    assert [f"{byte:02x}" for byte in stream.tolist()] == ["77", "d0"]  # 1 and 1, then 0 and -1/4


def test_zeros_are_listed_only_where_they_have_no_code() -> None:
    weight = torch.tensor([[1.0, 0.0, -0.25, 0.0]])
    assert pack_shift(linear(weight, zero_code=False))[2].tolist() == [1, 3]
    assert pack_shift(linear(weight))[2].tolist() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stream": torch.zeros(5, dtype=torch.uint8)}, "wanted 6 bytes of codes, got (5,)"),
        ({"stream": torch.zeros(6)}, "got (6,) of torch.float32"),
        ({"offset": torch.zeros(2, 1, dtype=torch.int8)}, "wanted 3 offsets, one for each output channel, got 2"),
        ({"zeros": torch.tensor([12], dtype=torch.int32)}, "a zero lies outside the 12 weights"),
        ({"zeros": torch.tensor([-1], dtype=torch.int32)}, "a zero lies outside the 12 weights"),
    ],
    ids=["short", "other type", "offsets", "position", "negative position"],
)
def test_what_does_not_fit_is_told(changed: dict[str, Tensor], said: str) -> None:
    form = PackedShift(bits=4, terms=1, zero_code=False, trains=("latent",), shape=(3, 4))
    given_ = {"stream": torch.zeros(6, dtype=torch.uint8), "offset": torch.zeros(3, 1, dtype=torch.int8)} | changed
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the sentence is compared below
        unpack_shift(form, **given_)
    assert said in str(error.value)
