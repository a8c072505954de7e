"""Prices: hand-made sums, widths between those of a table, what has no price, memories, and the int8 baseline."""

import pytest

from reparam.cost.energy import as_int8, bits_of, price
from reparam.cost.energy_table import EnergyTable, MemoryLevels, load_table
from reparam.errors import CostError

TABLE = EnergyTable(
    name="toy",
    title="Toy",
    source="nobody",
    operations={"mul.i8": 1.0, "mul.f32": 10.0, "add.i16": 0.5, "add.f32": 2.0, "shift.i32": 0.25},
    memory={"near": 0.125, "far": 100.0},
    stand_ins={"cmp": "add"},
)


def test_the_energy_is_the_sum_of_operations_times_their_price() -> None:
    energy = price({"mul.f32": 3, "add.f32": 5, "mul.i8": 7}, TABLE)
    assert energy.by_operation == {"mul.f32": 30.0, "add.f32": 10.0, "mul.i8": 7.0}
    assert energy.picojoules == 47.0
    assert (energy.table, energy.unpriced, energy.stand_ins) == ("toy", {}, {})


def test_a_width_between_two_of_the_table_takes_the_wider_one_s_price_and_one_beyond_has_none() -> None:
    energy = price({"add.i8": 2, "add.i10": 4, "add.i32": 8, "mul.f16": 1}, TABLE)
    assert energy.by_operation == {"add.i8": 1.0, "add.i10": 2.0, "mul.f16": 10.0}
    assert energy.stand_ins == {"add.i8": "add.i16", "add.i10": "add.i16", "mul.f16": "mul.f32"}
    assert energy.unpriced == {"add.i32": 8}


def test_a_float_never_takes_an_integer_s_price_but_a_shift_of_one_does() -> None:
    only_integers = TABLE.model_copy(update={"operations": {"mul.i64": 1.0, "shift.i32": 0.25}})
    energy = price({"mul.f32": 2, "shift.f32": 4, "shift.i16": 4}, only_integers)
    assert energy.unpriced == {"mul.f32": 2}
    assert energy.by_operation == {"shift.f32": 1.0, "shift.i16": 1.0}


def test_what_the_source_lacks_takes_its_stand_in_s_price_and_says_so_or_is_listed() -> None:
    energy = price({"cmp.f32": 3, "exp.f32": 4}, TABLE)
    assert energy.by_operation == {"cmp.f32": 6.0}
    assert energy.stand_ins == {"cmp.f32": "add.f32"}
    assert energy.unpriced == {"exp.f32": 4}


def test_words_cost_the_bits_of_their_memory_and_nothing_where_none_is_named() -> None:
    operations = {"read.f32": 2, "write.f32": 3, "read.weight.i5": 4}
    assert price(operations, TABLE).by_operation == {}
    weights = price(operations, TABLE, memory=MemoryLevels(weights="far"))
    assert weights.by_operation == {"read.weight.i5": 4 * 5 * 100.0}
    both = price(operations, TABLE, memory=MemoryLevels(weights="far", activations="near"))
    assert both.picojoules == 4 * 5 * 100.0 + 5 * 32 * 0.125


def test_a_memory_that_the_table_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(CostError, match=r'energy table "toy" has no memory "nera". Did you mean "near"\?'):
        price({"read.f32": 1}, TABLE, memory=MemoryLevels(activations="nera"))
    with pytest.raises(CostError, match=r'"ecoformer" has no memory "dram"\. It prices no memory'):
        price({"read.f32": 1}, load_table("ecoformer"), memory=MemoryLevels(activations="dram"))


def test_the_int8_baseline_narrows_operands_sums_and_words_and_loses_nothing() -> None:
    dense = {
        "mul.f32": 5,
        "add.f32": 6,
        "exp.f32": 7,
        "read.f32": 8,
        "read.weight.f32": 9,
        "write.f32": 1,
        "add.i32": 2,
    }
    assert as_int8(dense) == {
        "mul.i8": 5, "add.i32": 8, "exp.f32": 7, "read.i8": 8, "read.weight.i8": 9, "write.i8": 1,
    }  # fmt: skip


def test_a_deit_tiny_linear_layer_costs_what_the_published_figures_say() -> None:
    macs = 197 * 192 * 768
    operations = {"mul.f32": macs, "add.f32": macs}
    dense, int8 = (price(ops, load_table("horowitz-45nm")).picojoules for ops in (operations, as_int8(operations)))
    shift = price({"shift.f32": macs, "add.f32": macs}, load_table("horowitz-45nm")).picojoules
    assert dense == pytest.approx(macs * 4.6)
    assert int8 == pytest.approx(macs * 0.3)
    assert shift == pytest.approx(macs * 1.03)


@pytest.mark.parametrize(("dtype", "bits"), [("f32", 32), ("i8", 8), ("weight.i5", 5)])
def test_a_type_s_name_ends_in_its_width(dtype: str, bits: int) -> None:
    assert bits_of(dtype) == bits
    with pytest.raises(ValueError, match="names no width"):
        bits_of("float")
