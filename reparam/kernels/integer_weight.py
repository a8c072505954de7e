"""Integer weights as the kernels read them: panels of outputs that stand side by side, input by input.

Products take panels of 16 outputs and pairs of inputs, adders 8 outputs and 8 inputs, so 64 bytes at a time. The layout
is the same on every machine, so that a saved weight can move. What fills up a panel or a pair are zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError
from reparam.kernels.geometry import Geometry

PANEL, OCTET = 16, 8


def pack_weight(values: Tensor) -> Tensor:
    """Packs weights (..., O, I) int16, each alone; returns (..., ceil(O / 16), ceil(I / 2), 16, 2), contiguous."""
    padded = F.pad(values, (0, values.shape[-1] % 2, 0, -values.shape[-2] % PANEL))
    panels: Tensor = padded.unflatten(-1, (-1, 2)).unflatten(-3, (-1, PANEL))
    return panels.transpose(-3, -2).contiguous()


def unpack_weight(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Returns the weights (..., O, I) int16 that were packed."""
    return packed.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :outputs, :inputs]


def pack_conv2d_weight(values: Tensor, *, groups: int) -> Tensor:
    """Packs a weight (O, I / groups, KH, KW) int16 of a convolution.

    Returns:
        (groups, panels, pairs, 16, 2), each group packed as a matrix over KH, KW and its inputs; of a depthwise
        convolution, with one input and one output a group, (KH * KW, O).
    """
    if _is_depthwise(values, groups):
        return values.flatten(1).T.contiguous()
    return pack_weight(_by_group(values, groups))


def unpack_conv2d_weight(packed: Tensor, geometry: Geometry) -> Tensor:
    """Returns the weight (G, O, KH, KW, I) int16 that was packed."""
    inputs = geometry.taps * geometry.in_channels
    is_depthwise = geometry.is_depthwise
    rows = packed.T.unsqueeze(1) if is_depthwise else unpack_weight(packed, geometry.out_channels, inputs)
    return _by_tap(rows, geometry)


def pack_adder_weight(values: Tensor, *, groups: int) -> Tensor:
    """Packs a weight (O, I / groups, KH, KW) int8 of an adder convolution, moved up by 128 to uint8.

    Returns:
        (groups, panels of 8 outputs, octets of inputs, 8, 8), each group packed as a matrix over KH, KW and its inputs,
        what fills it up being zeros before the move; of a depthwise convolution (KH * KW, O).
    """
    moved = (values.to(torch.int16) + 128).to(torch.uint8)
    if _is_depthwise(values, groups):
        return moved.flatten(1).T.contiguous()
    rows = _by_group(moved, groups)
    padded = F.pad(rows, (0, -rows.shape[2] % OCTET, 0, -rows.shape[1] % OCTET), value=128)
    octets: Tensor = padded.unflatten(-1, (-1, OCTET)).unflatten(-3, (-1, OCTET))
    return octets.transpose(-3, -2).contiguous()


def unpack_adder_weight(packed: Tensor, geometry: Geometry) -> Tensor:
    """Returns the weight (G, O, KH, KW, I) int8 that was packed."""
    moved = (packed.to(torch.int16) - 128).to(torch.int8)
    if geometry.is_depthwise:
        return _by_tap(moved.T.unsqueeze(1), geometry)
    rows = moved.transpose(-3, -2).flatten(-4, -3).flatten(-2)
    return _by_tap(rows[:, : geometry.out_channels, : geometry.taps * geometry.in_channels], geometry)


def require_packed(packed: Tensor, *leading: int, outputs: int, inputs: int) -> None:
    """Raises a ReparamError unless `packed` is by pack_weight, from (leading, O, I): kernels read beyond others."""
    _require(packed, (*leading, -(-outputs // PANEL), -(-inputs // 2), PANEL, 2), torch.int16, "pack_weight")


def require_packed_conv2d(packed: Tensor, geometry: Geometry) -> None:
    """The same of pack_conv2d_weight."""
    panels, pairs = -(-geometry.out_channels // PANEL), -(-geometry.taps * geometry.in_channels // 2)
    shape = (geometry.groups, panels, pairs, PANEL, 2)
    _require(packed, _depthwise_shape(geometry) or shape, torch.int16, "pack_conv2d_weight")


def require_packed_adder(packed: Tensor, geometry: Geometry) -> None:
    """The same of pack_adder_weight."""
    panels, octets = -(-geometry.out_channels // OCTET), -(-geometry.taps * geometry.in_channels // OCTET)
    shape = (geometry.groups, panels, octets, OCTET, OCTET)
    _require(packed, _depthwise_shape(geometry) or shape, torch.uint8, "pack_adder_weight")


def _require(packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype, remedy: str) -> None:
    if packed.dtype != dtype or packed.shape != shape:
        raise ReparamError(
            f"the packed weight must be {dtype} of shape {shape}, not {packed.dtype} of shape {tuple(packed.shape)}; "
            f"make it with {remedy}"
        )


def _is_depthwise(values: Tensor, groups: int) -> bool:
    return values.shape[0] == groups > 1 and values.shape[1] == 1


def _depthwise_shape(geometry: Geometry) -> tuple[int, ...] | None:
    return (geometry.taps, geometry.groups) if geometry.is_depthwise else None


def _by_group(values: Tensor, groups: int) -> Tensor:
    """Matrices (G, O, KH * KW * I) of a weight (G * O, I, KH, KW)."""
    return values.permute(0, 2, 3, 1).reshape(groups, values.shape[0] // groups, -1)


def _by_tap(rows: Tensor, geometry: Geometry) -> Tensor:
    weight: Tensor = rows.unflatten(-1, (*geometry.kernel, geometry.in_channels))
    return weight
