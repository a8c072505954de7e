import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.exporting.weight_codes import weight_codes
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions


def powers(*exponents: int) -> Tensor:
    """One channel: 2**e for each, with alternating signs, and a zero."""
    return torch.tensor([[0.0, *((-1) ** i * 2.0**e for i, e in enumerate(exponents))]])


@pytest.mark.parametrize(
    ("exponents", "dtype"),
    [
        pytest.param([-9, -3], torch.int8, id="7 exponents"),
        pytest.param([-9, -2], torch.int16, id="8 exponents"),
        pytest.param([-20, -6], torch.int16, id="15 exponents"),
        pytest.param([-20, -5], None, id="16 exponents"),
        pytest.param([100], torch.int8, id="far from one"),
        pytest.param([-127], None, id="a scale that float32 has no normal number for"),
    ],
)
def test_the_narrowest_integers_that_hold_all_exponents_are_taken(
    exponents: list[int], dtype: torch.dtype | None
) -> None:
    held = weight_codes(powers(*exponents))
    assert (None if held is None else held.codes.dtype) == dtype
    if held is not None:
        assert torch.equal(held.codes.float() * held.scale[:, None], powers(*exponents))


def test_a_target_that_takes_bytes_gets_no_wider_ones() -> None:
    assert weight_codes(powers(-9, -2), widest=torch.int8) is None
    assert weight_codes(powers(-9, -3), widest=torch.int8) is not None


def test_channels_have_scales_of_their_own_and_one_of_zeros_has_one() -> None:
    held = weight_codes(torch.stack([powers(3, 5)[0], powers(-40, -38)[0], torch.zeros(3)]))
    assert held is not None
    assert held.scale.tolist() == [2.0**3, 2.0**-40, 1.0]
    assert held.codes.tolist() == [[0, 1, -4], [0, 1, -4], [0, 0, 0]]


@given(
    bits=st.integers(2, 5),
    terms=st.integers(1, 2),
    zero_code=st.booleans(),
    per_channel=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_codes_times_scales_are_a_shift_layers_weight_to_the_bit(
    bits: int, terms: int, zero_code: bool, per_channel: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    options = ShiftOptions(
        bits=bits, terms=terms if zero_code else 1, zero_code=zero_code, per_channel_offset=per_channel
    )
    weight = ShiftLinear(nn.Linear(9, 5).weight, None, options).weight
    held = weight_codes(weight)
    exponents = (1 << (bits - 1)) - (1 if zero_code else 0)
    assert held is not None or exponents > 15
    if held is not None:
        assert torch.equal(held.codes.float() * held.scale[:, None], weight)
        assert held.codes.dtype == torch.int8 or exponents > 7 or terms > 1
