"""Small integers side by side in bytes: one little-endian stream, in which code i takes the bits from i * b on.

At 4 bits two codes share a byte, the first in its lower half; at 5 bits eight codes take five bytes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

#: Codes that together fill whole bytes at any width, and fit one 64-bit word.
_GROUP = 8


def packed_bytes(count: int, *, bits: int) -> int:
    """How many bytes `count` codes take."""
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, *, bits: int) -> Tensor:
    """Returns `packed_bytes` uint8 of integer codes of any shape, in row-major order.

    Args:
        codes: in [0, 2**bits).
        bits: 1 to 8.
    """
    flat = codes.flatten().to(torch.int64)
    groups = F.pad(flat, (0, -len(flat) % _GROUP)).view(-1, _GROUP)
    words = (groups << bits * _count(_GROUP, codes)).sum(1, keepdim=True)
    stream = (words >> 8 * _count(bits, codes)) & 0xFF
    return stream.flatten()[: packed_bytes(len(flat), bits=bits)].to(torch.uint8)


def unpack_codes(stream: Tensor, *, bits: int, count: int) -> Tensor:
    """Returns the `count` codes of a stream that `pack_codes` made, as uint8 (count,)."""
    groups = F.pad(stream.to(torch.int64), (0, -len(stream) % bits)).view(-1, bits)
    words = (groups << 8 * _count(bits, stream)).sum(1, keepdim=True)
    codes = (words >> bits * _count(_GROUP, stream)) & ((1 << bits) - 1)
    return codes.flatten()[:count].to(torch.uint8)


def _count(end: int, like: Tensor) -> Tensor:
    return torch.arange(end, device=like.device)
