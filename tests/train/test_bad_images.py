"""Images that cannot be read, in several processes: each names those of all, and the limit is that of all together."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from reparam.errors import DataError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.order import EpochOrder
from tests.train.gang import together
from tests.train.loops import PLAIN, Notes, trainer
from tests.train.pico import draw_folder

IMAGES = 36


class Told(Notes):
    """Keeps every message, too."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def spoilt(root: Path) -> tuple[DataSettings, list[str]]:
    """A folder in which each of two processes meets two bad images in the first epoch; their names by process."""
    files = sorted((draw_folder(root) / "train").glob("*/*.png"))
    names = []
    for process in range(2):
        order = EpochOrder(IMAGES, seed=PLAIN.seed, process=process, processes=2)
        order.begin(1)
        first, second, *_ = (files[place.image] for place in order)
        for file in (first, second):
            file.write_bytes(b"no image")
            names.append(f"{file.parent.name}/{file.name}")
    return DataSettings(
        data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0
    ), names


def messages(data: DataSettings, settings: TrainSettings) -> list[str]:
    """What a process is told while it trains, or the error that ends it."""
    told = Told()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    try:
        trainer(model, data, settings, progress=told).fit()
    except DataError as error:
        told.messages.append(f"DataError: {error}")
    return told.messages


@pytest.mark.parametrize("in_memory", [False, True], ids=["read", "held"])
def test_every_process_names_the_images_of_all(tmp_path: Path, in_memory: bool) -> None:
    data, names = spoilt(tmp_path)
    settings = replace(PLAIN, epochs=1, max_bad_images=4, in_memory=in_memory)
    first, second = together(lambda: messages(data, settings))
    assert first == second
    (said,) = first
    assert said.startswith("training images that cannot be read (4 so far) were left out: ")
    assert all(name in said for name in names)


def test_the_limit_is_that_of_all_processes_together(tmp_path: Path) -> None:
    data, names = spoilt(tmp_path)
    settings = replace(PLAIN, epochs=1, max_bad_images=3)  # each of the two meets fewer
    for (said,) in together(lambda: messages(data, settings)):
        assert said.startswith("DataError: 4 training images cannot be read, and --max-bad-images allows 3: ")
        assert all(name in said for name in names)
