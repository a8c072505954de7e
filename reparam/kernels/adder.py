"""The adder convolution as torch operators: the fastest form that this device has, opaque to a compiler and shape-safe.

| device | float32 | other types, and a depthwise convolution on a CPU |
|---|---|---|
| CPU | adder.cpp, or `adder_reference` without a compiler | `adder_reference` |
| CUDA | `adder_compiled` | `adder_compiled` |
| others | `adder_reference` | `adder_reference` |

All tensors are channels-last and contiguous; shapes as in `adder_reference`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.kernels import adder_compiled, adder_native, adder_reference
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
    return adder_compiled.forward(x, weight, Geometry.of(x, weight, *sizes))


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
    return adder_compiled.input_gradient(gradient, x, weight, Geometry.of(x, weight, *sizes))


@adder_input_gradient.register_fake
def _fake_input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> Tensor:
    return torch.empty_like(x)


def _suits_native(x: Tensor, geometry: Geometry) -> bool:
    """A depthwise convolution has one channel per group and would leave the kernel's vectors empty."""
    is_depthwise = geometry.in_channels == 1 or geometry.out_channels == 1
    return x.dtype == torch.float32 and not is_depthwise and adder_native.is_available()
