"""Measured results: an evaluation, a profile beside its dense original, and the table of the demo."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reparam_cli.render.screen import amount, change, columns, duration, experts, file_size, plain_table, three_figures
from reparam_cli.words import written

if TYPE_CHECKING:
    from reparam import DemoResult, Evaluation, FinetuneResult, Profile, RateTest, Report

_VERBS = {
    "mul": "multiplications",
    "add": "additions",
    "shift": "shifts",
    "xnor": "xnors",
    "popcount": "popcounts",
    "div": "divisions",
    "exp": "exponentials",
    "sqrt": "square roots",
    "abs": "absolute values",
    "cmp": "comparisons",
    "lookup": "look-ups",
    "read": "words read",
    "write": "words written",
}

#: Rows of the table of classes.
_MOST_CLASSES = 20


def evaluation_view(evaluation: "Evaluation", *, source: str) -> RenderableType:
    """Returns accuracy with its interval, loss, speed, and the share of tokens per expert."""
    low, high = evaluation.top1_interval
    table = columns()
    table.add_row("top-1", Text(f"{evaluation.top1:.2f} %", style="bold"), f"95 % interval {low:.2f} to {high:.2f} %")
    table.add_row("top-5", f"{evaluation.top5:.2f} %", "")
    table.add_row("loss", f"{evaluation.loss:.4f}", "")
    measured = f"measured here, {evaluation.device}"
    table.add_row("speed", f"{evaluation.images_per_second:.0f} images/s", f"{measured}, with loading")
    if evaluation.model_images_per_second is not None:
        table.add_row("", f"{evaluation.model_images_per_second:.0f} images/s", f"{measured}, the model alone")
    if evaluation.mean_mult_share is not None:
        table.add_row("experts", experts(evaluation.mean_mult_share), f"mean of {len(evaluation.mult_share)} layers")
    for path, share in evaluation.mult_share.items():
        table.add_row("", experts(share), Text(path, style="dim"))
    return Group(Text.assemble((source, "bold"), f" on {evaluation.images} images"), table)


def classes_view(evaluation: "Evaluation") -> RenderableType:
    """Returns recall, precision and the likeliest mistake of the worst classes; the best of them come last."""
    rows = sorted((row for row in evaluation.per_class if row.recall is not None), key=lambda row: row.recall or 0.0)
    table = plain_table("class", "images", "recall", "precision")
    table.add_column("most often mistaken for", overflow="fold")
    for row in rows[:_MOST_CLASSES]:
        mistake = "" if row.mistaken_for is None else f"{row.mistaken_for} ({row.mistaken})"
        table.add_row(Text(row.name), str(row.images), _percent(row.recall), _percent(row.precision), Text(mistake))
    notes = []
    if len(rows) > _MOST_CLASSES:
        notes.append(f"the worst {_MOST_CLASSES} of {len(rows)} classes; --json has all")
    if len(rows) < len(evaluation.per_class):
        notes.append(f"{len(evaluation.per_class) - len(rows)} classes have no images")
    return Group(Text(), table, *(Text(note, style="dim") for note in notes))


def finetune_view(result: "FinetuneResult") -> RenderableType:
    """Returns one row per trained stage, under the dense original that it is measured against."""
    table = plain_table("stage", "converted", "fine-tuned", "to dense", "best epoch")
    table.add_row("dense", "", f"{result.dense.top1:.2f} %", "", "")
    for stage in result.stages:
        table.add_row(
            Text(stage.name),
            f"{stage.before.top1:.2f} %",
            f"{stage.best.top1:.2f} %",
            f"{stage.best.top1 - result.dense.top1:+.2f}",
            f"{stage.best_epoch}/{stage.epochs}",
        )
    return Group(table, Text(f"top-1 on {result.dense.images} images; difference in points", style="dim"))


def rate_test_view(test: "RateTest") -> RenderableType:
    """Returns the rates that a range test suggests, and how it went."""
    tried = f"{len(test.rates)} steps up to a rate of {test.rates[-1]:.2g}; " if test.rates else ""
    how = Text(f"{tried}{test.ended}", style="dim")
    if test.steepest is None or test.tenth_of_best is None:
        return Group(Text("no rate to suggest: the loss never fell"), how)
    table = plain_table("suggestion", "lr")
    table.add_row("where the loss falls fastest", f"{test.steepest:.1e}")
    table.add_row("a tenth of where it is lowest", f"{test.tenth_of_best:.1e}")
    return Group(table, how)


def profile_view(profile: "Profile") -> RenderableType:
    """Returns counts and size, of a run beside those of its original, and how they changed."""
    profiles = [profile] if profile.dense is None else [profile.dense, profile]
    table = plain_table("", *(["model"] if profile.dense is None else ["dense", "converted", "change"]))
    _add_amounts(table, "parameters", [p.parameters for p in profiles])
    for verb, plural in _VERBS.items():
        _add_amounts(table, plural, [_total(p.operations, verb) for p in profiles])
    sizes = [p.file_bytes for p in profiles]
    if any(sizes):
        table.add_row("weights on disk", *(file_size(n) if n else "-" for n in sizes))
    return Group(Text(profile.name, style="bold"), table, *_notes(profiles))


def report_view(result: "Report") -> RenderableType:
    """Returns where the page is, its size, and which command makes what it could not show."""
    lines = [Text(f"wrote {result.out}, {file_size(result.file_bytes)}; open it in a browser")]
    for section in result.missing:
        command = f": {section.command}" if section.command else ""
        lines.append(Text(f"no {section.section} of {section.run}: {section.why}{command}", style="dim"))
    return Group(*lines)


def demo_view(result: "DemoResult") -> RenderableType:
    """Returns one row per stage of the demo."""
    table = plain_table("stage", "top-1", "params", "mults", "shifts", "adds", "latency", "size")
    for row in result.rows:
        table.add_row(
            Text(row.stage),
            f"{row.top1:.2f} %",
            amount(row.parameters),
            amount(row.multiplications),
            amount(row.shifts),
            amount(row.additions),
            f"{three_figures(row.latency_ms)} ms",
            file_size(row.file_bytes),
        )
    what = (
        f"measured here: top-1 on {result.images} images, on which the best epoch was chosen, and latency; "
        "counted: operations per image, experts at their measured shares"
    )
    notes = [Text(f"{what}; took {duration(result.seconds)}", style="dim")]
    if result.rows and result.rows[-1].latency_ms > result.rows[0].latency_ms:
        notes.append(Text("slower than dense on this device", style="red"))
    return Group(table, *notes)


def _percent(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f} %"


def _add_amounts(table: Table, name: str, values: Sequence[int]) -> None:
    if any(values):
        table.add_row(name, *(amount(value) for value in values), *([change(*values)] if len(values) == 2 else []))


def _notes(profiles: Sequence["Profile"]) -> list[Text]:
    notes = []
    if profiles[-1].experts:
        shares = {"measured": "as measured by evaluate", "balanced": "by their balanced load (modelled)"}
        notes.append(
            Text(f"operations per image are counted, tokens per expert {shares[profiles[-1].experts]}", style="dim")
        )
    for profile in profiles:
        if profile.uncounted:
            notes.append(Text(f"not counted in {profile.name}: {written(profile.uncounted)}", style="yellow"))
    return notes


def _total(operations: Mapping[str, int], verb: str) -> int:
    return sum(n for key, n in operations.items() if key.startswith(f"{verb}."))
