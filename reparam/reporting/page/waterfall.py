"""From the dense model's cost to the converted one's, block by block; in energy by each table, and in operations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reparam.cost.energy import price
from reparam.cost.energy_table import EnergyTable
from reparam.reporting.blocks import by_block
from reparam.reporting.page import words
from reparam.reporting.page.records import RunFacts

Operations = Mapping[str, int]
#: What moves words and computes nothing.
_MOVES = ("read", "write")
#: Verbs with a colour of their own; all others share one.
VERB_COLOURS = {"mul": "orange", "shift": "blue", "add": "green"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One way to add up operations. `costs` maps them to the cost of each verb, `unpriced` picks those without one."""

    key: str
    title: str
    note: str
    costs: Callable[[Operations], dict[str, float]]
    spell: Callable[[float], str]
    unpriced: Callable[[Operations], Mapping[str, int]] = lambda operations: {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A piece from `left` to `left + width` percent; `colour` is a name of the style sheet's palette."""

    left: float
    width: float
    colour: str
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallRow:
    """A block or a total: its figure, how it changed, and its bars."""

    label: str
    text: str
    change: str
    bars: tuple[Bar, ...]
    is_total: bool = False


def measures(tables: Sequence[EnergyTable]) -> tuple[Measure, ...]:
    """Energy by each table, then multiplications, then all operations."""
    return (
        *(_energy(table) for table in tables),
        Measure(
            key="mul",
            title="multiplications",
            note="Counted: multiplications of one image.",
            costs=lambda operations: {"mul": _by_verb(operations).get("mul", 0.0)},
            spell=words.amount,
        ),
        Measure(
            key="operations",
            title="all operations",
            note="Counted: operations of one image, whatever they cost; words that are only moved are left out.",
            costs=_without_moves,
            spell=words.amount,
        ),
    )


def _energy(table: EnergyTable) -> Measure:
    return Measure(
        key=table.name,
        title=f"energy by {table.name}",
        note=f"Modelled: operations of one image times the prices of “{table.title}”. Source: {table.source}.",
        costs=lambda operations: _by_verb(price(operations, table).by_operation),
        spell=words.energy,
        unpriced=lambda operations: price(operations, table).unpriced,
    )


def _without_moves(operations: Operations) -> dict[str, float]:
    return {verb: n for verb, n in _by_verb(operations).items() if verb not in _MOVES}


def _by_verb(by_operation: Mapping[str, float]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for key, value in by_operation.items():
        verb = key.partition(".")[0]
        totals[verb] = totals.get(verb, 0.0) + value
    return totals


def waterfall(run: RunFacts, measure: Measure, *, most: float) -> tuple[WaterfallRow, ...]:
    """The dense total, what each block adds or saves, and the total now; without a dense model each block's share.

    Args:
        run: whose costs.
        measure: which costs.
        most: the cost that fills the whole width.
    """
    now = _block_costs(run.model_figures.modules, run.blocks, measure)
    if run.dense is None:
        return (*_parts(now, measure, most), _total("total", run.model_figures.operations, measure, most))
    was = _block_costs(run.dense.modules, run.blocks, measure)
    rows, level = [_total("dense", run.dense.operations, measure, most)], sum(was.values())
    for block in dict.fromkeys((*was, *now)):
        before, after = was.get(block, 0.0), now.get(block, 0.0)
        if before or after:
            rows.append(_step(block or "between the blocks", before, after, level, measure, most))
            level += after - before
    return (*rows, _total("converted", run.model_figures.operations, measure, most))


def largest(runs: Sequence[RunFacts], measure: Measure) -> float:
    """The scale that all runs share: the largest cost on the way."""
    return max((_peak(run, measure) for run in runs), default=0.0) or 1.0


def _peak(run: RunFacts, measure: Measure) -> float:
    now = _block_costs(run.model_figures.modules, run.blocks, measure)
    if run.dense is None:
        return sum(now.values())
    was = _block_costs(run.dense.modules, run.blocks, measure)
    level = peak = sum(was.values())
    for block in dict.fromkeys((*was, *now)):
        level += now.get(block, 0.0) - was.get(block, 0.0)
        peak = max(peak, level)
    return peak


def _block_costs(
    modules: Sequence[tuple[str, Operations]], blocks: Sequence[str], measure: Measure
) -> dict[str, float]:
    return {block: sum(measure.costs(counts).values()) for block, counts in by_block(modules, blocks).items()}


def _step(block: str, before: float, after: float, level: float, measure: Measure, most: float) -> WaterfallRow:
    if before == after:
        return WaterfallRow(label=block, text=measure.spell(after), change="same", bars=())
    left, right = sorted((level, level + after - before))
    text = f"{measure.spell(before)} → {measure.spell(after)}"
    change = words.signed_share((after - before) / before) if before else "new"
    colour, tip = "less" if after < before else "more", f"{block}: {text}, {change}"
    bar = Bar(left=100 * left / most, width=100 * (right - left) / most, colour=colour, tip=tip)
    return WaterfallRow(label=block, text=text, change=change, bars=(bar,))


def _parts(costs: Mapping[str, float], measure: Measure, most: float) -> list[WaterfallRow]:
    rows, level = [], 0.0
    for block, cost in costs.items():
        if cost:
            label = block or "between the blocks"
            text = measure.spell(cost)
            bar = Bar(left=100 * level / most, width=100 * cost / most, colour="part", tip=f"{label}: {text}")
            rows.append(WaterfallRow(label=label, text=text, change="", bars=(bar,)))
            level += cost
    return rows


def _total(label: str, operations: Operations, measure: Measure, most: float) -> WaterfallRow:
    costs = measure.costs(operations)
    order = sorted(costs, key=lambda verb: [*VERB_COLOURS, verb].index(verb))
    bars, level, every = [], 0.0, sum(costs.values())
    for verb in order:
        share = f"{verb}: {measure.spell(costs[verb])}, {words.share(costs[verb] / (every or 1))} of {label}"
        colour = VERB_COLOURS.get(verb, "grey")
        bars.append(Bar(left=100 * level / most, width=100 * costs[verb] / most, colour=colour, tip=share))
        level += costs[verb]
    return WaterfallRow(label=label, text=measure.spell(every), change="", bars=tuple(bars), is_total=True)
