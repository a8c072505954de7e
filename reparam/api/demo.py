"""`reparam.demo`: the main job on embedded data: evaluate, convert, fine-tune in stages, evaluate, profile, compare.

The pretrained model ships with the package (docs/demo.md has the command that made it); the digits come with
scikit-learn.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from reparam.api.convert import DENSE, convert
from reparam.api.evaluate import evaluate
from reparam.api.finetune import FinetuneResult, finetune
from reparam.api.profile import Profile, profile
from reparam.atomic import write_text
from reparam.errors import CheckpointError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Frozen
from reparam.train.digits import write_digits
from reparam.train.evaluate import Evaluation
from reparam.train.progress import Progress, Silent

RECIPE = "shiftaddvit"
#: What small images and a small model want; everything else is the recipe's.
SETTINGS: dict[str, object] = {
    "epochs": 12,
    "batch_size": 64,
    "lr": 1e-3,
    "scale": (0.7, 1.0),
    "hflip": 0.0,
    "color_jitter": 0.0,
    "workers": 1,
}


class DemoRow(Frozen):
    """One model of the demo. Counts are per image; `top1` in percent and `latency_ms` (batch 1) were measured here."""

    stage: str
    top1: float
    parameters: int
    multiplications: int
    shifts: int
    additions: int
    latency_ms: float
    file_bytes: int


class DemoResult(Frozen):
    """The comparison, how long it all took, and where it was written."""

    rows: tuple[DemoRow, ...]
    images: int
    seconds: float
    out: Path


def demo(out: str | Path, *, epochs: int | None = None, progress: Progress | None = None) -> DemoResult:
    """Converts and fine-tunes the shipped digits ViT, and writes the comparison to demo.json and demo.md.

    Args:
        out: folder to write; must not hold an earlier demo.
        epochs: epochs of each stage.
        progress: who listens.
    Raises:
        CheckpointError: `out` is not empty.
        DataError: scikit-learn is not installed.
    """
    start, out, told = time.perf_counter(), Path(out), progress or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty; name another folder with --out, or remove it")
    told.message("writing 1797 handwritten digits of scikit-learn as images")
    write_digits(out / "data")
    data = DataSettings(data_dir=str(out / "data"))
    run = out / "run"
    told.message(f"converting the shipped digits ViT with the recipe {RECIPE}")
    convert(f"local-dir:{shipped_model()}", RECIPE, out=run)
    converted = evaluate(run, data=data, workers=0)
    tuned = finetune(run, data=data, settings=SETTINGS | ({"epochs": epochs} if epochs else {}), progress=told)
    told.message("profiling the original and the converted model")
    rows = _rows(tuned, converted, run)
    result = DemoResult(rows=rows, images=tuned.dense.images, seconds=time.perf_counter() - start, out=out)
    write_text(out / "demo.json", result.model_dump_json(indent=2) + "\n")
    write_text(out / "demo.md", markdown(result))
    return result


def shipped_model() -> Path:
    """The folder of the pretrained digits ViT inside the package."""
    return Path(__file__).parent.parent / "_demo" / "digits_vit"


def _rows(tuned: FinetuneResult, converted: Evaluation, run: Path) -> tuple[DemoRow, ...]:
    rows = [_row("dense", tuned.dense, run / DENSE), _row("converted", converted, run)]
    rows += [_row(f"{stage.name}, tuned", stage.best, stage.checkpoint) for stage in tuned.stages]
    return tuple(rows)


def _row(name: str, evaluation: Evaluation, checkpoint: Path) -> DemoRow:
    profiled = profile(checkpoint, mult_share=evaluation.mult_share, baselines="none", with_dense=False, write=False)
    assert profiled.latency is not None
    assert profiled.file_bytes is not None
    return DemoRow(
        stage=name,
        top1=evaluation.top1,
        parameters=profiled.parameters,
        multiplications=_total(profiled, "mul"),
        shifts=_total(profiled, "shift"),
        additions=_total(profiled, "add"),
        latency_ms=profiled.latency.median_ms,
        file_bytes=profiled.file_bytes,
    )


def _total(profiled: Profile, verb: str) -> int:
    return sum(n for key, n in profiled.operations.items() if key.startswith(f"{verb}."))


def markdown(result: DemoResult) -> str:
    """The comparison as a Markdown table with the kind of each figure."""
    header = ("model", "top-1 %", "parameters", "multiplications", "shifts", "additions", "latency ms", "file MB")
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for row in result.rows:
        counts = [f"{n:,}" for n in (row.parameters, row.multiplications, row.shifts, row.additions)]
        lines.append(
            _line([row.stage, f"{row.top1:.2f}", *counts, f"{row.latency_ms:.2f}", f"{row.file_bytes / 1e6:.2f}"])
        )
    notes = (
        f"Measured here: top-1 on {result.images} validation digits, on which the best epoch was chosen; latency of "
        "one image, eager, median. Counted per image, experts at the shares measured on those digits."
    )
    return "\n".join(["# reparam demo", "", *lines, "", notes, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
