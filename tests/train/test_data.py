import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reparam.errors import DataError, OptionError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import ImageFormat, Loaders, image_format, make_eval_loader, make_loaders, read_batches

CPU = torch.device("cpu")
PLAIN = TrainSettings(batch_size=8, workers=0, no_aug=True)


def loaders(data: DataSettings, settings: TrainSettings = PLAIN, *, num_classes: int = 3) -> Loaders:
    image = image_format(data, input_size=(1, 8, 8))
    return make_loaders(data, settings, image=image, num_classes=num_classes, device=CPU)


def test_training_drops_the_short_batch_and_evaluation_keeps_it(data: DataSettings) -> None:
    made = loaders(data)
    assert [len(labels) for _, labels in made.train] == [8] * 4
    assert [len(labels) for _, labels in made.val] == [8, 8, 2]


def test_evaluation_images_are_the_normalised_pixels_in_order(data: DataSettings, images: Path) -> None:
    batch, labels = next(iter(loaders(data).val))
    paths = sorted((images / "validation").glob("*/*.png"))[:8]
    pixels = np.stack([np.asarray(Image.open(path), dtype=np.float32) for path in paths])
    torch.testing.assert_close(batch[:, 0], torch.from_numpy((pixels / 255 - 0.5) / 0.5), rtol=0, atol=1e-5)
    assert labels.tolist() == [0] * 6 + [1] * 2


