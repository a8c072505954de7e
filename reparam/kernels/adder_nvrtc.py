"""The adder convolution by the hand-written GPU kernel in adder.cu; float32, shapes as in `adder_reference`.

NVRTC, which ships with torch, compiles it on first use for each device, kind of result and tile: users need no CUDA
toolkit. Why by hand: what torch.compile makes of the expression reads both operands from a cache for every difference,
this keeps them in registers.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.kernels.geometry import Geometry, Pair

logger = logging.getLogger(__name__)

#: The first GPUs that copy to shared memory in the background.
_CAPABILITY = (8, 0)
#: Positions that the kernel counts in 32 bits, with room to add to them.
_MOST = 2**30


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block of threads computes: pixels times channels, of which a thread has `rows` times `columns`.

    `depth` summed channels are in shared memory at a time, `stages` times over, of 48 KB at most; registers suffice for
    `resident` blocks on a multiprocessor.
    """

    pixels: int
    channels: int
    depth: int
    rows: int
    columns: int
    stages: int = 3
    resident: int = 4

    @property
    def threads(self) -> int:
        """Of one block."""
        return self.pixels // self.rows * (self.channels // self.columns)


#: By the most channels that are written: tiles from the one that reuses most to the one that fills most processors.
FORWARD_TILES = {
    16: (Tile(256, 16, 8, 8, 4), Tile(128, 16, 8, 4, 4, resident=6)),
    32: (Tile(128, 32, 16, 8, 4), Tile(64, 32, 16, 4, 4, resident=6)),
    64: (Tile(128, 64, 8, 8, 8), Tile(64, 64, 16, 8, 4), Tile(32, 64, 16, 4, 4, resident=6)),
}
#: The input gradient keeps an x for each of its sums, so that its tiles are smaller.
GRADIENT_TILES = {
    16: (Tile(256, 16, 8, 8, 4, resident=3), Tile(128, 16, 8, 4, 4, resident=4)),
    32: (Tile(128, 32, 16, 8, 4, resident=3), Tile(64, 32, 16, 4, 4, resident=4)),
    64: (Tile(128, 64, 8, 8, 8, resident=2), Tile(64, 64, 16, 8, 4, resident=3), Tile(32, 64, 16, 4, 4, resident=4)),
}
#: Threads of all blocks that a multiprocessor should have before a tile is chosen.
_ENOUGH = 256


@functools.cache
def is_available(device: torch.device) -> bool:
    """Whether NVRTC compiles the kernel for this GPU; says why, once, where it should and does not."""
    if os.environ.get("REPARAM_NATIVE") == "0" or device.type != "cuda" or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < _CAPABILITY or not hasattr(torch.cuda, "_compile_kernel"):
        return False
    try:
        _kernel(device, True, FORWARD_TILES[64][0], 4)
    except (OSError, RuntimeError, ImportError) as error:
        logger.warning(
            "the fast adder kernel cannot be built for %s, so a slower one runs (%s). REPARAM_NATIVE=0 silences this.",
            torch.cuda.get_device_name(device),
            " ".join(str(error).split())[-300:],
        )
        return False
    return True


def suits(geometry: Geometry) -> bool:
    """Whether the sizes fit the kernel's integers."""
    pixels = [geometry.batch * height * width for height, width in (geometry.image, geometry.output)]
    phases = geometry.groups * geometry.stride[0] * geometry.stride[1]
    return max(*pixels, *geometry.padding, *geometry.extent) < _MOST and phases < 2**16


def forward(x: Tensor, weight: Tensor, geometry: Geometry, tile: Tile | None = None) -> Tensor:
    """Returns y (B, OH, OW, G * O) of images x (B, H, W, G * I) and a weight (G * O, I, KH, KW)."""
    packed = geometry.grouped(weight).permute(3, 4, 0, 2, 1).contiguous()
    out = x.new_empty(geometry.output_shape)
    tile = tile or chosen(FORWARD_TILES, geometry.out_channels, out, 1)
    _launch(tile, True, x.contiguous(), packed, x, out, geometry)
    return out


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, tile: Tile | None = None) -> Tensor:
    """Returns gx (B, H, W, G * I) of a gradient (B, OH, OW, G * O)."""
    packed = geometry.grouped(weight).permute(3, 4, 0, 1, 2).contiguous()
    x = x.contiguous()
    out = torch.empty_like(x)
    tile = tile or chosen(GRADIENT_TILES, geometry.in_channels, out, geometry.stride[0] * geometry.stride[1])
    _launch(tile, False, gradient.contiguous(), packed, x, out, geometry)
    return out


def chosen(tiles: dict[int, tuple[Tile, ...]], written: int, out: Tensor, phases: int) -> Tile:
    """The first tile of the fitting width that gives every multiprocessor work, otherwise the smallest."""
    width = next((most for most in tiles if written <= most), max(tiles))
    wanted = _ENOUGH * torch.cuda.get_device_properties(out.device).multi_processor_count
    pixels = out[..., 0].numel() // phases
    columns = -(-written // width) * (out.shape[-1] // written) * phases
    for tile in tiles[width]:
        if -(-pixels // tile.pixels) * columns * tile.threads >= wanted:
            return tile
    return tiles[width][-1]


def _launch(
    tile: Tile, is_forward: bool, source: Tensor, packed: Tensor, own: Tensor, out: Tensor, geometry: Geometry
) -> None:
    if not out.numel():
        return
    summed, written = packed.shape[3:]
    stride: Pair = (1, 1) if is_forward else geometry.stride
    rows, columns = (-(-out.shape[axis + 1] // stride[axis]) for axis in (0, 1))
    grid = (
        -(-geometry.batch * rows * columns // tile.pixels),
        -(-written // tile.channels),
        geometry.groups * stride[0] * stride[1],
    )
    sizes = (
        geometry.batch, *source.shape[1:3], *out.shape[1:3], summed, written, geometry.groups, *geometry.kernel,
        *geometry.stride, *geometry.padding, *geometry.dilation,
    )  # fmt: skip
    vector = 4 if _is_in_fours((summed, written), (source, packed, own, out)) else 1
    with torch.cuda.device(out.device):
        _kernel(out.device, is_forward, tile, vector)(
            grid=grid, block=(tile.threads, 1, 1), args=[source, packed, own, out, *map(int, sizes)]
        )


def _is_in_fours(channels: Iterable[int], tensors: Iterable[Tensor]) -> bool:
    """Whether all copies may be of 16 bytes."""
    return all(number % 4 == 0 for number in channels) and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


@functools.cache
def _kernel(device: torch.device, is_forward: bool, tile: Tile, vector: int) -> Callable[..., None]:
    with torch.cuda.device(device):
        kernel: Callable[..., None] = torch.cuda._compile_kernel(source(is_forward, tile, vector), "adder")
    return kernel


def source(is_forward: bool, tile: Tile, vector: int) -> str:
    """adder.cu with its sizes defined."""
    sizes: dict[str, Any] = {
        "FORWARD": int(is_forward),
        "BM": tile.pixels,
        "BN": tile.channels,
        "BK": tile.depth,
        "TM": tile.rows,
        "TN": tile.columns,
        "STAGES": tile.stages,
        "RESIDENT": tile.resident,
        "VECTOR": vector,
    }
    text = Path(__file__).with_name("adder.cu").read_text(encoding="utf-8")
    return "".join(f"#define {name} {size}\n" for name, size in sizes.items()) + text
