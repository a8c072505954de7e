"""What a search found, as data: the mix it took, and the front of all budgets; JSON."""

from typing import Any

from pydantic import Field

from reparam.recipe.schema import Frozen, Kind


class Predicted(Frozen):
    """A mix of choices: what it is predicted to lose (`kl` in nats, `top1_drop` in points), and what it costs.

    Losses are sums of what each choice loses alone, measured before any training. `costs` maps quantities to
    picojoules (modelled), multiplications (counted) and bytes; `shares` are relative to the dense model.
    """

    sites: int
    kl: float
    top1_drop: float
    costs: dict[str, float]
    shares: dict[str, float]


class TakenChoice(Frozen):
    """A choice in the mix, as the analysis measured it."""

    path: str
    kind: Kind
    operator: str
    options: dict[str, Any]
    top1_drop: float
    kl: float
    costs_change: dict[str, float]
    routing: str | None = None


class SearchResult(Frozen):
    """The mix, the front over `quantity`, the recipe that was written, and what was asked.

    `unpriced` are kinds of operations without a price in the table: they cost nothing in the energies.
    """

    model: str
    images: int
    budgets: tuple[str, ...]
    max_drop: float | None
    quantity: str
    table: str
    unpriced: tuple[str, ...] = Field(())
    dense_top1: float
    dense_costs: dict[str, float]
    predicted: Predicted
    taken: tuple[TakenChoice, ...]
    front: tuple[Predicted, ...]
    recipe: str
    commands: tuple[str, ...]
