"""A survey while it runs, and a coverage in short once it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress import TaskID
from rich.text import Text

from reparam_cli.render.bars import task_bars, wants_bars
from reparam_cli.render.screen import plain_table
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Coverage, SurveyStep

_KINDS = ("attention", "mlp", "linear", "conv2d")


@contextmanager
def survey_progress_on(console: Console) -> Iterator[Callable[["SurveyStep"], None]]:
    """Yields what shows each step: a bar on a terminal; elsewhere one line per architecture. Failures stay visible."""
    if not wants_bars(console):
        yield lambda step: _print_line(console, step)
        return
    bars = task_bars(console)
    tasks: dict[str, TaskID] = {}

    def show(step: "SurveyStep") -> None:
        if step.what not in tasks:
            tasks[step.what] = bars.add_task(step.what, latest="")
        bars.update(tasks[step.what], completed=step.done, total=step.total, latest=step.name or "")
        for failure in _failures(step):
            bars.console.print(failure, soft_wrap=True)

    with bars:
        yield show


def coverage_view(made: "Coverage") -> RenderableType:
    """Returns the totals of a coverage by kind of site, and its failures by name."""
    table = plain_table("", "found", "converted", "refused", "no gain", "idle", "kept")
    for kind in _KINDS:
        tallies = [e.tally(kind) for e in made.examinations]  # type: ignore[arg-type]  # one of the kinds
        fates = (("converted",), ("refused",), ("no gain",), ("idle",), ("keep", "no rule", "inside"))
        sums = [sum(t.of(*fate) for t in tallies) for fate in fates]
        table.add_row(kind, str(sum(t.found for t in tallies)), *map(str, sums))
    title = f"{counted(len(made.examinations), 'architecture')} with recipe {made.recipe}, depth {made.depth}"
    lines = [Text(f"{e.name}: {failure}", style="red") for e in made.failed for failure in e.failures]
    summary = f"{len(made.failed)} of {len(made.examinations)} failed" if made.failed else "no failures"
    return Group(Text(title, style="bold"), table, *lines, Text(summary))


def _print_line(console: Console, step: "SurveyStep") -> None:
    if step.name is None:
        if step.done:
            console.print(Text(f"{step.what} before: {step.done} of {step.total}"), soft_wrap=True)
        return
    spent = "" if step.examination is None else f"  {step.examination.seconds:.1f} s"
    console.print(Text(f"{step.what} {step.done}/{step.total}  {step.name}{spent}"), soft_wrap=True)
    for failure in _failures(step):
        console.print(failure, soft_wrap=True)


def _failures(step: "SurveyStep") -> list[Text]:
    failures = () if step.examination is None else step.examination.failures
    return [Text(f"  {step.name}: {failure}", style="red") for failure in failures]
