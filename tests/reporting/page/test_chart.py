import re

import pytest

from reparam.reporting.page.chart import Chart, Level, Line, make_chart


def chart(*pieces: list[tuple[float, float]], **options: object) -> Chart:
    made = make_chart("loss", [Line(name="train", colour="blue", pieces=pieces)], epochs=4, **options)  # type: ignore[arg-type]
    assert made is not None
    return made


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_points_stand_where_their_values_are() -> None:
    made = chart([(0, 0.0), (2, 10.0), (4, 5.0)])
    assert [tick.label for tick in made.y_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert places(made.lines[0].path) == [(0, 1000), (500, 0), (1000, 500)]


def test_each_piece_is_drawn_by_itself() -> None:
    assert chart([(0, 1.0), (1, 2.0)], [(2, 1.0), (3, 2.0)]).lines[0].path.count("M") == 2


def test_a_point_alone_has_a_dot_even_on_a_line_without() -> None:
    line = Line(name="rate", colour="blue", pieces=[[(1, 0.0)], [(2, 1.0), (3, 2.0)]], has_dots=False)
    made = make_chart("rate", [line], epochs=4)
    assert made is not None
    assert places(made.lines[0].dots) == [(250, 1000)]


def test_true_values_go_along_for_the_reader() -> None:
    made = chart([(0, 0.123456789), (1, 2.0)])
    assert made.values["lines"][0]["points"] == [[0, 0.12346], [1, 2.0]]


def test_values_that_are_not_finite_are_left_out() -> None:
    assert places(chart([(0, 0.0), (1, float("nan")), (2, float("inf")), (4, 1.0)]).lines[0].path) == [
        (0, 1000),
        (1000, 0),
    ]


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    points = chart([(4 * i / 9999, float(i)) for i in range(10_000)]).values["lines"][0]["points"]
    assert len(points) == 400
    assert (points[0][1], points[-1][1]) == (0, 9999)


def test_levels_are_inside_the_axis() -> None:
    made = chart([(0, 1.0), (1, 2.0)], levels=[Level(name="dense", y=9.0)])
    assert made.y_ticks[-1].label == "10"
    assert 0 < made.levels[0][1] < 100


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        pytest.param(0.0, 1e-3, ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"], id="small"),
        pytest.param(25.0, 98.0, ["20", "40", "60", "80", "100"], id="percent"),
        pytest.param(3.0, 3.0, ["2.4", "2.6", "2.8", "3", "3.2", "3.4", "3.6"], id="constant"),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, labels: list[str]) -> None:
    assert [tick.label for tick in chart([(0, low), (1, high)]).y_ticks] == labels


def test_epochs_are_whole() -> None:
    assert [tick.label for tick in chart([(0, 1.0), (4, 2.0)]).x_ticks] == ["0", "1", "2", "3", "4"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert make_chart("loss", [Line(name="train", colour="blue", pieces=[[]])], epochs=1) is None
