"""The CUDA backends on a GPU: packed layers beside bfloat16 ones, then whole models beside compiled bfloat16 ones.

Prints the largest errors against float64 first, and stops there if one is too large; then Markdown tables, and which of
the wanted ratios were reached. Layers are timed inside CUDA graphs, so without launches from Python, each call on a
weight of its own, of which there are so many that none is left in the L2 cache when its turn comes.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import reparam
from reparam.cost.rounds import Rounds, time_in_turns
from reparam.kernels import packed_triton
from reparam.kernels.packed_linear import MOST_ROWS, packed_linear
from reparam.lowering.packed_weight import PackedWeight, packed_weight
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions

Shape = tuple[int, int]
#: Inputs and outputs: layers of DeiT-Tiny and DeiT-Base, and one as large as a language model's, whose time is that of
#: reading its weight.
SHAPES: dict[str, Shape] = {
    "DeiT-Tiny fc1": (192, 768),
    "DeiT-Tiny fc2": (768, 192),
    "DeiT-Base qkv": (768, 2304),
    "DeiT-Base fc1": (768, 3072),
    "DeiT-Base fc2": (3072, 768),
    "large": (4096, 16384),
}
ROWS = (1, 8, 32)
MORE_ROWS = (64, 197, MOST_ROWS, 2 * MOST_ROWS)
#: At most so many weights for each layer, for building them takes longer than timing them.
_MOST_COPIES = 1024
#: Of a product's terms: sums in float32, or of parts in bfloat16, as cuBLAS may; of the result: its rounding.
_SUM_ERROR, _CUBLAS_ERROR, _ROUNDING = 2.0**-19, 2.0**-9, 2.0**-8


@dataclass(frozen=True)
class Wanted:
    """Ours is to be `factor` times as fast as the compiled bfloat16 model."""

    batch_size: int
    factor: float


WANTED = (Wanted(1, 1.0), Wanted(256, 1.3))
OURS = ("cuda+compiled", "cuda-fp8+compiled")
#: Of packed layers, where reading the weight decides.
WANTED_LAYER = ("large", (1, 8), 2.0)


def packed(bits: int, inputs: int, outputs: int) -> tuple[Tensor, PackedWeight, Tensor]:
    """A random layer on the GPU: its weight in bfloat16, packed, and a bias."""
    layer = ShiftLinear(torch.randn(outputs, inputs, device="cuda"), None, ShiftOptions(bits=bits)).eval()
    form = packed_weight(layer)
    assert form is not None
    return layer.weight.detach().to(torch.bfloat16), form, torch.randn(outputs, device="cuda", dtype=torch.bfloat16)


def check() -> bool:
    """Whether every kernel is within its rounding of float64; prints the largest share of the allowed error."""
    worst: dict[str, float] = {}
    for inputs, outputs in (*list(SHAPES.values())[:3], (77, 41), (1000, 130)):
        for bits in (4, 5):
            weight, form, bias = packed(bits, inputs, outputs)
            unpacked = packed_triton.weight(form.words, form.scale, inputs, form.bits)
            worst[f"{form.bits} bits, unpacked"] = 0.0 if torch.equal(unpacked, weight) else math.inf
            for rows in (1, 2, 3, 5, 17, 64, 197, MOST_ROWS + 1):
                x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
                y = packed_linear(x, form.words, form.scale, bias, inputs, form.bits).double()
                exact = F.linear(x.double(), weight.double(), bias.double())
                size = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
                of_sums = _SUM_ERROR if rows <= MOST_ROWS else _CUBLAS_ERROR
                share = ((y - exact).abs() / (_ROUNDING * exact.abs() + of_sums * size)).max().item()
                key = f"{form.bits} bits, {rows} rows"
                worst[key] = max(worst.get(key, 0.0), share if share == share else math.inf)
    print("Largest error as a share of what rounding explains:\n")
    for key, share in worst.items():
        print(f"- {key}: {share:.2f}{'' if share <= 1 else '  TOO LARGE'}")
    return all(share <= 1 for share in worst.values())


def layers(shapes: dict[str, Shape], row_counts: tuple[int, ...], *, seconds: float) -> None:
    """A table of microseconds: a bfloat16 `F.linear`, and packed layers of 4 and 8 bits."""
    print("\n| layer | rows | bf16 `Linear` | GB/s | 4-bit codes | x bf16 | 8-bit codes | x bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    reached: list[str] = []
    for name, (inputs, outputs) in shapes.items():
        for rows in row_counts:
            found = layer_times(inputs, outputs, rows, seconds=seconds)
            dense, four, eight = (found[side] for side in ("bf16", "4", "8"))
            speed = 2 * inputs * outputs / dense.median_ms / 1e6
            cells = [f"{four_figures(dense)}", f"{speed:.0f}"]
            for side in (four, eight):
                cells += [four_figures(side), f"{dense.median_ms / side.median_ms:.2f}"]
            print(f"| {name} {inputs} -> {outputs} | {rows} | {' | '.join(cells)} |", flush=True)
            if name == WANTED_LAYER[0] and rows in WANTED_LAYER[1]:
                ratio = dense.median_ms / four.median_ms
                reached.append(verdict(ratio, WANTED_LAYER[2], f"bf16 Linear, {inputs} -> {outputs}, {rows} rows"))
    print("\nMicroseconds a call, median (interquartile range) of rounds in turns; GB/s of the bf16 weight alone.\n")
    print(*reached, sep="\n")


def layer_times(inputs: int, outputs: int, rows: int, *, seconds: float) -> dict[str, Rounds]:
    """Milliseconds of one call, of each side."""
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight, four, bias = packed(4, inputs, outputs)
    _, eight, _ = packed(5, inputs, outputs)
    copies = copies_beyond_cache(four.words)

    def run(form: PackedWeight) -> Callable[[Tensor], Tensor]:
        return lambda words: packed_linear(x, words, form.scale, bias, inputs, form.bits)

    sides = {
        "bf16": graph_over(copies, weight, lambda one: F.linear(x, one, bias)),
        "4": graph_over(copies, four.words, run(four)),
        "8": graph_over(copies, eight.words, run(eight)),
    }
    found = time_in_turns(sides, threads=1, seconds=seconds)
    return {name: of_one_call(times, copies) for name, times in found.items()}


def copies_beyond_cache(words: Tensor) -> int:
    """How many packed weights are twice the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(_MOST_COPIES, max(2, math.ceil(2 * cache / words.nbytes)))


