"""The integer truth: what a multiplier-free machine computes, bit for bit, for each shift and binary operator.

Activations are int8 or int16 codes n with x = n * step, step a power of two. A shift layer accumulates n << (p - p_min)
with signs; binary attention accumulates values by the signs of codes. Accumulators are int64 here and checked against
the width that the machine has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.power_of_two import exponent_of, power_of_two
from reparam.ops.shift import ShiftLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftCodes:
    """A shift layer's weights as a machine holds them: w = sign * 2**(shift + lowest).

    sign (O, I) int8 in {-1, 0, 1}; shift (O, I) int8, at least 0, 0 where the sign is 0; lowest (O, 1) int32 exponents.
    """

    sign: Tensor
    shift: Tensor
    lowest: Tensor


def shift_codes(layer: ShiftLinear) -> ShiftCodes:
    """Reads the codes of a shift layer; together they give its rounded weights exactly."""
    weight = layer.weight.detach().float()
    lowest = layer.offset.to(torch.int32) + layer.options.lowest_exponent
    sign = torch.sign(weight).to(torch.int8)
    shift = torch.where(sign == 0, 0, exponent_of(weight) - lowest).to(torch.int8)
    return ShiftCodes(sign=sign, shift=shift, lowest=lowest)


def activation_codes(x: Tensor, activation: FixedPoint) -> Tensor:
    """Returns the int32 codes n with activation(x) == n * activation.step(), in eval mode."""
    step = activation.step()
    rounded = torch.floor(x / step) if activation.rounding == "floor" else torch.round(x / step)
    return rounded.clamp(-activation.largest - 1, activation.largest).to(torch.int32)


def shift_matmul(codes: Tensor, weights: ShiftCodes, *, accumulator_bits: int = 32) -> Tensor:
    """Multiplies integer activations by a shift layer with shifts and adds only.

    Args:
        codes: (T, I) integers.
        weights: of the layer.
        accumulator_bits: width of the machine's accumulator.
    Returns:
        (T, O) int64; the layer's output without bias is this times step * 2**lowest.
    Raises:
        ReparamError: a partial sum could leave the accumulator; the message names the channel and the width needed.
    """
    terms = (codes.long().unsqueeze(1) << weights.shift.long()) * weights.sign.long()
    # The sum of magnitudes bounds every partial sum, in whatever order the machine adds.
    largest = terms.abs().sum(dim=-1).amax(dim=0) if len(codes) else torch.zeros(len(weights.sign), dtype=torch.int64)
    if len(largest) and int(largest.max()) >= 2 ** (accumulator_bits - 1):
        channel = int(largest.argmax())
        needed = int(largest.max()).bit_length() + 1
        raise ReparamError(
            f"output channel {channel} needs an accumulator of {needed} bits, the machine has {accumulator_bits}; "
            "use fewer weight or activation bits"
        )
    return terms.sum(dim=-1)


def shift_linear_integer(layer: ShiftLinear, x: Tensor, *, accumulator_bits: int = 32) -> Tensor:
    """What `layer` gives for `x` (T, I) when computed in integers; float64 (T, O).

    Raises:
        ReparamError: the layer's activations are not fixed-point, or an accumulator could overflow.
    """
    if not isinstance(layer.activation, FixedPoint):
        raise ReparamError("an integer form needs fixed-point activations; set activation_bits = 8 or 16")
    weights = shift_codes(layer)
    sums = shift_matmul(activation_codes(x, layer.activation), weights, accumulator_bits=accumulator_bits)
    scale = layer.activation.step().double() * power_of_two(weights.lowest).double().T
    return sums.double() * scale + (0.0 if layer.bias is None else layer.bias.detach().double())


def binary_attention_integer(q: Tensor, k: Tensor, v: Tensor, *, constant: int) -> tuple[Tensor, Tensor]:
    """Numerator and normaliser of sum-normalised binary attention, in integers.

    Args:
        q: (N, D) integer codes.
        k: (M, D) integer codes.
        v: (M, E) integer values.
        constant: c of the similarity.
    Returns:
        Numerator (N, E) and normaliser (N, 1), int64; one division each is left to do.
    """
    q, k, v = q.long(), k.long(), v.long()
    numerator = torch.stack([(row.unsqueeze(1) * (k.T.unsqueeze(2) * v).sum(dim=1)).sum(dim=0) for row in q])
    normaliser = (q * k.sum(dim=0)).sum(dim=1, keepdim=True)
    return numerator + constant * v.sum(dim=0), normaliser + constant * len(k)
