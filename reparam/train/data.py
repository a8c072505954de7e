"""Loaders: timm's transforms, collation and prefetching, set up for what the model takes.

The loaders share their images out over processes by themselves, so they are never handed to Accelerate, which would
share them out a second time. timm's prefetcher normalises whole batches, which on a CPU too is faster than image by
image (measured on 8x8 images: 260 ms against 323 ms an epoch of 1408).
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from timm.data import create_loader, resolve_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision import transforms

from reparam.errors import DataError, OptionError
from reparam.processes import process_count, process_index
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.epochs import EpochLoader, StreamLoader
from reparam.train.order import EpochOrder, Place
from reparam.train.resident import Resident, ResidentEvaluation, ResidentTraining, check_augmentation
from reparam.train.splits import Samples, Split, check_classes, missing_classes, open_split

#: Images that are decoded before they are normalised together.
_SAMPLED_TOGETHER = 32


class Batches(Protocol):
    """What the loop needs of a loader: batches of images (B, C, H, W) and labels (B,), and how many an epoch has."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """What the model takes: `input_size` (channels, height, width), and how an image is brought there."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @property
    def preparation(self) -> dict[str, Any]:
        """All but the size, under timm's names."""
        return {name: value for name, value in asdict(self).items() if name != "input_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """The training and the evaluation loader of one stage."""

    train: Batches
    val: Batches


def image_format(
    data: DataSettings, *, input_size: tuple[int, int, int], model: Mapping[str, Any] | None = None
) -> ImageFormat:
    """Joins what the model was made for (`model`: timm's `pretrained_cfg` keys) with what the settings override."""
    overrides = {"interpolation": data.interpolation or None, "crop_pct": data.crop_pct}
    config = resolve_data_config(args={**overrides, "input_size": input_size}, pretrained_cfg=dict(model or {}))
    _check_interpolation(config["interpolation"])
    return ImageFormat(
        input_size=input_size,
        mean=_per_channel(data.mean or config["mean"], input_size[0], name="mean"),
        std=_per_channel(data.std or config["std"], input_size[0], name="std"),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def make_loaders(
    data: DataSettings, settings: TrainSettings, *, image: ImageFormat, num_classes: int, device: torch.device
) -> Loaders:
    """Opens both splits and makes their loaders; the class indices are those of the training split.

    Under a distributed launch each process gets its own part of both.

    Raises:
        DataError: a split that cannot be read, or whose classes are not the model's outputs.
        OptionError: augmentation settings that timm does not know.
    """
    channels, is_mapped = image.input_size[0], bool(data.class_map)
    train = open_split(
        data,
        data.train_split,
        channels=channels,
        is_training=True,
        seed=settings.seed,
        batch_size=settings.batch_size,
        max_bad_images=settings.max_bad_images,
    )
    check_classes(train, num_classes=num_classes, is_mapped=is_mapped)
    val = _with_the_classes_of(train, open_split(data, data.val_split, channels=channels), data, channels)
    check_classes(val, num_classes=num_classes, is_mapped=is_mapped)
    _check_is_a_batch(train, settings.batch_size)
    eval_batch = settings.validation_batch_size or settings.batch_size
    if settings.in_memory:
        return _resident_loaders(train, val, settings, image=image, eval_batch=eval_batch, device=device)
    return Loaders(
        train=_train_loader(train, data, settings, image=image, device=device),
        val=_eval_loader(val, image=image, batch_size=eval_batch, workers=settings.workers, device=device),
    )


def _resident_loaders(
    train: Split, val: Split, settings: TrainSettings, *, image: ImageFormat, eval_batch: int, device: torch.device
) -> Loaders:
    """Loaders of images that are all decoded here, once, by the loader processes."""
    check_augmentation(settings)
    workers = settings.workers
    held = _held(train, image=replace(image, crop_pct=1.0), workers=workers, device=device, is_training=True)
    order = EpochOrder(len(held.images), seed=settings.seed, process=process_index(), processes=process_count())
    return Loaders(
        train=ResidentTraining(held, order, settings, process=process_index(), unreadable=_samples(train).unreadable()),
        val=ResidentEvaluation(
            _held(val, image=image, workers=workers, device=device),
            batch_size=eval_batch,
            first=process_index(),
            step=process_count(),
        ),
    )


def _held(
    split: Split, *, image: ImageFormat, workers: int, device: torch.device, is_training: bool = False
) -> Resident:
    samples = _samples(split)
    loader = _loader(split, image=image, batch_size=256, workers=workers, device=device, **_evaluation(image))
    if is_training:  # by their places: only there may an image stand in for one that cannot be read
        loader.batch_sampler.sampler = [Place(epoch=0, image=index) for index in range(len(samples))]
    batches = read_batches(loader.loader, device=torch.device("cpu"))
    return Resident.of(batches, mean=image.mean, std=image.std, device=device)


def _samples(split: Split) -> Samples:
    if isinstance(split.images, IterableDataset):
        raise OptionError(f"in_memory: {split.where} is a stream, which cannot be held; leave in_memory out")
    return split.images


def make_eval_loader(
    data: DataSettings,
    *,
    image: ImageFormat,
    num_classes: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    spread: int | None = None,
) -> tuple[Batches, Mapping[str, int]]:
    """Opens the evaluation split alone, and returns its loader and its class names, as `Split` has them.

    A folder that has no split folders is the split. With `spread`, only so many images are read, evenly spaced over the
    split, for folders are sorted by class; a stream gives all of its images. Raises as `make_loaders`.
    """
    split = open_split(data, data.val_split, channels=image.input_size[0], is_root_allowed=True)
    check_classes(split, num_classes=num_classes, is_mapped=bool(data.class_map))
    loader = _eval_loader(split, image=image, batch_size=batch_size, workers=workers, device=device, spread=spread)
    return loader, split.classes


def sample_images(data: DataSettings, *, image: ImageFormat, count: int, device: torch.device) -> tuple[Tensor, str]:
    """Images (N, C, H, W) spread evenly over the training split, as an evaluation prepares them, and the split's name.

    A folder that has no split folders is the split, whatever its classes. A split that holds fewer gives all it has; a
    stream gives its first ones.

    Raises:
        DataError: a split or an image that cannot be read.
    """
    split = open_split(data, data.train_split, channels=image.input_size[0], is_root_allowed=True)
    loader: Any = _eval_loader(split, image=image, batch_size=min(count, _SAMPLED_TOGETHER), workers=0, device=device)
    if not isinstance(split.images, IterableDataset):
        held = len(split.images)
        loader.batch_sampler.sampler = [number * held // min(count, held) for number in range(min(count, held))]
    return first_images(loader, count, device=device), split.where


def read_batches(batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches on the device; an error of a loader process is raised here with its own message alone."""
    try:
        for images, targets in batches:
            yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        return
    except DataError as error:
        # A loader process hands its whole traceback over as the message; the last line is the error itself.
        message = str(error).strip().splitlines()[-1].removeprefix("reparam.errors.DataError: ")
        # Its frames hold the loader in a cycle; one that the garbage collector ends waits 5 s for its processes.
        error.__traceback__ = None
    raise DataError(message)


def first_images(batches: Batches, count: int, *, device: torch.device) -> Tensor:
    """The first `count` images of a loader, or as many as it has (N, C, H, W)."""
    found: list[Tensor] = []
    for images, _ in read_batches(batches, device=device):
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def _with_the_classes_of(train: Split, val: Split, data: DataSettings, channels: int) -> Split:
    """Re-opens a folder split that lacks some classes with the training indices, which would shift otherwise."""
    missing = missing_classes(train, val)
    if missing:
        raise DataError(f"{val.where}: classes that {train.where} does not have: {', '.join(missing[:5])}")
    if data.dataset or not train.classes or val.classes == train.classes:
        return val
    return open_split(data, data.val_split, channels=channels, classes=train.classes)


def _train_loader(
    split: Split, data: DataSettings, settings: TrainSettings, *, image: ImageFormat, device: torch.device
) -> Batches:
    _check_interpolation(data.train_interpolation, is_training=True)
    augmentation = {
        "is_training": True,
        "no_aug": settings.no_aug,
        "scale": settings.scale,
        "ratio": settings.ratio,
        "hflip": settings.hflip,
        "vflip": settings.vflip,
        "color_jitter": settings.color_jitter,
        "auto_augment": settings.aa,
        "re_prob": settings.reprob,
        "re_mode": "pixel",
        "interpolation": data.train_interpolation,
    }
    loader = _loader(
        split, image=image, batch_size=settings.batch_size, workers=settings.workers, device=device, **augmentation
    )
    if settings.crop_padding:
        _crop_from_padding_(split, image, settings)
    if isinstance(split.images, IterableDataset):
        return StreamLoader(loader, seed=settings.seed)
    order = EpochOrder(len(split.images), seed=settings.seed, process=process_index(), processes=process_count())
    return EpochLoader(loader, order, batch_size=settings.batch_size, seed=settings.seed)


def _crop_from_padding_(split: Split, image: ImageFormat, settings: TrainSettings) -> None:
    """Puts CIFAR's augmentation in the place of timm's random area, which it has no option for."""
    if settings.no_aug:
        raise OptionError("crop_padding is an augmentation, and no_aug turns those off; leave one of them out")
    steps = split.images.transform.transforms  # type: ignore[union-attr]  # what timm has put there
    resize = transforms.Resize(image.input_size[1:], interpolation=str_to_interp_mode(image.interpolation))
    steps[:1] = [resize, transforms.RandomCrop(image.input_size[1:], padding=settings.crop_padding)]


def _eval_loader(
    split: Split,
    *,
    image: ImageFormat,
    batch_size: int,
    workers: int,
    device: torch.device,
    spread: int | None = None,
) -> Batches:
    loader = _loader(
        split,
        image=image,
        batch_size=batch_size,
        workers=workers,
        device=device,
        **_evaluation(image),
    )
    if not isinstance(split.images, IterableDataset):
        total = len(split.images)
        if spread is not None and spread < total:
            loader.batch_sampler.sampler = [place * total // spread for place in range(spread)]
        elif process_count() > 1:
            # timm's own share pads with repeated images, which would count twice.
            loader.batch_sampler.sampler = range(process_index(), total, process_count())
    batches: Batches = loader
    return batches


def _evaluation(image: ImageFormat) -> dict[str, Any]:
    """timm's options for images as they are."""
    return {"interpolation": image.interpolation, "crop_pct": image.crop_pct, "crop_mode": image.crop_mode}


def _loader(
    split: Split, *, image: ImageFormat, batch_size: int, workers: int, device: torch.device, **options: Any
) -> Any:
    samples: Any = split.images  # timm's annotation names its own classes, its code takes any data set
    try:
        return create_loader(
            samples,
            image.input_size,
            batch_size,
            mean=image.mean,
            std=image.std,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            device=device,
            **options,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise OptionError(f"augmentation settings that timm does not take: {error or type(error).__name__}") from error


def _check_is_a_batch(split: Split, batch_size: int) -> None:
    images = batch_size if isinstance(split.images, IterableDataset) else len(split.images) // process_count()
    if images < batch_size:
        each = "" if process_count() == 1 else " for each process"
        raise DataError(
            f"{split.where}: {images} images{each} are less than one batch; pass --batch-size {images} or less"
        )


def _per_channel(values: tuple[float, ...], channels: int, *, name: str) -> tuple[float, ...]:
    """Fits normalisation figures to the channels: one serves all, and RGB figures are averaged for grey images."""
    if len(values) == channels:
        return tuple(values)
    if len(values) == 1 or channels == 1:
        return (statistics.fmean(values),) * channels
    raise DataError(f"--{name}: wanted 1 or {channels} figures for {channels} channels, got {len(values)}")


def _check_interpolation(name: str, *, is_training: bool = False) -> None:
    if name == "random" and is_training:
        return
    try:
        str_to_interp_mode(name)
    except KeyError:
        raise OptionError(
            f'unknown interpolation "{name}". Known: nearest, bilinear, bicubic, lanczos; in training random too.'
        ) from None
