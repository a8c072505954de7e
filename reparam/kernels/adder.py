"""The adder convolution as torch operators: the fastest form that this device has, opaque to a compiler and shape-safe.

| device | float32 | other types, and depthwise convolutions |
|---|---|---|
| CPU | adder.cpp, or `adder_reference` without a compiler | `adder_reference` |
| CUDA | adder.cu, or without NVRTC `adder_triton`, or without Triton `adder_compiled` | `adder_compiled` |
| others | `adder_reference` | `adder_reference` |

All tensors are channels-last and contiguous; shapes as in `adder_reference`.
"""

import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from reparam.kernels import adder_compiled, adder_native, adder_nvrtc, adder_reference
from reparam.kernels.geometry import Geometry


@torch.library.custom_op("reparam::adder_forward", mutates_args=())
def adder_forward(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns y (B, OH, OW, O) = -sum |w - x| of images x (B, H, W, I) and a weight (O, I / groups, KH, KW)."""
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    return adder_reference.forward(x, weight, geometry)


@adder_forward.register_kernel("cpu")
def _forward_on_cpu(x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    geometry = Geometry.of(x, weight, *sizes)
    run = adder_native.forward if _suits_native(x, geometry) else adder_reference.forward
    return run(x, weight, geometry)


@adder_forward.register_kernel("cuda")
def _forward_on_cuda(x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    geometry = Geometry.of(x, weight, *sizes)
    y: Tensor = _cuda_kernel(x, geometry).forward(x, weight, geometry)
    return y


@adder_forward.register_fake
def _fake_forward(x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    return x.new_empty(Geometry.of(x, weight, *sizes).output_shape)


@torch.library.custom_op("reparam::adder_input_gradient", mutates_args=())
def adder_input_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns gx (B, H, W, I), sums of g * hardtanh(w - x), of a gradient (B, OH, OW, O)."""
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    return adder_reference.input_gradient(gradient, x, weight, geometry)


@adder_input_gradient.register_kernel("cpu")
def _input_gradient_on_cpu(gradient: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    geometry = Geometry.of(x, weight, *sizes)
    run = adder_native.input_gradient if _suits_native(x, geometry) else adder_reference.input_gradient
    return run(gradient, x, weight, geometry)


@adder_input_gradient.register_kernel("cuda")
def _input_gradient_on_cuda(gradient: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    geometry = Geometry.of(x, weight, *sizes)
    gx: Tensor = _cuda_kernel(x, geometry).input_gradient(gradient, x, weight, geometry)
    return gx


@adder_input_gradient.register_fake
def _fake_input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    return torch.empty_like(x)


def _suits_native(x: Tensor, geometry: Geometry) -> bool:
    return _suits_tiles(x, geometry) and adder_native.is_available()


def _cuda_kernel(x: Tensor, geometry: Geometry) -> ModuleType:
    if not _suits_tiles(x, geometry):
        return adder_compiled
    if adder_nvrtc.suits(geometry) and adder_nvrtc.is_available(x.device):
        return adder_nvrtc
    return _triton() or adder_compiled


def _suits_tiles(x: Tensor, geometry: Geometry) -> bool:
    """A depthwise convolution has one channel per group and would leave a hand-written kernel's tiles empty."""
    is_depthwise = geometry.in_channels == 1 or geometry.out_channels == 1
    return x.dtype == torch.float32 and not is_depthwise


def _triton() -> ModuleType | None:
    """The kernel in Triton, which torch brings along on Linux only."""
    if importlib.util.find_spec("triton") is None:
        return None
    from reparam.kernels import adder_triton

    return adder_triton
