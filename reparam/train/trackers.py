"""Experiment trackers: the figures of a run go to TensorBoard, Weights & Biases or Trackio through HF Accelerate."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from reparam.errors import OptionError
from reparam.train.metrics import read_history
from reparam.train.progress import EpochReport, Silent, StageReport, StepReport

PROJECT = "reparam"


def check_trackers(names: Iterable[str]) -> None:
    """Raises OptionError for a tracker whose package is not installed; the names themselves are known ones."""
    for name in names:
        try:
            # Not `find_spec`: wandb leaves a folder of its own name behind, which passes for a package.
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise OptionError(f"log_with: {name} is not installed; pip install 'reparam[{name}]'") from error


class Trackers(Silent):
    """Forwards scalars to trackers; leaving the context closes them.

    Steps count optimiser steps over all stages of the run, from 1. Which stages came before, and how far a resumed one
    had come, is read from `metrics`, so the metrics log listens first. TensorBoard's files are in `folder/tensorboard`;
    what an earlier training wrote there beyond the point where this one begins is no longer shown. The others get a run
    named like `folder` in their project "reparam".

    Args:
        names: of trackers, out of `reparam.recipe.settings.TRACKERS`.
        folder: of the run.
        metrics: its `metrics.jsonl`.
    Raises:
        OptionError: a tracker that is not installed.
    """

    def __init__(self, names: Iterable[str], *, folder: Path, metrics: Path) -> None:
        self._names, self._folder, self._metrics = tuple(names), folder, metrics
        check_trackers(self._names)
        self._open: list[GeneralTracker] = []
        self._before = self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._open:
            tracker.finish()
        self._open.clear()

    def stage_started(self, stage: StageReport) -> None:
        """Opens the trackers, the first time, and notes how many steps came before the stage."""
        history = read_history(self._metrics)
        self._before = sum(part.updates for part in history if part.report.index < stage.index)
        self._steps = stage.steps_per_epoch
        if not self._open:
            # Not sooner: by now the trainer has told Accelerate which device it is.
            self._start(first_step=1 + sum(part.updates for part in history if part.report.index <= stage.index))

    def step(self, step: StepReport) -> None:
        """Forwards the figures of training."""
        values: dict[str, float | None] = {
            "train/loss": step.loss,
            "train/top1": step.top1,
            "train/lr": step.lr,
            "train/images_per_second": step.images_per_second,
            "train/mult_share": step.mean_mult_share,
        }
        self._log(values, update=(step.epoch - 1) * step.steps + step.step)

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Forwards the means of the epoch, its evaluation, and each layer's share of multiplied tokens."""
        values = {
            "epoch/train_loss": epoch.train_loss,
            "epoch/task_loss": epoch.task_loss,
            "epoch/distill_loss": epoch.distill_loss,
            "epoch/feature_loss": epoch.feature_loss,
            "epoch/balance_loss": epoch.balance_loss,
            "epoch/train_top1": epoch.train_top1,
            "eval/loss": epoch.evaluation.loss,
            "eval/top1": epoch.evaluation.top1,
            "eval/top5": epoch.evaluation.top5,
            **{f"mult_share/{layer}": share for layer, share in epoch.mult_share.items()},
        }
        self._log(values, update=epoch.epoch * self._steps)

    def _start(self, *, first_step: int) -> None:
        for name in self._names:
            tracker = _tracker(name, self._folder, first_step=first_step)
            tracker.start()
            self._open.append(tracker)

    def _log(self, values: dict[str, float | None], *, update: int) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self._open:
            tracker.log(known, step=self._before + update)


def _tracker(name: str, folder: Path, *, first_step: int) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=first_step)
    if name == "wandb":
        return WandBTracker(PROJECT, name=folder.name, dir=str(folder))
    return TrackioTracker(PROJECT, name=folder.name)
