"""Accuracy of an adder network in int8 by the step of each layer's codes.

python benchmarks/adder_steps.py RUN --dataset hfds/NAME [--val-split test] [--images N]
"""

import argparse

import torch
from pictures import add_arguments, opened, top1

import reparam
from reparam.lowering import integer_adder

_POWER = integer_adder.grid_step
STEPS = {
    "the next power of two (what lowering takes)": _POWER,
    "a quarter of it": lambda met, largest: _POWER(met, largest) / 4,
    "half of it": lambda met, largest: _POWER(met, largest) / 2,
    "twice of it": lambda met, largest: _POWER(met, largest) * 2,
    **{
        f"{share:g} of the maximum over the codes": lambda met, largest, share=share: share * met / largest
        for share in (0.7, 1, 1.4, 2)
    },
}


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    torch.set_num_threads(1)
    model, pictures, calibration = opened(parser.parse_args())
    print(f"| step | top-1 % |\n|---|---:|\n| floats | {top1(model, pictures):.2f} |")
    for name, step in STEPS.items():
        integer_adder.grid_step = step
        lowered = reparam.lower(model, "int8", calibration=calibration).model
        print(f"| {name} | {top1(lowered, pictures):.2f} |", flush=True)


if __name__ == "__main__":
    main()
