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

from reparam.kernels.geometry import Geometry, Pair

#: One compiled function serves every layer of a kind, each with sizes of its own; torch gives up after eight.
_MANY = 256


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns y (B, OH, OW, G * O); must be compiled, for it would materialise every difference otherwise."""
    windows = _windows(geometry.padded(x), geometry.kernel, geometry.stride, geometry.dilation, geometry.groups)
    return _compiled(_forward)(windows, _packed(weight, geometry)).flatten(3)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns gx (B, H, W, G * I): each pixel gathers from the outputs that read it."""
    spread = geometry.spread(gradient)
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
    return geometry.grouped(weight).permute(3, 4, 0, 2, 1).contiguous()


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"fullgraph": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _MANY
    compiled: Callable[..., Tensor] = torch.compile(function, **options)
    return compiled
