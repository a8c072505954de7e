"""The first section: tiles with what was gained, and a table of every figure with its kind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from reparam.cost.energy import as_int8, price
from reparam.cost.energy_table import EnergyTable
from reparam.reporting.page import words
from reparam.reporting.page.records import Figures, PageFacts, RunFacts
from reparam.train.evaluate import Evaluation

MEASURED, COUNTED, MODELLED = "measured here", "counted", "modelled"
#: An interquartile range beyond this share of its median makes a ratio uncertain.
WIDE_SPREAD = 0.2
VERBS = {
    "mul": "multiplications",
    "shift": "shifts",
    "add": "additions",
    "xnor": "xnors",
    "popcount": "popcounts",
    "abs": "absolute values",
    "cmp": "comparisons",
    "div": "divisions",
    "exp": "exponentials",
    "sqrt": "square roots",
    "lookup": "look-ups",
    "read": "words read",
    "write": "words written",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure, a smaller line below it, whether it is "bad", and a line that is bad whatever the figure is."""

    text: str
    note: str = ""
    tone: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of each model. A row of `energy` is shown while that table is chosen."""

    label: str
    kind: str
    cells: tuple[Cell, ...]
    energy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One figure of one run, large."""

    label: str
    kind: str
    cell: Cell
    energy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One model of the table: a run as it is now, or its dense original."""

    title: str
    run: RunFacts
    is_dense: bool

    @property
    def figures(self) -> Figures:
        """Its costs."""
        figures = self.run.dense if self.is_dense else self.run.model_figures
        assert figures is not None
        return figures

    @property
    def evaluation(self) -> Evaluation | None:
        """Its accuracy, where it was evaluated."""
        return self.run.dense_evaluation if self.is_dense else self.run.evaluation


def columns(facts: PageFacts) -> tuple[Column, ...]:
    """The dense original, or both where the runs have different ones, each before its run."""
    found: list[Column] = []
    for i, run in enumerate(facts.runs):
        first = facts.runs[0]
        is_same = (run.dense_digest, run.input_size) == (first.dense_digest, first.input_size)
        is_shared = i > 0 and first.dense is not None and is_same
        if run.dense is not None and not is_shared:
            found.append(Column(title=f"dense {run.model}" if i else "dense", run=run, is_dense=True))
        found.append(Column(title=run.name, run=run, is_dense=False))
    return tuple(found)


def tiles(run: RunFacts, tables: Sequence[EnergyTable]) -> tuple[Tile, ...]:
    """What the conversion gained and cost; without a dense original the bare figures."""
    return tuple(_tiles(run, tables))


def _tiles(run: RunFacts, tables: Sequence[EnergyTable]) -> Iterator[Tile]:
    yield Tile(label="top-1", kind=MEASURED, cell=_top1(run.evaluation, run.dense_evaluation))
    gain = _gain(run, lambda figures: total(figures, "mul"), words.amount, less="fewer")
    yield Tile(label="multiplications", kind=COUNTED, cell=gain)
    for table in tables:
        gain = _gain(run, partial(_joules, table=table), words.energy, less="less")
        cell = replace(gain, warning=_int8_warning(run, table))
        yield Tile(label="energy", kind=f"{MODELLED}: {table.name}", cell=cell, energy=table.name)
    if run.model_figures.latency is not None:
        yield Tile(label="latency", kind=MEASURED, cell=_latency(run))


def _gain(run: RunFacts, value: Callable[[Figures], float], spell: Callable[[float], str], *, less: str) -> Cell:
    now = value(run.model_figures)
    if run.dense is None:
        return Cell(text=spell(now), note="an image")
    was = value(run.dense)
    gain = words.factor(was, now, less=less, more="more")
    return Cell(text=gain, note=f"{spell(now)} against {spell(was)} an image")


def _joules(figures: Figures, *, table: EnergyTable) -> float:
    return price(figures.operations, table).picojoules


def _latency(run: RunFacts) -> Cell:
    now, dense = run.model_figures.latency, run.dense.latency if run.dense else None
    assert now is not None
    if dense is None:
        return Cell(text=words.milliseconds(now.median_ms), note=f"batch {now.batch_size}")
    gain = words.factor(dense.median_ms, now.median_ms, less="faster", more="slower")
    note = f"{words.milliseconds(now.median_ms)} against {words.milliseconds(dense.median_ms)}"
    spread = max(latency.iqr_ms / latency.median_ms for latency in (now, dense))
    note += f"; uncertain, rounds spread by {words.share(spread)}" if spread > WIDE_SPREAD else ""
    if gain.endswith("slower"):
        return Cell(text=gain, note=f"slower than dense here: {note}", tone="bad")
    return Cell(text=gain, note=note)


def _top1(evaluation: Evaluation | None, dense: Evaluation | None) -> Cell:
    if evaluation is None:
        return Cell(text=words.DASH, note="not evaluated yet; the command is below")
    if dense is None:
        return Cell(text=words.percent(evaluation.top1), note=f"on {evaluation.images} images")
    return Cell(
        text=words.percent(evaluation.top1),
        note=f"{words.points(evaluation.top1 - dense.top1)} points to dense, {words.percent(dense.top1)}",
    )


def rows(facts: PageFacts, tables: Sequence[EnergyTable]) -> tuple[Row, ...]:
    """Every figure of every column, one under the other."""
    return tuple(_rows(facts, columns(facts), tables))


def _rows(facts: PageFacts, models: Sequence[Column], tables: Sequence[EnergyTable]) -> Iterator[Row]:
    for stage in dict.fromkeys(score.name for run in facts.runs for score in run.stages):
        cells = tuple(_stage(model, stage) for model in models)
        yield Row(
            label=f"stage “{stage}”", kind=f"top-1 straight after conversion → fine-tuned; {MEASURED}", cells=cells
        )
    images = {model.evaluation.images for model in models if model.evaluation is not None}
    on = f" on {' or '.join(map(str, sorted(images)))} images, 95 % interval" if images else ""
    yield Row(label="top-1 now", kind=MEASURED + on, cells=tuple(_evaluation(model) for model in models))
    yield _counts("parameters", models, lambda figures: figures.parameters)
    for verb, name in VERBS.items():
        if any(total(model.figures, verb) for model in models):
            yield _counts(name, models, partial(total, verb=verb))
    for table in tables:
        yield from _energies(models, table)
    sizes = tuple(_cell(model, lambda f: f.file_bytes, words.file_size, "smaller", "larger") for model in models)
    yield Row(label="weights on disk", kind=MEASURED, cells=sizes)
    if any(model.figures.latency for model in models):
        yield Row(label="latency", kind=MEASURED, cells=tuple(_timed(model) for model in models))


def _stage(model: Column, stage: str) -> Cell:
    score = next((s for s in model.run.stages if s.name == stage), None)
    if score is None or model.is_dense:
        return Cell(text="")
    best = f"epoch {score.best_epoch} of {score.epochs}" if score.best_epoch else f"no better in {score.epochs} epochs"
    return Cell(text=f"{words.percent(score.before.top1)} → {words.percent(score.best.top1)}", note=best)


def _evaluation(model: Column) -> Cell:
    evaluation = model.evaluation
    if evaluation is None:
        folder = model.run.dense_folder if model.is_dense else model.run.folder
        return Cell(text=words.DASH, note=f"run: reparam evaluate {folder} --data-dir DATA")
    low, high = evaluation.top1_interval
    return Cell(text=words.percent(evaluation.top1), note=f"{low:.1f} to {high:.1f}")


def _counts(label: str, models: Sequence[Column], count: Callable[[Figures], float]) -> Row:
    return Row(label=label, kind=COUNTED, cells=tuple(_cell(m, count, words.amount, "fewer", "more") for m in models))


def _energies(models: Sequence[Column], table: EnergyTable) -> Iterator[Row]:
    """As it is, and what an int8 engine would make of the dense model without any conversion."""
    kind = f"{MODELLED}: {table.name}, without memory traffic"
    joules = partial(_joules, table=table)
    cells = tuple(_cell(model, joules, words.energy, "less", "more") for model in models)
    yield Row(label="energy of the operations", kind=kind, cells=cells, energy=table.name)
    if any(model.is_dense for model in models):
        int8 = tuple(_int8(model, table) for model in models)
        yield Row(label="energy, dense in int8", kind=kind, cells=int8, energy=table.name)


def _int8(model: Column, table: EnergyTable) -> Cell:
    if not model.is_dense:
        return Cell(text="", warning=_int8_warning(model.run, table))
    return Cell(text=words.energy(_int8_joules(model.figures, table)))


def _int8_warning(run: RunFacts, table: EnergyTable) -> str:
    """Says that the dense model in int8 takes less than the converted one, where it does."""
    if run.dense is None:
        return ""
    int8, now = _int8_joules(run.dense, table), _joules(run.model_figures, table=table)
    if int8 >= now:
        return ""
    ratio = words.factor(now, int8, less="less", more="more")
    return f"the dense model in int8 would take less: {words.energy(int8)}, {ratio}"


def _int8_joules(figures: Figures, table: EnergyTable) -> float:
    return price(as_int8(figures.operations), table).picojoules


def _cell(
    model: Column, value: Callable[[Figures], float], spell: Callable[[float], str], less: str, more: str
) -> Cell:
    now, dense = value(model.figures), model.run.dense
    if model.is_dense or dense is None:
        return Cell(text=spell(now))
    return Cell(text=spell(now), note=words.factor(value(dense), now, less=less, more=more))


def _timed(model: Column) -> Cell:
    latency = model.figures.latency
    if latency is None:
        return Cell(text=words.DASH)
    spread = f"spread {words.milliseconds(latency.iqr_ms)}"
    if model.is_dense or model.run.dense is None:
        return Cell(text=words.milliseconds(latency.median_ms), note=spread)
    compared = _latency(model.run)
    note = f"{compared.text}, {spread}"
    return Cell(
        text=words.milliseconds(latency.median_ms),
        note=f"slower than dense here: {note}" if compared.tone == "bad" else note,
        tone=compared.tone,
    )


def total(figures: Figures, verb: str) -> int:
    """Operations of one verb over all types."""
    return sum(n for key, n in figures.operations.items() if key.startswith(f"{verb}."))
