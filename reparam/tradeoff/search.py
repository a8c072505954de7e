"""The best mix of choices under budgets, by the additive model: what each choice loses alone adds up.

The loss that is minimised is the sum of the choices' divergences. The predicted drop is the sum of their lost
accuracies; a choice that was better than the dense model by chance counts as one that loses nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reparam.errors import BudgetError
from reparam.tradeoff.budget import Budget, Costs, Quantity
from reparam.tradeoff.program import Bound, solve
from reparam.tradeoff.records import Sensitivity, SiteSensitivity

#: Budgets that a Pareto front is drawn from.
_SWEEP = 40
#: Of the dense cost: the least is a sum, and may be missed by its last bits.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Choices, by their place in the analysis; what they are predicted to lose, and what the model then costs."""

    taken: tuple[int, ...]
    kl: float
    top1_drop: float
    costs: Mapping[Quantity, float]


class Trade:
    """An analysis with the costs of its choices, ready to be searched."""

    def __init__(self, found: Sensitivity, costs: Mapping[Quantity, Costs]) -> None:
        self.found, self.costs = found, costs
        self._kl = [site.kl for site in found.sites]
        self._drops = [max(0.0, site.top1_drop) for site in found.sites]
        self._groups = list(exclusive(found.sites))

    def search(self, budgets: Sequence[Budget], *, max_drop: float | None, minimise: Quantity) -> Mix:
        """The mix that loses least under the budgets, or without budgets the one that costs least.

        Args:
            budgets: each an upper bound.
            max_drop: upper bound of the predicted drop, in points.
            minimise: the quantity that is to be least where there is no budget.
        Raises:
            BudgetError: no mix keeps to all bounds; the best reachable is named.
        """
        bounds = [*self._bounds(budgets), *self._drop_bound(max_drop)]
        taken = solve(self._kl if budgets else self.costs[minimise].changes, bounds, self._groups)
        if taken is None:
            raise BudgetError(self._why_not(budgets, max_drop))
        return self.mix(taken)

    def front(self, quantity: Quantity) -> tuple[Mix, ...]:
        """The least predicted loss for ever tighter budgets of one quantity, from the dense model down to the least."""
        least = self._least(quantity, [])
        assert least is not None
        dense, low = self.costs[quantity].dense, least.costs[quantity]
        limits = [low + (dense - low) * step / (_SWEEP - 1) + _ROUNDING * dense for step in range(_SWEEP)]
        found = (solve(self._kl, [self._bound(quantity, limit)], self._groups) for limit in limits)
        mixes = dict.fromkeys(taken for taken in found if taken is not None)
        return tuple(sorted((self.mix(taken) for taken in mixes), key=lambda mix: -mix.costs[quantity]))

    def share(self, mix: Mix, quantity: Quantity) -> float:
        """What a mix costs, over what the dense model costs."""
        return mix.costs[quantity] / self.costs[quantity].dense

    def mix(self, taken: Iterable[int]) -> Mix:
        """What the choices taken are predicted to lose together, and what the model then costs."""
        chosen = tuple(taken)
        costs = {q: c.dense + sum(c.changes[i] for i in chosen) for q, c in self.costs.items()}
        return Mix(
            taken=chosen,
            kl=sum(self._kl[i] for i in chosen),
            top1_drop=sum(self._drops[i] for i in chosen),
            costs=costs,
        )

    def _bounds(self, budgets: Sequence[Budget]) -> list[Bound]:
        return [self._bound(b.quantity, b.absolute(self.costs[b.quantity].dense)) for b in budgets]

    def _bound(self, quantity: Quantity, limit: float) -> Bound:
        costs = self.costs[quantity]
        return Bound(weights=costs.changes, limit=limit - costs.dense)

    def _drop_bound(self, max_drop: float | None) -> list[Bound]:
        return [] if max_drop is None else [Bound(weights=self._drops, limit=max_drop)]

    def _least(self, quantity: Quantity, bounds: Sequence[Bound]) -> Mix | None:
        taken = solve(self.costs[quantity].changes, bounds, self._groups)
        return None if taken is None else self.mix(taken)

    def _why_not(self, budgets: Sequence[Budget], max_drop: float | None) -> str:
        return "\n".join(self._reachable(budgets, max_drop))

    def _reachable(self, budgets: Sequence[Budget], max_drop: float | None) -> Iterator[str]:
        """For each budget the least of its quantity that the other bounds allow, and that is possible at all."""
        asked = ", ".join(budget.text for budget in budgets)
        limit = (
            ""
            if max_drop is None
            else f" with a predicted drop of at most {max_drop:g} point{'' if max_drop == 1 else 's'}"
        )
        yield f"no mix of the measured choices keeps to {asked}{limit}."
        for budget in budgets:
            others = self._bounds([other for other in budgets if other is not budget])
            within = self._least(budget.quantity, [*others, *self._drop_bound(max_drop)])
            alone = self._least(budget.quantity, [])
            if within is not None:
                yield f"best reachable under the other bounds: {self._said(within, budget.quantity)}"
            if alone is not None and alone != within:
                yield f"best reachable at all: {self._said(alone, budget.quantity)}"

    def _said(self, mix: Mix, quantity: Quantity) -> str:
        return f"{quantity}={self.share(mix, quantity):.3f}x, predicted drop {mix.top1_drop:.2f} points"


def exclusive(sites: Sequence[SiteSensitivity]) -> Iterator[list[int]]:
    """Groups of choices of which at most one may be taken: those of one site, and a site with each one inside it."""
    by_place: dict[tuple[str, str], list[int]] = {}
    for index, site in enumerate(sites):
        by_place.setdefault((site.kind, site.path), []).append(index)
    for (_, path), outer in by_place.items():
        if len(outer) > 1:
            yield outer
        for (_, inner_path), inner in by_place.items():
            around = [index for index in outer if inner_path in sites[index].takes_along]
            if around and inner_path != path:
                yield [*around, *inner]