def graph_over(copies: int, tensor: Tensor, call: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """A CUDA graph of a call on each of so many copies of a tensor."""
    own = [tensor.clone() for _ in range(copies)]
    return graph_of(lambda: [call(one) for one in own])


def of_one_call(times: Rounds, copies: int) -> Rounds:
    """The times of a graph's calls, shared out."""
    return Rounds(means_ms=tuple(ms / copies for ms in times.means_ms), runs=times.runs)


def graph_of(run: Callable[[], object]) -> Callable[[], object]:
    """Captures a run; the result plays it again, and keeps what the run reads and writes, which the graph does not."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return lambda: (graph.replay(), run, kept)


def models(names: tuple[str, ...], recipes: tuple[str, ...], batches: tuple[int, ...], *, limit: float) -> None:
    """The table of `reparam.bench` for each model, recipe and batch, and the wanted ratios."""
    lines: list[str] = []
    for name in names:
        for recipe in recipes:
            bench = reparam.bench(
                name,
                recipe,
                batch_size=batches,
                baselines="bf16,compiled-bf16",
                lowered=["bf16+compiled", "cuda+eager", *OURS],
                device="cuda",
                limit=limit,
            )
            for case in bench.cases:
                print("\n".join(table(case)), flush=True)
                lines += outcomes(case)
    print("", *lines, sep="\n")


def table(case: reparam.BenchCase) -> Iterator[str]:
    """A case in Markdown, the fastest first, and what was left out."""
    share = "" if case.mult_share is None else f"; routers multiply {case.mult_share:.0%} of the tokens"
    yield f"\n**{case.model}, {case.recipe}, {case.image_size} pixels, batch {case.batch_size}**{share}\n"
    yield "| | ms | IQR | images/s | error |"
    yield "|---|---|---|---|---|"
    timed = [(m.latency, m) for m in case.measurements if m.latency is not None]
    for latency, m in sorted(timed, key=lambda pair: pair[0].median_ms):
        error = "" if m.error is None else f"{m.error:.1e}"
        speed = m.images_per_second or 0.0
        yield f"| {m.side}: {m.title} | {latency.median_ms:.3f} | {latency.iqr_ms:.3f} | {speed:.0f} | {error} |"
    for m in case.measurements:
        if m.latency is None:
            yield f"\n{m.side}: {m.title}: {m.status}, {m.reason}"


def outcomes(case: reparam.BenchCase) -> Iterator[str]:
    """A sentence for each wanted ratio of this batch size."""
    times = {(m.side, m.engine): m.latency.median_ms for m in case.measurements if m.latency is not None}
    dense = times.get(("dense", "compiled-bf16"))
    for wanted in WANTED:
        for engine in OURS if wanted.batch_size == case.batch_size else ():
            ours = times.get(("converted", engine))
            what = f"compiled bf16, {case.model}, {case.recipe}, batch {case.batch_size}, {engine}"
            known = dense is not None and ours is not None
            yield verdict(dense / ours, wanted.factor, what) if known else f"- nothing to compare: {what}"


def verdict(ratio: float, factor: float, what: str) -> str:
    """Whether a ratio was reached."""
    return f"- {'reached' if ratio >= factor else 'NOT reached'}: {factor:g}x {what}: {ratio:.2f}x"


def four_figures(times: Rounds) -> str:
    """Microseconds."""
    return f"{times.median_ms * 1e3:.4g} ({times.iqr_ms * 1e3:.2g})"


def main() -> None:
    """Prints the errors, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three layers, and DeiT-Tiny as shiftaddvit")
    parser.add_argument("--layers", action="store_true", help="no whole models")
    parser.add_argument("--models", action="store_true", help="whole models alone, after the check")
    parser.add_argument("-b", "--batch-size", type=int, nargs="+", default=(1, 256), help="of whole models")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for one entry of a model's table")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this measures a GPU, and torch sees none here; benchmarks/cuda_instructions.py counts without one")
    began = time.monotonic()
    torch.manual_seed(0)
    name, version = torch.cuda.get_device_name(0), packed_triton.triton.__version__
    print(f"{name}, torch {torch.__version__}, triton {version}\n")
    with torch.inference_mode():
        if not check():
            sys.exit(1)
        if not options.models:
            shapes = {k: SHAPES[k] for k in ("DeiT-Tiny fc1", "DeiT-Base fc1", "large")} if options.quick else SHAPES
            layers(shapes, ROWS if options.quick else ROWS + MORE_ROWS, seconds=0.3 if options.quick else 1.0)
    if not options.layers:
        names, recipes = ("deit_tiny", "deit_small"), ("shiftaddvit", "shift-ptq")
        many = 1 if options.quick else len(names)
        models(names[:many], recipes[:many], tuple(options.batch_size), limit=options.limit)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
