"""Where the time of one forward goes, before and after: the dense model and its lowered conversion, both compiled.

    python benchmarks/where_time_goes.py deit_tiny_patch16_224 --recipe shiftaddvit -b 8 --img-size 224

Prints for each the milliseconds of processor time in integer products, float products, convolutions, attention, sorting
and everything else, which is elementwise work that the compiler fused. Compiled as `reparam bench` does; one thread.
Weights are random. Untrained routers send every token to the multiply experts, as in a table of `reparam bench`;
--random-routers sends tokens both ways, --calibrated fixes the steps of integer inputs.
"""

import argparse
import statistics
import time
from collections import Counter

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import reparam
from reparam.cost.baselines.base import BASELINES, Run
from reparam.cost.workload import Workload

#: First match wins; names as torch's profiler gives them.
_KINDS = (
    ("integer products", ("reparam::",)),
    ("attention", ("scaled_dot_product", "flash_attention")),
    ("convolutions", ("convolution", "conv2d")),
    ("float products", ("aten::mm", "aten::bmm", "aten::addmm", "aten::linear", "mkldnn_linear", "mkl_linear")),
    ("sorting", ("aten::sort", "aten::argsort")),
)
_ROUNDS = 5


def main() -> None:
    """Reads the command line, prints two columns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="shiftaddvit")
    parser.add_argument("-b", "--batch", type=int, default=8)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="an entry of the recipe")
    parser.add_argument("--random-routers", action="store_true")
    parser.add_argument("--calibrated", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, sizes = args.model, {} if args.img_size == 224 else {"img_size": args.img_size}
    dense = timm.create_model(name, **sizes).eval()
    conversion = reparam.convert(name, args.recipe, weights="none", model_kwargs=sizes, overrides=args.overrides)
    for path, parameter in conversion.model.named_parameters():
        if "router" in path and args.random_routers:
            nn.init.normal_(parameter)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size)
    lowered = reparam.lower(conversion.model, "int8", calibration=images if args.calibrated else None).model
    columns = {title: _parts(model, images) for title, model in (("dense", dense), ("int8", lowered))}
    print(f"{name}, {args.recipe}, batch {args.batch}, {args.img_size} pixels, one thread; ms of processor time")
    for kind in [*(kind for kind, _ in _KINDS), "elementwise and the rest", "whole forward"]:
        print(f"{kind:26s}" + "".join(f"{title:>8s}{columns[title][kind]:9.1f}" for title in columns))


def _parts(model: nn.Module, images: Tensor) -> Counter[str]:
    with torch.no_grad(), Workload(model, images, threads=1) as workload:
        run = BASELINES.get("compiled").prepare(workload)
        run(), run()
        whole = statistics.median(_seconds(run) for _ in range(_ROUNDS))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run()
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    found = Counter[str]({"whole forward": 1e3 * whole})
    for event in events:
        kind = next((kind for kind, words in _KINDS if any(word in event.key for word in words)), None)
        # The profiler's clock also runs while other work has the core: its shares are kept, not its times.
        found[kind or "elementwise and the rest"] += 1e3 * whole * event.self_cpu_time_total / total
    return found


def _seconds(run: Run) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
