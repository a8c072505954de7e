"""Streams: each epoch shuffled anew, begun again anywhere, shared out over processes; what cannot be read is named."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reparam.api.resume import request_of
from reparam.checkpoint.recovery import newest_state, write_state
from reparam.errors import DataError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, image_format, make_loaders, read_batches
from reparam.train.epochs import open_epoch
from reparam.train.evaluate import evaluate_model
from reparam.train.loop import Trainer
from tests.train.gang import together
from tests.train.loops import CPU
from tests.train.pico import pico_vit

pytest.importorskip("webdataset")
# webdataset leaves the shards it has read to the garbage collector to be closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning"),
]
TRAIN, VAL, SHARDS = 24, 7, 4
SETTINGS = TrainSettings(
    epochs=2, batch_size=6, workers=0, lr=3e-3, reprob=0.5, vflip=0.5, distill_loss_weight=0.0, recovery_interval=1
)


def picture(number: int) -> Image.Image:
    """An even grey, darker for lower numbers, so that a batch tells which images it holds."""
    return Image.fromarray(np.full((8, 8), 10 * number, dtype=np.uint8))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("wds")
    for split, count in (("train", TRAIN), ("val", VAL)):
        for shard in range(SHARDS):
            with tarfile.open(folder / f"{split}-{shard}.tar", "w") as tar:
                for number in range(shard, count, SHARDS):
                    bits = io.BytesIO()
                    picture(number).save(bits, "PNG")
                    for kind, content in (("png", bits.getvalue()), ("cls", str(number % 3).encode())):
                        info = tarfile.TarInfo(f"{number:04}.{kind}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return DataSettings(
        dataset="wds/",
        data_dir=str(folder),
        train_split=f"train-{{0..{SHARDS - 1}}}.tar",
        val_split=f"val-{{0..{SHARDS - 1}}}.tar",
        train_num_samples=TRAIN,
        mean=(0.0,),
        std=(1 / 255,),
        train_interpolation="bilinear",
    )


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory, shards: DataSettings) -> DataSettings:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hfids")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, count in (("train", TRAIN), ("validation", VAL)):
        rows = [{"image": picture(number), "label": number % 3} for number in range(count)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return replace(
        shards,
        dataset=f"hfids/{folder}",
        data_dir=str(tmp_path_factory.mktemp("cache")),
        train_split="train",
        val_split="validation",
        val_num_samples=VAL,
    )


@pytest.fixture(params=["wds", "hfids"])
def data(request: pytest.FixtureRequest) -> DataSettings:
    made: DataSettings = request.getfixturevalue({"wds": "shards", "hfids": "tables"}[request.param])
    return made


def loaders(data: DataSettings, settings: TrainSettings = SETTINGS) -> Loaders:
    image = image_format(data, input_size=(1, 8, 8))
    return make_loaders(data, settings, image=image, num_classes=3, device=CPU)


def batches(made: Loaders, epoch: int, *, done: int = 0) -> list[Tensor]:
    return [images.clone() for images, _ in open_epoch(made.train, epoch, done=done)]


def numbers(found: list[Tensor]) -> list[int]:
    return [round(float(image.mean()) / 10) for images in found for image in images]


def test_an_epoch_has_each_image_once_in_another_order_than_the_last(data: DataSettings) -> None:
    made = loaders(data, replace(SETTINGS, no_aug=True, reprob=0.0))
    first, second = (numbers(batches(made, epoch)) for epoch in (1, 2))
    assert len(made.train) == TRAIN // 6
    assert sorted(first) == sorted(second) == list(range(TRAIN))
    assert first != second != list(range(TRAIN))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_begun_in_the_middle_goes_on_with_the_same_bits(shards: DataSettings, workers: int) -> None:
    settings = replace(SETTINGS, workers=workers)
    straight = loaders(shards, settings)
    batches(straight, 1)
    expected = batches(straight, 2)
    torch.manual_seed(workers)
    assert all(map(torch.equal, batches(loaders(shards, settings), 2, done=1), expected[1:]))


def test_a_training_that_is_resumed_ends_with_the_same_bits(data: DataSettings, tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        keep: Callable[..., None] = lambda state: write_state(folder, state, keep=9)  # noqa: E731
        return Trainer(pico_vit(), loaders(data), settings=SETTINGS, num_classes=3, device=CPU, stage="pico", keep=keep)

    straight, resumed = trainer(tmp_path), trainer(tmp_path)
    straight.fit()
    for path in sorted(tmp_path.iterdir())[6:]:  # the states after the second of four steps of the second epoch
        path.rename(tmp_path / f"gone-{path.name}")
    state = newest_state(tmp_path, "pico", passed_over=lambda path: None)
    assert state is not None
    assert (state.epoch, state.step) == (2, 1)
    resumed.resume(state)
    resumed.fit()
    assert all(map(torch.equal, resumed.model.state_dict().values(), straight.model.state_dict().values()))


def test_two_processes_train_on_all_images_and_evaluate_each_once(data: DataSettings) -> None:
    settings = replace(SETTINGS, batch_size=3, validation_batch_size=2, no_aug=True, reprob=0.0)

    def work() -> tuple[list[int], int, int]:
        made = loaders(data, settings)
        seen = numbers(batches(made, 1))
        return seen, len(made.train), evaluate_model(pico_vit(), made.val, CPU).images

    (first, *sizes), (second, *others) = together(work)
    assert sorted(first + second) == list(range(TRAIN))
    assert sizes == others == [TRAIN // 6, VAL]


def test_more_loader_processes_than_shards_are_refused(shards: DataSettings) -> None:
    made = loaders(replace(shards, train_split="train-0.tar"), replace(SETTINGS, workers=2))
    rest = read_batches(open_epoch(made.train, 1, done=0), device=CPU)
    with pytest.raises(DataError, match="one of 2 loader processes got 0 images where 12 are due"):
        list(rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_split": "train-{0..4}.tar"}, "train-4.tar: no such file"),
        ({"train_num_samples": None}, "in train mode. Say how many images a stream has, with --train-num-samples"),
        ({"train_split": "train"}, "not found in info .*. Name the shards, as in --train-split 'train-"),
        ({"data_dir": None}, "that --train-split and --val-split name from --data-dir; give that, too"),
    ],
    ids=["shard", "count", "info", "folder"],
)
def test_a_stream_that_cannot_be_opened_says_what_to_do(
    shards: DataSettings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loaders(replace(shards, **change))


def test_a_column_that_is_not_there_is_named(tables: DataSettings) -> None:
    with pytest.raises(DataError, match="no column 'pic'; name the columns with --input-key"):
        batches(loaders(replace(tables, input_key="pic")), 1)


def test_loader_processes_are_part_of_what_is_resumed_in_a_stream_alone(shards: DataSettings) -> None:
    recipe = load_recipe("none")
    for data, told in ((shards, True), (replace(shards, dataset=""), False)):
        assert ("workers" in request_of(recipe, data, {"train": SETTINGS})["stages"]["train"]) == told
