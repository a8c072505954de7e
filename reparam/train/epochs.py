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
        self._erasing = _PlacedErasing(loader.random_erasing, seed=seed) if loader.random_erasing else None
        loader.random_erasing = self._erasing

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
    """The batches of an epoch after the first `done`; a stream, which cannot be sought, is read up to there."""
    if isinstance(batches, Seekable):
        batches.begin(epoch, done=done)
        return batches
    return itertools.islice(batches, done, None)
