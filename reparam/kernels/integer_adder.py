"""Adder convolutions of int8 codes as a torch operator, opaque to a compiler: inputs and weights on one grid.

On a CPU integer_adder.cpp runs them, elsewhere or without a compiler `integer_reference`, with the same bits; rounding
and numbers that are not finite as there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.kernels import integer_native, integer_reference
from reparam.kernels.geometry import Geometry
from reparam.kernels.integer_operands import require_scales
from reparam.kernels.integer_weight import pack_adder_weight, require_packed_adder, unpack_adder_weight
from reparam.kernels.opaque import opaque

__all__ = ["integer_adder", "pack_adder_weight"]


def _fake_adder(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor, *sizes: Any) -> Tensor:
    return scale.new_empty(Geometry.sized(x, scale.shape[0], *sizes).output_shape)


@opaque(_fake_adder)
def integer_adder(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    step: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Rounds activations to int8 codes, sums -|w - code|, and scales the sums; a padded pixel has code 0.

    Args:
        x: (B, H, W, I) float32, or its codes, int8.
        packed: the weight's codes (O, I / groups, KH, KW) by `pack_adder_weight`, in units of `step`.
        scale: (O,) float32, of each output channel.
        bias: (O,) float32.
        step: of codes and weights, a power of two, float32 with one element.
        kernel: KH and KW, and so on for `stride`, `padding` and `dilation`.
        groups: of input and output channels.
    Returns:
        (B, OH, OW, O) float32, -sum |w - code| * (step * scale) + bias. An image with a NaN gives NaN.
    Raises:
        ReparamError: `x` is neither float32 nor int8, or an operand has another type, device or size.
    """
    if x.dtype not in (torch.float32, torch.int8):
        raise ReparamError(f"integer adders take float32, or codes as int8, not {x.dtype}; convert the input")
    require_scales(x, packed, scale, bias, step)
    geometry = Geometry.sized(x, len(scale), kernel, stride, padding, dilation, groups)
    require_packed_adder(packed, geometry)
    is_native = x.device.type == "cpu" and integer_native.is_available()
    if x.dtype == torch.int8:
        codes, steps = x.contiguous(), step.reshape(1).repeat(len(x))
    else:
        quantise = integer_native.quantise if is_native else integer_reference.quantise_images
        codes, steps = quantise(x.contiguous(), step, 127)
    if is_native:
        return integer_native.adder_conv2d(codes, steps, packed, scale, bias, geometry)
    weight = unpack_adder_weight(packed, geometry)
    return integer_reference.adder_conv2d(codes, steps, weight, scale, bias, geometry)
