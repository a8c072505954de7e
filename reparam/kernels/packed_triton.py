"""Linear layers on packed powers of two in Triton; words, codes and shapes as in `packed_reference`.

Codes become floats by their bits: two shifts and two masks place signs and exponents of two codes at once as bfloat16
numbers in the halves of a word. Without an offset the exponent code 0 is then the float 0, with no test for it; one
multiplication by a power of two, which is exact, brings the others from the smallest floats to around 1.

A single row is multiplied and summed by the ordinary units, more by tensor cores. Sums are float32 either way. Where
outputs alone leave processors idle the inputs are split, and `_finish` adds up the parts in a fixed order.
"""

# Triton's language has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, disallow-untyped-decorators=False

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from reparam.kernels.packed_reference import RUN, UNIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What one program computes: rows of x times outputs, over `words` at a time, by tensor cores (`dot`) or without.

    Tensor cores want at least 16 of each.
    """

    rows: int
    outputs: int
    words: int
    dot: bool
    warps: int = 4
    stages: int = 3


#: By the most rows of x; more than the last has take several programs. Of the sizes tried these have the fewest
#: instructions a weight (benchmarks/cuda_instructions.py); from two rows on, tensor cores want fewer than other units.
TILES = {
    1: Tile(rows=1, outputs=16, words=128, dot=False),
    16: Tile(rows=16, outputs=64, words=64, dot=True, stages=2),
    32: Tile(rows=32, outputs=64, words=64, dot=True, stages=2),
    64: Tile(rows=64, outputs=64, words=32, dot=True, stages=2),
}


def linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    bits: int,
    tile: Tile | None = None,
    splits: int | None = None,
) -> Tensor:
    """Returns y (M, O) in the type of x of x (M, I), bfloat16 or, for products in that type, float32.

    `splits` parts of the inputs are summed apart; by default as many as keep the device busy.
    """
    rows, inputs, outputs = *x.shape, len(words)
    out = x.new_empty(rows, outputs)
    if not out.numel():
        return out
    tile = tile or chosen(rows)
    grid = triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows)
    steps = triton.cdiv(words.shape[1], tile.words)
    splits = min(splits or max(1, _processors(x.device) // (grid[0] * grid[1])), steps)
    span = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, span)  # without a part that is left empty
    sums = out if splits == 1 else x.new_empty(splits, rows, outputs, dtype=torch.float32)
    _product[(*grid, splits)](
        x.contiguous(), words, scale, bias, sums, rows, inputs, outputs, words.shape[1] // RUN, span,
        IS_WHOLE=splits == 1, BITS=bits, UNIT=UNIT[bits], DOT=tile.dot, BM=tile.rows, BN=tile.outputs, BW=tile.words,
        STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    if splits > 1:
        _finish[(triton.cdiv(outputs, 128), rows)](sums, scale, bias, out, splits, rows, outputs, BN=128, num_warps=4)
    return out


def weight(words: Tensor, scale: Tensor, inputs: int, bits: int) -> Tensor:
    """Returns the weight (O, I) bfloat16."""
    out = torch.empty(len(words), inputs, dtype=torch.bfloat16, device=words.device)
    if out.numel():
        grid = triton.cdiv(len(words), 16), triton.cdiv(words.shape[1], 32)
        runs = words.shape[1] // RUN
        _weight[grid](
            words, scale, out, inputs, len(words), runs, BITS=bits, UNIT=UNIT[bits], BN=16, BW=32, num_warps=4
        )
    return out


def compiled_for(capability: int, bits: int, tile: Tile) -> Any:
    """`_product` for sizes that are multiples of 16, compiled for a GPU that need not be here.

    Args:
        capability: of the GPU, such as 90.
    Returns:
        Triton's compiled kernel, with `asm` and `metadata`.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        "IS_WHOLE": True, "BITS": bits, "UNIT": UNIT[bits], "DOT": tile.dot, "BM": tile.rows, "BN": tile.outputs,
        "BW": tile.words, "STAGES": tile.stages,
    }  # fmt: skip
    types = {"x": "*bf16", "words": "*i32", "scale": "*bf16", "bias": "*bf16", "out": "*bf16"}
    names = _product.arg_names
    aligned = [i for i, name in enumerate(names) if name not in _UNSPECIALIZED and name not in constants]
    source = ASTSource(
        _product,
        signature={name: "constexpr" if name in constants else types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps})


def chosen(rows: int) -> Tile:
    """The tile for so many rows of x."""
    return TILES[next((most for most in TILES if rows <= most), max(TILES))]


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


