import pytest

from reparam.cost.energy_table import EnergyTable
from reparam.errors import BudgetError
from reparam.tradeoff.budget import costs_of, parse_budget, parse_quantity, unpriced_in
from tests.tradeoff.stand_ins import found_of, site

TABLE = EnergyTable(
    name="toy", title="A toy", source="none", operations={"mul.f32": 4.0, "add.f32": 1.0, "shift.i32": 0.5}
)


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("energy=0.4x", 40.0),
        ("energy = 1x", 100.0),
        ("energy=.5x", 50.0),
        ("energy=3.2uJ", 3.2e6),
        ("energy=3.2µJ", 3.2e6),
        ("energy=7pJ", 7.0),
        ("multiplications=2M", 2e6),
        ("multiplications=1500", 1500.0),
        ("multiplications=1e3", 1000.0),
        ("size=300kB", 3e5),
    ],
)
def test_budgets_are_shares_of_the_dense_model_or_amounts(text: str, absolute: float) -> None:
    assert parse_budget(text).absolute(100.0) == pytest.approx(absolute)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("enrgy=0.4x", r'unknown quantity "enrgy". Did you mean "energy"\?'),
        ("latency=0.4x", "Known: energy, multiplications, size"),
        ("energy", "wanted energy=0.4x"),
        ("energy=", "units pJ, nJ"),
        ("energy=-1x", "wanted energy=0.4x"),
        ("energy=0.4", "units pJ, nJ"),
        ("energy=2kB", "units pJ, nJ"),
        ("size=2pJ", "units B, kB"),
        ("energy=nan", "wanted"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        parse_budget(text)


def test_a_quantity_is_looked_up_by_its_name() -> None:
    assert parse_quantity("size", where="minimise") == "size"
    with pytest.raises(BudgetError, match="minimise: unknown quantity"):
        parse_quantity("sizes", where="minimise")


def test_costs_are_those_of_the_dense_model_and_what_each_choice_adds() -> None:
    found = found_of(
        site("a", 0.1, 0.0, operations_change={"mul.f32": -600, "shift.i32": 600}, weight_bytes_change=-10.0),
        site("b", 0.2, 0.0, operations_change={"mul.i8": 5}, weight_bytes_change=2.5),
    )
    costs = costs_of(found, TABLE)
    assert (costs["energy"].dense, costs["energy"].changes) == (2000 * 4 + 2000, (-600 * 4 + 300, 0.0))
    assert (costs["multiplications"].dense, costs["multiplications"].changes) == (2000, (-600, 5))
    assert (costs["size"].dense, costs["size"].changes) == (4000, (-10, 2.5))
    assert unpriced_in(found, TABLE) == ("mul.i8",)
