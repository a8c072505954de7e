from reparam.cost.energy_table import energy_tables
from reparam.reporting.page.summary import Row, columns, rows, tiles
from tests.reporting.page.facts import figures, page, run

TABLES = (energy_tables()["horowitz-45nm"], energy_tables()["ecoformer"])


def found(label: str, of: tuple[Row, ...]) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in of if row.label == label]


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u00d7", "x")


def test_every_figure_stands_beside_the_dense_one_with_its_kind() -> None:
    made = rows(page(), TABLES)
    assert found("multiplications", made) == [["8", "2"]]
    assert found("shifts", made) == [["0", "6"]]
    assert [plain(text) for text in found("latency", made)[0]] == ["1.00 ms", "2.00 ms"]
    assert [plain(text) for text in found("stage “all”", made)[0]] == ["", "40.00 % → 80.50 %"]
    kinds = {row.label: row.kind for row in made}
    assert kinds["multiplications"] == "counted"
    assert kinds["latency"] == "measured here"
    assert kinds["energy of the operations"].startswith("modelled: ")


def test_energy_has_a_row_for_each_table_and_an_int8_baseline() -> None:
    made = [row for row in rows(page(), TABLES) if row.energy == "horowitz-45nm"]
    assert [[plain(cell.text) for cell in row.cells] for row in made] == [
        ["36.8 pJ", f"{2 * 3.7 + 6 * 0.13 + 10 * 0.9:.1f} pJ"],
        [f"{8 * 0.2 + 8 * 0.1:.2f} pJ", ""],
    ]


def test_where_the_dense_model_in_int8_takes_less_energy_the_tile_and_the_row_warn() -> None:
    """17.18 pJ converted against 2.40 pJ: 7.16 times."""
    warning = "the dense model in int8 would take less: 2.40 pJ, 7.16x less"
    (tile,) = [tile for tile in tiles(run(), TABLES) if tile.energy == "horowitz-45nm"]
    assert (plain(tile.cell.warning), tile.cell.tone) == (warning, "")
    (row,) = [row for row in rows(page(), TABLES) if row.label == "energy, dense in int8" and row.energy == tile.energy]
    assert [plain(cell.warning) for cell in row.cells] == ["", warning]


def test_a_conversion_that_takes_less_than_int8_has_no_warning() -> None:
    frugal = run(model_figures=figures(a={"shift.i32": 3}))
    assert {tile.cell.warning for tile in tiles(frugal, TABLES)} == {""}
    assert {cell.warning for row in rows(page(frugal), TABLES) for cell in row.cells} == {""}


def test_slower_than_dense_is_bad_and_said() -> None:
    (tile,) = [tile for tile in tiles(run(), TABLES) if tile.label == "latency"]
    assert (plain(tile.cell.text), tile.cell.tone) == ("2.00x slower", "bad")
    assert tile.cell.note.startswith("slower than dense here")


def test_a_ratio_whose_rounds_spread_widely_is_uncertain() -> None:
    """The interquartile range is 0.25 ms: a quarter of the dense 1 ms."""
    notes = [tile.cell.note for tile in tiles(run(), TABLES) if tile.label == "latency"]
    assert "uncertain, rounds spread by 25" in notes[0]
    calm = run(dense=figures(ms=10.0, a={"mul.f32": 8}), model_figures=figures(ms=20.0, a={"mul.f32": 2}))
    assert not any("uncertain" in tile.cell.note for tile in tiles(calm, TABLES))


def test_as_fast_as_dense_to_three_figures_is_the_same() -> None:
    same = run(dense=figures(ms=5.001, a={"mul.f32": 2}), model_figures=figures(ms=5.002, a={"mul.f32": 2}))
    (tile,) = [tile for tile in tiles(same, TABLES) if tile.label == "latency"]
    assert (tile.cell.text, tile.cell.tone) == ("same", "")


def test_faster_than_dense_is_not_bad() -> None:
    faster = run(model_figures=figures(ms=0.5, a={"mul.f32": 2}))
    (tile,) = [tile for tile in tiles(faster, TABLES) if tile.label == "latency"]
    assert (plain(tile.cell.text), tile.cell.tone) == ("2.00x faster", "")
    assert "slower" not in tile.cell.note


def test_a_run_that_was_not_evaluated_tells_the_command() -> None:
    (row,) = [row for row in rows(page(run(evaluation=None, stages=())), TABLES) if row.label == "top-1 now"]
    assert row.cells[1].note == "run: reparam evaluate runs/run --data-dir DATA"


def test_runs_with_the_same_original_share_its_column() -> None:
    other = run(name="other")
    assert [column.title for column in columns(page(run(), other))] == ["dense", "run", "other"]
    larger = run(name="other", model="big_net", input_size=(3, 32, 32))
    assert len(columns(page(run(), larger))) == 4
    stranger = run(name="other", model="big_net", dense_digest="d2")
    assert [column.title for column in columns(page(run(), stranger))] == ["dense", "run", "dense big_net", "other"]


def test_what_was_not_timed_has_no_latency() -> None:
    untimed = run(dense=figures(ms=None, a={"mul.f32": 8}), model_figures=figures(ms=None, a={"mul.f32": 2}))
    assert "latency" not in {tile.label for tile in tiles(untimed, TABLES)}
    assert found("latency", rows(page(untimed), TABLES)) == []