#: Compiled anew only for inputs and outputs that are multiples of 16 or are not.
_UNSPECIALIZED = ["rows", "span", "splits"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _product(
    x, words, scale, bias, out, rows, inputs, outputs, runs, span, IS_WHOLE: tl.constexpr, BITS: tl.constexpr,
    UNIT: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    is_output, is_row = n < outputs, m < rows
    row_words = runs * 8  # known to be a multiple of 8, so that words are read by fours
    read = words + n.to(tl.int64)[:, None] * row_words
    own = x + m.to(tl.int64) * inputs
    half: tl.constexpr = 16 // BITS
    total = tl.zeros((BN, BM) if DOT else (BM, BN, BW), tl.float32)
    first, steps = tl.program_id(2) * span, tl.cdiv(row_words, BW)
    for step in tl.range(first, tl.minimum(first + span, steps), num_stages=STAGES):
        w = step * BW + tl.arange(0, BW)
        word = tl.load(read + w[None, :], mask=is_output[:, None] & (w < row_words)[None, :], other=0)
        k = w // 8 * (256 // BITS) + w % 8
        for place in tl.static_range(half):
            low, high = _floats(word, place, BITS, UNIT)
            total = _sum(total, low, own, k + place * 8, is_row, inputs, DOT)
            total = _sum(total, high, own, k + (place + half) * 8, is_row, inputs, DOT)
    sums = tl.trans(total) if DOT else tl.sum(total, 2)
    if IS_WHOLE:
        sums = _scaled(sums, scale, bias, n, is_output)
    at = (tl.program_id(2) * rows + m).to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit
def _floats(word, place: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr):
    """The codes at `place` in the lower and in the upper half of each word, as float32."""
    mask: tl.constexpr = ((1 << (BITS - 1)) - 1) << 7
    up: tl.constexpr = 7 - BITS * place
    exponents = (word << up if up >= 0 else word >> -up) & (mask << 16 | mask)
    pair = exponents | ((word << (16 - BITS * (place + 1))) & -0x7FFF8000)
    unit: tl.constexpr = 2.0 ** (127 - UNIT)
    low = (pair << 16).to(tl.float32, bitcast=True) * unit
    high = (pair & -0x10000).to(tl.float32, bitcast=True) * unit
    return low, high


@triton.jit
def _sum(total, power, own, k, is_row, inputs, DOT: tl.constexpr):
    is_input = k < inputs
    if DOT:
        x = tl.load(own[None, :] + k[:, None], mask=is_input[:, None] & is_row[None, :], other=0.0)
        return tl.dot(power.to(x.dtype), x, total, input_precision="ieee")
    else:
        x = tl.load(own[:, None] + k[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
        return total + x.to(tl.float32)[:, None, :] * power[None, :, :]


@triton.jit
def _scaled(sums, scale, bias, n, is_output):
    sums *= tl.load(scale + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        sums += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _finish(parts, scale, bias, out, splits, rows, outputs, BN: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row, is_output = tl.program_id(1).to(tl.int64), n < outputs
    total = tl.zeros((1, BN), tl.float32)
    for part in range(splits):
        total += tl.load(parts + (part * rows + row) * outputs + n, mask=is_output, other=0.0)[None, :]
    y = _scaled(total, scale, bias, n, is_output)
    tl.store(out + row * outputs + n[None, :], y.to(out.dtype.element_ty), mask=is_output[None, :])


@triton.jit
def _weight(
    words, scale, out, inputs, outputs, runs, BITS: tl.constexpr, UNIT: tl.constexpr, BN: tl.constexpr,
    BW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    w = tl.program_id(1) * BW + tl.arange(0, BW)
    is_output, row_words = n < outputs, runs * 8
    row = n.to(tl.int64)[:, None]
    word = tl.load(words + row * row_words + w[None, :], mask=is_output[:, None] & (w < row_words)[None, :], other=0)
    channel = tl.load(scale + n, mask=is_output, other=0.0).to(tl.float32)[:, None]
    first = out + row * inputs
    half: tl.constexpr = 16 // BITS
    k = w // 8 * (256 // BITS) + w % 8
    for place in tl.static_range(half):
        low, high = _floats(word, place, BITS, UNIT)
        _store(first, k + place * 8, low * channel, is_output, inputs)
        _store(first, k + (place + half) * 8, high * channel, is_output, inputs)


@triton.jit
def _store(first, k, power, is_output, inputs):
    tl.store(first + k[None, :], power.to(first.dtype.element_ty), mask=is_output[:, None] & (k < inputs)[None, :])
