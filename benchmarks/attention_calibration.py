"""What each part of a calibration of binary attention brings: all attentions of a dense ViT converted, none trained.

    python benchmarks/attention_calibration.py CHECKPOINT --dataset hfds/NAME [--val-split test] [--tune-steps 100]

Prints top-1 and the output error of each attention against its softmax, in percent of the output, beside the fits.
"""

import argparse
import time

import torch
from pictures import add_arguments, opened, top1

import reparam

_FITTED = {"init": '"calibrated"'}
_WITHOUT_THRESHOLDS, _WITHOUT_CONVOLUTION = {"threshold": '"zero"'}, {"conv_kernel": "0"}
_SCALES = {"scales": '"learned"'}
#: What is fitted, and the options of the operator that say so.
_ROWS = {
    "nothing": {},
    "convolution": _FITTED | _WITHOUT_THRESHOLDS,
    "thresholds": _FITTED | _WITHOUT_CONVOLUTION,
    "scales": _FITTED | _WITHOUT_THRESHOLDS | _WITHOUT_CONVOLUTION | _SCALES,
    "scales and thresholds": _FITTED | _WITHOUT_CONVOLUTION | _SCALES,
    "all": _FITTED | _SCALES,
}


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--tune-steps", type=int, default=100, help="of the last row: blocks, after all fits")
    asked = parser.parse_args()
    dense, pictures, calibration = opened(asked)
    example = torch.empty(2, *calibration.shape[1:], device="meta")
    print(f"dense: {top1(dense, pictures):.2f} %")
    print("| fitted | top-1 % | output errors, % | processor s |\n|---|---:|---|---:|")
    rows = [(name, options, 0) for name, options in _ROWS.items()]
    for name, options, steps in [*rows, (f"all, and {asked.tune_steps} steps", _ROWS["all"], asked.tune_steps)]:
        start = time.process_time()
        conversion = reparam.convert(
            dense,
            "ladder-dwconv",
            example_input=example,
            overrides=[f"stage.0.rule.0.{key}={value}" for key, value in options.items()],
            calibration=calibration if options else None,
            tune_steps=steps,
        )
        seconds = time.process_time() - start
        layers = () if conversion.calibration is None else conversion.calibration.layers
        errors = ", ".join(f"{100 * layer.error:.0f}" for layer in layers)
        print(f"| {name} | {top1(conversion.model, pictures):.2f} | {errors} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
