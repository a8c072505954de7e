"""Accuracy of a run and of its integer form: `reparam.lower(..., "int8")`, with dynamic steps and calibrated ones.

python benchmarks/lowered_accuracy.py RUN --dataset hfds/NAME [--val-split test] [--images N]
"""

import argparse
import time

import torch
from pictures import Pictures, add_arguments, opened
from torch import Tensor, nn

import reparam
from reparam.errors import BackendError


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, pictures, calibration = opened(asked)
    print("| model | top-1 % | same class as the run, % | processor s |\n|---|---:|---:|---:|")
    classes = _row("as it trains", model, pictures, None)
    for title, images in (("int8, one step a token or image", None), ("int8, calibrated steps", calibration)):
        try:
            lowered = reparam.lower(model, "int8", calibration=images).model
        except BackendError as error:
            print(f"| {title} | refused: {str(error).splitlines()[0]} | | |")
        else:
            _row(title, lowered, pictures, classes)


@torch.no_grad()
def _row(title: str, model: nn.Module, pictures: Pictures, run: Tensor | None) -> Tensor:
    start = time.process_time()
    classes = torch.cat([model(x).argmax(1) for x, _ in pictures])
    seconds = time.process_time() - start
    accuracy = 100 * float((classes == torch.cat([labels for _, labels in pictures])).float().mean())
    same = 100.0 if run is None else 100 * float((classes == run).float().mean())
    print(f"| {title} | {accuracy:.2f} | {same:.2f} | {seconds:.1f} |", flush=True)
    return classes


if __name__ == "__main__":
    main()
