"""`reparam.search`: the mix of measured choices that loses least under a budget, as a recipe for `convert`."""

import logging
from collections.abc import Sequence
from pathlib import Path

from reparam.api.command import command_line
from reparam.api.sensitivity import SENSITIVITY_NAME
from reparam.atomic import check_file, write_text
from reparam.cost.energy_table import load_table
from reparam.errors import BudgetError, CheckpointError
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.reporting.pareto import draw_front
from reparam.tradeoff.budget import Budget, Quantity, costs_of, parse_budget, parse_quantity, unpriced_in
from reparam.tradeoff.outcome import Predicted, SearchResult, TakenChoice
from reparam.tradeoff.program import check_solver
from reparam.tradeoff.recipe_file import mixed_recipe, written
from reparam.tradeoff.records import read_sensitivity
from reparam.tradeoff.search import Mix, Trade

RECIPE_NAME = "searched.toml"
TABLE = "horowitz-45nm"
#: How a recipe of ours begins, by which it is known again.
_MADE_BY = "# Made by reparam search"

logger = logging.getLogger(__name__)


def search(
    source: str | Path = ".",
    *,
    budget: str | Sequence[str] = (),
    max_drop: float | None = None,
    minimise: str = "energy",
    table: str | Path = TABLE,
    out: str | Path | None = None,
) -> SearchResult:
    """Chooses an operator, or none, for each site of an analysis; writes the recipe, the result, and a chart.

    Args:
        source: a sensitivity.json, or the folder that holds it.
        budget: such as "energy=0.4x", "multiplications=2M", "size=300kB", or several; the mix that loses least under
            them is taken.
        max_drop: bound of the predicted drop of top-1, in points. Without a budget, the cheapest mix under it is taken.
        minimise: what is to be cheapest then: "energy", "multiplications" or "size".
        table: prices of operations: a shipped table, or the path of a .toml file.
        out: the recipe to write; by default `searched.toml` beside the analysis. The result and the chart get its name.
    Raises:
        CheckpointError: no analysis there, or files that cannot be written.
        BudgetError: nothing asked for, a budget that cannot be read, or one that no mix keeps to: it says what can be
            reached.
        CostError: an unknown table.
    """
    check_solver()
    budgets = [parse_budget(text) for text in ([budget] if isinstance(budget, str) else budget)]
    quantity = budgets[0].quantity if budgets else parse_quantity(minimise, where="minimise")
    _check_bounds(budgets, max_drop)
    prices = load_table(table)
    path = Path(source) / SENSITIVITY_NAME if Path(source).is_dir() else Path(source)
    found = read_sensitivity(path)
    target = Path(out) if out is not None else path.with_name(RECIPE_NAME)
    _check_target(target, path)
    trade = Trade(found, costs_of(found, prices))
    for name, costs in trade.costs.items():
        if costs.dense <= 0 and name in {quantity, *(one.quantity for one in budgets)}:
            raise BudgetError(f"the dense model has no {name} to save: the table {prices.name} prices nothing in it")
    mix = trade.search(budgets, max_drop=max_drop, minimise=quantity)
    asked = {
        "budget": [one.text for one in budgets],
        "max-drop": max_drop,
        "minimise": None if budgets or quantity == "energy" else quantity,
        "table": None if table == TABLE else table,
        "out": out,
    }
    command = command_line("search", source, options=asked)
    mixed = mixed_recipe(found, mix.taken, name=target.stem, summary=_summary(trade, mix, quantity))
    text = written(mixed, head=_head(trade, mix, command), comment=lambda group: _comment(trade, group, quantity))
    result = SearchResult(
        model=found.subject.model,
        images=found.images,
        budgets=tuple(one.text for one in budgets),
        max_drop=max_drop,
        quantity=quantity,
        table=prices.name,
        unpriced=unpriced_in(found, prices),
        dense_top1=found.dense_top1,
        dense_costs={name: costs.dense for name, costs in trade.costs.items()},
        predicted=_predicted(trade, mix),
        taken=tuple(_taken(trade, index) for index in mix.taken),
        front=tuple(_predicted(trade, point) for point in trade.front(quantity)),
        recipe=str(target),
        commands=(*found.commands, command),
    )
    write_text(target, text)
    write_text(target.with_suffix(".json"), result.model_dump_json(indent=1) + "\n")
    if can_draw():
        draw_front(result, target.with_suffix(""))
    else:
        logger.info(NO_MATPLOTLIB)
    return result


