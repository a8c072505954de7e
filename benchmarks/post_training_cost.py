"""What a calibration takes: processor and wall time, and peak memory beyond libraries and weights.

    python benchmarks/post_training_cost.py [MODEL ...] [--images 128] [--layers N] [--depth N] [--recipe R]

Each model runs in a process of its own, with random weights and random images of its size: what they hold changes
neither time nor memory. --layers ends after that many layers, --depth builds a transformer of fewer blocks: apart from
the weights, what is held at a time is one block's.
"""

import argparse
import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch

import reparam


class Enough(Exception):
    """As many layers as were asked for are calibrated."""


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["deit_tiny_patch16_224", "deit_base_patch16_224"])
    parser.add_argument("--recipe", default="shift-ptq-calibrated")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--depth", type=int)
    asked = parser.parse_args()
    print(f"{asked.images} images, {torch.get_num_threads()} threads")
    print("| model | layers | weights MB | peak MB beyond | processor s | wall s |\n|---|---:|---:|---:|---:|---:|")
    for model in asked.models:
        process = multiprocessing.get_context("spawn").Process(
            target=_measure, args=(model, asked.recipe, asked.images, asked.layers, asked.depth)
        )
        process.start()
        process.join()


def _measure(model: str, recipe: str, count: int, layers: int | None, depth: int | None) -> None:
    libraries = _peak()
    blocks = {} if depth is None else {"depth": depth}
    dense = reparam.convert(model, "none", weights="none", model_kwargs=blocks).model.eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in dense.parameters())
    size = dense.pretrained_cfg["input_size"]  # type: ignore[index]  # of a model of timm
    images = torch.randn(count, *size, generator=torch.Generator().manual_seed(0))
    wall, processor, done = time.perf_counter(), time.process_time(), [0]
    with contextlib.suppress(Enough):
        reparam.convert(
            dense, recipe, example_input=images[:2], calibration=images, progress=_until(layers, done), inplace=True
        )
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    beyond = _peak() - libraries - weights
    print(
        f"| {model} | {done[0]} | {weights / 1e6:.0f} | {beyond / 1e6:.0f} | {processor:.0f} | {wall:.0f} |", flush=True
    )


def _until(layers: int | None, done: list[int]) -> Callable[[reparam.CalibrationStep], None]:
    def progress(step: reparam.CalibrationStep) -> None:
        done[0] = step.number
        if step.number == layers:
            raise Enough

    return progress


def _peak() -> int:
    """The largest resident memory so far, in bytes; Linux tells it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
