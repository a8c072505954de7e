from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reparam.errors import DataError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import image_format, make_loaders
from reparam.train.epochs import EpochLoader
from reparam.train.splits import Samples, check_classes, open_split


def test_a_folder_split_gives_images_in_the_colours_the_model_takes(data: DataSettings) -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        split = open_split(data, "train", channels=channels)
        assert isinstance(split.images, Samples)
        image, target = split.images[0]
        assert (image.mode, image.size, target) == (mode, (8, 8), 0)
        assert len(split.images) == 36
        assert split.classes == {"dark": 0, "grey": 1, "light": 2}


def test_a_split_is_found_under_the_usual_names(images: Path) -> None:
    split = open_split(DataSettings(data_dir=str(images)), "val", channels=1)
    assert split.where == str(images / "validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings(), "no data: name an image folder with --data-dir DIR, or a data set with --dataset"),
        (DataSettings(data_dir="/nowhere/at/all"), "/nowhere/at/all: no such folder"),
        (DataSettings(data_dir=__file__), r"test_splits.py: wanted a folder of images, got a file"),
        (DataSettings(dataset="torch/mnist", data_dir="/nowhere"), r"torch/mnist \(train\).*Pass --dataset-download"),
        (DataSettings(dataset="hfds//nowhere/at/all"), r"hfds//nowhere/at/all \(train\): cannot be opened"),
    ],
    ids=["nothing", "folder", "file", "torch", "hfds"],
)
def test_data_that_is_not_there_is_one_sentence(
    settings: DataSettings, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=message) as caught:
        open_split(settings, "train", channels=1)
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_told_from_those_that_are(data: DataSettings) -> None:
    with pytest.raises(DataError, match=r'no split "test" \(folder test\); it holds train, validation'):
        open_split(data, "test", channels=1)


def test_classes_beside_each_other_are_a_split_only_when_that_is_allowed(images: Path) -> None:
    settings = DataSettings(data_dir=str(images / "train"))
    assert len(open_split(settings, "validation", channels=1, is_root_allowed=True).classes) == 3
    with pytest.raises(DataError, match='no split "validation"'):
        open_split(settings, "validation", channels=1)


def test_a_folder_with_the_other_split_alone_is_never_taken_for_the_split(tmp_path: Path, images: Path) -> None:
    (tmp_path / "train").symlink_to(images / "train")
    with pytest.raises(DataError, match='no split "validation"'):
        open_split(DataSettings(data_dir=str(tmp_path)), "validation", channels=1, is_root_allowed=True)


def test_a_split_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="train: cannot be opened as a data set: Found 0 images"):
        open_split(DataSettings(data_dir=str(tmp_path)), "train", channels=1)


def test_two_channels_are_refused(data: DataSettings) -> None:
    with pytest.raises(DataError, match="the model takes 2 channels"):
        open_split(data, "train", channels=2)


def test_a_class_mismatch_names_both_counts_and_both_ways_out(data: DataSettings) -> None:
    split = open_split(data, "train", channels=1)
    check_classes(split, num_classes=3, is_mapped=False)
    with pytest.raises(DataError, match=r"3 classes \(dark, grey, light\), but the model has 1000 outputs") as caught:
        check_classes(split, num_classes=1000, is_mapped=False)
    assert "--num-classes 3" in str(caught.value)
    assert "--class-map" in str(caught.value)


def test_a_class_map_may_name_more_classes_than_there_are_but_no_index_beyond_the_model(
    data: DataSettings, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("black\ndark\ngrey\nlight\n")
    split = open_split(replace(data, class_map=str(names)), "train", channels=1)
    assert isinstance(split.images, Samples)
    assert split.images[0][1] == 1
    check_classes(split, num_classes=1000, is_mapped=True)
    with pytest.raises(DataError, match="4 classes"):
        check_classes(split, num_classes=3, is_mapped=True)


def test_an_unreadable_image_is_named_and_its_neighbours_are_not_touched(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    broken = make_folder(tmp_path) / "train" / "dark" / "001.png"
    broken.write_bytes(b"no picture")
    split = open_split(DataSettings(data_dir=str(tmp_path)), "train", channels=1)
    split.images[0], split.images[2]
    with pytest.raises(DataError, match=r"dark/001\.png: cannot be read as an image"):
        split.images[1]


def test_a_truncated_image_is_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    image = make_folder(tmp_path) / "train" / "dark" / "000.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(image)
    image.write_bytes(image.read_bytes()[:60])
    split = open_split(DataSettings(data_dir=str(tmp_path)), "train", channels=1)
    with pytest.raises(DataError, match=r"dark/000\.png: cannot be read"):
        split.images[0]


def test_a_column_that_is_not_there_is_told_with_the_flags_that_name_columns() -> None:
    class Table:
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            raise KeyError("img")

    with pytest.raises(DataError, match="hfds/x: there is no column 'img'; name the columns with --input-key"):
        Samples(Table(), mode="RGB", where="hfds/x")[0]


def spoilt_folder(root: Path, make_folder: Callable[..., Path], *names: str) -> DataSettings:
    """An image folder with files that are no images."""
    folder = make_folder(root)
    for name in names:
        (folder / "train" / name).write_bytes(b"no image")
    return DataSettings(data_dir=str(folder), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_bad_images_as_allowed_are_left_out_and_named(
    tmp_path: Path, make_folder: Callable[..., Path], workers: int
) -> None:
    data = spoilt_folder(tmp_path, make_folder, "dark/003.png", "grey/000.png")
    settings = TrainSettings(batch_size=6, workers=workers, no_aug=True, max_bad_images=2)
    image = image_format(data, input_size=(1, 8, 8))
    loaders = make_loaders(data, settings, image=image, num_classes=3, device=torch.device("cpu"))
    labels = torch.cat([labels for _, labels in loaders.train])
    # The next image stands in: one more of the fourth dark one, and one of the second grey one.
    assert torch.bincount(labels).tolist() == [12, 12, 12]
    assert isinstance(loaders.train, EpochLoader)
    names = loaders.train.unreadable()
    assert [Path(name).parts[-2:] for name in names] == [("dark", "003.png"), ("grey", "000.png")]


def test_one_bad_image_more_than_allowed_ends_the_run(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = spoilt_folder(tmp_path, make_folder, "dark/003.png", "grey/000.png")
    settings = TrainSettings(batch_size=6, workers=0, no_aug=True, max_bad_images=1)
    image = image_format(data, input_size=(1, 8, 8))
    loaders = make_loaders(data, settings, image=image, num_classes=3, device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"\.png: cannot be read as an image .* and 1 others cannot either"):
        list(loaders.train)


def test_a_bad_image_is_never_left_out_of_an_evaluation(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = spoilt_folder(tmp_path, make_folder)
    (tmp_path / "validation/dark/000.png").write_bytes(b"no image")
    settings = TrainSettings(batch_size=6, workers=0, no_aug=True, max_bad_images=5)
    image = image_format(data, input_size=(1, 8, 8))
    loaders = make_loaders(data, settings, image=image, num_classes=3, device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"validation/dark/000\.png: cannot be read"):
        list(loaders.val)
