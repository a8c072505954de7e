"""Who listens to a run that trains: its records, its trackers, the user, and its pictures."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reparam.recipe.resolve import tracker_names
from reparam.recipe.settings import TrainSettings
from reparam.reporting.plots import Plots
from reparam.train.metrics import METRICS_NAME, MetricsLog
from reparam.train.progress import Fanout, Progress
from reparam.train.summary import SUMMARY_NAME, Summary
from reparam.train.trackers import Trackers


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A stage that goes on, and the optimiser steps and finished epochs that it has behind it."""

    stage: str
    updates: int
    epochs: int


@contextmanager
def recorded(
    run: Path,
    progress: Progress,
    *,
    anew: Collection[str],
    settings: Iterable[TrainSettings],
    resumed: Resumed | None = None,
) -> Iterator[Progress]:
    """Yields a listener that writes a run's records and passes everything on to `progress`; for the main process only.

    Args:
        run: its folder.
        progress: who listens besides.
        anew: stages that are trained from their beginning; what is on record of them is dropped.
        settings: of the stages; each tracker that one of them names follows the whole training.
        resumed: the stage that goes on, if one does; what is on record beyond its state is dropped.
    Raises:
        OptionError: a tracker that is not installed.
        CheckpointError: the records are damaged or cannot be written.
    """
    summary, metrics = Summary(run / SUMMARY_NAME, stages=anew), MetricsLog(run / METRICS_NAME, stages=anew)
    if resumed is not None:
        summary.resume_at(resumed.stage, epochs=resumed.epochs)
        metrics.resume_at(resumed.stage, updates=resumed.updates, epochs=resumed.epochs)
    names = tracker_names(",".join(part.log_with for part in settings))
    with Trackers(names, folder=run, metrics=run / METRICS_NAME) as trackers:
        # The log comes before those that read it, drawing last.
        yield Fanout(summary, metrics, trackers, progress, Plots(run, progress))
