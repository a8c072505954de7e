"""The adder convolution as one expression that `torch.compile` fuses into a kernel: Triton on a GPU, C++ on a CPU.

The written channels are the last axis, so that a compiler's vectors or warps lie along them, and the reduction runs
inside; measured on a CPU this order takes a sixth of the time of the channels-first one. Shapes as in
`adder_reference`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.kernels.geometry import Geometry, Pair

#: One compiled function serves every layer of a kind, each with sizes of its own; torch gives up after eight.
_MANY = 256


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns y (B, OH, OW, G * O); must be compiled, for it would materialise every difference otherwise."""
    windows = _windows(geometry.padded(x), geometry.kernel, geometry.stride, geometry.dilation, geometry.groups)
    return _compiled(_forward)(windows, _packed(weight, geometry)).flatten(3)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns gx (B, H, W, G * I): each pixel gathers from the outputs that read it."""
    spread = _spread(gradient, geometry)
    windows = _windows(spread, geometry.kernel, (1, 1), geometry.dilation, geometry.groups)
    flipped = _packed(weight, geometry).flip(0, 1).transpose(-1, -2).contiguous()
    return _compiled(_input_gradient)(windows, x.unflatten(-1, (geometry.groups, -1)), flipped).flatten(3)


def _forward(windows: Tensor, weight: Tensor) -> Tensor:
    return -(weight - windows.unsqueeze(-1)).abs().sum((3, 4, 6))


def _input_gradient(windows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    inside = (weight - x[:, :, :, None, None, :, None, :]).clamp(-1, 1)
    return (inside * windows.unsqueeze(-1)).sum((3, 4, 6))


def _windows(padded: Tensor, kernel: Pair, stride: Pair, dilation: Pair, groups: int) -> Tensor:
    """A view (B, OH, OW, KH, KW, G, I) of padded images."""
    view = padded
    for axis in (0, 1):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        view = view.unfold(axis + 1, span, stride[axis])[..., :: dilation[axis]]
    windows: Tensor = view.movedim(3, -1).unflatten(-1, (groups, -1))
    return windows


def _packed(weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight as (KH, KW, G, I, O)."""
    grouped = weight.unflatten(0, (geometry.groups, geometry.out_channels))
    packed: Tensor = grouped.permute(3, 4, 0, 2, 1).contiguous()
    return packed


def _spread(gradient: Tensor, geometry: Geometry) -> Tensor:
    """The gradient with the zeros of the stride between its pixels, padded so that each input pixel has a window."""
    (height, width), (rows, columns) = geometry.output, geometry.stride
    if rows > 1 or columns > 1:
        sparse = gradient.new_zeros(
            geometry.batch, (height - 1) * rows + 1, (width - 1) * columns + 1, gradient.shape[3]
        )
        sparse[:, ::rows, ::columns] = gradient
        gradient = sparse
    before = [extent - padding for extent, padding in zip(geometry.extent, geometry.padding, strict=True)]
    after = [geometry.image[axis] + geometry.extent[axis] - before[axis] - gradient.shape[axis + 1] for axis in (0, 1)]
    return F.pad(gradient, (0, 0, before[1], after[1], before[0], after[0]))


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"fullgraph": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _MANY
    compiled: Callable[..., Tensor] = torch.compile(function, **options)
    return compiled
