"""Integer layers by the hand-written CPU kernels in integer.cpp and integer_adder.cpp, on packed weights.

Why by hand: torch has no product of int16, which the weights of 5-bit shift layers are, and its int8 product wants
instructions that many CPUs lack (docs/benchmarks.md).
"""

import ctypes
import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from reparam.kernels.geometry import Geometry
from reparam.kernels.native import native_library

#: Bits are compared with those of torch, which multiplies and adds one after the other: nothing may be fused. Traps,
#: which nothing here waits for, would keep the compiler from vectors where it rounds and clamps.
FLAGS = ("-ffp-contract=off", "-fno-trapping-math")
#: How many pointers and how many numbers each function takes, before the number of threads.
_ARGUMENTS = {
    "matmul": (3, 4),
    "linear": (6, 5),
    "quantise": (4, 4),
    "conv2d": (7, 2),
    "depthwise": (7, 1),
    "adder_conv2d": (7, 0),
    "adder_depthwise": (7, 0),
}


def is_available() -> bool:
    """Whether the kernels can be had on this machine; builds them when they were not yet."""
    return all(_library(name) is not None for name in ("integer", "integer_adder"))


def matmul(codes: Tensor, packed: Tensor, outputs: int) -> Tensor:
    """Returns codes (M, I) int8 times a packed weight (O, I): (M, O) int32."""
    rows, inputs = codes.shape
    out = codes.new_empty(rows, outputs, dtype=torch.int32)
    _call("matmul", codes.contiguous(), packed.contiguous(), out, rows, inputs, outputs, packed.element_size())
    return out


def linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int) -> Tensor:
    """Returns y (M, O) of x (M, I)."""
    out = x.new_empty(len(x), len(scale))
    linear_into(out, x, packed, scale, bias, step, largest)
    return out


def linear_into(
    out: Tensor, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int
) -> None:
    """Writes y to `out` (M, O), contiguous."""
    rows, inputs = x.shape
    given = (x.contiguous(), packed.contiguous(), *_optional(scale, bias, step))
    _call("linear", *given, out, rows, inputs, len(scale), largest, packed.element_size())


def quantise(x: Tensor, step: Tensor | None, largest: int) -> tuple[Tensor, Tensor]:
    """Returns codes, int8 or int16, of images x (B, ...), and the steps (B,)."""
    codes = torch.empty_like(x, dtype=torch.int8 if largest <= 127 else torch.int16)
    steps = x.new_empty(len(x))
    _call("quantise", x, *_optional(step), codes, steps, len(x), x[:1].numel(), largest, codes.element_size())
    return codes, steps


def conv2d(
    codes: Tensor, steps: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Returns y (B, OH, OW, G * O) of codes (B, H, W, G * I) in steps (B,)."""
    widths = (codes.element_size(),) if geometry.is_depthwise else (codes.element_size(), packed.element_size())
    name = "depthwise" if geometry.is_depthwise else "conv2d"
    return _convolve(name, codes, steps, packed, scale, bias, geometry, *widths)


def adder_conv2d(
    codes: Tensor, steps: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The same with differences in the place of products."""
    name = "adder_depthwise" if geometry.is_depthwise else "adder_conv2d"
    return _convolve(name, codes, steps, packed, scale, bias, geometry)


def _convolve(
    name: str,
    codes: Tensor,
    steps: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *widths: int,
) -> Tensor:
    sizes = (
        geometry.batch, *geometry.image, *geometry.kernel, *geometry.output, *geometry.stride, *geometry.padding,
        *geometry.dilation, geometry.in_channels, geometry.out_channels, geometry.groups,
    )  # fmt: skip
    out = steps.new_empty(geometry.output_shape)
    window = (ctypes.c_long * len(sizes))(*sizes)
    _call(name, codes, steps, packed.contiguous(), *_optional(scale, bias), out, window, *widths)
    return out


def _optional(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(name: str, *arguments: Tensor | ctypes.Array[ctypes.c_long] | int | None) -> None:
    library = _library("integer_adder" if name.startswith("adder") else "integer")
    assert library is not None
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    _function(library, name)(*values, torch.get_num_threads())


@functools.cache
def _function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    """With its types, which spares each call a conversion of each argument."""
    pointers, numbers = _ARGUMENTS[name]
    function = getattr(library, f"reparam_integer_{name}")
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * numbers + [ctypes.c_int]
    function.restype = None
    return cast(Callable[..., None], function)


def _library(name: str) -> ctypes.CDLL | None:
    return native_library(name, *FLAGS)
