"""The adder convolution by the hand-written CPU kernel in adder.cpp; float32, shapes as in `adder_reference`.

Why by hand: of the same expression, torch.compile's kernel takes 1.5 times as long in forward and twice as long in the
input gradient (benchmarks/adder_kernels.py), and it compiles anew for each layer's sizes.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.kernels.geometry import Geometry
from reparam.kernels.native import native_library


def is_available() -> bool:
    """Whether the kernel can be had on this machine; builds it when it was not yet."""
    return _library() is not None


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns y (B, OH, OW, G * O) of images x (B, H, W, G * I) and a weight (G * O, I, KH, KW)."""
    library = _library()
    assert library is not None
    padded = geometry.padded(x)
    width = _rounded(geometry.out_channels, library)
    packed = geometry.grouped(weight).permute(0, 3, 4, 2, 1)
    packed = F.pad(packed, (0, width - geometry.out_channels)).contiguous()
    out = x.new_empty(geometry.output_shape)
    library.reparam_adder_forward(
        *_addresses(padded, packed, out),
        *_longs(
            geometry.batch, *padded.shape[1:3], geometry.in_channels, geometry.out_channels, width, geometry.groups,
            *geometry.kernel, *geometry.output, *geometry.stride, *geometry.dilation,
        ),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns gx (B, H, W, G * I) of a gradient (B, OH, OW, G * O)."""
    library = _library()
    assert library is not None
    width = _rounded(geometry.in_channels, library)
    unused = width - geometry.in_channels
    own = F.pad(x.unflatten(-1, (geometry.groups, -1)), (0, unused)).contiguous()
    packed = F.pad(geometry.grouped(weight).permute(0, 3, 4, 1, 2), (0, unused)).contiguous()
    margin = [extent // stride for extent, stride in zip(geometry.extent, geometry.stride, strict=True)]
    given = F.pad(gradient, (0, 0, *_around(geometry, margin, 1), *_around(geometry, margin, 0))).contiguous()
    out = torch.empty_like(own)
    library.reparam_adder_input_gradient(
        *_addresses(own, given, packed, out),
        *_longs(
            geometry.batch, *geometry.image, width, geometry.out_channels, geometry.groups, *geometry.kernel,
            *given.shape[1:3], *margin, *geometry.padding, *geometry.stride, *geometry.dilation,
        ),
        torch.get_num_threads(),
    )  # fmt: skip
    return out[..., : geometry.in_channels].flatten(3).contiguous()


def _library() -> ctypes.CDLL | None:
    return native_library("adder", "-ffp-contract=fast")


def _around(geometry: Geometry, margin: list[int], axis: int) -> tuple[int, int]:
    """Zeros before and behind the gradient along one axis, up to the outputs that the outermost pixels ask for."""
    last = (geometry.image[axis] - 1 + geometry.padding[axis]) // geometry.stride[axis]
    return margin[axis], max(0, last + 1 - geometry.output[axis])


def _rounded(channels: int, library: ctypes.CDLL) -> int:
    lanes: int = library.reparam_adder_lanes()
    return -(-channels // lanes) * lanes


def _addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _longs(*numbers: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(number) for number in numbers]
