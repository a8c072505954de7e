"""`metrics.jsonl`: everything a run tells, one JSON object per line, and how it is read back.

A line has a "kind" and a "stage": "stage" when one begins, "step" at each log interval, "epoch" at the end of each.
Lines are appended as they come, so a run that was killed leaves at most its last line torn.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reparam.atomic import write_text, writing
from reparam.errors import CheckpointError
from reparam.train.progress import EpochReport, Silent, StageReport, StepReport

METRICS_NAME = "metrics.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """The figures at one log interval. `update` counts the stage's optimiser steps from 1; `top1` in percent.

    `mult_share` is the mean over routers of the share of multiplied tokens, in [0, 1]; None without routers.
    """

    stage: str
    epoch: int
    step: int
    update: int
    loss: float
    top1: float
    lr: float
    images_per_second: float
    mult_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHistory:
    """What a stage has told so far, in the order of training."""

    report: StageReport
    steps: tuple[StepPoint, ...]
    epochs: tuple[EpochReport, ...]

    @property
    def updates(self) -> int:
        """Optimiser steps up to the last line."""
        last_epoch = self.epochs[-1].epoch if self.epochs else 0
        return max(self.steps[-1].update if self.steps else 0, last_epoch * self.report.steps_per_epoch)


class MetricsLog(Silent):
    """Writes `metrics.jsonl`.

    Args:
        path: of the file; what other stages than `stages` left there is kept, a torn last line is not.
        stages: that are trained from their beginning.
    Raises:
        CheckpointError: a line before the last one is not JSON, or the file cannot be written.
    """

    def __init__(self, path: Path, *, stages: Collection[str]) -> None:
        self._path, self._lines = path, _read(path)
        self._report: StageReport | None = None
        self._keep(lambda line: line["stage"] not in stages)

    def resume_at(self, stage: str, *, updates: int, epochs: int) -> None:
        """Drops the lines of a stage beyond the `updates` and finished `epochs` that its resumed state has behind it.

        Call it before the stage begins.
        """

        def is_behind(line: Line) -> bool:
            if line["stage"] != stage or line["kind"] == "stage":
                return True
            return bool(line["epoch"] <= epochs if line["kind"] == "epoch" else line["update"] <= updates)

        self._keep(is_behind)

    def stage_started(self, stage: StageReport) -> None:
        """Appends a line, unless a resumed stage has one."""
        self._report = stage
        if not any(line["stage"] == stage.name for line in self._lines):
            self._append("stage", stage.name, _STAGE.dump_python(stage, mode="json"))

    def step(self, step: StepReport) -> None:
        """Appends a line."""
        point = StepPoint(
            stage=self._stage.name,
            epoch=step.epoch,
            step=step.step,
            update=(step.epoch - 1) * step.steps + step.step,
            loss=step.loss,
            top1=step.top1,
            lr=step.lr,
            images_per_second=step.images_per_second,
            mult_share=step.mean_mult_share,
        )
        self._append("step", point.stage, asdict(point))

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Appends a line."""
        update = epoch.epoch * self._stage.steps_per_epoch
        self._append("epoch", epoch.stage, {"update": update, **_EPOCH.dump_python(epoch, mode="json")})

    @property
    def _stage(self) -> StageReport:
        assert self._report is not None, "a stage begins before its steps"
        return self._report

    def _append(self, kind: str, stage: str, figures: Mapping[str, Any]) -> None:
        # Opened anew each time: a save may replace the run's folder, and with it the file behind an open handle.
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_text({"kind": kind, "stage": stage, **figures}))

    def _keep(self, wanted: Callable[[Line], bool]) -> None:
        self._lines = [line for line in self._lines if wanted(line)]
        if self._lines or self._path.exists():
            write_text(self._path, "".join(map(_text, self._lines)))


def read_history(path: Path) -> tuple[StageHistory, ...]:
    """Returns what `metrics.jsonl` holds, stage by stage; nothing when there is no file, a torn last line left out.

    Raises:
        CheckpointError: the file holds something that reparam did not write.
    """
    stages: dict[str, StageReport] = {}
    steps: dict[str, list[StepPoint]] = {}
    epochs: dict[str, list[EpochReport]] = {}
    try:
        for line in _read(path):
            name = line["stage"]
            if line["kind"] == "stage":
                stages[name], steps[name], epochs[name] = _STAGE.validate_python(line), [], []
            elif line["kind"] == "step":
                steps[name].append(_STEP.validate_python(line))
            elif line["kind"] == "epoch":
                epochs[name].append(_EPOCH.validate_python(line))
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{path}: not as reparam writes it ({error}); move the file away") from error
    return tuple(
        StageHistory(report=report, steps=tuple(steps[name]), epochs=tuple(epochs[name]))
        for name, report in sorted(stages.items(), key=lambda item: item[1].index)
    )


_STAGE, _STEP, _EPOCH = TypeAdapter(StageReport), TypeAdapter(StepPoint), TypeAdapter(EpochReport)


def _read(path: Path) -> list[Line]:
    texts = [text for text in path.read_bytes().split(b"\n") if text.strip()] if path.exists() else []
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_line(text))
        except ValueError as error:
            if number < len(texts):
                raise CheckpointError(f"{path}, line {number}: {error}; mend the line or move the file away") from error
    return lines


def _line(text: bytes) -> Line:
    line = json.loads(text)
    if not isinstance(line, dict) or not {"kind", "stage"} <= line.keys():
        raise ValueError('wanted a JSON object with "kind" and "stage"')
    return line


def _text(line: Line) -> str:
    return json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no not-a-number; as strings they are read back as what they were."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
