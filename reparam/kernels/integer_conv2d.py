"""Convolutions of activation codes with packed integer weights as a torch operator, opaque to a compiler.

On a CPU integer.cpp runs them, elsewhere or without a compiler `integer_reference`, with the same bits; rounding and
numbers that are not finite as there.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reparam.kernels import integer_native, integer_reference
from reparam.kernels.geometry import Geometry
from reparam.kernels.integer_operands import require_float32
from reparam.kernels.integer_weight import pack_conv2d_weight, require_packed_conv2d, unpack_conv2d_weight
from reparam.kernels.opaque import opaque

__all__ = ["integer_conv2d", "pack_conv2d_weight"]


def _fake_conv2d(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, *sizes: Any
) -> Tensor:
    # The last one, `largest`, changes no shape.
    geometry = Geometry.sized(x.permute(0, 2, 3, 1), scale.shape[0], *sizes[:5])
    return x.new_empty(geometry.output_shape).permute(0, 3, 1, 2)


@opaque(_fake_conv2d)
def integer_conv2d(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    step: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    largest: int = 127,
) -> Tensor:
    """Rounds activations to codes, convolves them with an integer weight, and scales the sums.

    Args:
        x: (B, I, H, W) float32; channels-last is read as it is, others are copied.
        packed: the weight (O, I / groups, KH, KW) by `pack_conv2d_weight`.
        scale: (O,) float32, of each output channel.
        bias: (O,) float32.
        step: of the codes, a power of two, float32 with one element; None: each image's own, the smallest that
            reaches its values.
        kernel: KH and KW, and so on for `stride`, `padding` (with zeros) and `dilation`.
        groups: of input and output channels.
        largest: code, 127 of int8 or 32767 of int16, for which the weight must be packed.
    Returns:
        (B, O, OH, OW) float32, channels-last. An image with a NaN gives NaN, and so does, without a step, one with an
        infinity.
    Raises:
        ReparamError: an operand has another type, device or size.
    """
    require_float32(x, packed, scale, bias, step)
    last = x.permute(0, 2, 3, 1).contiguous()
    geometry = Geometry.sized(last, len(scale), kernel, stride, padding, dilation, groups)
    require_packed_conv2d(packed, geometry, largest=largest)
    if x.device.type == "cpu" and integer_native.is_available():
        codes, steps = integer_native.quantise(last, step, largest)
        y = integer_native.conv2d(codes, steps, packed, scale, bias, geometry)
    else:
        codes, steps = integer_reference.quantise_images(last, step, largest)
        y = integer_reference.conv2d(codes, steps, unpack_conv2d_weight(packed, geometry), scale, bias, geometry)
    return y.permute(0, 3, 1, 2)
