import csv
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from reparam.errors import CheckpointError, OptionError
from reparam.reporting.confusion import check_confusion_file, write_confusion
from reparam.train.evaluate import Evaluation
from reparam.train.per_class import class_results


def evaluation_of(confusion: torch.Tensor, names: list[str]) -> Evaluation:
    return Evaluation(
        top1=75.0,
        top5=100.0,
        loss=1.0,
        images=int(confusion.sum()),
        top1_interval=(70.0, 80.0),
        images_per_second=1.0,
        device="cpu",
        per_class=class_results(confusion, {name: index for index, name in enumerate(names)}),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


@pytest.fixture
def small() -> Evaluation:
    return evaluation_of(torch.tensor([[61, 3, 0], [0, 57, 7], [0, 2, 70]]), ["cat", "cash $ and $ carry", "<owl>"])


def test_a_small_matrix_shows_names_and_counts(tmp_path: Path, small: Evaluation) -> None:
    write_confusion(tmp_path / "m.svg", small)
    text = (tmp_path / "m.svg").read_text()
    words = [re.sub("&lt;", "<", re.sub("&gt;", ">", word)) for word in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    for name in ("cat", "cash $ and $ carry", "<owl>"):
        assert words.count(name) == 2  # at its row and at its column
    for count in ("61", "3", "57", "7", "2", "70"):
        assert count in words
    assert "top-1 75.00 % of 200 images" in words


def test_rows_are_shares_of_the_classs_images_whatever_their_number(tmp_path: Path) -> None:
    """A class of 4 images and one of 400, each half right, must have one colour."""
    write_confusion(tmp_path / "m.png", evaluation_of(torch.tensor([[2, 2], [200, 200]]), ["a", "b"]))
    picture = Image.open(tmp_path / "m.png").convert("RGB")
    width, height = picture.size
    colours = picture.crop((0, 0, int(width * 0.7), height)).getcolors(width * height)
    assert colours is not None
    wide = [colour for count, colour in colours if count > 0.02 * width * height and colour != (255, 255, 255)]
    assert len(wide) == 1


def test_a_thousand_classes_have_no_names_and_one_dot_each(tmp_path: Path) -> None:
    names = [f"name {index}" for index in range(1000)]
    confusion = torch.eye(1000, dtype=torch.int64)
    write_confusion(tmp_path / "m.svg", evaluation_of(confusion, names))
    assert "name" not in re.findall(r"<text[^>]*>(\w*)", (tmp_path / "m.svg").read_text())
    write_confusion(tmp_path / "m.png", evaluation_of(confusion, names))
    picture = Image.open(tmp_path / "m.png").convert("RGB")
    assert min(picture.size) > 1000
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_one_matrix_is_one_file_whatever_the_users_style(tmp_path: Path, small: Evaluation) -> None:
    import matplotlib

    write_confusion(tmp_path / "one.svg", small)
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "font.size": 30}):
        write_confusion(tmp_path / "two.svg", small)
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_table_holds_the_counts_under_their_names(tmp_path: Path, small: Evaluation) -> None:
    write_confusion(tmp_path / "m.csv", small)
    with (tmp_path / "m.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["true class", "cat", "cash $ and $ carry", "<owl>"]
    assert rows[1] == ["cash $ and $ carry", "0", "57", "7"]


def test_other_suffixes_and_unwritable_places_are_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"m.bmp: .* as \.png, \.svg or \.csv"):
        check_confusion_file(tmp_path / "m.bmp")
    (tmp_path / "m.png").mkdir()
    with pytest.raises(CheckpointError, match="wanted a file to write, got a folder"):
        check_confusion_file(tmp_path / "m.png")
    check_confusion_file(tmp_path / "M.SVG")
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_a_missing_matplotlib_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check_confusion_file(tmp_path / "m.csv")
    with pytest.raises(OptionError, match=r'pip install "reparam\[plots\]"'):
        check_confusion_file(tmp_path / "m.png")
