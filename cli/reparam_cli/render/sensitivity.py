"""A sensitivity analysis while it runs, and its ranking once it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from reparam_cli.render.bars import task_bars, wants_bars
from reparam_cli.render.screen import plain_table
from reparam_cli.words import counted, written

if TYPE_CHECKING:
    from reparam import Sensitivity, SensitivityStep, SiteSensitivity


@contextmanager
def sensitivity_progress_on(console: Console) -> Iterator[Callable[["SensitivityStep"], None]]:
    """Yields what shows each step: a bar on a terminal; elsewhere one line per choice."""
    if not wants_bars(console):
        yield lambda step: console.print(Text(_line(step)), soft_wrap=True)
        return
    bar = task_bars(console)
    task = bar.add_task("planning", total=None, latest="")

    def show(step: "SensitivityStep") -> None:
        latest = "" if step.site is None else step.site.path
        bar.update(task, description=step.what, completed=step.done, total=step.total or None, latest=latest)

    with bar:
        yield show


def sensitivity_view(found: "Sensitivity") -> RenderableType:
    """Returns the ranking, the most harmful choice first, and what was left dense."""
    table = plain_table("site")
    table.add_column("becomes", overflow="fold")
    for heading in ("top-1", "lost", "KL, nats"):
        table.add_column(heading, justify="right", no_wrap=True)
    for site in found.sites:
        becomes = Text(_becomes(found, site))
        table.add_row(Text(site.path), becomes, f"{site.top1:.2f} %", f"{site.top1_drop:+.2f}", f"{site.kl:.2e}")
    low, high = found.dense.top1_interval
    title = Text.assemble((found.subject.model, "bold"), f": dense top-1 {found.dense_top1:.2f} %")
    title.append(f", 95 % interval {low:.2f} to {high:.2f} %, on {counted(found.images, 'image')}")
    notes = [f"measured here, {found.device}: one site converted, untrained, all others dense; points below dense"]
    notes += [f"mixtures of experts: {routing}" for routing in {s.routing for s in found.sites if s.routing}]
    dense = [site for site in found.other_sites if site.cause != "inside"]
    if dense:
        notes.append(f"{counted(len(dense), 'site')} left dense, with reasons in the JSON file")
    return Group(title, table, *(Text(note, style="dim") for note in notes))


def _becomes(found: "Sensitivity", site: "SiteSensitivity") -> str:
    options = found.told_apart_by(site)
    return f"{site.operator} ({written(options)})" if options else site.operator


def _line(step: "SensitivityStep") -> str:
    if step.site is None:
        return f"{step.what}, {step.done} of {step.total} done" if step.total else step.what
    site = step.site
    result = f"{site.top1_drop:+.2f} points, KL {site.kl:.2e}  {site.seconds:.1f} s"
    return f"{step.what} {step.done}/{step.total}  {site.path} {site.operator}  {result}"
