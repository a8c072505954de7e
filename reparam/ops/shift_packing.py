"""Shift weights in the bits that they have: a sign and an exponent code for each term, side by side.

    code = sign << (b - 1) | exponent code,    term = (-1)**sign * 2**(e[o] + p)
    p = exponent code - 1 + p_min, and the exponent code 0 is the weight 0;    without a zero code, p = code + p_min

e[o], b and p_min are those of `shift_weight.py`. The codes of one output channel follow each other, all first terms
before all second ones, and the channels follow each other: (O, terms, I) in row-major order, packed as `bit_packing.py`
says. Unpacking gives the rounded weights to the bit, whatever trained them.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from reparam.ops.bit_packing import pack_codes, packed_bytes, unpack_codes
from reparam.ops.integer import shift_codes
from reparam.ops.power_of_two import power_of_two
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_weight import ShiftOptions
from reparam.recipe.schema import Frozen


class PackedShift(Frozen):
    """All that is needed, beside the codes and the channels' offsets, to read a layer's weights (`shape`).

    `trains` names the parameters that they are unpacked to: the latent weight, or DeepShift-PS's shift and sign.
    """

    bits: int = Field(ge=2, le=8)
    terms: int = Field(ge=1, le=3)
    zero_code: bool
    trains: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def codes(self) -> int:
        """How many codes the layer has."""
        return self.terms * math.prod(self.shape)

    @property
    def lowest_exponent(self) -> int:
        """p_min."""
        return ShiftOptions(bits=self.bits, zero_code=self.zero_code).lowest_exponent


def pack_shift(layer: ShiftLayer) -> tuple[PackedShift, Tensor, Tensor]:
    """Returns how a layer's weights are packed, their bytes, and the row-major positions (int32) of zeros without code.

    A layer without a zero code holds a zero only where a dense weight was exactly 0.
    """
    options, weights = layer.options, shift_codes(layer)
    trains = ("latent",) if options.parameterisation == "q" else ("shift", "sign")
    form = PackedShift(
        bits=options.bits,
        terms=options.terms,
        zero_code=options.zero_code,
        trains=trains,
        shape=tuple(getattr(layer, trains[0]).shape),
    )
    is_zero, exponent = weights.sign == 0, weights.shift.to(torch.int64)
    if options.zero_code:
        exponent = torch.where(is_zero, 0, exponent + 1)
    codes = (weights.sign < 0).to(torch.int64) << (options.bits - 1) | exponent
    positions = is_zero.flatten().nonzero().flatten().to(torch.int32)
    return form, pack_codes(codes, bits=options.bits), positions[: 0 if options.zero_code else None]


def unpack_shift(
    form: PackedShift, stream: Tensor, offset: Tensor, *, zeros: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns the parameters named in `form.trains`, float32 of `form.shape`.

    Args:
        form: how the stream was packed.
        stream: uint8.
        offset: (O, 1, ...) int8, the channels' e.
        zeros: positions of zeros that have no code.
    Raises:
        ValueError: a stream of another length, other offsets, or a position outside the layer.
    """
    _check_sizes(form, stream, offset, zeros)
    code = unpack_codes(stream, bits=form.bits, count=form.codes).view(form.shape[0], form.terms, -1)
    exponent = (code & ((1 << (form.bits - 1)) - 1)).to(torch.int32)
    sign = 1.0 - 2.0 * (code >> (form.bits - 1))
    if form.zero_code:
        sign, exponent = sign * (exponent != 0), (exponent - 1).clamp_min(0)
    power = exponent + form.lowest_exponent
    if form.trains == ("shift", "sign"):
        return {"shift": power.float().view(form.shape), "sign": sign.view(form.shape)}
    terms = sign * power_of_two(power + offset.to(torch.int32).view(-1, 1, 1))
    weight = terms.movedim(1, 0).contiguous().sum(0)
    if zeros is not None:
        weight.view(-1)[zeros.long()] = 0.0
    return {"latent": weight.view(form.shape)}


def _check_sizes(form: PackedShift, stream: Tensor, offset: Tensor, zeros: Tensor | None) -> None:
    wanted = packed_bytes(form.codes, bits=form.bits)
    if stream.dtype != torch.uint8 or stream.shape != (wanted,):
        raise ValueError(f"wanted {wanted} bytes of codes, got {tuple(stream.shape)} of {stream.dtype}")
    if offset.numel() != form.shape[0]:
        raise ValueError(f"wanted {form.shape[0]} offsets, one for each output channel, got {offset.numel()}")
    if zeros is not None and zeros.numel() and not 0 <= int(zeros.min()) <= int(zeros.max()) < form.codes:
        raise ValueError(f"a zero lies outside the {form.codes} weights")
