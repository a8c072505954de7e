"""A training loader whose epochs can be begun at any batch, and give the same batches wherever they are begun."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from reparam.train.order import EpochOrder
from reparam.train.randomness import Draw, seed_generators

MicroBatch = tuple[Tensor, Tensor]


class EpochLoader:
    """timm's prefetching loader, whose order and random erasing are drawn from the epoch and the batch.

    Args:
        loader: made by timm's `create_loader` for training on a counted data set.
        order: takes the place of its shuffle.
        batch_size: of this process.
        seed: of the run.
    """

    def __init__(self, loader: Any, order: EpochOrder, *, batch_size: int, seed: int) -> None:
        # timm has no option for a sampler of one's own; torch's batch sampler looks its sampler up in every epoch.
        loader.batch_sampler.sampler = order
        self._loader, self._order, self._batch_size = loader, order, batch_size
        self._length = len(order) // batch_size
        self._erasing = _place_erasing_(loader, seed=seed)

    def begin(self, epoch: int, *, done: int = 0) -> None:
        """Makes the next iteration that of `epoch`, without its first `done` batches."""
        self._order.begin(epoch, first=done * self._batch_size)
        if self._erasing is not None:
            self._erasing.begin(epoch, done)

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._loader)

    def unreadable(self) -> tuple[str, ...]:
        """Names of the images that could not be read so far."""
        names: tuple[str, ...] = self._loader.dataset.unreadable()
        return names

    def __len__(self) -> int:
        """The batches of a whole epoch; the rest that fills no batch is left out, another one in each epoch."""
        return self._length


class StreamLoader:
    """timm's prefetching loader of a `StreamReader`'s images: an epoch is begun anywhere by reading up to there.

    Args:
        loader: made by timm's `create_loader` for training.
        seed: of the run.
    """

    def __init__(self, loader: Any, *, seed: int) -> None:
        self._loader, self._done = loader, 0
        self._erasing = _place_erasing_(loader, seed=seed)

    def begin(self, epoch: int, *, done: int = 0) -> None:
        """Makes the next iteration that of `epoch`, without its first `done` batches."""
        self._loader.dataset.set_epoch(epoch)
        self._done = done
        if self._erasing is not None:
            self._erasing.begin(epoch, 0)

    def __iter__(self) -> Iterator[MicroBatch]:
        return itertools.islice(self._loader, self._done, None)

    def unreadable(self) -> tuple[str, ...]:
        """None: a webdataset's reader passes over such images with a warning, the others end the run."""
        return ()

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return len(self._loader)


def _place_erasing_(loader: Any, *, seed: int) -> "_PlacedErasing | None":
    """Makes a loader's random erasing, if it has any, draw from the batch's place."""
    if not loader.random_erasing:
        return None
    loader.random_erasing = _PlacedErasing(loader.random_erasing, seed=seed)
    placed: _PlacedErasing = loader.random_erasing
    return placed


class _PlacedErasing:
    """timm's random erasing of a whole batch, drawn from the batch's place."""

    def __init__(self, erase: Callable[[Tensor], Tensor], *, seed: int) -> None:
        self._erase, self._seed = erase, seed
        self.begin(0, 0)

    def begin(self, epoch: int, batch: int) -> None:
        self._epoch, self._batch = epoch, batch

    def __call__(self, images: Tensor) -> Tensor:
        seed_generators(self._seed, Draw.BATCH, self._epoch, self._batch)
        self._batch += 1
        return self._erase(images)


@runtime_checkable
class Seekable(Protocol):
    """A loader whose epochs can be begun anywhere."""

    def begin(self, epoch: int, *, done: int = 0) -> None:
        """Makes the next iteration that of `epoch`, without its first `done` batches."""

    def unreadable(self) -> tuple[str, ...]:
        """Names of the images that could not be read so far."""


def open_epoch(batches: Iterable[MicroBatch], epoch: int, *, done: int) -> Iterable[MicroBatch]:
    """The batches of an epoch after the first `done`; other loaders than ours are read up to there."""
    if isinstance(batches, Seekable):
        batches.begin(epoch, done=done)
        return batches
    return itertools.islice(batches, done, None)
