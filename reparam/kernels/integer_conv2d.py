"""Convolutions of int8 activation codes with packed int16 weights as a torch operator, opaque to a compiler.

On a CPU integer.cpp runs them, elsewhere or without a compiler `integer_reference`, with the same bits; rounding and
numbers that are not finite as there.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reparam.kernels import integer_native, integer_reference
from reparam.kernels.geometry import Geometry
from reparam.kernels.integer_linear import require_float32
from reparam.kernels.integer_weight import pack_conv2d_weight, require_packed_conv2d, unpack_conv2d_weight
from reparam.kernels.opaque import opaque

__all__ = ["integer_conv2d", "pack_conv2d_weight"]


def _fake_conv2d(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, *sizes: Any
) -> Tensor:
    geometry = Geometry.sized(x.permute(0, 2, 3, 1), scale.shape[0], *sizes)
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
) -> Tensor:
    """Rounds activations to int8 codes, convolves them with an integer weight, and scales the sums.

    Args:
        x: (B, I, H, W) float32; channels-last is read as it is, others are copied.
        packed: the weight (O, I / groups, KH, KW) by `pack_conv2d_weight`.
        scale: (O,) float32, of each output channel.
        bias: (O,) float32.
        step: of the codes, a power of two, float32 with one element; None: a power of two for each image.
        kernel: KH and KW, and so on for `stride`, `padding` (with zeros) and `dilation`.
        groups: of input and output channels.
    Returns:
        (B, O, OH, OW) float32, channels-last. An image with a NaN gives NaN, and so does, without a step, one with an
        infinity.
    Raises:
        ReparamError: `x` is not float32, or the weight is packed for other sizes.
    """
    require_float32(x)
    last = x.permute(0, 2, 3, 1).contiguous()
    geometry = Geometry.sized(last, len(scale), kernel, stride, padding, dilation, groups)
    require_packed_conv2d(packed, geometry)
    if x.device.type == "cpu" and integer_native.is_available():
        codes, steps = integer_native.quantise(last, step)
        y = integer_native.conv2d(codes, steps, packed, scale, bias, geometry)
    else:
        codes, steps = integer_reference.quantise_images(last, step)
        y = integer_reference.conv2d(codes, steps, unpack_conv2d_weight(packed, geometry), scale, bias, geometry)
    return y.permute(0, 3, 1, 2)
