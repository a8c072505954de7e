"""The nearest sum of signed powers of two, and the offset with the smallest squared error.

Both are exact. The nearest sum of k terms starts with the power below or above the weight's magnitude: written with the
fewest signed digits, no two of them neighbours, a number v has a leading power in [3/4 v, 3/2 v], and no sum beyond the
next power is nearer to a weight than that power itself. So 2**k branches hold the best one. An offset only moves the
ends of the range, by whole exponents, so trying each one is a least-squares fit without alternation.
"""

import torch
from torch import Tensor

from reparam.ops.power_of_two import exponent_of, power_of_two
from reparam.ops.shift_weight import ShiftOptions, channel_offset, shift_weight

#: Offsets that are tried, relative to that of the largest weight. A higher one than 1 only loses small exponents; one
#: below -4 clips all weights above a sixteenth of the largest.
_TRIED = range(-4, 2)


def nearest_sum(weight: Tensor, offset: Tensor, options: ShiftOptions) -> Tensor:
    """Returns the value nearest to each weight that a shift layer can hold.

    Args:
        weight: (O, ...) float32.
        offset: (O, 1, ...) integer exponents e of the channels.
        options: bits, terms and zero code; the rounding domain plays no part.
    Returns:
        (O, ...) float32, which `shift_weight` leaves as it is.
    """
    top = power_of_two(offset)
    bottom = power_of_two(offset.to(torch.int32) + options.lowest_exponent)
    if not options.zero_code:
        return _nearer_power(weight, bottom, top).masked_fill(weight == 0, 0.0)
    return _best(weight, bottom, top, options.terms)


def least_squares_offset(weight: Tensor, options: ShiftOptions) -> Tensor:
    """Returns e (O, 1, ...) int8: the offset at which each channel's rounded weights have the smallest squared error.

    Ties go to the offset nearest to that of the largest weight.

    Args:
        weight: (O, ...) dense weights.
        options: how they are rounded.
    """
    first = channel_offset(weight, domain=options.domain)
    if weight.is_meta:
        return first
    wide, axes = weight.detach().float(), tuple(range(1, weight.ndim))
    best, least = first, torch.full_like(first, torch.inf, dtype=torch.float32)
    for step in sorted(_TRIED, key=abs):
        offset = (first.to(torch.int32) + step).clamp(-126, 127).to(torch.int8)
        error = (wide - shift_weight(wide, offset, options)).square().sum(axes, keepdim=True)
        best, least = torch.where(error < least, offset, best), torch.minimum(error, least)
    return best


def _best(rest: Tensor, bottom: Tensor, top: Tensor, terms: int) -> Tensor:
    """The nearest sum of at most `terms` powers, by branching; 0 is the empty one."""
    if terms == 1:
        power = _nearer_power(rest, bottom, top)
        return torch.where((rest - power).abs() < rest.abs(), power, 0.0)
    best = torch.zeros_like(rest)
    below = power_of_two(exponent_of(rest))
    for magnitude in (below, 2 * below):
        power = torch.copysign(torch.minimum(torch.maximum(magnitude, bottom), top), rest)
        found = power + _best(rest - power, bottom, top, terms - 1)
        best = torch.where((rest - found).abs() < (rest - best).abs(), found, best)
    return best


def _nearer_power(rest: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    below = power_of_two(exponent_of(rest))
    nearer = torch.where(rest.abs() < 1.5 * below, below, 2 * below)
    return torch.copysign(torch.minimum(torch.maximum(nearer, bottom), top), rest)
