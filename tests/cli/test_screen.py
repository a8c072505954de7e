import pytest

from reparam_cli.render.screen import amount, change, clock, duration, file_size
from reparam_cli.words import counted, written


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (5_717_416, "5.72 M"), (999_600, "1.00 M"), (420_000_000, "420 M")],
)
def test_amounts_have_three_figures(n: int, text: str) -> None:
    assert amount(n) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (10, 10, "same"),
        (10, 5, "2.00x fewer"),
        (5, 10, "2.00x more"),
        (0, 5, "all new"),
        (5, 0, "all gone"),
        (1000, 1001, "1.001x more"),
    ],
)
def test_a_change_says_its_direction(before: int, after: int, text: str) -> None:
    assert change(before, after) == text


def test_sizes_and_times_have_units() -> None:
    assert (file_size(999), file_size(22_900_000)) == ("999 B", "22.9 MB")
    assert (duration(42.4), duration(123)) == ("42 s", "2 min 03 s")
    assert (clock(42), clock(3723)) == ("0:42", "1:02:03")


def test_tables_and_counts_are_written_in_one_line() -> None:
    assert written({"bits": 4, "shift": {"ps": True}, "range": (1, 2)}) == "bits=4, shift (ps=true), range=1 2"
    assert (counted(1, "site"), counted(0, "site")) == ("1 site", "0 sites")
