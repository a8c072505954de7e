"""Codes in a bit stream, against Python's own integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.ops.bit_packing import pack_codes, packed_bytes, unpack_codes


def by_definition(codes: list[int], bits: int) -> bytes:
    """One long integer with code i from bit i * bits on."""
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    return number.to_bytes(packed_bytes(len(codes), bits=bits), "little")


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(0, 41), data=st.data())
def test_the_stream_is_one_little_endian_integer_and_comes_back(bits: int, count: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    stream = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits=bits)
    assert bytes(stream.tolist()) == by_definition(codes, bits)
    assert unpack_codes(stream, bits=bits, count=count).tolist() == codes


def test_at_four_bits_the_first_code_is_the_lower_half_of_its_byte() -> None:
    assert pack_codes(torch.tensor([[0x1, 0x2], [0x3, 0x4]]), bits=4).tolist() == [0x21, 0x43]


@pytest.mark.parametrize(("count", "bits", "wanted"), [(2, 4, 1), (3, 4, 2), (8, 5, 5), (9, 5, 6), (0, 5, 0)])
def test_no_byte_is_wasted(count: int, bits: int, wanted: int) -> None:
    assert len(pack_codes(torch.ones(count), bits=bits)) == packed_bytes(count, bits=bits) == wanted