def _check_bounds(budgets: Sequence[Budget], max_drop: float | None) -> None:
    if not budgets and max_drop is None:
        raise BudgetError("nothing bounds the search; give a budget such as energy=0.4x, a max drop in points, or both")
    if max_drop is not None and not max_drop >= 0:
        raise BudgetError(f"a max drop is a number of points from 0 up, got {max_drop:g}")


def _check_target(target: Path, analysis: Path) -> None:
    """Raises CheckpointError for a name that cannot be written, or that something else has which would be lost."""
    if target.suffix != ".toml":
        raise CheckpointError(f"{target}: a recipe is a TOML file; give a name that ends in .toml")
    result = target.with_suffix(".json")
    if result.resolve() == analysis.resolve():
        raise CheckpointError(f"{target}: {result} is the analysis, and the result would replace it; name another file")
    check_file(target)
    is_ours = target.exists() and target.read_text(encoding="utf-8", errors="replace").startswith(_MADE_BY)
    written_files = [target.with_suffix(suffix) for suffix in (".toml", ".json", ".png", ".svg")]
    for file in () if is_ours else written_files:
        if file.exists():
            raise CheckpointError(
                f"{file}: `reparam search` did not write this file, so it is not replaced; name another with --out"
            )


def _summary(trade: Trade, mix: Mix, quantity: Quantity) -> str:
    share, drop = trade.share(mix, quantity), mix.top1_drop
    what = f"{len(mix.taken)} of {len({(s.kind, s.path) for s in trade.found.sites})} sites"
    return f"Searched: {what} converted for {share:.2f}x {quantity}, predicted drop {drop:.2f} points untrained."


def _head(trade: Trade, mix: Mix, command: str) -> list[str]:
    found = trade.found
    costs = ", ".join(f"{name} {trade.share(mix, name):.3f}x" for name in trade.costs)
    top1 = f"top-1 {found.dense_top1 - mix.top1_drop:.2f} %, {mix.top1_drop:.2f} points below dense"
    return [
        f"{_MADE_BY.removeprefix('# ')} for {found.subject.model}:",
        f"  {command}",
        f"Predicted, untrained: {top1}; KL {mix.kl:.3g} nats. These are sums of what",
        f"each site loses alone, measured on {found.images} images.",
        f"Of the dense model's: {costs}.",
    ]


def _comment(trade: Trade, group: Sequence[int], quantity: Quantity) -> str:
    alone = trade.mix(group)
    change = sum(trade.costs[quantity].changes[index] for index in group) / trade.costs[quantity].dense
    routings = sorted({site.routing for site in (trade.found.sites[index] for index in group) if site.routing})
    sites = f"{len(group)} site{'s' if len(group) != 1 else ''}"
    lost = f"KL {alone.kl:.2g} nats, top-1 {0.0 - alone.top1_drop:+.2f} points"
    return "; ".join([sites, f"predicted: {lost}, {quantity} {change:+.1%}", *routings])


def _predicted(trade: Trade, mix: Mix) -> Predicted:
    return Predicted(
        sites=len(mix.taken),
        kl=mix.kl,
        top1_drop=mix.top1_drop,
        costs=dict(mix.costs),
        shares={name: trade.share(mix, name) for name in trade.costs},
    )


def _taken(trade: Trade, index: int) -> TakenChoice:
    site = trade.found.sites[index]
    return TakenChoice(
        path=site.path,
        kind=site.kind,
        operator=site.operator,
        options=site.options,
        top1_drop=site.top1_drop,
        kl=site.kl,
        costs_change={name: costs.changes[index] for name, costs in trade.costs.items()},
        routing=site.routing,
    )
