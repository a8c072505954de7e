"""Rounding to signed powers of two, on the bits of the float: no logarithm, so no rounding error at the switch points.

A float is s * m * 2**e with m in [1, 2). Rounding to a power of two keeps s and picks 2**e or 2**(e + 1):
  log domain     up from m = sqrt(2)   (nearest exponent; DeepShift, arXiv:1905.13298)
  linear domain  up from m = 1.5       (nearest value; a smaller squared error)
"""

from typing import Literal

import torch
from torch import Tensor

Domain = Literal["log", "linear"]

#: dtype -> (integer view, mantissa bits, mantissa of the float nearest to sqrt(2)); that float counts as a tie, which
#: goes up.
_LAYOUT = {
    torch.float32: (torch.int32, 23, 0x3504F3),
    torch.float64: (torch.int64, 52, 0x6A09E667F3BCD),
}
_MIN_NORMAL_EXPONENT, _MAX_EXPONENT = -126, 127


def power_of_two(exponent: Tensor) -> Tensor:
    """Returns 2**exponent as float32, exactly; exponents (any shape, integer dtype) saturate at -126 and 127."""
    biased = exponent.to(torch.int32).clamp(_MIN_NORMAL_EXPONENT, _MAX_EXPONENT) + 127
    return (biased << 23).view(torch.float32)


def exponent_of(value: Tensor) -> Tensor:
    """Returns floor(log2(abs(value))) as int32, exactly, for float32 normals; -127 for zero."""
    return ((value.view(torch.int32) & 0x7FFFFFFF) >> 23) - 127


def round_to_power_of_two(value: Tensor, *, domain: Domain = "log") -> Tensor:
    """Rounds to the nearest signed power of two; zeros and subnormals become zero.

    Args:
        value: any shape, finite; half precisions are computed in float32.
        domain: "log" switches at sqrt(2) * 2**e, "linear" at 1.5 * 2**e; the tie goes up.
    Returns:
        Same shape and dtype.
    """
    if value.dtype not in _LAYOUT:
        return round_to_power_of_two(value.float(), domain=domain).to(value.dtype)
    integer, mantissa_bits, sqrt2 = _LAYOUT[value.dtype]
    one = 1 << mantissa_bits
    threshold = sqrt2 if domain == "log" else one >> 1
    # Adding (one - threshold) carries into the exponent exactly when the mantissa has reached the threshold.
    return ((value.detach().view(integer) + (one - threshold)) & -one).view(value.dtype)


def round_to_power_of_two_stochastically(value: Tensor) -> Tensor:
    """Rounds the exponent down or up with the probability of its fraction: E[log2(out)] = log2(abs(value)).

    Zeros stay zero. float32 of any shape; draws from the default generator of the value's device.
    """
    value = value.detach()
    floor = (value.view(torch.int32) & -(1 << 23)).view(torch.float32)
    fraction = torch.where(floor == 0, 0.0, torch.log2(value / torch.where(floor == 0, 1.0, floor)))
    return torch.where(torch.rand_like(fraction) < fraction, 2.0 * floor, floor)
