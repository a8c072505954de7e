"""Convolutions of int8 activation codes with packed int16 weights as a torch operator, opaque to a compiler.

On a CPU integer.cpp runs them, elsewhere or without a compiler `integer_reference`, with the same bits; rounding and
numbers that are not finite as there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.kernels import integer_native, integer_reference
from reparam.kernels.geometry import Geometry
from reparam.kernels.integer_weight import (
    is_depthwise,
    pack_conv2d_weight,
    require_int16,
    require_packed,
    unpack_weight,
)

__all__ = ["integer_conv2d", "pack_conv2d_weight"]


@torch.library.custom_op("reparam::integer_conv2d", mutates_args=())
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
    geometry = _geometry(x, scale, kernel, stride, padding, dilation, groups)
    _require(x, packed, geometry)
    last = x.permute(0, 2, 3, 1).contiguous()
    if x.device.type == "cpu" and integer_native.is_available():
        y = integer_native.conv2d(last, packed, scale, bias, step, geometry)
    else:
        y = integer_reference.conv2d(last, _unpacked(packed, geometry), scale, bias, step, geometry)
    return y.permute(0, 3, 1, 2)


@integer_conv2d.register_fake
def _fake_conv2d(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, *sizes: Any
) -> Tensor:
    return x.new_empty(_geometry(x, scale, *sizes).output_shape).permute(0, 3, 1, 2)


def _geometry(
    x: Tensor,
    scale: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Geometry:
    return Geometry(
        batch=x.shape[0],
        image=(x.shape[2], x.shape[3]),
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
        in_channels=x.shape[1] // groups,
        out_channels=len(scale) // groups,
    )


def _require(x: Tensor, packed: Tensor, geometry: Geometry) -> None:
    if x.dtype != torch.float32:
        raise ReparamError(f"integer layers take float32, not {x.dtype}; convert the input, or leave autocast")
    taps, outputs = geometry.kernel[0] * geometry.kernel[1], geometry.out_channels
    if is_depthwise(outputs * geometry.groups, geometry.in_channels, geometry.groups):
        require_int16(packed, (taps, geometry.groups), remedy="pack_conv2d_weight")
    else:
        require_packed(packed, geometry.groups, outputs=outputs, inputs=taps * geometry.in_channels)


def _unpacked(packed: Tensor, geometry: Geometry) -> Tensor:
    """The weight (G, O, KH, KW, I)."""
    rows = geometry.kernel[0] * geometry.kernel[1] * geometry.in_channels
    is_packed = packed.ndim > 2
    matrices = unpack_weight(packed, geometry.out_channels, rows) if is_packed else packed.T.unsqueeze(1)
    weight: Tensor = matrices.unflatten(-1, (*geometry.kernel, geometry.in_channels))
    return weight
