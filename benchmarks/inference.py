"""The tables of inference speed: DeiT-Tiny at 224, 512 and 1024 pixels; DeiT-Tiny, PVTv2-B0 and ResNet-18 in batches.

Prints what `reparam bench` prints, and then which of the wanted ratios were reached on this machine.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import reparam
from reparam_cli.render.bench import bench_view
from reparam_cli.render.screen import message_console, show
from reparam_cli.render.training import progress_on

TABLES = (
    ("deit_tiny", "shiftaddvit", (224, 512, 1024), (1,)),
    ("deit_tiny", "shiftaddvit", (224,), (8, 32)),
    ("pvt_v2_b0", "shiftaddvit", (224,), (1, 8, 32)),
    ("resnet18", "shift-ptq", (224,), (1, 8, 32)),
)


@dataclass(frozen=True)
class Wanted:
    """The fastest converted row is to be `factor` times as fast as an engine of the dense DeiT-Tiny."""

    image_size: int
    batch_size: int
    engine: str
    factor: float


WANTED = (
    Wanted(224, 8, "eager", 4.0),
    Wanted(224, 8, "compiled-bf16", 1.5),
    Wanted(224, 8, "openvino-int8", 1.0),
    Wanted(512, 1, "openvino-int8", 2.0),
    Wanted(1024, 1, "openvino-int8", 6.0),
)


def outcomes(cases: list[reparam.BenchCase]) -> Iterator[str]:
    """One sentence for each wanted ratio."""
    for wanted in WANTED:
        place = ("deit_tiny", wanted.image_size, wanted.batch_size)
        case = next((case for case in cases if (case.model, case.image_size, case.batch_size) == place), None)
        what = f"{wanted.factor:g}x {wanted.engine} at {wanted.image_size} pixels, batch {wanted.batch_size}"
        if case is None:
            yield f"not run: {what}"
            continue
        ours = [m.latency.median_ms for m in case.measurements if m.side == "converted" and m.latency]
        other = next((m for m in case.measurements if (m.side, m.engine) == ("dense", wanted.engine)), None)
        if other is None or other.latency is None:
            yield f"nothing to compare with: {what}: {other.reason if other else 'it was not asked for'}"
            continue
        ratio = other.latency.median_ms / min(ours)
        yield f"{'reached' if ratio >= wanted.factor else 'NOT reached'}: {what}: {ratio:.2f}x"


def main() -> None:
    """Runs the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one entry of a table")
    parser.add_argument("--baselines", default="all")
    parser.add_argument("--lowered", default="all")
    parser.add_argument("--out", type=Path, help="a folder for results; tables that are there are not run again")
    parser.add_argument("--only", type=int, nargs="*", help=f"tables by number, 0 to {len(TABLES) - 1}")
    options = parser.parse_args()
    cases: list[reparam.BenchCase] = []
    for number, (model, recipe, sizes, batches) in enumerate(TABLES):
        if options.only is not None and number not in options.only:
            continue
        file = options.out and options.out / f"table-{number}.json"
        if file and file.exists():
            found = reparam.Bench.model_validate_json(file.read_bytes())
        else:
            with progress_on(message_console()) as progress:
                found = reparam.bench(
                    model,
                    recipe,
                    img_size=sizes,
                    batch_size=batches,
                    baselines=options.baselines,
                    lowered=options.lowered,
                    threads=options.threads,
                    limit=options.limit,
                    out=file,
                    progress=progress,
                )
        show(bench_view(found))
        cases += found.cases
    sys.stdout.writelines(f"{line}\n" for line in outcomes(cases))


if __name__ == "__main__":
    main()
