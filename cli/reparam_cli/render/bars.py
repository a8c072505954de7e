"""The progress bar of work that consists of tasks with names: how many are done, for how long, and the latest one."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column


def wants_bars(console: Console) -> bool:
    """Whether a bar can be drawn; elsewhere every task is a line."""
    return console.is_terminal and not console.is_dumb_terminal


def task_bars(console: Console) -> Progress:
    """Returns bars of description, completed and total; each task has a field `latest`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[latest]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        transient=True,
    )
