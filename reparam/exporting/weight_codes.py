"""Weights as whole numbers with a power of two for each output channel: w[o] = n[o] * 2**e[o], exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

_MANTISSA_BITS = 24
_SMALLEST_EXPONENT = -126
#: Narrowest first.
_TYPES = (torch.int8, torch.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCodes:
    """codes (O, ...) int8 or int16, scale (O,) float32 powers of two; codes times scale is the weight to the bit."""

    codes: Tensor
    scale: Tensor


def weight_codes(weight: Tensor, *, widest: torch.dtype = torch.int16) -> WeightCodes | None:
    """Writes a float32 weight (O, ...) in the narrowest integers that hold it; None where the widest do not.

    A shift layer's channel with k different exponents needs k + 1 bits: 8 bits hold 7 exponents, 16 bits 15.
    """
    flat = weight.detach().flatten(1).double()
    exponent = _lowest_exponent(flat)
    codes = flat * torch.exp2(-exponent)
    largest = codes.abs().max().item() if codes.numel() else 0.0
    taken = _TYPES[: _TYPES.index(widest) + 1]
    dtype = next((dtype for dtype in taken if largest <= torch.iinfo(dtype).max), None)
    if dtype is None or exponent.min() < _SMALLEST_EXPONENT:
        return None
    return WeightCodes(codes=codes.to(dtype).view(weight.shape), scale=torch.exp2(exponent).float().squeeze(1))


def _lowest_exponent(flat: Tensor) -> Tensor:
    """The exponent of the lowest bit that any weight of a channel has set, (O, 1) double; 0 for channels of zeros."""
    mantissa, exponent = torch.frexp(flat)
    whole = (mantissa * 2**_MANTISSA_BITS).long()
    lowest_bit = torch.log2((whole & -whole).double())  # -inf for zeros
    of_weights = torch.where(whole == 0, torch.inf, exponent - _MANTISSA_BITS + lowest_bit)
    lowest = of_weights.amin(dim=1, keepdim=True)
    return torch.where(lowest.isinf(), 0.0, lowest)
