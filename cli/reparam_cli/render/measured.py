"""What was measured: a converted model among the baselines of its original, a table for each batch size."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reparam_cli.render.screen import file_size, plain_table, three_figures
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Comparison, Measured, Measurement

_HOW = (
    "each engine in turns, median and interquartile range over rounds; memory is the peak of what torch allocates in "
    "one forward beyond weights and input; error is the relative difference to the eager outputs"
)
#: An interquartile range beyond this share of its median makes a ratio uncertain.
_WIDE_SPREAD = 0.2
_SHARES = {"timed batch": "as in the timed batch", "evaluated": "as evaluated", "balanced": "balanced load"}


def measured_view(measured: "Measured") -> RenderableType:
    """Returns the tables, how the converted model compares with the best dense one, and what was not measured."""
    sizes = list(dict.fromkeys(m.batch_size for m in measured.measurements))
    parts: list[RenderableType] = []
    for size in sizes:
        parts += [Text(), _batch_table([m for m in measured.measurements if m.batch_size == size], size)]
        for comparison in measured.comparisons:
            if comparison.batch_size == size:
                parts += verdict(comparison)
    if measured.schedules:
        parts += [Text(), _experts_table(measured)]
    where = f"{measured.machine}, {counted(measured.threads, 'thread')}, torch {measured.torch}"
    parts += [Text(), Text(f"measured here: {where}; {_HOW}", style="dim"), *left_out(measured.measurements)]
    if measured.no_energy:
        parts.append(Text(f"energy: not measured: {measured.no_energy}", style="dim"))
    return Group(*parts)


def _batch_table(measurements: Sequence["Measurement"], size: int) -> Table:
    """The engines that were timed, the fastest first."""
    has_energy = any(m.energy for m in measurements)
    headings = ["latency", "spread", "images/s", "memory", "error", *(["J/image"] if has_energy else [])]
    table = plain_table(f"batch {size}", *headings)
    timed = [(m.latency, m) for m in measurements if m.latency is not None]
    for latency, m in sorted(timed, key=lambda pair: pair[0].median_ms):
        cells = [
            f"{three_figures(latency.median_ms)} ms",
            f"{three_figures(latency.iqr_ms)} ms",
            three_figures(m.images_per_second or 0.0),
            "-" if m.peak_bytes is None else file_size(m.peak_bytes),
            "" if m.error is None else f"{m.error:.1e}",
        ]
        if has_energy:
            cells.append("-" if m.energy is None else three_figures(sum(m.energy.joules.values())))
        table.add_row(Text(f"{m.side}: {m.title}", style="bold" if m.side == "converted" else ""), *cells)
    return table


def verdict(comparison: "Comparison") -> Iterator[Text]:
    """How many times slower or faster the converted model is; bold where there is no colour to be red in."""
    ratio, best = comparison.ratio, f"than the best dense ({comparison.title})"
    eagerly = comparison.converted_title == "eager, fp32"
    ours = "converted" if eagerly else f"converted ({comparison.converted_title})"
    if ratio > 1:
        yield Text(f"{ours} is {three_figures(ratio)}x slower {best}")
        yield Text("slower than dense here", style="bold red")
    else:
        yield Text(f"{ours} is {three_figures(1 / ratio)}x faster {best}", style="green")
    if comparison.spread > _WIDE_SPREAD:
        yield Text(
            f"uncertain: the rounds spread by {comparison.spread:.0%}, as on a machine that is busy", style="yellow"
        )


def _experts_table(measured: "Measured") -> Table:
    table = plain_table("experts", "batch", "multiplied", "sequential", "ideal parallel")
    for row in measured.schedules:
        table.add_row(
            _SHARES[row.shares],
            str(row.batch_size),
            f"{row.mult_share:.0%}",
            f"{three_figures(row.sequential_ms)} ms {row.sequential}",
            f"{three_figures(row.parallel_ms)} ms {row.parallel}",
        )
    return table


def left_out(measurements: Sequence["Measurement"]) -> Iterator[Text]:
    """Each baseline that has no figures, with its reason; once, where the reason is the same for all batch sizes."""
    styles = {"skipped": "dim", "failed": "red", "wrong": "red"}
    lines = {(m.status, f"{m.status}: {m.engine}: {m.reason}"): None for m in measurements if m.status != "measured"}
    for status, line in lines:
        yield Text(line, style=styles[status])
