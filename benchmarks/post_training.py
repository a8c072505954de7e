"""Accuracy without training: dense models converted by each post-training way, beside uniform integers.

    python benchmarks/post_training.py CHECKPOINT --data-dir DIR | --dataset hfds/NAME [--val-split test] [--images N]

CHECKPOINT is a folder of a dense model. Calibration takes its images from the training split, spread over it; accuracy
comes from the first N images of the evaluation split. Stem and classifier stay dense in every row. Rows of quanto and
torchao need `pip install 'reparam[bench-int4]'`; a package that is not there, or cannot run here, is named.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pictures import add_arguments, opened, top1
from torch import Tensor, nn

import reparam
from reparam.ops.base import Operator

#: DeepShift's start from pretrained weights: exponents from -15 to 0, no zero, no offsets.
_DEEPSHIFT = {
    "bits": 5,
    "zero_code": "false",
    "per_channel_offset": "false",
    "init": '"rounded"',
    "bias_correction": "false",
}


class Row(NamedTuple):
    """What a way of converting brought."""

    name: str
    top1: float
    seconds: float


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--bits", type=int, nargs="+", default=[5, 4])
    parser.add_argument("--terms", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    dense, pictures, calibration = opened(asked)
    print("| weights | top-1 % | under dense | seconds to convert |\n|---|---:|---:|---:|")
    base = None
    for row in _rows(
        dense, pictures, calibration, device, [(bits, terms) for bits in asked.bits for terms in asked.terms]
    ):
        base = row.top1 if base is None else base
        print(f"| {row.name} | {row.top1:.2f} | {base - row.top1:.2f} | {row.seconds:.1f} |", flush=True)


def _rows(
    dense: nn.Module,
    pictures: list[tuple[Tensor, Tensor]],
    calibration: Tensor,
    device: torch.device,
    widths: list[tuple[int, int]],
) -> Iterator[Row]:
    def measured(name: str, model: nn.Module, start: float) -> Row:
        seconds = time.perf_counter() - start
        return Row(name, top1(model.to(device), pictures), seconds)

    example = torch.empty(2, *calibration.shape[1:], device="meta")

    def shift(recipe: str, options: dict[str, object], images: Tensor | None = None) -> nn.Module:
        sets = [f"stage.0.rule.{rule}.{key}={value}" for rule in (2, 3) for key, value in options.items()]
        return reparam.convert(dense, recipe, example_input=example, overrides=sets, calibration=images).model.eval()

    yield measured("dense", copy.deepcopy(dense), time.perf_counter())
    places = [path for path, module in shift("shift-ptq", {}).named_modules() if isinstance(module, Operator)]
    for bits in (8, 4):
        start = time.perf_counter()
        yield measured(f"uniform int{bits}, nearest, per channel", _uniform(dense, places, bits), start)
    for name, quantised in (("quanto", _quanto), ("torchao", _torchao)):
        start = time.perf_counter()
        try:
            yield measured(f"{name}, weight-only int4", quantised(dense, places), start)
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    start = time.perf_counter()
    yield measured("DeepShift's rounding, 5 bits", shift("shift-ptq", dict(_DEEPSHIFT)), start)
    for bits, terms in widths:
        width: dict[str, object] = {"bits": bits, "terms": terms}
        start = time.perf_counter()
        uncorrected = shift("shift-ptq", {**width, "bias_correction": "false"})
        yield measured(f"{terms} of {bits} bits, weights alone, biases as they were", uncorrected, start)
        start = time.perf_counter()
        yield measured(f"{terms} of {bits} bits, weights alone", shift("shift-ptq", width), start)
        start = time.perf_counter()
        calibrated = shift("shift-ptq-calibrated", width, calibration)
        yield measured(f"{terms} of {bits} bits, {len(calibration)} images", calibrated, start)


def _uniform(dense: nn.Module, places: list[str], bits: int) -> nn.Module:
    """Rounds the weights at these places to 2**bits - 1 equal steps between the largest magnitudes of each channel."""
    model, largest = copy.deepcopy(dense), 2 ** (bits - 1) - 1
    for path in places:
        weight = model.get_submodule(path).weight
        assert isinstance(weight, nn.Parameter)
        step = weight.detach().flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) / largest
        weight.data = (weight.detach() / step.clamp_min(1e-12)).round().clamp(-largest, largest) * step
    return model


def _quanto(dense: nn.Module, places: list[str]) -> nn.Module:
    """int4 in groups of 128 inputs at most, as quanto chooses them."""
    from optimum.quanto import freeze, qint4, quantize

    model = copy.deepcopy(dense)
    quantize(model, weights=qint4, include=places)
    freeze(model)
    return model


def _torchao(dense: nn.Module, places: list[str]) -> nn.Module:
    """int4 per output channel."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    if not all(isinstance(dense.get_submodule(path), nn.Linear) for path in places):
        raise NotImplementedError("it has int4 weights for linear layers only, and this model has convolutions")
    model = copy.deepcopy(dense)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0))
    quantize_(model, config, filter_fn=lambda _, path: path in places)
    return model


if __name__ == "__main__":
    main()
