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
from reparam.ops.shift_conv2d import ShiftConv2d
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_weight import shift_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftCodes:
    """A shift layer's weights as a machine holds them, term by term: sign * 2**(shift + lowest).

    sign (O, I) int8 in {-1, 0, 1}; shift (O, I) int8, at least 0, 0 where the sign is 0; lowest (O, 1) int32 exponents.
    Of a convolution, I are the weights of one output channel, I / groups * KH * KW in the order of `F.unfold`. Of more
    terms than one, all first terms come before all second ones, and an input stands once before each: I counts both.
    """

    sign: Tensor
    shift: Tensor
    lowest: Tensor


def shift_codes(layer: ShiftLayer) -> ShiftCodes:
    """Reads the codes of a shift layer; together they give its rounded weights exactly."""
    terms = shift_terms(layer.weight.detach().float(), layer.offset, layer.options).movedim(0, 1).flatten(1)
    lowest = layer.offset.to(torch.int32).flatten(1) + layer.options.lowest_exponent
    sign = torch.sign(terms).to(torch.int8)
    shift = torch.where(sign == 0, 0, exponent_of(terms) - lowest).to(torch.int8)
    return ShiftCodes(sign=sign, shift=shift, lowest=lowest)


def activation_codes(x: Tensor, activation: FixedPoint) -> Tensor:
    """Returns the int32 codes n with activation(x) == n * activation.step(), in eval mode."""
    scaled = x.float() / activation.step()
    rounded = torch.floor(scaled) if activation.rounding == "floor" else torch.round(scaled)
    return rounded.clamp(-activation.largest - 1, activation.largest).to(torch.int32)


def shift_matmul(codes: Tensor, weights: ShiftCodes, *, accumulator_bits: int = 32) -> Tensor:
    """Multiplies integer activations by a shift layer with shifts and adds only.

    Args:
        codes: (..., T, I) integers.
        weights: of the layer; leading axes, such as groups, stand before O as before T.
        accumulator_bits: width of the machine's accumulator.
    Returns:
        (..., T, O) int64; the layer's output without bias is this times step * 2**lowest.
    Raises:
        ReparamError: a partial sum could leave the accumulator; the message names the channel and the width needed.
    """
    # The sum of magnitudes bounds every partial sum, in whatever order the machine adds. It may not fit 64 bits.
    magnitudes = weights.sign.abs() * power_of_two(weights.shift).double()
    largest = codes.abs().double() @ magnitudes.mT
    if largest.numel() and largest.max() >= 2.0 ** (accumulator_bits - 1):
        channel = int(largest.amax(dim=-2).argmax())
        needed = int(largest.max()).bit_length() + 1
        raise ReparamError(
            f"output channel {channel} needs an accumulator of {needed} bits, the machine has {accumulator_bits}; "
            "use fewer weight or activation bits"
        )
    terms = (codes.long().unsqueeze(-2) << weights.shift.long().unsqueeze(-3)) * weights.sign.long().unsqueeze(-3)
    return terms.sum(dim=-1)


def shift_linear_integer(layer: ShiftLinear, x: Tensor, *, accumulator_bits: int = 32) -> Tensor:
    """What `layer` gives for `x` (T, I) when computed in integers; float64 (T, O).

    Raises:
        ReparamError: the layer's activations are not fixed-point, or an accumulator could overflow.
    """
    activation, weights = _fixed_point(layer), shift_codes(layer)
    codes = activation_codes(x, activation).repeat(1, layer.options.terms)
    sums = shift_matmul(codes, weights, accumulator_bits=accumulator_bits)
    return _values(sums, layer, weights)


def shift_conv2d_integer(layer: ShiftConv2d, x: Tensor, *, accumulator_bits: int = 32) -> Tensor:
    """What `layer` gives for `x` (B, I, H, W) when computed in integers; float64 (B, O, OH, OW).

    Raises:
        ReparamError: as for `shift_linear_integer`.
    """
    activation, form, weights = _fixed_point(layer), layer.form, shift_codes(layer)
    codes = activation_codes(form.prepared(x), activation)
    # torch unfolds floats only, which hold all codes; a padded pixel has code 0.
    rows = form.rows(codes.float()).long()
    rows = rows.repeat(1, 1, layer.options.terms)
    sums = shift_matmul(rows, _by_group(weights, form.groups), accumulator_bits=accumulator_bits)
    values = _values(sums.movedim(0, 1).flatten(1), layer, weights)
    return values.view(len(x), *form.output(x.shape), -1).movedim(-1, 1)


def _fixed_point(layer: ShiftLayer) -> FixedPoint:
    if not isinstance(layer.activation, FixedPoint):
        raise ReparamError("an integer form needs fixed-point activations; set activation_bits = 8 or 16")
    return layer.activation


def _by_group(weights: ShiftCodes, groups: int) -> ShiftCodes:
    sign, shift, lowest = (t.unflatten(0, (groups, -1)) for t in (weights.sign, weights.shift, weights.lowest))
    return ShiftCodes(sign=sign, shift=shift, lowest=lowest)


def _values(sums: Tensor, layer: ShiftLayer, weights: ShiftCodes) -> Tensor:
    """What accumulators (T, O) stand for, bias added."""
    scale = _fixed_point(layer).step().double() * power_of_two(weights.lowest).double().T
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
