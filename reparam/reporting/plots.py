"""The listener that keeps the pictures of a run up to date while it trains."""

import time
from collections.abc import Callable
from pathlib import Path

from reparam.reporting.curves import draw_curves
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.train.progress import EpochReport, Progress, Silent, StageReport

#: Drawing takes about a second, which would slow down short epochs.
_SECONDS_BETWEEN = 30.0


class Plots(Silent):
    """Draws the curves at the end of each stage, and after epochs that end long enough after the last drawing.

    Args:
        run: the folder with `metrics.jsonl`, whose log must listen first.
        progress: is told once when matplotlib is missing; the run goes on.
        clock: seconds from any start.
    """

    def __init__(self, run: Path, progress: Progress, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._progress, self._clock = run, progress, clock
        self._is_on: bool | None = None
        self._drawn_at = -_SECONDS_BETWEEN

    def stage_started(self, stage: StageReport) -> None:
        """Says, the first time, when nothing will be drawn."""
        if self._is_on is None:
            self._is_on, self._drawn_at = can_draw(), self._clock()
            if not self._is_on:
                self._progress.message(NO_MATPLOTLIB)

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Draws, if it is time."""
        is_due = epoch.epoch == epoch.epochs or self._clock() - self._drawn_at >= _SECONDS_BETWEEN
        if self._is_on and is_due:
            draw_curves(self._run)
            self._drawn_at = self._clock()
