"""A calibration while it runs, and how closely its layers follow the dense ones once it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from reparam_cli.render.bars import task_bars, wants_bars
from reparam_cli.render.screen import plain_table
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Calibration, CalibrationStep


@contextmanager
def calibration_progress_on(console: Console) -> Iterator[Callable[["CalibrationStep"], None]]:
    """Yields what shows each step: a bar on a terminal; elsewhere one line per layer."""
    if not wants_bars(console):
        yield lambda step: console.print(_line(step), soft_wrap=True)
        return
    bars = task_bars(console)
    bar = bars.add_task("calibrating", latest="", visible=False)

    def show(step: "CalibrationStep") -> None:
        bars.update(bar, completed=step.number, total=step.layers, latest=step.fit.path, visible=True)

    with bars:
        yield show


def calibration_view(found: "Calibration") -> RenderableType:
    """Returns the output error of each layer, uncalibrated and calibrated, as a share of its output's norm."""
    table = plain_table(
        "layer", "uncalibrated", "calibrated", "", title=f"output error on {counted(found.images, 'image')}"
    )
    largest = max((fit.rounded_error for fit in found.layers), default=0.0)
    for fit in found.layers:
        table.add_row(fit.path, f"{fit.rounded_error:.1%}", f"{fit.error:.1%}", _bar(fit.error, of=largest))
    for fit in found.blocks:
        table.add_row(f"{fit.path}, tuned", f"{fit.rounded_error:.1%}", f"{fit.error:.1%}", _bar(fit.error, of=largest))
    left = [Text(f"{layer.path}: not calibrated, {layer.reason}", style="red") for layer in found.uncalibrated]
    return Group(table, *left)


def _line(step: "CalibrationStep") -> Text:
    fit = step.fit
    place = f"calibrated {step.number}/{step.layers} {fit.path}"
    return Text(f"{place}: output error {fit.error:.1%}, uncalibrated {fit.rounded_error:.1%}")


def _bar(share: float, *, of: float) -> str:
    return "█" * round(20 * share / of) if of else ""
