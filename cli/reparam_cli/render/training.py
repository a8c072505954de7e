"""Progress of a run on stderr: a live bar on a terminal, one plain line per epoch anywhere else."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from reparam_cli.render.bars import wants_bars
from reparam_cli.render.screen import clock, experts
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import EpochReport, StageReport, StepReport


class LineProgress:
    """Prints a line when a stage begins and when an epoch ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Nothing to put away."""

    def message(self, text: str) -> None:
        """Prints the text."""
        self._console.print(Text(text), soft_wrap=True)

    def stage_started(self, stage: "StageReport") -> None:
        """Prints what is about to be trained, and from which accuracy."""
        self._console.print(_stage_line(stage), soft_wrap=True)

    def step(self, step: "StepReport") -> None:
        """Prints nothing: a log file wants no line per step."""

    def epoch_finished(self, epoch: "EpochReport") -> None:
        """Prints the figures of the epoch."""
        self._console.print(_epoch_line(epoch), soft_wrap=True)


class BarProgress:
    """Keeps one bar per stage at the foot of the terminal, and the lines of `LineProgress` above it."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
        )
        self._lines = LineProgress(self._bars.console)
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def message(self, text: str) -> None:
        """Prints the text above the bar."""
        self._lines.message(text)

    def stage_started(self, stage: "StageReport") -> None:
        """Prints the stage and begins its bar."""
        self._lines.stage_started(stage)
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._bar = self._bars.add_task("starting", total=max(1, stage.epochs * stage.steps_per_epoch), figures="")

    def step(self, step: "StepReport") -> None:
        """Moves the bar and refreshes its figures."""
        if self._bar is not None:
            self._bars.update(
                self._bar,
                completed=(step.epoch - 1) * step.steps + step.step,
                description=f"epoch {step.epoch}/{step.epochs}",
                figures=_figures(step),
            )

    def epoch_finished(self, epoch: "EpochReport") -> None:
        """Prints the figures of the epoch above the bar."""
        self._lines.epoch_finished(epoch)


def progress_on(console: Console) -> LineProgress | BarProgress:
    """Returns the bar for a terminal and the lines for a file or a pipe."""
    return BarProgress(console) if wants_bars(console) else LineProgress(console)


def _stage_line(stage: "StageReport") -> Text:
    return Text.assemble(
        f"stage {stage.index + 1}/{stage.stages} ",
        (stage.name, "bold"),
        f": {counted(stage.epochs, 'epoch')} of {counted(stage.steps_per_epoch, 'step')}",
        f", from {stage.before.top1:.2f} % top-1",
    )


def _epoch_line(epoch: "EpochReport") -> Text:
    parts = [
        f"{epoch.stage} {epoch.epoch}/{epoch.epochs}",
        f"loss {epoch.train_loss:.4g}",
        f"train {epoch.train_top1:.2f} %",
        f"top-1 {epoch.evaluation.top1:.2f} %",
    ]
    if epoch.mean_mult_share is not None:
        parts.append(experts(epoch.mean_mult_share))
    parts.append(f"{epoch.images_per_second:.0f} images/s")
    line = Text("  ".join(parts))
    return line.append("  best", style="green") if epoch.is_best else line


def _figures(step: "StepReport") -> str:
    shares = list(step.mult_share.values())
    parts = [f"loss {step.loss:.3g}", f"top-1 {step.top1:.1f} %"]
    if shares:
        parts.append(experts(sum(shares) / len(shares)))
    return "  ".join([*parts, f"{step.images_per_second:.0f}/s", f"{clock(step.seconds_left)} left"])
