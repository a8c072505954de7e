"""Packed layers on a GPU by other tiles, warps and numbers of parts than the kernel chooses, beside bfloat16 ones.

And by unpacking first, from which `MOST_ROWS` should follow.

The chosen ones have the fewest instructions a weight, by count; this finds out which are fastest. One line for each,
the fastest first; what does not fit the GPU's shared memory is named and left out.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from cuda_inference import SHAPES, copies_beyond_cache, four_figures, graph_over, of_one_call, packed
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from reparam.cost.rounds import time_in_turns
from reparam.kernels import packed_triton
from reparam.kernels.packed_triton import Tile, chosen, linear

BITS = {4: 4, 8: 5}


def tiles(rows: int) -> Iterator[tuple[Tile, int]]:
    """The chosen tile and others like it, each with 1 to 8 parts of the inputs."""
    own = chosen(rows)
    outputs, words, warps = ((16, 32, 64), (32, 64), (2, 4)) if own.dot else ((4, 8, 16), (64, 128, 256), (2, 4))
    sizes = {(own.outputs, own.words, own.warps), *itertools.product(outputs, words, warps)}
    for size, splits in itertools.product(sorted(sizes), (1, 2, 4, 8)):
        yield Tile(rows=own.rows, outputs=size[0], words=size[1], dot=own.dot, warps=size[2], stages=own.stages), splits


def sweep(name: str, rows: int, bits: int, *, seconds: float) -> None:
    """Prints a Markdown table of one layer."""
    inputs, outputs = SHAPES[name]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight, form, bias = packed(BITS[bits], inputs, outputs)
    calls = partial(graph_over, copies := copies_beyond_cache(form.words))

    def run(tile: Tile | None, splits: int | None) -> Callable[[Tensor], Tensor]:
        return lambda words: linear(x, words, form.scale, bias, form.bits, tile, splits)

    def unpacked(words: Tensor) -> Tensor:
        return F.linear(x, packed_triton.weight(words, form.scale, inputs, form.bits), bias)

    sides = {
        "bf16": calls(weight, lambda one: F.linear(x, one, bias)),
        "as chosen": calls(form.words, run(None, None)),
        "unpacked for cuBLAS": calls(form.words, unpacked),
    }
    left_out = []
    for tile, splits in tiles(rows):
        words = f"{tile.outputs} outputs, {tile.words} words, {tile.warps} warps, {splits} parts"
        try:
            sides[words] = calls(form.words, run(tile, splits))
        except OutOfResources as error:
            left_out.append(f"{words}: {error}")
    times = time_in_turns(sides, threads=1, seconds=seconds, rounds=5)
    print(
        f"\n**{name} {inputs} -> {outputs}, {rows} rows, {form.bits} bits**\n\n| tile | us | x bf16 |\n|---|---:|---:|"
    )
    for side, found in sorted(times.items(), key=lambda pair: pair[1].median_ms):
        print(
            f"| {side} | {four_figures(of_one_call(found, copies))} | {times['bf16'].median_ms / found.median_ms:.2f} |"
        )
    print(*left_out, sep="\n", flush=True)


def main() -> None:
    """Prints a table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", choices=SHAPES, default="large")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=[4], help="of a code")
    parser.add_argument("--seconds", type=float, default=0.1, help="for one line")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this measures a GPU, and torch sees none here")
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    torch.manual_seed(0)
    with torch.inference_mode():
        for bits, rows in itertools.product(options.bits, options.rows):
            sweep(options.layer, rows, bits, seconds=options.seconds)


if __name__ == "__main__":
    main()
