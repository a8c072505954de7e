"""Integer weights as the kernels read them: panels of outputs that stand side by side, input by input.

| weights and codes | type | panel | a panel's 64 bytes at a time |
|---|---|---|---|
| 8-bit codes, all abs(w) <= 64 | int8 | 16 outputs | four inputs; first -128 * sum w of each output, as int32 |
| others | int16 | 16 outputs | two inputs |
| adders | uint8, w + 128 | 8 outputs | eight inputs |
| depthwise convolutions | int16, or uint8 of adders | | (KH * KW, O) |

The layout is the same on every machine, so that a saved weight can move. What fills up a panel are zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError
from reparam.kernels.geometry import Geometry

PANEL, OCTET = 16, 8
#: Products of two weights up to this and unsigned bytes have sums below 2**15.
LARGEST_BYTE = 64
_INT8 = 127


def pack_weight(values: Tensor, *, largest: int = _INT8) -> Tensor:
    """Packs weights (..., O, I) int16, all in one layout, for codes in [-largest - 1, largest].

    Returns:
        (..., ceil(O / 16), 1 + ceil(I / 4), 16, 4) int8, or (..., ceil(O / 16), ceil(I / 2), 16, 2) int16; contiguous.
    """
    if largest > _INT8 or not fits_bytes(values):
        return _panels(values, 2)
    sums = F.pad(values.sum(-1, dtype=torch.int32) * -128, (0, -values.shape[-2] % PANEL))
    head = sums.unflatten(-1, (-1, 1, PANEL, 1)).view(torch.int8)
    return torch.cat([head, _panels(values.to(torch.int8), 4)], dim=-3)


def fits_bytes(values: Tensor) -> bool:
    """Whether integer weights can be packed as int8, for 8-bit codes."""
    low, high = torch.aminmax(values)
    return bool(low >= -LARGEST_BYTE and high <= LARGEST_BYTE)


def _panels(values: Tensor, group: int) -> Tensor:
    padded = F.pad(values, (0, -values.shape[-1] % group, 0, -values.shape[-2] % PANEL))
    panels: Tensor = padded.unflatten(-1, (-1, group)).unflatten(-3, (-1, PANEL))
    return panels.transpose(-3, -2).contiguous()


def unpack_weight(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Returns the weights (..., O, I), int8 or int16, that were packed."""
    panels = packed[..., 1:, :, :] if packed.dtype == torch.int8 else packed
    return panels.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :outputs, :inputs]


def pack_conv2d_weight(values: Tensor, *, groups: int, largest: int = _INT8) -> Tensor:
    """Packs a weight (O, I / groups, KH, KW) int16 of a convolution, for codes in [-largest - 1, largest].

    Returns:
        Each group as a matrix over KH, KW and its inputs by `pack_weight`; of a depthwise convolution, with one input
        and one output a group, (KH * KW, O) int16.
    """
    if _is_depthwise(values, groups):
        return values.flatten(1).T.contiguous()
    return pack_weight(_by_group(values, groups), largest=largest)


def unpack_conv2d_weight(packed: Tensor, geometry: Geometry) -> Tensor:
    """Returns the weight (G, O, KH, KW, I), int8 or int16, that was packed."""
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


def require_packed(packed: Tensor, *leading: int, outputs: int, inputs: int, largest: int = _INT8) -> None:
    """Raises a ReparamError unless `packed` is by pack_weight of (leading, O, I): kernels would read beyond others."""
    is_narrow = packed.dtype == torch.int8 and largest <= _INT8
    groups, size = (1 + -(-inputs // 4), 4) if is_narrow else (-(-inputs // 2), 2)
    shape = (*leading, -(-outputs // PANEL), groups, PANEL, size)
    _require(packed, shape, torch.int8 if is_narrow else torch.int16, f"pack_weight for codes up to {largest}")


def require_packed_conv2d(packed: Tensor, geometry: Geometry, *, largest: int = _INT8) -> None:
    """The same of pack_conv2d_weight."""
    if geometry.is_depthwise:
        _require(packed, (geometry.taps, geometry.groups), torch.int16, "pack_conv2d_weight")
    else:
        inputs = geometry.taps * geometry.in_channels
        require_packed(packed, geometry.groups, outputs=geometry.out_channels, inputs=inputs, largest=largest)


def require_packed_adder(packed: Tensor, geometry: Geometry) -> None:
    """The same of pack_adder_weight."""
    panels, octets = -(-geometry.out_channels // OCTET), -(-geometry.taps * geometry.in_channels // OCTET)
    whole = (geometry.groups, panels, octets, OCTET, OCTET)
    shape = (geometry.taps, geometry.groups) if geometry.is_depthwise else whole
    _require(packed, shape, torch.uint8, "pack_adder_weight")


def _require(packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype, remedy: str) -> None:
    if packed.dtype != dtype or packed.shape != shape:
        raise ReparamError(
            f"the packed weight must be {dtype} of shape {shape}, not {packed.dtype} of shape {tuple(packed.shape)}; "
            f"make it with {remedy}"
        )


def _is_depthwise(values: Tensor, groups: int) -> bool:
    return values.shape[0] == groups > 1 and values.shape[1] == 1


def _by_group(values: Tensor, groups: int) -> Tensor:
    """Matrices (G, O, KH * KW * I) of a weight (G * O, I, KH, KW)."""
    return values.permute(0, 2, 3, 1).reshape(groups, values.shape[0] // groups, -1)


def _by_tap(rows: Tensor, geometry: Geometry) -> Tensor:
    weight: Tensor = rows.unflatten(-1, (*geometry.kernel, geometry.in_channels))
    return weight
