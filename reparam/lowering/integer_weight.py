"""Weights as int16 numbers times a power of two, in as many parts as a machine's words need.

A shift weight is w[o] * 2**-lowest[o] = n, whole: with 4 bits at most 64, with 5 bits at most 2**14. One part is enough
while n fits int16 and no sum of n * code can leave an int32 accumulator. Wider ranges are split by magnitude, term by
term, into parts with a power of two of their own, whose products are added: exact, at a product's cost for each part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.errors import BackendError
from reparam.ops.integer import shift_codes
from reparam.ops.power_of_two import power_of_two
from reparam.ops.shift_layer import ShiftLayer

_LARGEST_WEIGHT = 2**15 - 1
_LARGEST_SUM = 2**31 - 1
_NO_SHIFT = 2**7 - 1
#: More products than this take longer than one in float32.
MOST_PARTS = 4
#: Parts are made in int64, which holds the sum of three terms of this many exponents.
_MOST_EXPONENTS = 60


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """values (O, I) int16 times scale (O,) float32. Of a convolution, I are in `F.unfold`'s order."""

    values: Tensor
    scale: Tensor


def shift_parts(layer: ShiftLayer, *, largest: int) -> list[IntegerWeight]:
    """Returns parts whose sum is the layer's rounded weight, exactly; one part wherever that is possible.

    Args:
        layer: a shift layer.
        largest: activation code, 127 or 32767.

    Raises:
        BackendError: more parts would be needed than pay.
    """
    codes = shift_codes(layer)
    lowest, shift = codes.lowest.long(), codes.shift.long()
    inputs = codes.sign.shape[1] // layer.options.terms
    sign, shift = (t.unflatten(1, (layer.options.terms, inputs)) for t in (codes.sign.long(), shift))
    unused = torch.where(sign == 0, _NO_SHIFT, shift).amin(dim=(1, 2), keepdim=True)
    # An output without a weight has no exponent; any will do that leaves its scale finite.
    lowest = torch.where(unused == _NO_SHIFT, 0, lowest.view_as(unused) + unused)
    shift = torch.where(sign == 0, 0, shift - unused)
    widest = int(shift.max()) + 1
    for parts in range(-(-widest // _MOST_EXPONENTS), MOST_PARTS + 1):
        width = -(-widest // parts)
        found = [_part(sign, shift, lowest, start, width) for start in range(0, widest, width)]
        if all(_fits(values, largest) for values, _ in found):
            return [IntegerWeight(values.to(torch.int16), scale) for values, scale in found]
    raise BackendError(
        f"its weights span {widest} exponents over {inputs} inputs, which {MOST_PARTS} int16 products with "
        f"{largest.bit_length() + 1}-bit inputs cannot sum in 32 bits; convert with fewer bits, or lower to float32"
    )


def _part(sign: Tensor, shift: Tensor, lowest: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """The terms whose shift is in [start, start + width): whole numbers (O, I) int64, and their scale (O,)."""
    is_in = (shift >= start) & (shift < start + width)
    values = (is_in * sign << (shift - start).clamp_min(0)).sum(dim=1)
    return values, power_of_two(lowest.flatten() + start)


def _fits(values: Tensor, largest: int) -> bool:
    magnitude = values.abs()
    sums = magnitude.sum(dim=1) * (largest + 1)
    return not values.numel() or bool(magnitude.max() <= _LARGEST_WEIGHT and sums.max() <= _LARGEST_SUM)


def rounded_weight(layer: nn.Linear | nn.Conv2d, *, largest: int) -> IntegerWeight:
    """Rounds a dense weight to whole numbers up to `largest`, symmetric, with a float scale for each output."""
    weight = layer.weight.detach().float().flatten(1)
    scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / largest
    values = torch.round(weight / scale[:, None]).clamp(-largest, largest)
    return IntegerWeight(values.to(torch.int16), scale)
