"""What a search took, what it is predicted to lose and to save, and the front of all budgets."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from reparam_cli.render.fold import fold_paths
from reparam_cli.render.screen import amount, file_size, plain_table
from reparam_cli.words import counted

if TYPE_CHECKING:
    from reparam import Predicted, SearchResult

#: Rows of the front.
_MOST_POINTS = 10


def search_view(result: "SearchResult") -> RenderableType:
    """Returns the mix by operator, its predicted loss and its costs beside the dense model's, and the front."""
    taken = plain_table("becomes")
    taken.add_column("sites", overflow="fold")
    for operator, paths in _by_operator(result).items():
        taken.add_row(operator, Text(", ".join(folded.text for folded in fold_paths(paths))))
    costs = plain_table("", "dense", "predicted", "")
    mix = result.predicted
    top1 = result.dense_top1
    costs.add_row("top-1", f"{top1:.2f} %", f"{top1 - mix.top1_drop:.2f} %", f"{0.0 - mix.top1_drop:+.2f}")
    costs.add_row("KL(dense || mix), nats", "0", f"{mix.kl:.2e}", "")
    for quantity, dense in result.dense_costs.items():
        costs.add_row(
            quantity, _cost(quantity, dense), _cost(quantity, mix.costs[quantity]), f"{mix.shares[quantity]:.3f}x"
        )
    title = Text.assemble((result.model, "bold"), f": {counted(mix.sites, 'site')} converted")
    return Group(title, taken, Text(), costs, Text(), _front(result), *(Text(n, style=s) for n, s in _notes(result)))


def _by_operator(result: "SearchResult") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for choice in result.taken:
        found.setdefault(choice.operator, []).append(choice.path)
    return found


def _front(result: "SearchResult") -> RenderableType:
    table = plain_table(f"front: {result.quantity}", "sites", "predicted KL", "predicted drop")
    for point in _spread(result.front):
        table.add_row(
            f"{point.shares[result.quantity]:.3f}x", str(point.sites), f"{point.kl:.2e}", f"{point.top1_drop:.2f}"
        )
    return table


def _notes(result: "SearchResult") -> Iterator[tuple[str, str]]:
    yield (
        f"predicted: sums of what each site loses alone, measured on {counted(result.images, 'image')} before any "
        "training",
        "dim",
    )
    yield f"energy is modelled by the table {result.table}, per image; multiplications are counted", "dim"
    for routing in {choice.routing for choice in result.taken if choice.routing}:
        yield f"mixtures of experts: loss with {routing}, cost at their balanced load (modelled)", "dim"
    if result.unpriced:
        yield f"without a price in {result.table}, so free here: {', '.join(result.unpriced)}", "yellow"


def _spread(points: Sequence["Predicted"]) -> list["Predicted"]:
    """At most so many points, evenly spaced, with the first and the last."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    return [points[round(place * (len(points) - 1) / (_MOST_POINTS - 1))] for place in range(_MOST_POINTS)]


def _cost(quantity: str, value: float) -> str:
    if quantity == "size":
        return file_size(round(value))
    return _joules(value) if quantity == "energy" else amount(value)


def _joules(picojoules: float) -> str:
    for size, unit in ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ")):
        if picojoules >= size * 0.9995:
            return f"{amount(picojoules / size)} {unit}"
    return f"{amount(picojoules)} pJ"
