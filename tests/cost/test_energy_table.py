"""Energy tables: the shipped ones cite their source and hold published figures; users' own are read or refused."""

from pathlib import Path

import pytest

from reparam.cost import energy_table
from reparam.cost.energy_table import energy_tables, load_table
from reparam.errors import CostError

OWN = """
name = "mine"
title = "My chip"
source = "its data sheet"
[operations]
mul = { i8 = 2.0 }
[memory]
sram = 0.5
"""


def test_every_shipped_table_cites_its_source_and_prices_multiplications_and_additions() -> None:
    tables = energy_tables()
    assert set(tables) == {"ecoformer", "horowitz-45nm", "shiftaddnet-asic", "shiftaddnet-fpga"}
    for name, table in tables.items():
        assert table.name == name
        assert any(word in table.source for word in ("arXiv:", "ISSCC")), name
        assert {"mul.f32", "add.f32"} <= table.operations.keys()


@pytest.mark.parametrize(
    ("table", "prices"),
    [
        ("horowitz-45nm", {"mul.i8": 0.2, "mul.f32": 3.7, "add.i8": 0.03, "add.i32": 0.1, "add.f32": 0.9}),
        ("shiftaddnet-asic", {"mul.i32": 3.1, "shift.i32": 0.13, "shift.i16": 0.057, "shift.i8": 0.024}),
        ("shiftaddnet-fpga", {"mul.f32": 18.8, "mul.i32": 19.6, "add.f32": 0.4, "add.i8": 0.1, "shift.i32": 0.1}),
        ("ecoformer", {"mul.f32": 3.7, "add.f32": 0.9}),
    ],
)
def test_the_shipped_figures_are_the_published_ones(table: str, prices: dict[str, float]) -> None:
    assert load_table(table).operations.items() >= prices.items()


def test_dram_costs_what_was_published_for_64_bits() -> None:
    assert load_table("horowitz-45nm").memory["dram"] * 64 == 1300
    assert load_table("horowitz-45nm").memory["sram-8k"] * 64 == 10


def test_a_user_s_file_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    for source in (path, str(path)):
        table = load_table(source)
        assert (table.name, table.operations, table.memory) == ("mine", {"mul.i8": 2.0}, {"sram": 0.5})


def test_an_unknown_name_is_refused_with_what_was_probably_meant() -> None:
    with pytest.raises(CostError, match=r'unknown energy table "horowitz-45m". Did you mean "horowitz-45nm"\?'):
        load_table("horowitz-45m")
    with pytest.raises(CostError, match=r"Known: ecoformer, horowitz-45nm, .*; or give a \.toml file"):
        load_table("zzz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "is not TOML"),
        (OWN.replace("its data sheet", ""), "source: String should have at least 1 character"),
        (OWN.replace("mul =", "mull ="), 'unknown verb "mull". Did you mean "mul"?'),
        (OWN.replace("i8 = 2.0", "i8 = -2.0"), "operations.mul.i8: Input should be greater than or equal to 0"),
        (OWN.replace("i8 = 2.0", "i8 = nan"), "operations.mul.i8: Input should be a finite number"),
        (OWN.replace("i8 = 2.0", "int = 2.0"), "should match pattern"),
        (OWN.replace("[memory]", "[memroy]"), "memroy: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_where_and_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(CostError) as caught:
        load_table(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"cannot be read: .*No such file"):
        load_table(tmp_path / "none.toml")


class Point:
    """An entry point that an installed package declares."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> str:
        return str(self.path)


def test_an_installed_package_brings_tables_by_entry_point_but_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    declared = [Point(path)]
    monkeypatch.setattr(energy_table, "entry_points", lambda group: declared if group == "reparam.energy" else [])
    energy_tables.cache_clear()
    assert load_table("mine").title == "My chip"
    declared.append(Point(path))
    energy_tables.cache_clear()
    with pytest.raises(CostError, match='two energy tables are called "mine"'):
        energy_tables()
    energy_tables.cache_clear()
