"""The adder convolution in plain torch, for any device and type, in bounded memory.

    y[p, o]  = -sum_k |w[o, k] - x[p, k]|
    gx[q, c] = sum over the outputs p that read q, and o, of  g[p, o] * hardtanh(w[o, k] - x[q, c])

One position of the kernel is done at a time, and of that so many pixels that their differences with every output
channel fit into `MEMORY_CAP` bytes; the (outputs x inputs x positions) tensor never exists. The other files of this
room compute the same, faster.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from reparam.kernels.geometry import Geometry

#: Bytes that the differences of one step may take.
MEMORY_CAP = 64 * 2**20


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns y (B, OH, OW, G * O) of images x (B, H, W, G * I) and a weight (G * O, I, KH, KW)."""
    padded = geometry.padded(x)
    out = x.new_zeros(geometry.output_shape).view(-1, geometry.groups, geometry.out_channels)
    for i, j, w in _taps(weight, geometry):
        pixels = _grouped(geometry.tap(padded, i, j), geometry)
        for begin, chunk in _chunks(pixels, geometry):
            out[begin : begin + len(chunk)] -= (w - chunk.unsqueeze(2)).abs_().sum(-1)
    return out.view(geometry.output_shape)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Returns gx (B, H, W, G * I) of a gradient (B, OH, OW, G * O)."""
    padded, (rows, columns) = geometry.padded(x), geometry.padding
    out = torch.zeros_like(padded)
    g = gradient.reshape(-1, geometry.groups, geometry.out_channels, 1)
    for i, j, w in _taps(weight, geometry):
        tap = geometry.tap(padded, i, j)
        pixels = _grouped(tap, geometry)
        found = torch.empty_like(pixels)
        for begin, chunk in _chunks(pixels, geometry):
            end = begin + len(chunk)
            found[begin:end] = (w - chunk.unsqueeze(2)).clamp_(-1, 1).mul_(g[begin:end]).sum(2)
        geometry.tap(out, i, j).add_(found.view(tap.shape))
    height, width = geometry.image
    return out[:, rows : rows + height, columns : columns + width].contiguous()


def _taps(weight: Tensor, geometry: Geometry) -> Iterator[tuple[int, int, Tensor]]:
    """Each position of the kernel with its weights (G, O, I)."""
    grouped = geometry.grouped(weight)
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            yield i, j, grouped[..., i, j]


def _grouped(tap: Tensor, geometry: Geometry) -> Tensor:
    return tap.reshape(-1, geometry.groups, geometry.in_channels)


def _chunks(pixels: Tensor, geometry: Geometry) -> Iterator[tuple[int, Tensor]]:
    each = geometry.groups * geometry.out_channels * geometry.in_channels * pixels.element_size()
    size = max(1, MEMORY_CAP // each)
    for begin in range(0, len(pixels), size):
        yield begin, pixels[begin : begin + size]
