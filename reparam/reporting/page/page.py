"""Facts to HTML: one page with its style, script and images inside. Everything that comes from outside is escaped."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reparam.cost.energy_table import EnergyTable, energy_tables
from reparam.reporting.page import summary, words
from reparam.reporting.page.baselines import left_out, verdicts
from reparam.reporting.page.histograms import draw_histograms
from reparam.reporting.page.outline import outline
from reparam.reporting.page.overlay import draw_overlays, without_map
from reparam.reporting.page.records import Missing, PageFacts, RunFacts, SiteLoss
from reparam.reporting.page.training import routing_chart, training_charts
from reparam.reporting.page.waterfall import Measure, WaterfallRow, largest, measures, waterfall

#: The energy table that is shown until another is chosen.
_FIRST_TABLE = "horowitz-45nm"
#: Sites of the ranked bar chart; the file holds all.
_MOST_SITES = 40
#: Characters of a line of a command.
_COLUMNS = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The waterfalls of all runs by one measure, on one scale; `unpriced` says what the measure has no price for."""

    measure: Measure
    runs: tuple[tuple[RunFacts, tuple[WaterfallRow, ...]], ...]
    unpriced: tuple[tuple[RunFacts, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedSite:
    """A site, its bar in percent of the longest one, and the points that it lost, signed as by the command."""

    site: SiteLoss
    width: float
    text: str


def render_page(facts: PageFacts) -> str:
    """Returns the page as HTML.

    Values are escaped by the template engine, in text, in attributes and in the JSON that the script reads.
    """
    tables = tuple(sorted(energy_tables().values(), key=lambda table: table.name != _FIRST_TABLE))
    environment = Environment(
        loader=PackageLoader("reparam.reporting.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": words.amount,
        "options": words.options,
        "milliseconds": words.milliseconds,
        "file_size": words.file_size,
        "colour": _css_colour,
        "shell": _shell,
    }
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    page: str = environment.get_template("page.html").render(
        facts=facts,
        runs=facts.runs,
        title=" and ".join(run.name for run in facts.runs),
        style=_own("page.css"),
        script=_own("page.js"),
        tables=tables,
        tiles=[(run, summary.tiles(run, tables)) for run in facts.runs],
        columns=summary.columns(facts),
        rows=summary.rows(facts, tables),
        trees=[(run, outline(run.tree)) for run in facts.runs],
        costs=list(_costs(facts.runs, tables)),
        histograms=[(run, draw_histograms(run.exponents)) for run in facts.runs],
        curves=training_charts(facts.runs),
        routing=[(run, routing_chart(run)) for run in facts.runs],
        overlays=[
            (run, None if isinstance(run.routing, Missing) else draw_overlays(run.routing)) for run in facts.runs
        ],
        without_map=without_map,
        verdicts=verdicts,
        left_out=left_out,
        ranked=[(run, _ranked(run)) for run in facts.runs],
    )
    return page


def _css_colour(colour: str) -> str:
    """A name of the palette as the variable of the style sheet; other colours are their own."""
    return f"var(--{colour})" if colour.isalpha() else colour


def _shell(line: str) -> str:
    """A command line in short lines, as a shell takes them; each begins with an option."""
    lines = [""]
    for words_of_option in re.split(r" (?=--)", line):
        if lines[-1].strip() and len(lines[-1]) + len(words_of_option) > _COLUMNS:
            lines.append("   ")
        lines[-1] += f" {words_of_option}" if lines[-1] else words_of_option
    return " \\\n".join(lines)


def _own(name: str) -> Markup:
    """A file of this package, which needs no escaping."""
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _costs(runs: tuple[RunFacts, ...], tables: tuple[EnergyTable, ...]) -> Iterator[Cost]:
    for measure in measures(tables):
        most = largest(runs, measure)
        unpriced = ((run, measure.unpriced(run.model_figures.operations)) for run in runs)
        yield Cost(
            measure=measure,
            runs=tuple((run, waterfall(run, measure, most=most)) for run in runs),
            unpriced=tuple((run, _listed(missing)) for run, missing in unpriced if missing),
        )


def _listed(operations: Mapping[str, int]) -> str:
    return ", ".join(f"{words.amount(n)} {key}" for key, n in operations.items())


def _ranked(run: RunFacts) -> list[RankedSite] | None:
    if isinstance(run.sensitivity, Missing):
        return None
    worst = sorted(run.sensitivity, key=lambda site: site.kl, reverse=True)[:_MOST_SITES]
    most = max((site.top1_drop for site in worst), default=0.0)
    return [
        RankedSite(
            site=site,
            width=100 * max(0.0, site.top1_drop) / most if most > 0 else 0.0,
            text=words.points(site.top1_drop),
        )
        for site in worst
    ]
