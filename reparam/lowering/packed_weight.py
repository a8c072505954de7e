"""Shift weights as the packed words that `reparam.kernels.packed_linear` multiplies by: 4 or 8 bits for each weight.

Four bits are a sign and one of seven powers of two or zero, so all that a layer of at most 4 bits with a code for zero
has; 8 bits are one of 127 powers, so whatever has one term.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.kernels.packed_reference import RUN, UNIT, words_in
from reparam.ops.bit_packing import pack_codes
from reparam.ops.integer import shift_codes
from reparam.ops.power_of_two import power_of_two
from reparam.ops.shift import ShiftLinear

#: Exponents of a scale: those of float32 and bfloat16, without subnormal numbers.
_LOWEST, _HIGHEST = -126, 127
_NO_SHIFT = 2**7 - 1


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """words (O, W) int32 and scale (O,) float32 of codes of `bits` bits, laid out as `packed_reference` says."""

    words: Tensor
    scale: Tensor
    bits: int


def packed_weight(layer: ShiftLinear) -> PackedWeight | None:
    """Packs a layer's rounded weights, exactly; None where they are no single powers of two, or too far apart."""
    if layer.options.terms > 1:
        return None
    weights = shift_codes(layer)
    is_zero, shift = weights.sign == 0, weights.shift.long()
    unused = torch.where(is_zero, _NO_SHIFT, shift).amin(dim=1, keepdim=True)
    codes = torch.where(is_zero, 0, shift - unused + 1)
    lowest = torch.where(is_zero.all(dim=1), 0, (weights.lowest + unused).flatten())
    for bits, unit in UNIT.items():
        exponent = lowest + unit - 1
        if (codes < 1 << (bits - 1)).all() and ((exponent >= _LOWEST) & (exponent <= _HIGHEST)).all():
            signed = (weights.sign < 0).long() << (bits - 1) | codes
            return PackedWeight(_words(signed, bits), power_of_two(exponent), bits)
    return None


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes (O, I) side by side: words (O, W) int32."""
    outputs, inputs = codes.shape
    row = words_in(inputs, bits)
    in_words = F.pad(codes, (0, row * 32 // bits - inputs)).view(outputs, row // RUN, 32 // bits, RUN).transpose(2, 3)
    return pack_codes(in_words, bits=bits).view(torch.int32).view(outputs, row)
