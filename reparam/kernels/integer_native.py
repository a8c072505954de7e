"""Integer products by the hand-written CPU kernel in integer.cpp, shapes as in `integer_reference`, weights packed.

Why by hand: torch has no product of int16, which the weights of 5-bit shift layers are, and its int8 product wants
instructions that many CPUs lack (docs/benchmarks.md).
"""

import ctypes

import torch
from torch import Tensor

from reparam.kernels.geometry import Geometry
from reparam.kernels.native import native_library

#: Bits are compared with those of torch, which multiplies and adds one after the other: nothing may be fused. Traps,
#: which nothing here waits for, would keep the compiler from vectors where it rounds and clamps.
FLAGS = ("-ffp-contract=off", "-fno-trapping-math")


def is_available() -> bool:
    """Whether the kernel can be had on this machine; builds it when it was not yet."""
    return _library() is not None


def matmul(codes: Tensor, packed: Tensor, outputs: int) -> Tensor:
    """Returns codes (M, I) int8 times a packed weight (O, I): (M, O) int32."""
    rows, inputs = codes.shape
    out = codes.new_empty(rows, outputs, dtype=torch.int32)
    _call("matmul", codes.contiguous(), packed.contiguous(), out, rows, inputs, outputs)
    return out


def linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None) -> Tensor:
    """Returns y (M, O) of x (M, I)."""
    out = x.new_empty(len(x), len(scale))
    linear_into(out, x, packed, scale, bias, step)
    return out


def linear_into(
    out: Tensor, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None
) -> None:
    """Writes y to `out` (M, O), contiguous."""
    rows, inputs = x.shape
    _call("linear", x.contiguous(), packed.contiguous(), *_optional(scale, bias, step), out, rows, inputs, len(scale))


def conv2d(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, geometry: Geometry
) -> Tensor:
    """Returns y (B, OH, OW, G * O) of images x (B, H, W, G * I)."""
    batch, size = len(x), x[:1].numel()
    codes, steps = torch.empty_like(x, dtype=torch.int8), x.new_empty(batch)
    _call("quantise", x, *_optional(step), codes, steps, batch, size)
    window = (*geometry.image, *geometry.kernel, *geometry.output, *geometry.stride, *geometry.padding)
    sizes = (ctypes.c_long * 12)(*window, *geometry.dilation)
    out = x.new_empty(geometry.output_shape)
    given = (codes, steps, packed.contiguous(), *_optional(scale, bias), out, sizes, batch)
    if packed.ndim == 2:
        _call("depthwise", *given, geometry.groups)
    else:
        _call("conv2d", *given, geometry.in_channels, geometry.out_channels, geometry.groups)
    return out


def _optional(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(name: str, *arguments: Tensor | ctypes.Array[ctypes.c_long] | int | None) -> None:
    function = getattr(_library(), f"reparam_integer_{name}")
    function(*map(_argument, arguments), torch.get_num_threads())


def _argument(value: Tensor | ctypes.Array[ctypes.c_long] | int | None) -> object:
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else value


def _library() -> ctypes.CDLL | None:
    return native_library("integer", *FLAGS)
