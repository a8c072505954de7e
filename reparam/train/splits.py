"""Splits of a data set, opened through timm: folders checked, classes compared with the model, bad images named."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset

from reparam.errors import DataError, first_line
from reparam.logs import hushed
from reparam.recipe.data_settings import DataSettings
from reparam.train.order import Place
from reparam.train.randomness import Draw, seed_generators
from reparam.train.streams import open_stream

_SYNONYMS: tuple[tuple[str, ...], ...] = (("train", "training"), ("validation", "valid", "val", "evaluation", "eval"))
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One opened split. `classes` maps names to indices, empty when unknown; `where` is for messages."""

    images: "Samples | IterableDataset[Any]"
    classes: Mapping[str, int]
    where: str


class Samples(Dataset[tuple[Any, int]]):
    """Images of a counted data set in one colour mode; an image that cannot be read raises a DataError with its name.

    timm puts the transform in place when it makes the loader. An image that is asked for by its place in a training run
    is augmented as that place says; there, up to `max_bad` images may be unreadable, and the next one stands in.
    """

    def __init__(self, source: Any, *, mode: str, where: str, seed: int = 0, max_bad: int = 0) -> None:
        self.source, self.mode, self.where, self.seed, self.max_bad = source, mode, where, seed, max_bad
        # Shared, for loader processes find them and the main one names them.
        self._is_bad = torch.zeros(len(source) if max_bad else 0, dtype=torch.bool).share_memory_()
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int | Place) -> tuple[Any, int]:
        if isinstance(place, Place):
            seed_generators(self.seed, Draw.IMAGE, *place)
        index = place.image if isinstance(place, Place) else place
        try:
            image, target = self._read(index)
        except KeyError as error:
            raise DataError(
                f"{self.where}: there is no column {error}; name the columns with --input-key and --target-key"
            ) from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(place, Place) and self.max_bad:
                return self._stand_in(place, error)
            raise DataError(
                f"{self._name(index)}: cannot be read as an image ({error}). Repair or remove it."
            ) from error
        return (image if self.transform is None else self.transform(image)), target

    def unreadable(self) -> tuple[str, ...]:
        """Names of the images that others stood in for so far."""
        return tuple(self._name(int(index)) for index in self._is_bad.nonzero())

    def _stand_in(self, place: Place, error: Exception) -> tuple[Any, int]:
        self._is_bad[place.image] = True
        if int(self._is_bad.sum()) > self.max_bad:
            raise DataError(
                f"{self._name(place.image)}: cannot be read as an image ({error}), and {self.max_bad} others cannot "
                "either. Repair or remove them, or allow more with --max-bad-images."
            ) from error
        return self[place._replace(image=(place.image + 1) % len(self))]

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not isinstance(self.source, ImageDataset):
            image, target = self.source[index]
            return image.convert(self.mode), target
        file, target = self.source.reader[index]
        with file, Image.open(file) as image:
            return image.convert(self.mode), target

    def _name(self, index: int) -> str:
        try:
            return str(self.source.reader.filename(index, absolute=True))
        except (AttributeError, NotImplementedError, AssertionError, TypeError, KeyError):
            return f"{self.where}, image {index}"


def open_split(
    data: DataSettings,
    split: str,
    *,
    channels: int,
    is_training: bool = False,
    is_root_allowed: bool = False,
    classes: Mapping[str, int] | None = None,
    seed: int = 0,
    batch_size: int = 1,
    max_bad_images: int = 0,
) -> Split:
    """Opens one split.

    Args:
        data: which data set.
        split: name of the split.
        channels: of an image, 1, 3 or 4.
        is_training: shuffles a streamed data set.
        is_root_allowed: an image folder without any split folder is then itself the split.
        classes: names to indices, in place of the data set's own.
        seed: of the augmentation, and of a stream's shuffle.
        batch_size: of a training process; an epoch of a stream is rounded up to whole batches.
        max_bad_images: of training images.
    Raises:
        DataError: nothing there, nothing in it, or nothing that can be read.
    """
    if channels not in _MODES:
        raise DataError(f"the model takes {channels} channels, and images can be read with 1, 3 or 4 only")
    root, where = _root(data, split, is_root_allowed=is_root_allowed)
    mode = _MODES[channels]
    options: dict[str, Any] = {
        "root": root,
        "split": split,
        "search_split": False,
        "class_map": dict(classes) if classes else data.class_map or None,
        "is_training": is_training,
        "download": data.dataset_download,
        "num_samples": data.train_num_samples if is_training else data.val_num_samples,
        "input_img_mode": mode,
        "input_key": data.input_key,
        "target_key": data.target_key,
        **({"seed": seed, "batch_size": batch_size} if data.is_stream else {}),
    }
    try:
        # It warns of a webdataset without `info.json`, which helps nobody who names the shards.
        with hushed("timm.data.readers.reader_wds", below=logging.ERROR):
            source = create_dataset(data.dataset, **options)
    except Exception as error:  # any reader of any library may be behind the name; the user needs one sentence
        raise DataError(
            f"{where}: cannot be opened as a data set: {first_line(error)}{_advice(data, error)}"
        ) from error
    names = _class_index(source)
    if isinstance(source, IterableImageDataset):
        stream = open_stream(source, seed=seed if is_training else None, where=where)
        return Split(images=stream, classes=names, where=where)
    if not len(source):
        raise DataError(f"{where}: the split has no images")
    samples = Samples(source, mode=mode, where=where, seed=seed, max_bad=max_bad_images)
    return Split(images=samples, classes=names, where=where)


