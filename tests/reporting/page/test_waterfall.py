import pytest

from reparam.cost.energy_table import energy_tables
from reparam.reporting.page.waterfall import Measure, WaterfallRow, largest, measures, waterfall
from tests.reporting.page.facts import figures, run

TABLES = (energy_tables()["horowitz-45nm"],)


def measure(key: str) -> Measure:
    return next(found for found in measures(TABLES) if found.key == key)


def ends(row: WaterfallRow) -> tuple[float, float]:
    return row.bars[0].left, row.bars[-1].left + row.bars[-1].width


def test_each_bar_begins_where_the_one_above_ends() -> None:
    facts, operations = run(), measure("operations")
    most = largest([facts], operations)
    assert most == 18  # 16 dense, 16 after the first block, 18 at the end
    dense, a, b, converted = waterfall(facts, operations, most=most)
    assert (dense.label, a.label, b.label, converted.label) == ("dense", "a", "b", "converted")
    assert (dense.text, converted.text) == ("16", "18")
    assert a.bars == ()
    assert a.change == "same"
    assert ends(b) == pytest.approx((100 * 16 / 18, 100))
    assert (b.bars[0].colour, b.change) == ("more", "+25\u00a0%")


def test_what_a_block_saves_falls_from_the_level_before() -> None:
    facts, multiplications = run(), measure("mul")
    dense, a, b, converted = waterfall(facts, multiplications, most=largest([facts], multiplications))
    assert [ends(row) for row in (dense, a, b, converted)] == [(0, 100), (62.5, 100), (25, 62.5), (0, 25)]
    assert {row.bars[0].colour for row in (a, b)} == {"less"}


def test_energy_is_priced_by_the_table() -> None:
    """Horowitz: 3.7 pJ a multiplication, 0.9 an addition; ShiftAddNet: 0.13 a shift."""
    rows = waterfall(run(), measure("horowitz-45nm"), most=36.8)
    assert rows[0].text == f"{8 * 3.7 + 8 * 0.9:.1f}\u00a0pJ"
    assert rows[-1].text == f"{2 * 3.7 + 6 * 0.13 + 10 * 0.9:.1f}\u00a0pJ"
    assert [bar.colour for bar in rows[-1].bars] == ["orange", "blue", "green"]


def test_what_the_table_has_no_price_for_is_told_and_moves_are_no_operations() -> None:
    operations = {"exp.f32": 7, "mul.f32": 1, "read.f32": 100}
    assert measure("horowitz-45nm").unpriced(operations) == {"exp.f32": 7}
    assert measure("operations").costs(operations) == {"exp": 7, "mul": 1}


def test_without_a_dense_model_blocks_add_up_to_the_total() -> None:
    facts = run(dense=None)
    *parts, total = waterfall(facts, measure("operations"), most=largest([facts], measure("operations")))
    assert ends(parts[0]) == pytest.approx((0, 800 / 18))
    assert ends(parts[1]) == pytest.approx((800 / 18, 100))
    assert (total.text, ends(total)[1]) == ("18", pytest.approx(100))


def test_operations_outside_every_block_are_shown() -> None:
    own = figures(**{"a": {"mul.f32": 1}, "elsewhere": {"add.f32": 2}})
    rows = waterfall(run(model_figures=own), measure("operations"), most=18)
    assert "between the blocks" in [row.label for row in rows]


def test_two_runs_share_the_scale_of_the_larger() -> None:
    small = run(dense=None, model_figures=figures(a={"mul.f32": 1}))
    assert largest([small, run()], measure("mul")) == 8
