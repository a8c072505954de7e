"""ShiftAddViT's own accounting, reproduced to check its figures: an Eyeriss-like array with the cheapest tiling.

A layer of N tokens or images, C inputs and M outputs, with a kernel R x S on an H x W plane to E x F, is tiled as
M = M3 M2 M1 M0, C = C2 C1 C0, E = E3 E1, N = N3 N0. What each memory delivers follows from the tiling:

    DRAM    inputs M3, weights N3 E3, outputs 1
    buffer  inputs M3 M2, outputs max(2 (C2 - 1), 1)
    array   inputs M3 M2 M1 R E/H, weights N3 E3 E1, sums max(C2 (C1 R - 1), 1)
    register files   inputs M R S E/H F/W, weights N E F, sums max(2 C2 C1 R (C0 S - 1), 1)

times their number of words. Energy is this times the energy of a word, and one operation for each product; time is
N3 N0 M3 M2 M0 C2 C0 E3 F S cycles at 250 MHz. Feasible tilings fit 192 processing elements and their memories; the one
is chosen that minimises (E - Emin) / Emax + (T - Tmin) / Tmax.

What to know before believing it: accumulations cost nothing, a shift layer's words have 10 bits where those of a
multiplication have 32, operands of additions never leave the chip, and DRAM costs 200 pJ a word while everything else
is scaled by 3.7. Most of the saving comes from these assumptions, so the same model in 8 bits belongs beside it.

Source: ShiftAddViT, arXiv:2306.06446, released hw_utils.py, after Eyeriss (Chen et al., ISCA 2016).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Arithmetic = Literal["mul", "add", "shift"]
Bits = Literal[8, 32]

#: pJ of one operation, by width.
_COMPUTE: dict[Bits, dict[Arithmetic, float]] = {
    32: {"mul": 3.7, "add": 0.9, "shift": 0.13},
    8: {"mul": 0.2, "add": 0.03, "shift": 0.024},
}
#: pJ of a word of 16 bits. Operands of an addition come from inside the array.
_DRAM, _BUFFER, _ARRAY, _SUM, _REGISTER, _WEIGHT_REGISTER = 200.0, 22.2, 7.4, 3.7, 3.7, 7.4
#: Width of a shift layer's words: the mean of 16 bits of input and 5 of weight.
_SHIFT_BITS = 10
_ELEMENTS, _OUTPUT_REGISTERS, _INPUT_REGISTERS, _WEIGHT_REGISTERS, _BUFFER_WORDS = 192, 16, 12, 960, 65536
_CYCLES_PER_MS = 250e6 / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayer:
    """A product as the array runs it: `rows` tokens or images, `inputs` and `outputs` channels, a kernel on a plane."""

    arithmetic: Arithmetic
    rows: int
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    plane: tuple[int, int] = (1, 1)
    out_plane: tuple[int, int] = (1, 1)
    stride: int = 1
    is_convolution: bool = False

    @property
    def products(self) -> int:
        """Multiplications, additions or shifts."""
        kernel, plane = self.kernel, self.out_plane
        return self.rows * self.inputs * self.outputs * kernel[0] * kernel[1] * plane[0] * plane[1]


@dataclass(frozen=True, slots=True)
class ArrayCost:
    """Energy in pJ and time in ms of one layer."""

    picojoules: float
    milliseconds: float


@cache
def array_cost(layer: ArrayLayer, *, bits: Bits = 32) -> ArrayCost | None:
    """Returns the cost of a layer with its best tiling, None where no tiling fits the array.

    Args:
        layer: what runs.
        bits: width of operands; in 8 bits the array has four times the elements and twice the memory.
    """
    n, m, c, e = (_Tiles(*tiles) for tiles in _grids(layer))
    (rows, cols), (height, width), (out_height, out_width) = layer.kernel, layer.plane, layer.out_plane
    inputs = layer.rows * height * width * layer.inputs
    weights = rows * cols * layer.outputs * layer.inputs
    outputs = layer.rows * out_height * out_width * layer.outputs
    overlap, across = rows * out_height / height, cols * out_width / width
    is_add, word_bits = layer.arithmetic == "add", _SHIFT_BITS if layer.arithmetic == "shift" else bits
    m3, m2, m1, m0 = m.parts
    c2, c1, c0 = c.parts
    n3, n0 = n.parts
    e3, e1 = e.parts
    moved = (
        (0.0 if is_add else _DRAM) * (m3 * inputs + n3 * e3 * weights + outputs)
        + (0.0 if is_add else _BUFFER) * (m3 * m2 * inputs + (2 * (c2 - 1)).clamp(min=1) * outputs)
        + (0.0 if is_add else _ARRAY) * (m3 * m2 * m1 * overlap * inputs + n3 * e3 * e1 * weights)
        + _SUM * (c2 * (c1 * rows - 1)).clamp(min=1) * outputs
        + _REGISTER * m3 * m2 * m1 * m0 * overlap * across * inputs
        + _WEIGHT_REGISTER * n3 * n0 * e3 * e1 * out_width * weights
        + _REGISTER * (2 * c2 * c1 * rows * (c0 * cols - 1)).clamp(min=1) * outputs
    )
    energy = moved * word_bits / 16 + _COMPUTE[bits][layer.arithmetic] * layer.products
    cycles = n3 * n0 * m3 * m2 * m0 * c2 * c0 * e3 * out_width * cols
    time = cycles / _CYCLES_PER_MS * (_SHIFT_BITS / 32 if layer.arithmetic == "shift" else 1)
    elements, memory = (4, 2) if bits == 8 else (1, 1)
    window = ((e1 - 1) * layer.stride + rows) * ((out_width - 1) * layer.stride + cols)
    fits = (
        (m1 * c1 * e1 * rows < _ELEMENTS * elements)
        & (m0 <= _OUTPUT_REGISTERS * memory)
        & (c0 * cols < _INPUT_REGISTERS * memory)
        & (m0 * c0 * cols < _WEIGHT_REGISTERS * memory)
        & (n0 * c1 * c0 * window + n0 * m2 * m1 * m0 * e1 * out_width < _BUFFER_WORDS * memory)
    )
    if layer.is_convolution:
        fits = fits & (e1 != 1)
    return _cheapest(energy, time, fits)


def _cheapest(energy: Tensor, time: Tensor, fits: Tensor) -> ArrayCost | None:
    energy, time, fits = torch.broadcast_tensors(energy, time, fits)
    energy, time = energy[fits], time[fits]
    if not len(energy):
        return None
    best = ((energy - energy.min()) / energy.max() + (time - time.min()) / time.max()).argmin()
    return ArrayCost(float(energy[best]), float(time[best]))


class _Tiles:
    """All ways to split one size into factors, along one axis of the search."""

    def __init__(self, size: int, factors: int, axis: int) -> None:
        ways = torch.tensor(list(_splits(size, factors)), dtype=torch.float64)
        shape = [1, 1, 1, 1]
        shape[axis] = len(ways)
        self.parts = [column.reshape(shape) for column in ways.unbind(1)]


def _grids(layer: ArrayLayer) -> Iterator[tuple[int, int, int]]:
    sizes = (layer.rows, layer.outputs, layer.inputs, layer.out_plane[0])
    return ((size, factors, axis) for axis, (size, factors) in enumerate(zip(sizes, (2, 4, 3, 2), strict=True)))


def _splits(size: int, factors: int) -> Iterator[tuple[int, ...]]:
    if factors == 1:
        yield (size,)
        return
    for first in range(1, size + 1):
        if size % first == 0:
            yield from ((first, *rest) for rest in _splits(size // first, factors - 1))
