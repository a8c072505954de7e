"""Instructions of the packed kernel for each weight, counted in what Triton compiles for a GPU that need not be here.

The main loop of each tile is counted: its instructions, over the weights that a thread reads in one pass. The rate that
they allow is a model: a multiprocessor issues 128 thread instructions a cycle, and half of its lanes do integers.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import triton

from reparam.kernels.packed_triton import TILES, Tile, compiled_for

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*);")
_INTEGER = ("LOP3", "SHF", "IADD3", "IMAD", "LEA", "PRMT", "SEL", "VIADD", "ISETP")
#: Of an H100, at the clock that it holds under load.
_MULTIPROCESSORS, _CLOCK, _BYTES_PER_SECOND = 132, 1.7e9, 3.35e12


def main_loop(cubin: bytes) -> Counter[str]:
    """How often each instruction stands in the longest loop."""
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([disassembler, file.name], capture_output=True, text=True, check=True).stdout
    labels, program, longest = dict[str, int](), list[str](), (0, 0)
    for line in text.splitlines():
        if line.startswith(".L"):
            labels[line.rstrip(":")] = len(program)
        elif found := _INSTRUCTION.match(line):
            program.append(re.sub(r"^@!?U?P\w+\s+", "", found[1].strip()))
            target = re.search(r"`\((\.L\w+)\)", program[-1]) if program[-1].startswith("BRA") else None
            if target and target[1] in labels:
                longest = max(longest, (labels[target[1]], len(program)), key=lambda ends: ends[1] - ends[0])
    return Counter(re.split(r"[.\s]", text, maxsplit=1)[0] for text in program[slice(*longest)])


def row(capability: int, bits: int, tile: Tile) -> str:
    """One tile in Markdown."""
    kernel = compiled_for(capability, bits, tile)
    counts = main_loop(kernel.asm["cubin"])
    weights = tile.outputs * tile.words * (32 // bits) / (32 * tile.warps)
    total, integers = counts.total() / weights, sum(counts[name] for name in _INTEGER) / weights
    rate = min(128 / total, 64 / integers) * _MULTIPROCESSORS * _CLOCK
    unit = "tensor cores" if tile.dot else "ordinary"
    limit = _BYTES_PER_SECOND * 8 / bits
    return (
        f"| {bits} | {tile.rows} | {unit} | {total:.1f} | {integers:.1f} | {kernel.metadata.shared / 1024:.0f} | "
        f"{rate / 1e12:.1f} | {limit / 1e12:.1f} | {min(rate, limit) / (_BYTES_PER_SECOND / 2):.1f} |"
    )


def main() -> None:
    """Prints a row for each tile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    capability = parser.parse_args().capability
    print(f"Compiled for sm_{capability} by Triton {triton.__version__}; the last three columns are modelled.\n")
    print(
        "| bits | rows | units | instructions a weight | integer ones | shared KB | T weights/s | memory's | x bf16 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for bits in (4, 8):
        for tile in TILES.values():
            print(row(capability, bits, tile), flush=True)


if __name__ == "__main__":
    main()
