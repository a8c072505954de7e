"""The order of the training images: a shuffle per epoch that can begin anywhere and is shared out over processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from reparam.train.randomness import Draw, mix


class Place(NamedTuple):
    """Which image, and in which epoch: what its augmentation is drawn from."""

    epoch: int
    image: int


class EpochOrder(Sampler[Place]):
    """Every image once an epoch; process r of n takes each n-th one from the r-th, all the same number.

    So the batches of n processes together are the batches of one process that are n times as large.
    """

    def __init__(self, images: int, *, seed: int, process: int = 0, processes: int = 1) -> None:
        self._images, self._seed, self._process, self._processes = images, seed, process, processes
        self._epoch = self._first = 0

    def begin(self, epoch: int, *, first: int = 0) -> None:
        """Chooses the epoch, and the first image of this process's part to give."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[Place]:
        generator = torch.Generator().manual_seed(mix(self._seed, Draw.ORDER, self._epoch))
        order = torch.randperm(self._images, generator=generator)[self._process :: self._processes].tolist()
        return (Place(self._epoch, image) for image in order[self._first : self._first + len(self)])

    def __len__(self) -> int:
        """How many images are left of this process's part."""
        return self._images // self._processes - self._first
