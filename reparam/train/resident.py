"""Small data sets held decoded on the device: batches are gathered and augmented there, with nothing to wait for.

Decoding and augmenting a 32x32 image takes a core longer than training on it takes a GPU (0.7 ms an image, see
benchmarks/training_costs.py), so every image is decoded once, and the augmentation is the one that CIFAR's models are
trained with: a crop out of padding, and flips, drawn for a whole batch from its place.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import OptionError
from reparam.recipe.settings import TrainSettings
from reparam.train.epochs import MicroBatch
from reparam.train.order import EpochOrder
from reparam.train.randomness import Draw, seed_generators


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """All images of a split (N, H, W, C), 0 to 255, their labels (N,), and how a float batch is normalised."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(
        cls, batches: Iterable[MicroBatch], *, mean: Sequence[float], std: Sequence[float], device: Any
    ) -> "Resident":
        """Collects batches of bytes (B, C, H, W)."""
        images, labels = zip(*((x.permute(0, 2, 3, 1), y) for x, y in batches), strict=True)
        scales = (torch.tensor(values, device=device) * 255 for values in (mean, std))
        return cls(
            images=torch.cat(images).contiguous().to(device),
            labels=torch.cat(labels).to(device),
            **dict(zip(("mean", "std"), scales, strict=True)),
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W) of bytes (B, H, W, C)."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()


class ResidentEvaluation:
    """Batches of every `step`-th image from the `first`, in order, as they are."""

    def __init__(self, held: Resident, *, batch_size: int, first: int = 0, step: int = 1) -> None:
        self._held, self._parts = held, torch.arange(first, len(held.images), step).split(batch_size)

    def __iter__(self) -> Iterator[MicroBatch]:
        for part in self._parts:
            yield self._held.normalised(self._held.images[part]), self._held.labels[part]

    def __len__(self) -> int:
        return len(self._parts)


class ResidentTraining:
    """Augmented batches in the order of an epoch, which can be begun anywhere; as `EpochLoader`.

    Args:
        held: the training split.
        order: of its images, for this process.
        settings: batch size, seed, and the augmentation.
        process: which process this is.
        unreadable: names of the images that others stand in for.
    Raises:
        OptionError: an augmentation that works image by image.
    """

    def __init__(
        self,
        held: Resident,
        order: EpochOrder,
        settings: TrainSettings,
        *,
        process: int = 0,
        unreadable: tuple[str, ...] = (),
    ) -> None:
        check_augmentation(settings)
        self._unreadable = unreadable
        self._held, self._order, self._settings, self._process = held, order, settings, process
        self._epoch = self._done = 0
        self._length = len(order) // settings.batch_size
        self._erase = None
        if settings.reprob and not settings.no_aug:
            self._erase = RandomErasing(settings.reprob, mode="pixel", device=held.images.device)

    def begin(self, epoch: int, *, done: int = 0) -> None:
        """Makes the next iteration that of `epoch`, without its first `done` batches."""
        self._epoch, self._done = epoch, done
        self._order.begin(epoch)

    def __iter__(self) -> Iterator[MicroBatch]:
        size = self._settings.batch_size
        places = torch.tensor([place.image for place in self._order])
        for batch in range(self._done, self._length):
            index = places[batch * size : (batch + 1) * size].to(self._held.labels.device)
            yield self._augmented(self._held.images[index], batch), self._held.labels[index]

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self._length

    def unreadable(self) -> tuple[str, ...]:
        """Names of the images that could not be read when all were decoded."""
        return self._unreadable

    def _augmented(self, images: Tensor, batch: int) -> Tensor:
        settings = self._settings
        if settings.no_aug:
            return self._held.normalised(images)
        seed_generators(settings.seed, Draw.BATCH, self._epoch, batch, self._process)
        images = _flipped(images, 2, settings.hflip)
        images = _flipped(images, 1, settings.vflip)
        normalised = self._held.normalised(_cropped(images, settings.crop_padding))
        return normalised if self._erase is None else self._erase(normalised)


def check_augmentation(settings: TrainSettings) -> None:
    """Raises OptionError for an augmentation that images held on a device cannot have."""
    if settings.no_aug:
        return
    faults = []
    if not settings.crop_padding:
        faults.append("a crop of random area (give crop_padding, or no_aug)")
    if settings.color_jitter:
        faults.append(f"color_jitter = {settings.color_jitter:g} (give 0)")
    if settings.aa:
        faults.append(f'aa = "{settings.aa}" (leave it out)')
    if faults:
        raise OptionError(
            f"in_memory crops and flips whole batches, and cannot do: {'; '.join(faults)}. Change that, or leave "
            "in_memory out."
        )


def _flipped(images: Tensor, axis: int, probability: float) -> Tensor:
    if not probability:
        return images
    chosen = torch.rand(len(images)).lt(probability).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(axis), images)


def _cropped(images: Tensor, padding: int) -> Tensor:
    """Images (B, H, W, C) moved by up to `padding` pixels each way; black comes in."""
    if not padding:
        return images
    count, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    corners = torch.randint(2 * padding + 1, (2, count, 1)).to(images.device)
    rows = corners[0] + torch.arange(height, device=images.device)
    columns = corners[1] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]