def test_a_loader_with_processes_gives_the_same_evaluation_batches(data: DataSettings) -> None:
    alone, helped = (loaders(data, replace(PLAIN, workers=workers)).val for workers in (0, 1))
    for (a, x), (b, y) in zip(alone, helped, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_an_evaluation_split_that_lacks_a_class_keeps_the_indices_of_training(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder(tmp_path)
    for image in (root / "validation" / "dark").iterdir():
        image.unlink()
    made = loaders(DataSettings(data_dir=str(root)))
    assert sorted({int(label) for _, labels in made.val for label in labels}) == [1, 2]


def test_an_evaluation_class_that_training_does_not_know_is_named(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder(tmp_path)
    (root / "validation" / "light").rename(root / "validation" / "bright")
    with pytest.raises(DataError, match=r"classes that .*train does not have: bright"):
        loaders(DataSettings(data_dir=str(root)))


def test_a_training_split_smaller_than_a_batch_says_which_batch_fits(data: DataSettings) -> None:
    with pytest.raises(DataError, match="36 images are less than one batch; pass --batch-size 36 or less"):
        loaders(data, TrainSettings(batch_size=64, workers=0))


def test_a_class_mismatch_stops_before_anything_is_read(data: DataSettings) -> None:
    with pytest.raises(DataError, match=r"3 classes .* but the model has 10 outputs"):
        loaders(data, num_classes=10)
    image = image_format(data, input_size=(1, 8, 8))
    with pytest.raises(DataError, match=r"3 classes .* but the model has 10 outputs"):
        make_eval_loader(data, image=image, num_classes=10, batch_size=8, workers=0, device=CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_reaches_the_reader_as_one_line(
    make_folder: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    root = make_folder(tmp_path)
    (root / "validation" / "dark" / "003.png").write_bytes(b"no picture")
    made = loaders(DataSettings(data_dir=str(root)), replace(PLAIN, workers=workers))
    message = ""
    try:
        list(read_batches(made.val, device=CPU))
    except DataError as error:  # not pytest.raises, which would keep the loader's process alive with the traceback
        message = str(error)
    assert re.match(r"/.*dark/003\.png: cannot be read as an image", message)
    assert "\n" not in message


def test_the_format_is_the_models_unless_the_settings_override_it() -> None:
    model = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 0.95}
    plain = image_format(DataSettings(), input_size=(3, 32, 32), model=model)
    assert plain == ImageFormat(
        input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation="bilinear", crop_pct=0.95
    )
    chosen = DataSettings(mean=(0.0,), interpolation="bicubic", crop_pct=1.0)
    other = image_format(chosen, input_size=(3, 32, 32), model=model)
    assert (other.mean, other.interpolation, other.crop_pct) == ((0.0, 0.0, 0.0), "bicubic", 1.0)


def test_grey_images_take_the_mean_of_the_colour_figures() -> None:
    model = {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.5)}
    grey = image_format(DataSettings(), input_size=(1, 8, 8), model=model)
    assert grey.mean == pytest.approx((0.2,))
    assert grey.std == pytest.approx((0.3,))


def test_figures_that_fit_no_channel_count_are_refused() -> None:
    with pytest.raises(DataError, match="--mean: wanted 1 or 3 figures for 3 channels, got 2"):
        image_format(DataSettings(mean=(0.1, 0.2)), input_size=(3, 8, 8))


def test_unknown_filters_and_policies_are_option_errors(data: DataSettings) -> None:
    with pytest.raises(OptionError, match='unknown interpolation "cubic"'):
        loaders(replace(data, train_interpolation="cubic"))
    with pytest.raises(OptionError, match="timm does not take"):
        loaders(data, TrainSettings(batch_size=8, workers=0, aa="no-such-policy"))


CROPS = TrainSettings(batch_size=8, workers=0, crop_padding=2, hflip=0.0, color_jitter=0.0)


def place_of(height: int, width: int) -> Image.Image:
    """A picture in which each pixel tells its place; none is 0."""
    return Image.fromarray(np.arange(1, height * width + 1, dtype=np.uint8).reshape(height, width))


def folder_of(image: Image.Image, root: Path) -> DataSettings:
    for split in ("train", "validation"):
        (root / split / "only").mkdir(parents=True)
        for number in range(24):
            image.save(root / split / "only" / f"{number:03}.png")
    return DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), interpolation="bilinear", crop_pct=1.0)


def pixels_of(batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    normalised = torch.cat([images[:, 0] for images, _ in batches])
    return ((normalised * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy()


def places_of(crop: np.ndarray, image: np.ndarray, padding: int) -> list[tuple[int, int]]:
    """Where in the padded image the crop was taken from: one place, if it is a crop."""
    padded, (height, width) = np.pad(image, padding), image.shape
    return [
        (top, left)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        if np.array_equal(crop, padded[top : top + height, left : left + width])
    ]


@pytest.mark.parametrize(
    ("size", "hflip"), [((8, 8), 0.0), ((8, 8), 1.0), ((14, 14), 0.0), ((10, 16), 0.0), ((4, 4), 0.0)], ids=str
)
def test_padded_crops_are_taken_from_the_resized_image_with_zeros_around(
    tmp_path: Path, size: tuple[int, int], hflip: float
) -> None:
    image = place_of(*size)
    resized = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    torch.manual_seed(0)
    made = loaders(folder_of(image, tmp_path), replace(CROPS, hflip=hflip), num_classes=1)
    crops = pixels_of(made.train)
    assert len(crops) == 24
    found = [places_of(crop[:, ::-1] if hflip else crop, resized, 2) for crop in crops]
    assert {len(places) for places in found} == {1}
    assert {top for ((top, _),) in found} == {left for ((_, left),) in found} == {0, 1, 2, 3, 4}
    assert not any(places_of(crop, resized, 2) for crop in crops if hflip)


def test_padded_crops_are_of_training_only_and_off_by_default(tmp_path: Path) -> None:
    image = place_of(8, 8)
    data, whole = folder_of(image, tmp_path), np.asarray(image)
    assert TrainSettings().crop_padding == 0
    assert all(np.array_equal(pixels, whole) for pixels in pixels_of(loaders(data, CROPS, num_classes=1).val))
    uncropped = replace(CROPS, crop_padding=0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert all(np.array_equal(pixels, whole) for pixels in pixels_of(loaders(data, uncropped, num_classes=1).train))


def test_padded_crops_of_a_loader_with_processes_are_padded_crops(tmp_path: Path) -> None:
    image = place_of(8, 8)
    made = loaders(folder_of(image, tmp_path), replace(CROPS, workers=1), num_classes=1)
    assert all(places_of(crop, np.asarray(image), 2) for crop in pixels_of(made.train))


def test_padded_crops_without_augmentation_are_a_contradiction(data: DataSettings) -> None:
    with pytest.raises(OptionError, match="crop_padding is an augmentation, and no_aug turns those off"):
        loaders(data, replace(CROPS, no_aug=True))


@pytest.mark.parametrize("settings", [CROPS, PLAIN], ids=["padded crops", "no augmentation"])
def test_evaluation_has_no_random_interpolation(data: DataSettings, settings: TrainSettings) -> None:
    with pytest.raises(OptionError, match='unknown interpolation "random"'):
        loaders(replace(data, interpolation="random"), settings)
