"""The tables of a benchmark: one for each model, size of images and batch, and how latencies grow with tokens."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reparam_cli.render.measured import left_out, verdict
from reparam_cli.render.screen import plain_table, three_figures
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Bench, BenchCase

_HOW = (
    "random images; all engines of a table in turns, median and interquartile range over rounds; x eager is how many "
    "times faster than the dense model in eager fp32; error is the relative difference to the model's own eager outputs"
)


def bench_view(bench: "Bench") -> RenderableType:
    """Returns each table with its verdict, the growths, and where it was measured."""
    parts: list[RenderableType] = []
    for case in bench.cases:
        parts += [_table(case), *_shares(case)]
        if case.comparison is not None:
            parts += verdict(case.comparison)
        parts += [*left_out(case.measurements), Text()]
    if bench.growths:
        parts += [*_growths(bench), Text()]
    cpu = f" ({', '.join(bench.instructions)})" if bench.instructions else ""
    where = f"{bench.machine}{cpu}, {counted(bench.threads, 'thread')}, torch {bench.torch}"
    return Group(*parts, Text(f"measured here: {where}; {_HOW}", style="dim"))


def _table(case: "BenchCase") -> Table:
    """The engines that were timed, the fastest first."""
    title = f"{case.model}, {case.recipe}, {case.image_size} pixels, batch {case.batch_size}"
    table = plain_table("", "latency", "spread", "images/s", "x eager", "error", title=title)
    timed = [(m.latency.median_ms, m.latency.iqr_ms, m) for m in case.measurements if m.latency is not None]
    eager = next((ms for ms, _, m in timed if (m.side, m.engine) == ("dense", "eager")), None)
    for ms, spread, m in sorted(timed, key=lambda row: row[0]):
        table.add_row(
            Text(f"{m.side}: {m.title}", style="bold" if m.side == "converted" else ""),
            f"{three_figures(ms)} ms",
            f"{three_figures(spread)} ms",
            three_figures(m.images_per_second or 0.0),
            "-" if eager is None else f"{three_figures(eager / ms)}x",
            "" if m.error is None else f"{m.error:.1e}",
        )
    return table


def _shares(case: "BenchCase") -> Iterator[Text]:
    if case.mult_share is not None:
        yield Text(f"routers sent {case.mult_share:.0%} of the tokens to the multiply experts", style="dim")


def _growths(bench: "Bench") -> Iterator[RenderableType]:
    """The exponents of each model and batch size, the slowest growth first."""
    groups: dict[tuple[str, int], list[tuple[float, str, Sequence[int]]]] = {}
    for growth in bench.growths:
        row = (growth.exponent, f"{growth.side}: {growth.title}", growth.image_sizes)
        groups.setdefault((growth.model, growth.batch_size), []).append(row)
    for (model, batch), rows in groups.items():
        table = plain_table("", "exponent", "pixels", title=f"{model}, batch {batch}: time grows as tokens**exponent")
        for exponent, name, sizes in sorted(rows):
            table.add_row(name, f"{exponent:.2f}", ", ".join(map(str, sizes)))
        yield table
