"""Data sets that are held decoded on the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reparam.errors import DataError, OptionError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, image_format, make_loaders
from reparam.train.epochs import Seekable, open_epoch
from reparam.train.order import EpochOrder
from reparam.train.resident import Resident, ResidentEvaluation, ResidentTraining
from tests.train.pico import draw_folder

CPU = torch.device("cpu")
HELD = TrainSettings(batch_size=6, workers=0, in_memory=True, no_aug=True)
CROPPED = replace(HELD, no_aug=False, crop_padding=2, color_jitter=0.0)


def loaders(data: DataSettings, settings: TrainSettings) -> Loaders:
    return make_loaders(data, settings, image=image_format(data, input_size=(1, 8, 8)), num_classes=3, device=CPU)


def epoch(made: Loaders, number: int, *, done: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(open_epoch(made.train, number, done=done))


def test_without_augmentation_they_are_the_images_that_the_loader_reads(data: DataSettings) -> None:
    held, read = (loaders(data, replace(HELD, in_memory=way)) for way in (True, False))
    assert len(held.train) == len(read.train) == 6
    for one, other in zip(epoch(held, 2), epoch(read, 2), strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for one, other in zip(held.val, read.val, strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_an_epoch_that_is_begun_later_gives_the_same_batches(data: DataSettings) -> None:
    made = loaders(data, replace(CROPPED, reprob=0.5, vflip=0.5))
    whole, rest = epoch(made, 3), epoch(made, 3, done=4)
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0][0], epoch(made, 4)[0][0])


def numbered(count: int = 64) -> Resident:
    """Images of 4x4 pixels, each pixel of an image another number; normalisation by nothing."""
    pixels = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4, 1).expand(count, 4, 4, 1)
    return Resident(images=pixels, labels=torch.arange(count), mean=torch.zeros(1), std=torch.ones(1))


def batches(settings: TrainSettings) -> Tensor:
    held = numbered()
    made = ResidentTraining(held, EpochOrder(len(held.images), seed=settings.seed), settings)
    made.begin(1)
    return torch.cat([images for images, _ in made])[:, 0]


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_comes() -> None:
    settings = replace(CROPPED, batch_size=64, crop_padding=1, hflip=0.0)
    seen = torch.cat([batches(replace(settings, seed=seed)) for seed in range(4)])
    image = torch.arange(1.0, 17.0).view(4, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = padded.unfold(0, 4, 1).unfold(1, 4, 1).reshape(9, 4, 4)
    matches = (seen[:, None] == windows).all((2, 3))
    assert matches.sum(1).eq(1).all()
    assert matches.any(0).all()


def test_flips_happen_as_often_as_asked_and_on_the_asked_axis() -> None:
    settings = replace(CROPPED, batch_size=64, crop_padding=1, hflip=1.0)
    centred = batches(replace(settings, vflip=0.0, crop_padding=1))
    # In a flipped image a row's numbers fall to the right wherever no padding came in.
    inner = centred[:, 1:3, 1:3]
    assert (inner[:, :, 1] < inner[:, :, 0]).all()
    assert (inner[:, 1] > inner[:, 0]).all()
    half = batches(replace(settings, hflip=0.5))[:, 1:3, 1:3]
    flipped = (half[:, 0, 1] < half[:, 0, 0]).sum()
    assert 16 < flipped < 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_padding": 0}, "a crop of random area"),
        ({"color_jitter": 0.4}, r"color_jitter = 0.4 \(give 0\)"),
        ({"aa": "rand-m9"}, 'aa = "rand-m9"'),
    ],
    ids=["area", "jitter", "policy"],
)
def test_an_augmentation_of_single_images_is_refused(
    data: DataSettings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        loaders(data, replace(CROPPED, **change))


def test_processes_share_the_evaluation_without_repeats() -> None:
    held = numbered(13)
    parts = [ResidentEvaluation(held, batch_size=4, first=r, step=3) for r in range(3)]
    labels = [label for part in parts for _, batch in part for label in batch.tolist()]
    assert sorted(labels) == list(range(13))


def spoilt(folder: Path, *names: str) -> DataSettings:
    for name in names:
        (folder / "train" / name).write_bytes(b"no image")
    return DataSettings(data_dir=str(folder), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_bad_images_as_allowed_are_left_out_and_named(tmp_path: Path, workers: int) -> None:
    data = spoilt(draw_folder(tmp_path), "dark/003.png", "light/011.png")
    settings = replace(HELD, max_bad_images=2, workers=workers)
    held, read = (loaders(data, replace(settings, in_memory=way)) for way in (True, False))
    # The images that stand in are those of the loader that reads them in every epoch.
    for one, other in zip(epoch(held, 2), epoch(read, 2), strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for made in (held, read):
        assert isinstance(made.train, Seekable)
        names = [Path(name).parts[-2:] for name in made.train.unreadable()]
        assert names == [("dark", "003.png"), ("light", "011.png")]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_image_more_than_allowed_is_told_in_one_line(tmp_path: Path, workers: int) -> None:
    data = spoilt(draw_folder(tmp_path), "dark/003.png", "dark/005.png")
    with pytest.raises(DataError, match=r"\A\S+dark/005\.png: cannot be read .* and 1 others cannot either[^\n]*\Z"):
        loaders(data, replace(HELD, max_bad_images=1, workers=workers))


def test_a_bad_image_is_never_left_out_of_an_evaluation(tmp_path: Path) -> None:
    data = spoilt(draw_folder(tmp_path))
    (tmp_path / "validation/dark/000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"validation/dark/000\.png: cannot be read"):
        loaders(data, replace(HELD, max_bad_images=5))


def test_an_image_that_cannot_be_read_is_named(data: DataSettings, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for label in "abc":
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                source = next(Path(str(data.data_dir), "train", "dark").iterdir())
                (folder / f"{i}.png").write_bytes(source.read_bytes())
    (tmp_path / "train/b/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/b/1\.png: cannot be read"):
        loaders(replace(data, data_dir=str(tmp_path)), HELD)