def check_folders(data: DataSettings) -> None:
    """Raises DataError, before anything costs time, when no data is named or a split's folder is not there."""
    for split in (data.train_split, data.val_split):
        _root(data, split, is_root_allowed=False)


def check_classes(split: Split, *, num_classes: int, is_mapped: bool) -> None:
    """Raises DataError unless the classes are the model's outputs; under a class map they may be a part."""
    found = len(split.classes)
    if not found or found == num_classes or (is_mapped and max(split.classes.values()) < num_classes):
        return
    some = ", ".join(list(split.classes)[:4]) + (", ..." if found > 4 else "")
    raise DataError(
        f"{split.where}: {found} classes ({some}), but the model has {num_classes} outputs. Make a model with "
        f"--num-classes {found}, or map the names to the model's outputs with --class-map FILE."
    )


def missing_classes(train: Split, val: Split) -> tuple[str, ...]:
    """Class names of the evaluation split that the training split lacks."""
    return tuple(name for name in val.classes if train.classes and name not in train.classes)


def _root(data: DataSettings, split: str, *, is_root_allowed: bool) -> tuple[str | None, str]:
    """The folder to read and the words for messages; only image folders are looked at here."""
    if data.dataset.lower().startswith("wds/") and not data.data_dir:
        raise DataError("wds/ reads the shards that --train-split and --val-split name from --data-dir; give that, too")
    if data.dataset:
        return data.data_dir, f"{data.dataset} ({split})"
    if not data.data_dir:
        raise DataError("no data: name an image folder with --data-dir DIR, or a data set with --dataset hfds/NAME")
    root = Path(data.data_dir)
    if not root.exists():
        raise DataError(f"{root}: no such folder. Give --data-dir the folder that holds {split}/CLASS/IMAGE files.")
    if root.is_file() and root.suffix != ".tar":
        raise DataError(f"{root}: wanted a folder of images, got a file")
    folder = root if root.is_file() else _split_folder(root, split, is_root_allowed=is_root_allowed)
    return str(folder), str(folder)


def _split_folder(root: Path, split: str, *, is_root_allowed: bool) -> Path:
    names = list(dict.fromkeys((split, *next((known for known in _SYNONYMS if split in known), ()))))
    for name in names:
        if (root / name).is_dir():
            return root / name
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if is_root_allowed and not any(name in known for known in _SYNONYMS for name in folders):
        return root
    held = ", ".join(folders[:6]) + (", ..." if len(folders) > 6 else "") if folders else "no folders"
    raise DataError(
        f'{root}: no split "{split}" (folder {" or ".join(names)}); it holds {held}. '
        "Name the folders with --train-split and --val-split."
    )


def _class_index(source: Any) -> Mapping[str, int]:
    index = getattr(getattr(source, "reader", source), "class_to_idx", None)
    return dict(index) if index else {}


def _advice(data: DataSettings, error: Exception) -> str:
    if isinstance(error, ImportError) or "install webdataset" in str(error):
        return ". Install what it needs: pip install 'reparam[data]'."
    if "num_samples" in str(error):
        return ". Say how many images a stream has, with --train-num-samples and --val-num-samples."
    if data.dataset.lower().startswith("wds/"):
        return ". Name the shards, as in --train-split 'train-{0000..0099}.tar'."
    if data.dataset.lower().startswith("torch/") and not data.dataset_download:
        return ". Pass --dataset-download to fetch it."
    return ""
