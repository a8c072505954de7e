"""The records of a run: `summary.csv`, one row per epoch with timm's columns first, and `args.yaml`."""

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from reparam.atomic import write_text
from reparam.train.progress import EpochReport, Silent

SUMMARY_NAME = "summary.csv"
TIMM_COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")
OWN_COLUMNS = ("stage", "task_loss", "distill_loss", "feature_loss", "balance_loss", "mult_share", "images_per_second")


class Summary(Silent):
    """`summary.csv`, written whole after each epoch so that a reader never sees half a row.

    Rows of other stages than `stages` are kept from a file that is already there; `epoch` counts from 0 in each
    stage, as timm's does.
    """

    def __init__(self, path: Path, *, stages: Collection[str]) -> None:
        self._path = path
        self._rows = [row for row in _read(path) if row.get("stage") not in stages]

    def resume_at(self, stage: str, *, epochs: int) -> None:
        """Drops the rows of a stage beyond the `epochs` that its resumed state has behind it."""
        self._rows = [row for row in self._rows if row["stage"] != stage or int(row["epoch"]) < epochs]

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Adds one row and writes the file."""
        self._rows.append(_row(epoch))
        text = io.StringIO()
        writer = csv.DictWriter(text, (*TIMM_COLUMNS, *OWN_COLUMNS), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())


def write_args(path: Path, args: Mapping[str, Any]) -> None:
    """Writes the resolved settings as YAML in the given order; tuples become lists."""
    write_text(path, yaml.safe_dump(_plain(args), sort_keys=False, allow_unicode=True))


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row(report: EpochReport) -> dict[str, Any]:
    evaluation = report.evaluation
    return {
        "epoch": report.epoch - 1,
        "train_loss": report.train_loss,
        "eval_loss": evaluation.loss,
        "eval_top1": evaluation.top1,
        "eval_top5": evaluation.top5,
        "lr": report.lr,
        "stage": report.stage,
        "task_loss": report.task_loss,
        "distill_loss": report.distill_loss,
        "feature_loss": report.feature_loss,
        "balance_loss": report.balance_loss,
        "mult_share": report.mean_mult_share,
        "images_per_second": round(report.images_per_second, 1),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | None) else str(value)
