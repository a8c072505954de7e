"""Searches on figures that were made up, against all subsets of the choices."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from reparam.errors import BudgetError
from reparam.tradeoff.budget import Budget, Costs, parse_budget
from reparam.tradeoff.records import Sensitivity
from reparam.tradeoff.search import Trade, exclusive
from tests.tradeoff.stand_ins import found_of, site

FOUND = found_of(
    site("mlp", 0.05, 1.0, kind="mlp", takes_along=("mlp.fc1", "mlp.fc2")),
    site("mlp.fc1", 0.02, 0.5, options={"bits": 5}),
    site("mlp.fc1", 0.04, 0.9, options={"bits": 4}),
    site("mlp.fc2", 0.03, -0.5),
    site("attn", 0.4, 6.0, kind="attention"),
    site("qkv", 0.0001, 0.0),
)
ENERGY = Costs(dense=100.0, changes=(-40.0, -15.0, -20.0, -16.0, -30.0, -2.0))
SIZE = Costs(dense=10.0, changes=(5.0, -1.0, -2.0, -1.0, 0.0, -0.5))
TRADE = Trade(FOUND, {"energy": ENERGY, "size": SIZE})


def subsets() -> list[tuple[int, ...]]:
    """Every set of choices without two of one site, or a site and one inside it."""
    every = (s for n in range(7) for s in itertools.combinations(range(6), n))
    return [s for s in every if not ({1, 2} <= set(s)) and not (0 in s and {1, 2, 3} & set(s))]


def kl(taken: Sequence[int]) -> float:
    return sum(FOUND.sites[i].kl for i in taken)


def drop(taken: Sequence[int]) -> float:
    return sum(max(0.0, FOUND.sites[i].top1_drop) for i in taken)


def cost(taken: Sequence[int], costs: Costs) -> float:
    return costs.dense + sum(costs.changes[i] for i in taken)


@pytest.mark.parametrize("share", [1.0, 0.97, 0.8, 0.66, 0.6, 0.5, 0.4, 0.3])
@pytest.mark.parametrize("most", [None, 10.0, 1.5, 1.0])
def test_the_least_loss_under_a_budget_is_that_of_the_best_subset(share: float, most: float | None) -> None:
    fitting = [s for s in subsets() if cost(s, ENERGY) <= share * 100 and (most is None or drop(s) <= most)]
    budgets = [parse_budget(f"energy={share}x")]
    if not fitting:
        with pytest.raises(BudgetError):
            TRADE.search(budgets, max_drop=most, minimise="energy")
        return
    mix = TRADE.search(budgets, max_drop=most, minimise="energy")
    assert mix.taken in fitting
    assert mix.kl == pytest.approx(min(map(kl, fitting)))
    assert mix.top1_drop == pytest.approx(drop(mix.taken))
    assert mix.costs == {"energy": cost(mix.taken, ENERGY), "size": cost(mix.taken, SIZE)}


@pytest.mark.parametrize("most", [0.0, 0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize(("quantity", "costs"), [("energy", ENERGY), ("size", SIZE)])
def test_without_a_budget_the_cheapest_under_the_drop_is_taken(most: float, quantity: Any, costs: Costs) -> None:
    mix = TRADE.search([], max_drop=most, minimise=quantity)
    assert drop(mix.taken) <= most
    assert mix.costs[quantity] == min(cost(s, costs) for s in subsets() if drop(s) <= most)


def test_several_budgets_hold_together() -> None:
    budgets = [parse_budget("energy=0.7x"), parse_budget("size=0.75x")]
    mix = TRADE.search(budgets, max_drop=None, minimise="energy")
    fitting = [s for s in subsets() if cost(s, ENERGY) <= 70 and cost(s, SIZE) <= 7.5]
    assert mix.kl == pytest.approx(min(map(kl, fitting)))


def test_a_choice_that_was_better_by_chance_counts_as_no_loss() -> None:
    assert TRADE.mix([3]).top1_drop == 0
    assert TRADE.mix([1, 3]).top1_drop == 0.5


@pytest.mark.parametrize(
    ("budgets", "most", "words"),
    [
        (["energy=0.1x"], None, r"keeps to energy=0.1x\.\nbest reachable .*: energy=0\.280x, predicted drop 7\.00"),
        (
            ["energy=0.5x"],
            1.0,
            r"at most 1 point.*\n.*other bounds: energy=0\.\d+x.*\nbest reachable at all: energy=0\.280x",
        ),
        (["energy=1pJ"], None, "energy=0.280x"),
        (["energy=0.3x", "size=0.9x"], None, r"energy=0\.320x[^\n]*\n.*energy=0\.280x(.|\n)*size="),
    ],
    ids=["too small", "too small for the drop", "absolute", "one excludes the other"],
)
def test_what_cannot_be_met_names_the_best_that_can(budgets: list[str], most: float | None, words: str) -> None:
    asked: list[Budget] = [parse_budget(text) for text in budgets]
    with pytest.raises(BudgetError, match=words):
        TRADE.search(asked, max_drop=most, minimise="energy")


def test_the_front_goes_from_the_dense_model_down_and_every_point_is_the_best_at_its_cost() -> None:
    front = TRADE.front("energy")
    assert front[0].taken == ()
    assert front[-1].costs["energy"] == min(cost(s, ENERGY) for s in subsets())
    assert [m.kl for m in front] == sorted(m.kl for m in front)
    for mix in front:
        assert mix.kl == pytest.approx(min(kl(s) for s in subsets() if cost(s, ENERGY) <= mix.costs["energy"] + 1e-6))


def test_choices_of_one_site_and_of_one_inside_it_exclude_each_other() -> None:
    groups = {tuple(sorted(group)) for group in exclusive(FOUND.sites)}
    assert groups == {(1, 2), (0, 1, 2), (0, 3)}


def test_kinds_at_one_path_do_not_exclude_each_other() -> None:
    block = found_of(site("b", 0.1, 0.0, kind="attention"), site("b", 0.1, 0.0, kind="mlp"))
    assert isinstance(block, Sensitivity)
    assert list(exclusive(block.sites)) == []
