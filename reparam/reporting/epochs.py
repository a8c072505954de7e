"""Epochs counted over all stages of a run: a stage begins where the one before ended."""

from collections.abc import Sequence
from itertools import accumulate

from reparam.train.metrics import StageHistory

Points = Sequence[tuple[float, float | None]]


def stage_starts(history: Sequence[StageHistory]) -> list[float]:
    """Epochs before each stage, as far as they were trained."""
    ends = accumulate((epochs_at(stage, stage.updates) for stage in history), initial=0.0)
    return list(ends)[: len(history)]


def epochs_at(stage: StageHistory, update: int) -> float:
    """Epochs of a stage that are behind it after so many updates."""
    return update / stage.report.steps_per_epoch


def over_epochs(stage: StageHistory, start: float, values: Sequence[float | None]) -> Points:
    """One value for each finished epoch, at its end."""
    return [(start + epoch.epoch, value) for epoch, value in zip(stage.epochs, values, strict=True)]


def evaluated(stage: StageHistory, start: float, figure: str) -> Points:
    """A figure of the evaluation before training, then of the one after each epoch."""
    after = [(start + epoch.epoch, float(getattr(epoch.evaluation, figure))) for epoch in stage.epochs]
    return [(start, float(getattr(stage.report.before, figure))), *after]
